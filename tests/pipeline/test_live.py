"""What is live: one file that is swapped, a log that only grows, whatever is killed, and outputs that stay."""

import json
import multiprocessing

import pytest

from sidr_core.errors import StoreError
from sidr_core.pipeline import gc as garbage
from sidr_core.pipeline import live
from sidr_core.pipeline.live import Alias, Live
from sidr_core.pipeline.store import Store


def named(number: int) -> Live:
    return Live("toys", f"2020-0{number}", "grpo/thinking", {"evaluation": f"{number:032x}"})


def promoted(root, new: Live, old: Live | None) -> None:
    live.decide(root, "toys", {"decision": "promoted"}, old, (new, old))


def test_nothing_is_live_at_the_start(tmp_path):
    assert live.read(tmp_path, "toys") == Alias()
    assert live.entries(tmp_path, "toys") == [] and live.kept(tmp_path) == set()


def test_a_change_moves_the_old_one_behind_and_is_logged(tmp_path):
    promoted(tmp_path, named(1), None)
    promoted(tmp_path, named(2), named(1))
    live.decide(tmp_path, "toys", {"decision": "rejected"}, named(2))
    state = live.read(tmp_path, "toys")
    assert (state.live, state.before) == (named(2), named(1))
    entries = live.entries(tmp_path, "toys")
    assert [(entry["number"], entry["decision"]) for entry in entries] == [
        (1, "promoted"), (2, "promoted"), (3, "rejected"),
    ]  # fmt: skip
    assert all(entry["at"] and entry["who"] for entry in entries)
    assert live.kept(tmp_path) == {("evaluation", f"{number:032x}") for number in (1, 2)}


def test_who_did_not_know_what_is_live_changes_nothing(tmp_path):
    promoted(tmp_path, named(1), None)
    with pytest.raises(StoreError, match="changed meanwhile"):
        promoted(tmp_path, named(2), None)
    assert live.read(tmp_path, "toys").live == named(1) and len(live.entries(tmp_path, "toys")) == 1


def _race(root, number, barrier, won):
    barrier.wait()
    try:
        promoted(root, named(number), None)
        won.put(number)
    except StoreError:
        won.put(0)


def test_one_of_many_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, n, barrier, won)) for n in range(1, 5)]
    for process in processes:
        process.start()
    results = [won.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    (winner,) = [number for number in results if number]
    assert live.read(tmp_path, "toys").live == named(winner) and len(live.entries(tmp_path, "toys")) == 1


def test_a_kill_before_the_log_loses_no_decision(tmp_path, monkeypatch):
    promoted(tmp_path, named(1), None)
    append, calls = live._append, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(*args)

    monkeypatch.setattr(live, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        promoted(tmp_path, named(2), named(1))
    monkeypatch.setattr(live, "_append", append)
    assert live.read(tmp_path, "toys").live == named(2)
    assert [entry["number"] for entry in live.entries(tmp_path, "toys")] == [1, 2]
    promoted(tmp_path, named(3), named(2))
    lines = (tmp_path / "live" / "toys.log").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3]


def test_a_line_that_was_cut_short_is_written_again(tmp_path):
    promoted(tmp_path, named(1), None)
    promoted(tmp_path, named(2), named(1))
    log = tmp_path / "live" / "toys.log"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    assert [entry["number"] for entry in live.entries(tmp_path, "toys")] == [1, 2]
    live.decide(tmp_path, "toys", {"decision": "rejected"}, named(2))
    assert log.read_bytes().startswith(whole)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"live": 3}', '{"live": null, "before": null, "decision": {}}'])
def test_a_damaged_file_is_an_error_and_stops_the_collection(tmp_path, text):
    store = Store(tmp_path / "store")
    promoted(store.root, named(1), None)
    (store.root / "live" / "toys.json").write_text(text)
    with pytest.raises(StoreError, match=r"toys\.json is damaged"):
        live.read(store.root, "toys")
    with pytest.raises(StoreError, match=r"toys\.json is damaged"):
        list(garbage.find(store, 0))


def test_the_collection_keeps_what_is_live_and_what_was_before_it(tmp_path):
    store = Store(tmp_path / "store")
    made = []
    for number in range(4):
        artifact, _ = store.obtain(
            "evaluation", "1", {"n": number}, lambda folder: (folder / "x").write_text("x") and None
        )
        made.append(Live("toys", "2020-01", "grpo/direct", {"evaluation": artifact.fingerprint}))
        del artifact
    for new, old in zip(made[:3], [None, *made[:2]], strict=True):
        promoted(store.root, new, old)
    found = list(garbage.find(store, 0, deep=True))
    assert {one.fingerprint for one in found} == {made[n].outputs["evaluation"] for n in (0, 3)}
    assert not store.remove("evaluation", made[1].outputs["evaluation"])
    assert all(garbage.drop(store, one) for one in found)
    assert {path.name for path in (store.root / "evaluation").glob("[!.]*")} == {
        made[n].outputs["evaluation"] for n in (1, 2)
    }
