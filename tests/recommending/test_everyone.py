"""Lists for everyone: all users, in parts, the same lists whatever the parts, and nothing decoded twice."""

import json

import polars as pl
import pytest
from pydantic import ValidationError

from builders import small_world
from builders.small_world import SNAPSHOT, USERS, World
from sidr_core.errors import InputError
from sidr_core.pipeline import catalog, live
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.recommending import everyone, recommend
from sidr_core.settings import RecommendationsAll
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

STAGE = stage_named("recommendations_all")


@pytest.fixture
def scored(world):
    """`scored(model, users_per_part)` runs the stage: its outcome and what was said."""

    def run(model: str, users_per_part: int, **fields: str):
        raw = json.loads(json.dumps(world.profile.raw))
        raw["datasets"]["toys"]["recommendations_all"] = {
            "model": model,
            "users_per_part": users_per_part,
            **fields,
        }
        said: list[str] = []
        profile = parse_profile("test", raw)
        return run_stage(profile, "toys", SNAPSHOT, STAGE, world.store, Progress(said.append, 0.0)), said

    run.world = world
    return run


def lists(outcome) -> pl.DataFrame:
    parts = [file for file in outcome.artifact.files if file.startswith("lists/")]
    return pl.concat([tables.read(outcome.artifact.path(file)) for file in parts])


def test_histories_are_the_last_items_of_everyone():
    log = pl.DataFrame({"user_id": ["b", "a", "b", "b"], "item_id": ["z", "x", "v", "w"], "position": [2, 0, 0, 1]})
    rows = everyone.histories(log, 2)
    assert rows.select("row_id", "history_item_ids").rows() == [("a", ["x"]), ("b", ["w", "z"])]


@pytest.mark.parametrize("model", ["item_item/direct", "grpo/thinking"])
def test_everyone_has_a_list_and_parts_change_none(scored, model):
    (one, _), (three, said) = scored(model, 10), scored(model, 2)
    assert lists(one).equals(lists(three)) and set(lists(one)["user_id"]) == set(USERS)
    index = tables.read(three.artifact.path("recommendations_all.parquet"))
    assert index.select("first_user", "last_user", "users").rows() == [
        ("user0", "user1", 2), ("user2", "user3", 2), ("user4", "user5", 2),
    ]  # fmt: skip
    assert index["rows"].sum() == lists(three).height
    assert all(check["passed"] for check in three.artifact.manifest["checks"])
    assert any("6 users in 3 parts" in line and "at most" in line for line in said)
    assert any("part 2 of 3: 4 of 6 users" in line and "lists/s" in line for line in said)
    views = "toys.recommendations_all_lists", "toys.recommendations_all"
    import duckdb

    with duckdb.connect(str(catalog.path(scored.world.store)), read_only=True) as connection:
        found = [connection.execute(f"select count(*) from {view}").fetchone() for view in views]
    assert found == [(lists(three).height,), (3,)]
    assert len(list(catalog.files(scored.world.store, "toys", "recommendations_all_lists"))) == 3


def test_a_run_that_was_killed_goes_on_behind_its_last_part(scored, monkeypatch):
    made = []
    real = recommend.part_of

    def dying(*args, **kwargs):
        if len(made) == 3:  # the estimate and two parts
            raise KeyboardInterrupt
        made.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(everyone, "part_of", dying)
    with pytest.raises(KeyboardInterrupt):
        scored("item_item/direct", 2)
    monkeypatch.setattr(everyone, "part_of", real)
    before = {path.name for path in (scored.world.store.root / "decoded").glob("[!.]*")}
    outcome, said = scored("item_item/direct", 2)
    after = {path.name for path in (scored.world.store.root / "decoded").glob("[!.]*")}
    assert len(after - before) == 1 and len(outcome.artifact.manifest["parts"]) == 4
    assert sum("rows" in line for line in said) == 1  # only the last part was ranked


def test_it_needs_no_more_than_its_own_model(scored):
    outcome, _ = scored("sft/direct", 10)
    assert set(outcome.artifact.manifest["lineage"]) == {"interactions", "sid_codebook", "sft_checkpoint"}


def test_a_dataset_that_does_not_ask_has_no_such_stage(world: World):
    from sidr_core.pipeline.graph import stages_of

    assert STAGE not in stages_of(world.profile.dataset("toys"))


def test_what_is_live_lists_new_items_without_training(scored):
    """The live checkpoint over a catalogue with one item more, one without a token, and one less."""
    world = scored.world
    with pytest.raises(InputError, match="no grpo_checkpoint is live"):
        scored("grpo/direct", 10, checkpoint="live")
    outputs = {
        stage: world.store.ref("toys", SNAPSHOT, stage) for stage in ("interactions", "grpo_checkpoint", "evaluation")
    }
    live.decide(world.store.root, "toys", {}, None, (live.Live("toys", SNAPSHOT, "grpo/direct", outputs), None))
    same, _ = scored("grpo/direct", 10, checkpoint="live")
    assert lists(same).equals(lists(scored("grpo/direct", 10)[0]))

    def later(folder):
        table = small_world.codebook().filter(pl.col("item_id") != "A06")
        rows = [("NEW", "<a_3><b_3>", [3, 3], ""), ("ODD", "<a_1><b_4>", [1, 4], "")]
        added = pl.DataFrame(rows, schema=table.schema, orient="row")
        tables.write(pl.concat([table, added]), folder / "sid_codebook.parquet", contracts.Codebook)

    artifact, _ = world.store.obtain("sid_codebook", "later", {"config": {}}, lambda folder: later(folder))
    world.store.set_ref("toys", SNAPSHOT, "sid_codebook", artifact.fingerprint)
    outcome, said = scored("grpo/direct", 10, checkpoint="live")
    assert any("1 items added to and 1 removed" in line and "cannot be listed: ODD" in line for line in said)
    after = lists(outcome)
    assert not {"A06", "ODD"} & set(after["item_id"]) and set(after["user_id"]) == set(USERS)
    assert set(outcome.artifact.manifest["lineage"]) == {"interactions", "sid_codebook"}
    assert all(check["passed"] for check in outcome.artifact.manifest["checks"])


def test_only_lists_of_a_checkpoint_can_be_live():
    with pytest.raises(ValidationError, match="direct or thinking lists of a checkpoint"):
        RecommendationsAll(model="item_item/direct", checkpoint="live")
