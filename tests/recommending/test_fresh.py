"""New items without training: reachable at once, old scores to the last bit, nothing that was taken out."""

import json

import numpy as np
import polars as pl
import pytest
import yaml

from builders import small_world
from builders.small_world import SNAPSHOT
from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.decoder import Decoder
from sidr_core.errors import InputError
from sidr_core.models import checkpoint
from sidr_core.models.checkpoint import Loaded
from sidr_core.recommending.fresh import with_catalogue
from sidr_core.sids.tokens import format_sid
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

LATER = "2020-03"
HISTORIES = [["<a_0><b_0>"], ["<a_1><b_2>", "<a_3><b_1>"], ["<a_2><b_2>"] * 3]


@pytest.fixture(scope="module")
def loaded(small_world_home) -> Loaded:
    from sidr_core.pipeline.store import Store

    artifact = Store(small_world_home / "store").require("toys", SNAPSHOT, "grpo_checkpoint")
    return checkpoint.load(artifact.verified_folder(), "cpu")


def catalogue(without: str = "", **new: list[int]) -> pl.DataFrame:
    """The small world's codebook without an item, and with new ones of these codes."""
    known = small_world.codebook()
    rows = [
        {"item_id": item, "sid": format_sid(codes), "codes": codes, "text_digest": ""} for item, codes in new.items()
    ]
    added = pl.DataFrame(rows, schema=known.schema)
    return pl.concat([known.filter(pl.col("item_id") != without), added])


def scores(loaded: Loaded, width: int, scoring="exact") -> list[dict[str, float]]:
    """SID -> score of each list."""
    decoder = Decoder(loaded.model, loaded.renderer, loaded.index, width, 4, scoring)
    beams = decoder.rank_directly([next_item(history) for history in HISTORIES])
    sids = loaded.index.sids
    return [
        {sids[leaf]: float(score) for leaf, score in zip(*row, strict=True)}
        for row in zip(beams.leaf.tolist(), beams.scores, strict=True)
    ]


@pytest.mark.parametrize("scoring", ["exact", "sliced"])
def test_a_new_item_is_listed_and_old_scores_keep_their_bits(loaded, scoring):
    fresh = with_catalogue(loaded, catalogue(NEW=[3, 3]))
    assert (fresh.added, fresh.removed, fresh.unreachable) == (["NEW"], [], [])
    assert fresh.loaded.index.items_of(fresh.loaded.index.leaf_of["<a_3><b_3>"]) == ["NEW"]
    for before, after in zip(scores(loaded, 15, scoring), scores(fresh.loaded, 16, scoring), strict=True):
        assert set(after) - set(before) == {"<a_3><b_3>"}
        assert {sid: after[sid] for sid in before} == before
    for before, after in zip(scores(loaded, 5, scoring), scores(fresh.loaded, 5, scoring), strict=True):
        assert {sid: after[sid] for sid in before if sid in after} == {s: before[s] for s in before if s in after}
        if "<a_3><b_3>" not in after:
            assert after == before


def test_an_item_taken_out_is_never_returned(loaded):
    fresh = with_catalogue(loaded, catalogue(without="A06"))
    assert (fresh.added, fresh.removed) == ([], ["A06"])
    gone = format_sid(small_world.CODES["A06"])
    before, after = scores(loaded, 15), scores(fresh.loaded, 14)
    for old, new in zip(before, after, strict=True):
        assert set(old) - set(new) == {gone}
        assert new == {sid: score for sid, score in old.items() if sid != gone}
    assert "A06" not in fresh.loaded.index.item_ids
    # Of two items with one SID the other stays.
    shared = with_catalogue(loaded, catalogue(without="A15")).loaded.index
    assert shared.items_of(shared.leaf_of["<a_3><b_2>"]) == ["A14"]


