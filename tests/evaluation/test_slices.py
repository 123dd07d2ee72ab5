"""Slices of the test rows: who is in which group, and values and differences on them by hand."""

import polars as pl
import pytest

from builders.small_world import SNAPSHOT
from sidr_core.evaluation.pages import slices_page
from sidr_core.evaluation.slices import groups_of, slices_table
from sidr_core.settings import Evaluation
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

ITEMS = pl.DataFrame(
    {
        "item_id": ["A", "B", "C", "D"],
        "brand": ["Lego", "Lego", "", "Mattel"],
        "category": ["Toys > Bricks", "Toys", "Toys > Bricks", "Toys > Bricks"],
    }
)
SETTINGS = Evaluation(ks=(10,), bootstrap=400, least_users=2)
CONTEXT = {"dataset": "toys", "snapshot": "2020-02", "split": "test"}


def rows(*histories_and_targets: tuple[str, str]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"row_id": f"r{n}", "user_id": f"u{n}", "history_item_ids": list(history), "target_item_id": target}
            for n, (history, target) in enumerate(histories_and_targets)
        ]
    )


def train(*pairs: str, **counts: int) -> pl.DataFrame:
    """Train samples of pairs such as "AB" (from A to B), and so many of each target after Z."""
    every = [*pairs, *(f"Z{item}" for item, n in counts.items() for _ in range(n))]
    columns = {"history_item_ids": [[first] for first, _ in every], "target_item_id": [target for _, target in every]}
    return pl.DataFrame(columns, schema={"history_item_ids": pl.List(pl.String), "target_item_id": pl.String})


def test_groups_by_hand():
    test = rows(("A", "B"), ("AB", "A"), ("ABD", "C"), ("ABDA" + "B" * 8, "D"), ("BBBBA", "D"))
    groups = groups_of(test, train(A=9, B=2, D=5), ITEMS)
    assert groups["row_id"].to_list() == [f"r{n}" for n in range(5)]
    assert groups["history_length"].to_list() == ["1 to 2", "1 to 2", "3 to 4", "10 or more", "5 to 9"]
    # Counts of the targets: 2, 9, 0, 5, 5; terciles of the positive ones 2, 5, 5, 9 end at 5, 5 and 9.
    assert groups["target_popularity"].to_list() == ["1 to 5", "6 to 9", "0", "1 to 5", "1 to 5"]
    assert groups["cold_target"].to_list() == ["no", "no", "yes", "no", "no"]
    assert groups["repeat_purchase"].to_list() == ["no", "yes", "no", "yes", "no"]
    assert groups["same_brand"].to_list() == ["yes", "yes", "unknown", "no", "no"]
    assert groups["same_category"].to_list() == ["no", "no", "yes", "no", "yes"]


def test_a_pair_is_seen_where_train_goes_from_the_last_item_to_the_target():
    test = rows(("DA", "B"), ("AD", "B"), ("A", "C"))
    assert groups_of(test, train("AB", D=1), ITEMS)["seen_pair"].to_list() == ["pair seen", "target seen", "never seen"]


def test_kinds_of_row_are_a_slice_where_the_source_says_them():
    test = rows(("A", "B"), ("B", "A"))
    assert "kind" not in groups_of(test, train(A=1), ITEMS).columns
    assert "kind" not in groups_of(test.with_columns(kind=pl.lit(None, pl.String)), train(A=1), ITEMS).columns
    told = test.with_columns(kind=pl.Series(["several hops", None]))
    assert groups_of(told, train(A=1), ITEMS)["kind"].to_list() == ["several hops", "unknown"]


def test_terciles_of_distinct_counts_and_of_none():
    test = rows(*(("A", item) for item in "ABCD"))
    parts = groups_of(test, train(A=1, B=2, C=3, D=1300), ITEMS)["target_popularity"].to_list()
    assert parts == ["1 to 2", "1 to 2", "3", "4 to 1,300"]
    nothing = groups_of(test, train(A=1).clear(), ITEMS)
    assert set(nothing["target_popularity"]) == {"0"} and set(nothing["cold_target"]) == {"yes"}


def test_items_without_a_record_are_unknown():
    groups = groups_of(rows(("X", "A"), ("A", "X")), train(A=1), ITEMS)
    assert groups["same_brand"].to_list() == groups["same_category"].to_list() == ["unknown", "unknown"]


def scores(users: list[str], **hr: list[float]) -> dict[str, pl.DataFrame]:
    """model_mode=[…] as `<model>/<mode>`; NDCG is half of HR."""
    return {
        name.replace("_", "/"): pl.DataFrame(
            {
                "row_id": [f"r{n}" for n in range(len(users))],
                "user_id": users,
                "item_hr@10": values,
                "item_ndcg@10": [value / 2 for value in values],
            }
        )
        for name, values in hr.items()
    }


def groups(labels: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"row_id": [f"r{n}" for n in range(len(labels))], "history_length": labels})


