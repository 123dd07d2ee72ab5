"""Short cut of the damages, and what the long suite found and needs a training for."""

import json
import os
import random
from functools import partial
from types import SimpleNamespace

import damage
import harm
import pytest
import tiny

from sidr_core.errors import StoreError
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import plan
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import MANIFEST, Store, fingerprint


@pytest.mark.slow
def test_damaged_outputs_are_named_and_made_good(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert damage.suite(1, 3, ("raw_items",)) == 0


def _publish(store: Store) -> str:
    made, _ = store.obtain("s", "1", {}, lambda folder: (folder / "out.txt").write_text("x") and None)
    store.set_ref("games", "2018-10", "s", made.fingerprint)
    return made.fingerprint


@pytest.mark.parametrize("what", harm.MANIFESTS)
def test_a_damaged_manifest_is_named_not_taken_for_absent(tmp_path, what):
    store = Store(tmp_path / "home" / "store")
    path = store.root / "s" / _publish(store) / MANIFEST
    harm.MANIFESTS[what](path, random.Random(0))
    with pytest.raises(StoreError, match=MANIFEST):
        store.require("games", "2018-10", "s")
    _publish(store)
    assert store.require("games", "2018-10", "s").path("out.txt").read_text() == "x"


@pytest.mark.parametrize("what", harm.REFS)
def test_a_damaged_ref_is_named_and_leads_nowhere_else(tmp_path, what):
    store = Store(tmp_path / "home" / "store")
    _publish(store)
    outside = store.root / "x"  # where "../../x" leads, from a stage's folder: a manifest of the same words
    outside.mkdir()
    (outside / MANIFEST).write_text(json.dumps({"stage": "s", "fingerprint": "../../x"}))
    harm.REFS[what](store.root / "refs" / "games" / "2018-10" / "s.json", random.Random(0))
    with pytest.raises(StoreError, match="is damaged"):
        store.find("games", "2018-10", "s")
    _publish(store)
    assert store.find("games", "2018-10", "s").path("out.txt").read_text() == "x"


def test_an_output_that_became_a_link_or_a_file_is_rebuilt(tmp_path):
    store = Store(tmp_path)
    folder = tmp_path / "s" / fingerprint("s", "1", {})
    for away in (tmp_path / "gone", tmp_path / "there"):
        _publish(store)
        os.replace(folder, away)
        if away.name == "gone":
            folder.write_text("a file")
        else:
            folder.symlink_to(tmp_path / "nowhere")
        _publish(store)
        assert store.require("games", "2018-10", "s").path("out.txt").read_text() == "x"
    assert not list((tmp_path / "s").glob(".tmp-*"))


def test_a_damaged_codebook_before_is_no_cold_start(tmp_path):
    """A cold start would give every item another SID; no codebook at all is one."""
    store, stage = Store(tmp_path), stage_named("sid_codebook")
    for snapshot, name in (("2018-10", "interactions"), ("2018-10", "item_embeddings"), ("2018-09", stage.name)):
        made, _ = store.obtain(name, "1", {}, lambda folder: (folder / "x.txt").write_text("x") and None)
        store.set_ref("games", snapshot, name, made.fingerprint)
    planned = partial(plan, load_profile(str(tiny.PROFILE)), "games", "2018-10", stage, store)
    assert planned().started == "warm from 2018-09"
    (made.folder / MANIFEST).write_text("{}")
    with pytest.raises(StoreError, match=r"sid_codebook of snapshot 2018-09.*is damaged"):
        planned()
    (tmp_path / "refs" / "games" / "2018-09" / "sid_codebook.json").unlink()
    assert planned().started.startswith("cold")


@pytest.mark.parametrize("where", ["weights", "best", "mark"])
@pytest.mark.parametrize("how", [harm.flip, harm.truncate, harm.empty, harm.delete, harm.binary])
def test_a_damaged_resume_point_is_not_used(tmp_path, where, how):
    from sidr_core.training.resume import MARK, mark, newest_point

    said: list[str] = []
    point, best = tmp_path / "checkpoint-5", tmp_path / "best-5.safetensors"
    newest_point(tmp_path, "me", Progress(said.append))
    point.mkdir()
    for path in (point / "model.safetensors", best):
        path.write_bytes(bytes(1000))
    mark(point, [best])
    assert newest_point(tmp_path, "me", Progress(said.append)) == str(point)
    path = {"weights": point / "model.safetensors", "best": best, "mark": point / MARK}[where]
    said.clear()
    how(path, random.Random(1))
    assert newest_point(tmp_path, "me", Progress(said.append)) is None
    if path.name != MARK:
        assert any(f"is damaged ({os.path.relpath(path, point)})" in line for line in said), said
    elif how is not harm.delete:  # without its mark a point is unfinished, which is no damage
        assert any("is damaged" in line for line in said), said
    assert not point.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_an_unreadable_owner_of_resume_points_is_told(tmp_path, text):
    from sidr_core.training.resume import newest_point

    newest_point(tmp_path, "me", Progress(lambda line: None))
    (tmp_path / "owner.json").write_text(text)
    with pytest.raises(StoreError, match="remove"):
        newest_point(tmp_path, "me", Progress(lambda line: None))


@pytest.mark.parametrize("how", [harm.flip, harm.truncate, harm.empty, harm.delete, harm.binary])
def test_a_damaged_memory_of_a_source_files_digest_is_made_anew(tmp_path, monkeypatch, how):
    from sidr_core.pipeline.digest import digest

    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    source = tmp_path / "reviews.csv"
    source.write_text("a,b")
    whole = digest(source)
    (entry,) = (tmp_path / "home" / "cache" / "source_digests").iterdir()
    kept = entry.read_bytes()
    for seed in range(20):
        how(entry, random.Random(seed))
        assert digest(source) == whole
        assert entry.read_bytes() == kept


@pytest.mark.parametrize("what", ["ref", "manifest"])
def test_gc_deletes_nothing_while_it_cannot_tell_what_is_needed(tmp_path, what):
    from sidr_core.pipeline import gc as garbage

    store = Store(tmp_path / "store")
    fp = _publish(store)
    path = store.root / "s" / fp / MANIFEST if what == "manifest" else store.root / "refs/games/2018-10/s.json"
    path.write_text("{}")
    with pytest.raises(StoreError, match=path.name):
        list(garbage.find(store, 0.0))
    _publish(store)
    assert list(garbage.find(store, 0.0)) == []


def test_a_point_needs_the_best_weights_of_its_time_alone(tmp_path):
    """Earlier ones go once it is marked."""
    from sidr_core.training.resume import BestCheckpoint, ResumePoints, newest_point

    for step in (2, 4):
        (tmp_path / f"best-{step}.safetensors").write_bytes(b"weights")
    (tmp_path / "checkpoint-4").mkdir()
    quiet = Progress(lambda line: None)
    keeper = BestCheckpoint(None, lambda model: {}, tmp_path, quiet)
    log = [{"step": 2, "eval_ndcg@10": 0.1}, {"step": 4, "eval_ndcg@10": 0.2}]
    ResumePoints(tmp_path, 1, keeper).on_save(None, SimpleNamespace(global_step=4, log_history=log), None)
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-4.safetensors"]
    assert newest_point(tmp_path, "me", quiet) == str(tmp_path / "checkpoint-4")