def test_an_item_without_a_token_is_counted_not_bent(loaded):
    fresh = with_catalogue(loaded, catalogue(NEW=[3, 3], ODD=[1, 4]))
    assert (fresh.added, fresh.unreachable) == (["NEW"], ["ODD"])
    assert "ODD" not in fresh.loaded.index.item_ids and fresh.codebook.height == 17
    assert "1 of no token cannot be listed: ODD" in str(fresh)


def test_a_codebook_that_was_fitted_anew_is_refused(loaded):
    other = catalogue().with_columns(sid=pl.col("sid").str.replace("<a_0>", "<a_9>").str.replace("<a_1>", "<a_0>"))
    other = other.with_columns(sid=pl.col("sid").str.replace("<a_2>", "<a_1>"))
    with pytest.raises(InputError, match=r"of 16 items with another one, such as A00: <a_0><b_0> then, <a_9>"):
        with_catalogue(loaded, other)
    with pytest.raises(InputError, match=r"0 of 0 items"):
        with_catalogue(loaded, catalogue(NEW=[3, 3]).tail(1))


def test_an_item_that_moved_is_listed_under_its_new_sid_and_counted(loaded):
    other = catalogue(without="A03")
    moved = catalogue(A03=[3, 3]).filter(pl.col("sid") == "<a_3><b_3>")
    fresh = with_catalogue(loaded, pl.concat([other, moved]))
    assert (fresh.moved, fresh.added, fresh.removed) == (["A03"], [], [])
    assert "1 have another SID" in str(fresh)
    index = fresh.loaded.index
    assert index.items_of(index.leaf_of["<a_3><b_3>"]) == ["A03"]
    before = scores(loaded, 15)
    for old, new in zip(before, scores(fresh.loaded, 15), strict=True):
        assert {sid: new[sid] for sid in old if sid in new} == {sid: old[sid] for sid in old if sid in new}
        assert set(new) - set(old) == {"<a_3><b_3>"}


def test_the_checkpoint_itself_is_left_as_it_is(loaded):
    before = np.array(loaded.index.sids)
    with_catalogue(loaded, catalogue(without="A00", NEW=[3, 3]))
    assert (np.array(loaded.index.sids) == before).all() and len(loaded.index) == 15


def test_the_command_lists_the_items_of_a_later_snapshot(world, sidr, tmp_path, monkeypatch):
    raw = json.loads(json.dumps(world.profile.raw))
    raw["datasets"]["toys"]["snapshots"]["end"] = LATER
    (tmp_path / "later.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("SIDR_PROFILE", str(tmp_path / "later.yaml"))
    old = world.store.require("toys", SNAPSHOT, "interactions")

    def interactions(folder):
        for name in old.files:
            (folder / name).write_bytes(old.path(name).read_bytes())
        items = tables.read(old.path("items.parquet")).filter(pl.col("item_id") != "A06")
        new = items.head(1).with_columns(pl.lit("NEW").alias("item_id"), pl.lit("Toy NEW").alias("title"))
        tables.write(pl.concat([items, new]), folder / "items.parquet", contracts.Items)

    def codebook(folder):
        tables.write(catalogue(without="A06", NEW=[3, 3]), folder / "sid_codebook.parquet", contracts.Codebook)

    for stage, write in (("interactions", interactions), ("sid_codebook", codebook)):
        artifact, _ = world.store.obtain(stage, "later", {}, lambda folder, write=write: write(folder))
        world.store.set_ref("toys", LATER, stage, artifact.fingerprint)
    code, out, err = sidr("recommend", "--history", "NEW,A01", "--mode", "direct", "-k", "15")
    assert code == 0 and "Toy NEW" in out and "Toy A06" not in out and LATER in out
    assert f"checkpoint of {SNAPSHOT}, catalogue of {LATER}: 1 items added to and 1 removed" in err
    code, out, err = sidr("recommend", "--history", "A06,A01", "--mode", "direct", "--snapshot", SNAPSHOT)
    assert code == 0 and err == "" and "NEW" not in out
