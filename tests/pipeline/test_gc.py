"""Garbage collection: what goes and what stays, beside running stages, and cut short at any step."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sidr_core.errors import StoreError
from sidr_core.pipeline import gc as garbage
from sidr_core.pipeline.store import MANIFEST, Store, fingerprint


def write(text):
    return lambda folder: (folder / "out.txt").write_text(text) and None


def put(store, stage, key, *, lineage=None, parts=(), ref=None):
    """Publish an output as a stage does; gives its fingerprint."""
    made, _ = store.obtain(
        stage, "1", {"k": key}, write(f"{stage} {key}"), extra={"lineage": lineage or {}, "parts": list(parts)}
    )
    if ref:
        store.set_ref("toys", ref, stage, made.fingerprint)
    return made.fingerprint


def collect(store, days=0.0, **options):
    """Delete all that can go; gives (kind, name of the file or folder) of what went."""
    return {(one.kind, one.path.name) for one in garbage.find(store, days, **options) if garbage.drop(store, one)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home" / "store")


@pytest.fixture
def chain(store):
    """Two generations of three stages and a part each; the second is current, but evaluation still the first."""
    outputs = {}
    for n in (1, 2):
        outputs[f"part{n}"] = put(store, "decoded", n)
        outputs[f"base{n}"] = put(store, "interactions", n, ref="2020-01")
        lineage = {"interactions": outputs[f"base{n}"]}
        parts = [("decoded", outputs[f"part{n}"])]
        outputs[f"lists{n}"] = put(store, "recommendations", n, lineage=lineage, parts=parts, ref="2020-01")
    lineage = {"2019-12/recommendations": outputs["lists1"]}  # as an input of an earlier snapshot is named
    outputs["scores1"] = put(store, "evaluation", 1, lineage=lineage, ref="2020-01")
    outputs["lost"] = put(store, "interactions", "lost")
    outputs["lost_part"] = put(store, "decoded", "lost")
    return outputs


def present(store):
    return {path.parent.name for path in store.root.glob(f"*/*/{MANIFEST}")}


def test_inputs_and_parts_of_what_is_current_stay(store, chain):
    assert collect(store) == {("output", chain["lost"]), ("part", chain["lost_part"])}
    assert present(store) == set(chain.values()) - {chain["lost"], chain["lost_part"]}
    assert collect(store) == set()


def test_deep_leaves_what_is_current_alone(store, chain):
    collect(store, deep=True)
    assert present(store) == {chain["base2"], chain["lists2"], chain["scores1"]}
    for stage in ("interactions", "recommendations", "evaluation"):
        store.require("toys", "2020-01", stage).verified_folder()


def test_the_small_world_has_nothing_to_delete_until_a_setting_changes(world):
    assert list(garbage.find(world.store, 0)) == []
    before = world.store.refs()
    other, _ = world.store.obtain("evaluation", "9", {}, write("x"))
    name = other.fingerprint
    del other
    assert collect(world.store) == {("output", name)}
    assert world.store.refs() == before
    assert world.run("evaluation").reused and world.run("recommendations").reused


def test_parts_of_unfinished_work_stay_for_some_days(store):
    fp = put(store, "decoded", 1)
    assert collect(store, days=1) == set()
    assert collect(store, days=0) == {("part", fp)}


def test_resume_points_go_when_published_or_old(store):
    done, going = put(store, "grpo_checkpoint", 1, ref="2020-01"), fingerprint("grpo_checkpoint", "1", {"k": 2})
    for fp in (done, going):
        (store.resume_folder("grpo_checkpoint", fp) / "checkpoint-5").mkdir(parents=True)
        (store.resume_folder("grpo_checkpoint", fp) / "checkpoint-5" / "weights").write_bytes(b"x" * 1000)
    assert collect(store, days=1) == {("unfinished", f".resume-{done}")}
    point = store.resume_folder("grpo_checkpoint", going)
    for path in (point, point / "checkpoint-5", point / "checkpoint-5" / "weights"):
        os.utime(path, (time.time() - 3 * 86_400,) * 2)
    (removable,) = garbage.find(store, days=2)
    assert (removable.kind, removable.bytes, removable.why) == ("unfinished", 1000, "not touched for 3 days")
    assert collect(store, days=2) == {("unfinished", f".resume-{going}")}
    assert not point.exists()


def test_what_the_dead_left_goes_and_what_the_living_write_stays(store, tmp_path):
    fp = put(store, "interactions", 1, ref="2020-01")
    folder = store.root / "interactions"
    (folder / f".tmp-{fp}-99-abc").mkdir()
    (folder / f".{fp}.owner").write_text("pid 99 on nowhere")
    torn = folder / ("0" * 32)
    torn.mkdir()
    (torn / "half.txt").write_text("x")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    refs = store.root / "refs" / "toys" / "2020-01"
    aside = [
        refs / f".interactions.json.{dead.pid}.0a1b2c3d",
        store.root.parent / f".catalog.duckdb.{dead.pid}.0a1b2c3d",
    ]
    fresh = refs / f".interactions.json.{dead.pid}.ffffffff"
    mine = refs / f".interactions.json.{os.getpid()}.0a1b2c3d"
    for path in (*aside, fresh, mine):
        path.write_text("{}")
    for path in (*aside, mine):
        os.utime(path, (time.time() - 7200,) * 2)
    with store.owned("interactions", fp) as owned:
        assert owned
        assert {path for _, path in collect(store)} == {torn.name, *(path.name for path in aside)}
    assert {path for _, path in collect(store)} == {f".tmp-{fp}-99-abc", f".{fp}.owner"}
    assert fresh.exists() and mine.exists()
    store.require("toys", "2020-01", "interactions").verified_folder()


def test_what_is_held_stays(store):
    made, _ = store.obtain("interactions", "1", {}, write("x"))
    assert not store.remove("interactions", made.fingerprint)
    assert store.sound("interactions", made.fingerprint) is not None
    name = made.fingerprint
    del made
    assert store.remove("interactions", name)
    assert store.open("interactions", name) is None
    assert store.remove("interactions", name)  # twice is no error


def test_what_is_current_is_never_removed(store):
    fp = put(store, "interactions", 1, ref="2020-01")
    assert not store.remove("interactions", fp)
    (store.root / "interactions" / fp / MANIFEST).unlink()
    assert not store.remove("interactions", fp)  # damaged, and the ref still names it


def test_caches_go_only_if_asked_and_idle_and_the_ledger_never(store):
    home = store.root.parent
    fp = put(store, "interactions", 1, ref="2020-01")
    (home / "cache" / "vectors" / "x").mkdir(parents=True)
    (home / "cache" / "vectors" / "x" / "0.npy").write_bytes(b"x" * 10)
    (home / "ledger.sqlite").write_text("paid")
    assert collect(store, deep=True) == set()
    with store.owned("interactions", fp):
        assert collect(store, cache=True) == set()
    assert collect(store, cache=True) == {("cache", "vectors")}
    assert list((home / "cache").iterdir()) == []
    assert (home / "ledger.sqlite").read_text() == "paid"


def test_an_empty_home_has_nothing(tmp_path):
    assert list(garbage.find(Store(tmp_path / "none" / "store"), 0, cache=True)) == []
    assert not (tmp_path / "none").exists()


# -- cut short, and beside running stages --------------------------------------------------------


def whole(store):
    """Every output that a reader can open is whole."""
    for path in store.root.glob("*/*"):
        if (artifact := store.open(path.parent.name, path.name)) is not None:
            artifact.verified_folder()


def test_cut_short_at_every_step_the_store_is_sound(tmp_path, monkeypatch):
    """The n-th call that changes the disk is the last one, for every n; the next gc completes the work."""

    class Killed(BaseException):
        pass

    steps = []
    finished = False
    for limit in range(40):
        store = Store(tmp_path / str(limit) / "store")
        kept = put(store, "interactions", "kept", ref="2020-01")
        lost = put(store, "interactions", "lost")
        (store.resume_folder("interactions", kept) / "checkpoint-1").mkdir(parents=True)
        with monkeypatch.context() as patch:
            steps.clear()
            for name in ("unlink", "replace", "rmdir"):
                original = getattr(os, name)

                def counted(*args, original=original, limit=limit, **kwargs):
                    if len(steps) == limit:
                        raise Killed
                    steps.append(1)
                    return original(*args, **kwargs)

                patch.setattr(os, name, counted)
            try:
                collect(store)
                finished = True
            except Killed:
                pass
        whole(store)
        assert store.require("toys", "2020-01", "interactions").fingerprint == kept
        collect(store)
        left = {path.name for path in (store.root / "interactions").iterdir() if not path.name.endswith(".lock")}
        assert left == {kept}
        remade, reused = store.obtain("interactions", "1", {"k": "lost"}, write("interactions lost"))
        assert not reused and remade.fingerprint == lost
        if finished:
            break
    assert finished and limit >= 5


COLLECTOR = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from sidr_core.pipeline import gc as garbage
    from sidr_core.pipeline.store import Store
    store, stop = Store(Path(sys.argv[1])), Path(sys.argv[2])
    print("ready", flush=True)
    while True:
        last = stop.exists()
        for one in garbage.find(store, 0):
            garbage.drop(store, one)
        if last:
            break
    """
)