def test_values_and_differences_of_each_group_by_hand():
    users = [f"u{n:02d}" for n in range(40)] + ["v", "v"]
    by_name = scores(users, grpo_direct=[0.0] * 42, grpo_thinking=[1.0] * 20 + [0.0] * 21 + [1.0])
    labels = ["1 to 2"] * 20 + ["10 or more"] * 20 + ["3 to 4"] * 2
    table = slices_table(by_name, groups(labels), SETTINGS, CONTEXT)
    contracts.Slices.validate(table)
    assert table["group"].unique(maintain_order=True).to_list() == ["1 to 2", "3 to 4", "10 or more"]
    hr = table.filter(pl.col("metric") == "hr")
    told = {(r["group"], r["mode"], r["minus"]): r for r in hr.iter_rows(named=True)}
    assert len(told) == 3 * 3
    sure = told["1 to 2", "thinking", "grpo/direct"]
    assert (sure["value"], sure["ci_low"], sure["ci_high"], sure["helped"], sure["same"]) == (1, 1, 1, 20, 0)
    # Four differences have a p: those of two groups; the third group is one user.
    assert sure["p_holm"] == pytest.approx(4 * 2 / 401) and sure["verdict"] == "higher"
    same = told["10 or more", "thinking", "grpo/direct"]
    assert (same["value"], same["p"], same["verdict"], same["n_rows"]) == (0, 1, "too few rows to tell", 20)
    lone = told["3 to 4", "thinking", "grpo/direct"]
    assert (lone["value"], lone["n_rows"], lone["n_users"]) == (0.5, 2, 1)
    assert lone["ci_low"] is lone["p"] is lone["verdict"] is None
    assert told["1 to 2", "thinking", None]["value"] == 1 and told["1 to 2", "thinking", None]["verdict"] is None
    ndcg = table.filter((pl.col("metric") == "ndcg") & (pl.col("group") == "3 to 4") & (pl.col("mode") == "thinking"))
    assert ndcg["value"].to_list() == [0.25, 0.25]


def test_a_slice_adds_up_to_the_whole():
    users = [f"u{n}" for n in range(9)]
    by_name = scores(users, sft_direct=[1, 0, 1, 1, 0, 0, 0, 1, 0])
    table = slices_table(by_name, groups(["1 to 2"] * 4 + ["3 to 4"] * 5), SETTINGS, CONTEXT)
    hr = table.filter(pl.col("metric") == "hr")
    assert hr["n_rows"].to_list() == [4, 5]
    assert (hr["value"] * hr["n_rows"]).sum() == pytest.approx(4)
    assert hr["minus"].null_count() == 2


def test_the_page_shows_every_group_and_says_what_the_numbers_say():
    users = [f"u{n:02d}" for n in range(40)] + ["v"]
    by_name = scores(users, grpo_direct=[0.0] * 41, grpo_thinking=[1.0] * 20 + [0.0] * 21)
    table = slices_table(by_name, groups(["1 to 2"] * 20 + ["5 to 9"] * 20 + ["3 to 4"]), SETTINGS, CONTEXT)
    text = slices_page(table, True, SETTINGS)
    assert text.startswith("# Slices of the test rows (synthetic sample data)")
    row = "| history_length: 1 to 2 | 20 | grpo/thinking − grpo/direct | HR@10 | +1.0000 [+1.0000, +1.0000] |"
    assert f"{row} 0.0000 | 20 / 0 / 0 | 0.0200 | higher |" in text
    assert (
        "| history_length: 3 to 4 | 1 | grpo/thinking − grpo/direct | HR@10 | +0.0000 |  |  |  | rows of one user |"
        in text
    )
    assert "| 5 to 9 | grpo/direct | 20 | 20 | 0.0000 [0.0000, 0.1684] | 0.0000 [0.0000, 0.1684] |" in text
    assert "all 4 differences" in text


def test_the_stage_publishes_slices_of_every_list(world):
    artifact = world.store.require("toys", SNAPSHOT, "evaluation")
    table = tables.read(artifact.path("slices.parquet"))
    evaluation = tables.read(artifact.path("evaluation.parquet"))
    lists = evaluation.select("model", "mode").unique().height
    assert set(table["slice"]) == {
        *("history_length", "target_popularity", "cold_target", "seen_pair"),
        *("repeat_purchase", "same_brand", "same_category"),
    }
    own = table.filter(pl.col("minus").is_null() & (pl.col("metric") == "hr"))
    assert (own.group_by("slice", "group").len()["len"] == lists).all()
    assert (own.group_by("slice", "model", "mode").agg(pl.col("n_rows").sum())["n_rows"] == 12).all()
    # Weighted by rows, the groups give the value of the whole.
    whole = (
        own.filter(pl.col("slice") == "cold_target")
        .group_by("model", "mode")
        .agg(((pl.col("value") * pl.col("n_rows")).sum() / 12).alias("mean"))
    )
    hr = evaluation.filter((pl.col("metric") == "hr") & (pl.col("k") == 5) & (pl.col("level") == "item"))
    joined = hr.join(whole, on=["model", "mode"])
    assert joined.height == lists and joined["value"].to_list() == pytest.approx(joined["mean"].to_list())
    assert artifact.path("slices.png").read_bytes()[:4] == b"\x89PNG"
    assert "## same_brand" in artifact.path("slices.md").read_text()
