"""Re-evaluation: which rows are newer, the history that only grows, what a miss is, and when it is drift."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from builders import small_world
from builders.small_world import ITEMS, SNAPSHOT, USERS, samples
from sidr_core.errors import InputError, SealedInput
from sidr_core.evaluation import reevaluate
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.run import plan, run_stage
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

STAGE = stage_named("reevaluation")
LATER, LAST = "2020-03", "2020-04"
NEW_ITEM = "B00"
#: The targets of positions 4 and 5 are the test rows of the small world.
NEWEST_JUDGED = 1_580_000_000 + 86_400 * 5


@pytest.fixture
def later(world):
    """The small world's profile with two more snapshots, in which users have gone on."""
    raw = dict(world.profile.raw)
    fields = dict(raw["datasets"]["toys"])
    fields["snapshots"] = {"start": "2020-01", "end": LAST}
    return small_world.World(world.store, parse_profile("test", {"datasets": {"toys": fields}}))


def newer(first: int = 6, rows_per_user: int = 2) -> pl.DataFrame:
    """Rows behind the test rows; the last row of user0 asks for an item that is unknown at the base."""
    rows = samples(first, rows_per_user)
    last = f"user0:{first + rows_per_user - 1}"
    target = pl.when(pl.col("row_id") == last).then(pl.lit(NEW_ITEM)).otherwise("target_item_id")
    return rows.with_columns(target.alias("target_item_id"))


def publish(world, snapshot: str, test: pl.DataFrame) -> None:
    """The interactions of a snapshot, as far as the stage reads them."""

    def write(folder: Path) -> None:
        for name, rows in (("train", samples(1, 3)), ("valid", samples(4, 2)), ("test", test)):
            tables.write(rows, folder / f"{name}.parquet", contracts.Samples)

    key = {"test": snapshot, "rows": test.height, "targets": test["target_item_id"].to_list()}
    artifact, _ = world.store.obtain("interactions", "test", key, write, synthetic=True)
    world.store.set_ref("toys", snapshot, "interactions", artifact.fingerprint)


def run(world, snapshot: str = LATER):
    return run_stage(world.profile, "toys", snapshot, STAGE, world.store, Progress(lambda line: None))


def history(outcome) -> pl.DataFrame:
    return tables.read(outcome.artifact.path(reevaluate.FILE))


def checks(outcome) -> dict[str, tuple[bool, str]]:
    return {check["name"]: (check["passed"], check["detail"]) for check in outcome.artifact.manifest["checks"]}


# -- which rows ----------------------------------------------------------------------------------


def test_only_rows_behind_what_was_judged_are_newer(tmp_path):
    tables.write(samples(4, 4), tmp_path / "rows.parquet", contracts.Samples)
    found = reevaluate.newer_rows([tmp_path / "rows.parquet"], NEWEST_JUDGED, "2020-01-28")
    assert sorted(set(found["position"])) == [6, 7]
    # 1_580_000_000 + 6 days is 2020-02-01: not newer than a training that has seen that day.
    assert set(reevaluate.newer_rows([tmp_path / "rows.parquet"], 0, "2020-02-01")["position"]) == {7}
    assert reevaluate.newer_rows([tmp_path / "rows.parquet"], 0, "").height == 24


def test_histories_lose_what_was_unknown_and_never_their_row():
    rows = pl.DataFrame({"row_id": ["a", "b"], "history_item_ids": [["A01", NEW_ITEM, "A02"], [NEW_ITEM]]})
    kept, unknown = reevaluate.known_histories(rows, small_world.codebook())
    assert (kept["history_item_ids"].to_list(), unknown) == ([["A01", "A02"], []], 1)


# -- the stage -----------------------------------------------------------------------------------


def test_the_checkpoints_of_the_newest_earlier_snapshot_on_newer_rows(later):
    publish(later, LATER, newer())
    outcome = run(later)
    table = history(outcome)
    contracts.Reevaluation.validate(table)
    assert table.select("snapshot", "base_snapshot", "split").unique().rows() == [(LATER, SNAPSHOT, "newer")]
    assert set(table["n_rows"]) == {12} and set(table["n_users"]) == {6} and set(table["unreachable"]) == {1}
    then = tables.read(later.store.require("toys", SNAPSHOT, "evaluation").path("evaluation.parquet"))
    same = ["model", "mode", "metric", "k", "level"]
    both = table.join(then, on=same, suffix="_then")
    assert both.height == table.height == then.height
    assert both["base_value"].to_list() == both["value_then"].to_list()
    for name in ("checkpoint", "seen_until", "beam_width", "seed"):
        assert both[name].to_list() == both[f"{name}_then"].to_list()
    metrics = outcome.artifact.manifest["metrics"]
    assert (metrics["rows"], metrics["unreachable"], metrics["base_snapshot"]) == (12, 1, SNAPSHOT)
    assert 0 <= metrics["grpo_thinking_ndcg@5"] <= 1
    assert outcome.artifact.path("reevaluation.png").read_bytes()[:4] == b"\x89PNG"
    assert outcome.artifact.synthetic
    assert f"{SNAPSHOT}/grpo_checkpoint" in outcome.artifact.manifest["lineage"]
    assert run(later).reused


