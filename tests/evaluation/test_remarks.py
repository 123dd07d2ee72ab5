"""What is said of a list beside its numbers: it is not above popularity, or its training kept its start."""

import polars as pl
import pytest

from builders.small_world import SNAPSHOT, codebook, samples
from sidr_core.evaluation.leaderboard import grids, leaderboard
from sidr_core.evaluation.remarks import learnt, popularity_ndcg, remark_lines, remarks_table
from sidr_core.recommending.recommend import _note
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

MODELS = pl.DataFrame(
    {"model": ["sft", "grpo", "popularity"], "mode": "direct", "note": [None, "kept its start", None]},
    schema_overrides={"note": pl.String},
)


def evaluation(**ndcg: float) -> pl.DataFrame:
    rows = [
        {"model": model, "mode": "direct", "metric": "ndcg", "level": level, "k": k, "value": value * (k == 10)}
        for model, value in ndcg.items()
        for level in ("item", "sid")
        for k in (5, 10)
    ]
    return pl.DataFrame(rows)


def test_popularity_is_one_list_for_every_row():
    def rows(*targets: str) -> pl.DataFrame:
        return pl.DataFrame({"row_id": list(map(str, range(len(targets)))), "user_id": "u", "target_item_id": targets})

    items, book = pl.DataFrame({"item_id": list("ABCD")}), pl.DataFrame({"item_id": list("ABCD"), "sid": "s"})
    # B twice, A and D once: B, A, D, C; equal counts by id. 1, 1 / log2(3) and a miss beyond two.
    found = popularity_ndcg(rows("B", "A", "B", "D"), items, rows("B", "A", "D"), book, 2)
    assert found == pytest.approx((1 + 0.63093) / 3, abs=1e-5)


def test_the_floor_is_the_ndcg_of_the_popularity_baseline(world):
    """The same list by another way: that baseline's own."""
    items = tables.read(world.store.require("toys", SNAPSHOT, "interactions").path("items.parquet"))
    table = tables.read(world.store.require("toys", SNAPSHOT, "evaluation").path("evaluation.parquet"))
    row = table.filter(model="popularity", metric="ndcg", level="item", k=5)
    floor = popularity_ndcg(samples(1, 2), items, samples(4, 2), codebook(), 5)
    assert floor == pytest.approx(row["value"].item(), abs=0.02)  # items that share a SID lie at one score there


def test_lists_not_above_popularity_and_kept_starts_are_remarked():
    table = evaluation(sft=0.2, grpo=0.1, popularity=0.1)
    remarks = remarks_table(table, MODELS, 0.1)
    contracts.Remarks.validate(remarks)
    told = ["kept its start", "not above popularity on test rows"]
    assert remarks.rows() == [("grpo", "direct", text) for text in told]
    assert remark_lines(remarks) == f"- **grpo/direct: {'; '.join(told)}**"
    check = learnt(table, 0.1)
    assert not check.passed and check.detail == "NDCG of popularity 0.1000; not above it: grpo/direct 0.1000"
    assert learnt(table, 0.05).passed and remarks_table(table, MODELS.drop("note"), 0.05).is_empty()


def test_the_leaderboard_repeats_them(world):
    artifact = world.store.require("toys", SNAPSHOT, "evaluation")
    remarks = pl.DataFrame({"model": ["grpo"] * 2, "mode": "direct", "remark": ["kept its start", "other"]})
    board = leaderboard(tables.read(artifact.path("evaluation.parquet")), (), remarks)
    assert board.filter(pl.col("remarks").is_not_null()).select("model", "mode", "remarks").unique().rows() == [
        ("grpo", "direct", "kept its start; other")
    ]
    assert {row[1]: row[-1] for row in grids(board)[0].rows}["grpo/direct"] == "kept its start; other"
    # Of the small world's lists all lie above popularity, by chance.
    assert tables.read(artifact.path("remarks.parquet")).is_empty()
    detail = {check["name"]: check["detail"] for check in artifact.manifest["checks"]}["learnt"]
    assert detail == "NDCG of popularity 0.0681; not above it: none"


class Source:
    """What is read of a model's output."""

    def __init__(self, **metrics: float) -> None:
        self.metrics = {name.replace("_", " ", 1): value for name, value in metrics.items()}


class Part:
    """Lists for which nothing was chosen."""

    files = ()


@pytest.mark.parametrize(
    ("metrics", "meta", "note"),
    [
        ({"first_eval_ndcg@10": 0.3, "best_eval_ndcg@10": 0.3}, {"stage": "grpo"}, "kept its start"),
        ({"first_eval_ndcg@10": 0.3, "best_eval_ndcg@10": 0.4}, {"stage": "grpo"}, None),
        ({"first_eval_ndcg@10": 0.3, "best_eval_ndcg@10": 0.3}, {"stage": "sft"}, None),
        ({}, {"chosen": {"ndcg@10": 0.1}, "popularity": {"ndcg@10": 0.1}}, "not above popularity on valid rows"),
        ({}, {"chosen": {"ndcg@10": 0.2}, "popularity": {"ndcg@10": 0.1}}, None),
        ({}, {}, None),
    ],
)
def test_what_is_known_of_a_model_before_its_test(metrics, meta, note):
    assert _note(Source(**metrics), meta, Part()) == note  # type: ignore[arg-type]