def collector(store, stop):
    """A process that deletes what can go, again and again until there is a file `stop`."""
    started = subprocess.Popen(
        [sys.executable, "-c", COLLECTOR, str(store.root), str(stop)], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize("gone", [1, 3])
def test_kill_9_during_gc_leaves_the_store_sound(tmp_path, gone):
    store = Store(tmp_path / "store")
    kept = put(store, "interactions", "kept", ref="2020-01")
    for n in range(8):
        put(store, "interactions", n)
    running = collector(store, tmp_path / "never")
    while len(present(store)) > 9 - gone:
        assert running.poll() is None
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    whole(store)
    assert store.sound("interactions", kept) is not None
    collect(store)
    assert present(store) == {kept}
    assert not list(store.root.glob("*/.tmp-*"))


STAGE = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from sidr_core.pipeline.stage import Inputs
    from sidr_core.pipeline.store import Store
    store = Store(Path(sys.argv[1]))
    n = built = 0
    while built < 9:
        n += 1
        inputs = Inputs({}, store)
        def build(folder):
            for i in range(2):
                inputs.part("decoded", "1", {"k": (n + i) % 4}, lambda f: (f / "p.txt").write_text("p") and None)
            parts = [store.root / name / fp / "p.txt" for name, fp in inputs.parts]
            (folder / "out.txt").write_text("".join(path.read_text() for path in parts))
        made, reused = store.obtain("evaluation", "1", {"k": n % 3}, build, finish=lambda: {"parts": inputs.parts})
        store.set_ref("toys", "2020-01", "evaluation", made.fingerprint)
        built += not reused
        found = store.require("toys", "2020-01", "evaluation")
        assert found.fingerprint == made.fingerprint and found.path("out.txt").read_text() == "pp"
        del made, found
    """
)


def test_a_running_stage_never_misses_what_it_was_given(tmp_path):
    """Three outputs take turns in being current; a process deletes the two others as fast as it can.

    So each is built anew, nine times in all, and every time what is made, or made of, is there until it was used.
    """
    store = Store(tmp_path / "store")
    store.root.mkdir()
    collecting = collector(store, tmp_path / "stop")
    stage = subprocess.Popen([sys.executable, "-c", STAGE, str(store.root)], stderr=subprocess.PIPE, text=True)
    _, err = stage.communicate(timeout=300)
    (tmp_path / "stop").touch()
    collecting.communicate(timeout=60)
    assert (stage.returncode, collecting.returncode) == (0, 0), err
    store.require("toys", "2020-01", "evaluation").verified_folder()
    assert store.ref("toys", "2020-01", "evaluation") in present(store)


def test_a_ref_whose_output_was_removed_by_hand_needs_nothing_and_a_damaged_one_stops_all(store):
    gone, stays = put(store, "raw_items", "a", ref="2020-01"), put(store, "raw_items", "b", ref="2020-02")
    unneeded = put(store, "raw_items", "c")
    shutil.rmtree(store.root / "raw_items" / gone)
    assert collect(store) == {("output", unneeded)}
    assert store.open("raw_items", stays) is not None
    (store.root / "raw_items" / stays / MANIFEST).write_text("{}")
    with pytest.raises(StoreError, match="2020-02"):
        collect(store)