def test_an_unknown_target_is_a_miss_that_counts(later):
    """Popularity at the base ranks all it knows: rows whose target it knows and has among the first five, of 12."""
    publish(later, LATER, newer())
    table = history(run(later))
    counts = tables.read(
        later.store.require("toys", SNAPSHOT, "baseline_popularity").path("baseline_popularity.parquet")
    )
    first = counts.sort("score", "item_id", descending=[True, False])["item_id"].head(5).to_list()
    hits = sum(target in first for target in newer()["target_item_id"])
    found = table.filter(
        (pl.col("model") == "popularity")
        & (pl.col("metric") == "hr")
        & (pl.col("k") == 5)
        & (pl.col("level") == "item")
    )
    assert found["value"].to_list() == [pytest.approx(hits / 12)]


def test_the_history_grows_behind_and_stays_before(later):
    publish(later, LATER, newer())
    publish(later, LAST, newer(6, 3))
    first = history(run(later))
    second = run(later, LAST)
    table = history(second)
    assert table.head(first.height).equals(first)
    assert table["snapshot"].unique(maintain_order=True).to_list() == [LATER, LAST]
    assert checks(second)["append_only"] == (True, f"{first.height:,} rows before, {first.height:,} behind them")
    assert second.started == f"warm from {LATER}"


def test_a_snapshot_that_was_left_out_does_not_cut_the_history(later):
    """The base itself has an empty history; the snapshot between has none."""
    publish(later, LAST, newer())
    run(later, SNAPSHOT)
    assert run(later, LAST).started == f"warm from {SNAPSHOT}"


def test_without_an_earlier_evaluation_the_history_stays_as_it_is(later):
    outcome = run(later, SNAPSHOT)
    assert history(outcome).height == 0
    passed, why = checks(outcome)["drift"]
    assert passed and why == "nothing to evaluate again: no earlier snapshot has a whole evaluation"
    assert outcome.artifact.manifest["metrics"]["base_snapshot"] == "none"


def test_without_newer_rows_nothing_is_added(later):
    publish(later, LATER, samples(4, 2))
    outcome = run(later)
    assert history(outcome).height == 0
    assert "0 rows of 0 users are newer than the test rows of 2020-02 (until 2020-01-31)" in checks(outcome)["drift"][1]


def test_a_checkpoint_that_was_not_the_one_judged_is_refused(later):
    publish(later, LATER, newer())
    other = later.store.require("toys", SNAPSHOT, "activation_checkpoint")
    inputs = plan(later.profile, "toys", LATER, STAGE, later.store).inputs
    assert inputs.earlier is not None
    models = tables.read(inputs.earlier["recommendations"].path("models.parquet"))
    wrong = models.with_columns(checkpoint=pl.lit(other.digest))
    with pytest.raises(InputError, match="the earlier grpo_checkpoint is not the one that was evaluated then"):
        reevaluate._refuse_others(inputs.earlier, ("grpo/direct",), wrong)
    reevaluate._refuse_others(inputs.earlier, ("grpo/direct", "item_item/direct"), models)


def test_lists_are_not_compared_with_lists_of_other_settings(later):
    publish(later, LATER, newer())
    planned = plan(later.profile, "toys", LATER, STAGE, later.store)
    base, config = planned.inputs.earlier, later.profile.dataset("toys")
    assert base is not None
    reevaluate._refuse_other_settings(base, config)
    # What does not change a list, or only which lists there are, is let through.
    for harmless in ({"batch_size": 2}, {"max_test_rows": 4}, {"models": ("sft/direct",)}):
        reevaluate._refuse_other_settings(base, changed(config, "decoding", **harmless))
    others = {"scoring": "sliced", "max_thought_tokens": 7, "traces": 2, "trace_temperature": 0.5}
    for field, value in (others | {"choice_rows": 3, "beam_width": 6}).items():
        with pytest.raises(InputError, match="other settings") as refused:
            reevaluate._refuse_other_settings(base, changed(config, "decoding", **{field: value}))
        assert refused.value.found == f"decoding.{field} = {value}"
        assert "recommendations and evaluation" in refused.value.fix
    with pytest.raises(InputError, match="other settings"):
        reevaluate._refuse_other_settings(base, changed(config, "item_item", window=1))


def changed(config, section: str, **fields):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=fields)})


