"""A checkpoint's lists mixed with the counter's: worth by hand, what is left of each, the choice of the share."""

from __future__ import annotations

import math

import polars as pl
import pytest

from sidr_core.recommending.mixture import SHARES, choose_share, mixed

CODEBOOK = pl.DataFrame({"item_id": ["A", "B", "C", "D"], "sid": ["<a_0>", "<a_1>", "<a_2>", "<a_2>"]})


def neural(*rows: tuple[str, list[tuple[str, str, float]]]) -> pl.DataFrame:
    found = [
        (row, rank, item, sid, math.log(p)) for row, places in rows for rank, (item, sid, p) in enumerate(places, 1)
    ]
    return pl.DataFrame(
        found, schema={"row_id": str, "rank": pl.Int32, "item_id": str, "sid": str, "score": float}, orient="row"
    )


def counter(*rows: tuple[str, list[tuple[str, float]]]) -> pl.DataFrame:
    found = [(row, rank, item, score) for row, places in rows for rank, (item, score) in enumerate(places, 1)]
    return pl.DataFrame(found, schema={"row_id": str, "rank": pl.Int32, "item_id": str, "score": float}, orient="row")


def items(places: pl.DataFrame, row: str = "r") -> list[str]:
    return places.filter(pl.col("row_id") == row).sort("rank")["item_id"].to_list()


MODEL = neural(("r", [("A", "<a_0>", 0.5), ("C", "<a_2>", 0.4), ("D", "<a_2>", 0.4)]))
COUNTS = counter(("r", [("B", 3.0), ("A", 0.0), ("C", 0.0), ("D", 0.0)]))


def test_the_worth_of_an_item_is_computed_by_hand():
    found = mixed(MODEL, COUNTS, 0.5, CODEBOOK, 3).rankings
    # B: 0.5 * 3 / (3 + 1) = 0.375; A: 0.5 * 0.5 = 0.25; C and D share 0.4: 0.5 * 0.2 = 0.1 each.
    assert items(found) == ["B", "A", "C", "D"]
    assert found["score"].exp().to_list() == pytest.approx([0.375, 0.25, 0.1, 0.1])


def test_at_the_ends_one_list_comes_first():
    assert items(mixed(MODEL, COUNTS, 0.0, CODEBOOK, 3).rankings) == ["A", "C", "D", "B"]
    assert items(mixed(MODEL, COUNTS, 1.0, CODEBOOK, 3).rankings)[0] == "B"


def test_a_counter_that_saw_nothing_is_silent():
    silent = counter(("r", [("B", 1e-9), ("A", 0.0), ("C", 0.0), ("D", 0.0)]))
    assert items(mixed(MODEL, silent, 0.9, CODEBOOK, 3).rankings)[:3] == ["A", "C", "D"]


def test_lists_end_where_so_many_sids_are_full():
    assert items(mixed(MODEL, COUNTS, 0.5, CODEBOOK, 2).rankings) == ["B", "A"]


def test_the_share_is_the_best_on_valid_rows_and_of_equal_ones_the_lowest():
    rows = pl.DataFrame(
        {"row_id": ["r", "s"], "user_id": ["u", "v"], "history_item_ids": [["A"], ["A"]], "target_item_id": ["B", "A"]}
    )
    first = neural(("r", [("A", "<a_0>", 0.52), ("C", "<a_2>", 0.4), ("D", "<a_2>", 0.4)]))
    places = pl.concat([first, neural(("s", [("A", "<a_0>", 0.9), ("C", "<a_2>", 0.05), ("D", "<a_2>", 0.05)]))])
    counts = pl.concat([COUNTS, counter(("s", [("B", 1.0), ("A", 0.0), ("C", 0.0), ("D", 0.0)]))])
    found = choose_share(places, counts, rows, CODEBOOK, 3)
    # r is right where B > A: share * 0.75 > (1 - share) * 0.52, from 0.45 on;
    # s is right where A > B: (1 - share) * 0.9 > share * 0.5, up to 0.6.
    assert found.share == 0.45 and found.share in SHARES
    assert found.ndcg == pytest.approx(1.0) and found.rows == 2
    assert found.neural < 1 and found.counter < 1
