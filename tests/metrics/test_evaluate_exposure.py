"""Coverage, Gini, novelty and the state of lists and thoughts, against values worked out by hand."""

import math

import numpy as np
import polars as pl
import pytest

from sidr_core.metrics import lists as exposure
from sidr_core.metrics.lists import gini, measure, self_information

OPTIONS = {"draws": 400, "confidence": 0.9, "seed": 3}
BOOK = pl.DataFrame({"item_id": list("ABCD"), "sid": ["s0", "s1", "s2", "s3"]})
TRAIN = pl.DataFrame({"target_item_id": ["A", "A", "A", "B"]})


def lists(**rows: str) -> pl.DataFrame:
    """row="AB" is the list A, B of a user of the row's own; row_id `u1_2` is the second row of u1."""
    found = [
        {"row_id": row, "user_id": row.split("_")[0], "rank": rank, "item_id": item, "sid": f"s{'ABCD'.find(item)}"}
        for row, items in rows.items()
        for rank, item in enumerate(items, start=1)
    ]
    return pl.DataFrame(found, schema_overrides={"rank": pl.Int32})


def found(table: pl.DataFrame, thoughts=None, ks=(1, 2), width=2) -> dict[tuple[str, int], exposure.Measured]:
    measured = measure(table, thoughts, BOOK, self_information(TRAIN, BOOK), ks, width, OPTIONS)
    assert all(one.low <= one.value <= one.high for one in measured)
    return {(one.metric, one.k): one for one in measured}


def test_coverage_gini_and_novelty_by_hand():
    values = found(lists(u1="AB", u2="AC"))
    # At 1 only A is shown, twice: one of four items. At 2: A twice, B and C once, D never.
    assert values["coverage", 1].value == 0.25
    assert values["coverage", 2].value == 0.75
    assert values["gini", 1].value == 0.75
    # Sorted counts 0, 1, 1, 2 with weights -3, -1, 1, 3: (−1 + 1 + 6) / (4 × 4)
    assert values["gini", 2].value == pytest.approx(6 / 16)
    # Counts plus one are A 4, B 2, C 1, D 1 of 8: 1, 2, 3 and 3 bits.
    assert values["novelty", 1].value == pytest.approx(1)
    assert values["novelty", 2].value == pytest.approx((1 + 2 + 1 + 3) / 4)
    # Draws of both users, of u1 alone and of u2 alone: novelty at 2 is 1.75, 1.5 and 2.
    assert (values["novelty", 2].low, values["novelty", 2].high) == (1.5, 2.0)


def test_self_information_of_a_catalogue_without_train_rows_is_uniform():
    bits = self_information(TRAIN.clear(), BOOK)
    assert bits["bits"].to_list() == pytest.approx([math.log2(4)] * 4)


def test_gini_is_a_mean_of_all_pairs_of_items():
    """Gini is half the mean absolute difference over the mean: another formula of the same."""
    counts = np.random.default_rng(1).integers(0, 9, (5, 30))
    pairs = np.abs(counts[:, :, None] - counts[:, None, :]).mean(axis=(1, 2)) / 2 / counts.mean(axis=1)
    np.testing.assert_allclose(gini(counts), pairs)


def test_a_draw_holds_fewer_items_so_its_interval_is_moved_to_the_value():
    """60 users with an item each: draws cover about 63 % of what all of them cover, and none reaches it."""
    names = [f"i{n:02d}" for n in range(60)]
    book = pl.DataFrame({"item_id": names, "sid": names})
    table = pl.DataFrame({"row_id": names, "user_id": names, "rank": 1, "item_id": names, "sid": names})
    measured = measure(table, None, book, self_information(TRAIN, book), (1,), 1, OPTIONS)
    coverage = next(one for one in measured if one.metric == "coverage")
    assert coverage.value == coverage.high == 1.0
    # The spread is that of the draws: sd about sqrt(60 × e^-1 × (1 − 2/e)) / 60 = 0.04, 5 % quantile 1.64 sd below.
    assert 0.03 < coverage.value - coverage.low < 0.12


def test_blocks_only_bound_the_memory(monkeypatch):
    table = lists(u1="AB", u2="AC", u3="DA", u4="BA")
    whole = found(table)
    monkeypatch.setattr(exposure, "_BLOCK", 12)  # 3 draws at a time
    assert found(table) == whole


def test_an_invented_item_and_a_repeated_beam_are_counted():
    values = found(lists(u1="AB", u2="AX", u3="CC", u4="BA"))
    assert values["invalid_rate", 2].value == pytest.approx((0 + 0.5 + 0 + 0) / 4)
    assert values["distinct_rate", 2].value == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_a_beam_wider_than_the_catalogue_is_full_with_all_of_it():
    assert found(lists(u1="ABCD", u2="BACD"), width=20)["distinct_rate", 20].value == 1


def test_thoughts_are_counted_over_rows_and_tokens_over_all_of_them():
    """u1 thought twice, u2 once, u3 not at all: its list was sure without."""
    thoughts = pl.DataFrame(
        {"row_id": ["u1", "u1", "u2"], "closed": [True, False, True], "n_tokens": [10, 20, 6]},
        schema_overrides={"n_tokens": pl.Int32},
    )
    values = found(lists(u1="AB", u2="AC", u3="BA"), thoughts)
    assert values["close_rate", 0].value == pytest.approx((0.5 + 1) / 2)
    assert values["thought_tokens", 0].value == pytest.approx((30 + 6 + 0) / 3)
    assert ("close_rate", 0) not in found(lists(u1="AB", u2="AC"))
    nothing = found(lists(u1="AB", u2="AC"), thoughts.clear())
    assert nothing["thought_tokens", 0].value == 0 and ("close_rate", 0) not in nothing


def test_thoughts_of_one_user_have_no_interval_but_the_value():
    thoughts = pl.DataFrame({"row_id": ["u1"], "closed": [True], "n_tokens": [4]})
    one = found(lists(u1="AB", u2="AC"), thoughts)["close_rate", 0]
    assert (one.value, one.low, one.high) == (1, 1, 1)