def test_the_stage_refuses_other_settings_only_where_there_is_something_to_decode(later):
    toys = changed(later.profile.dataset("toys"), "decoding", scoring="sliced")
    sliced = small_world.World(later.store, replace(later.profile, datasets={"toys": toys}))
    publish(later, LATER, samples(4, 2))
    assert history(run(sliced)).height == 0
    publish(later, LATER, newer())
    with pytest.raises(InputError, match="decoded with other settings"):
        run(sliced)


def test_a_counter_that_was_not_the_one_judged_is_refused(later):
    """The counter's lists of then are a row; its counts are made anew."""
    publish(later, LATER, newer())
    base = plan(later.profile, "toys", LATER, STAGE, later.store).inputs.earlier
    assert base is not None
    models = tables.read(base["recommendations"].path("models.parquet"))
    reevaluate._refuse_others(base, ("item_item/direct",), models)
    for counter in ("baseline_item_item", "baseline_popularity"):
        other = Inputs({**base, counter: base["sft_checkpoint"]}, later.store)
        with pytest.raises(InputError, match=f"the earlier {counter} is not the one that was evaluated then"):
            reevaluate._refuse_others(other, ("item_item/direct",), models)
        reevaluate._refuse_others(other, ("grpo/direct",), models)


def test_what_was_not_declared_of_the_earlier_snapshot_stays_sealed(later):
    publish(later, LATER, newer())
    inputs = plan(later.profile, "toys", LATER, STAGE, later.store).inputs
    assert inputs.earlier is not None and inputs.earlier_snapshot == SNAPSHOT
    with pytest.raises(SealedInput, match="may not open"):
        inputs.earlier["interactions"].path("test.parquet")


def test_the_earlier_outputs_are_part_of_the_fingerprint(later):
    publish(later, LATER, newer())
    key = plan(later.profile, "toys", LATER, STAGE, later.store).key
    assert {name.split("/")[0] for name in key["earlier"]} == {SNAPSHOT}
    assert {name.split("/")[1] for name in key["earlier"]} == set(STAGE.reads_earlier(later.profile.dataset("toys")))


# -- checks --------------------------------------------------------------------------------------


def figure(value, low, high, then=(0.5, 0.4, 0.6)) -> dict:
    row = {"model": "grpo", "mode": "direct", "metric": "ndcg", "k": 10, "level": "item"}
    ends = dict(zip(("value", "ci_low", "ci_high"), (value, low, high), strict=True))
    return row | ends | dict(zip(("base_value", "base_ci_low", "base_ci_high"), then, strict=True))


@pytest.mark.parametrize(
    ("now", "outside", "apart"),
    [
        ((0.5, 0.3, 0.7), False, False),
        ((0.4, 0.2, 0.5), False, False),  # on the end of the interval is inside
        ((0.3, 0.1, 0.4), True, False),  # outside, but the intervals touch
        ((0.3, 0.1, 0.39), True, True),
        ((0.9, 0.61, 0.95), True, True),  # a rise is drift too
    ],
)
def test_outside_and_apart_by_hand(now, outside, apart):
    judged = reevaluate.compare_with_then(pl.DataFrame([figure(*now)]), 10)
    assert judged.select("outside", "apart").rows() == [(outside, apart)]
    check = reevaluate.drift(judged, "")
    assert check.passed is not apart
    assert f"{int(apart)} have an interval apart" in check.detail and f"{int(outside)} a value outside" in check.detail
    assert ("grpo/direct NDCG@10 0.5000 [0.4000, 0.6000] -> " in check.detail) is apart


def test_only_headline_figures_at_item_level_are_judged():
    rows = [
        figure(0.1, 0.0, 0.2) | change
        for change in ({"k": 5}, {"level": "sid"}, {"metric": "mrr"}, {"base_value": None}, {"metric": "hr"})
    ]
    assert reevaluate.compare_with_then(pl.DataFrame(rows), 10)["metric"].to_list() == ["hr"]


def test_a_changed_row_of_the_history_is_noticed(later):
    publish(later, LATER, newer())
    table = history(run(later))
    assert reevaluate.append_only(table, pl.concat([table, table])).passed
    changed = table.with_columns(pl.when(pl.int_range(pl.len()) == 3).then(0.123).otherwise("value").alias("value"))
    assert not reevaluate.append_only(table, changed).passed
    assert not reevaluate.append_only(table, table.head(table.height - 1)).passed
    assert not reevaluate.append_only(table, table.with_columns(pl.col("k").cast(pl.Int64))).passed


def test_the_world_is_as_these_tests_take_it():
    assert samples(4, 2)["target_timestamp"].max() == NEWEST_JUDGED
    assert len(USERS) == 6 and NEW_ITEM not in ITEMS
