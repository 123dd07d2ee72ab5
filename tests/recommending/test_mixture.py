"""Lists that combine others: worth by hand, ranks, what valid rows choose, and where the list is the shortcut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core.recommending import mixture
from sidr_core.recommending.mixture import Candidates, Choice, choose, combined, routes, weights_tried

CODEBOOK = pl.DataFrame({"item_id": ["A", "B", "C", "D"], "sid": ["<a_0>", "<a_1>", "<a_2>", "<a_2>"]})
SID = dict(CODEBOOK.iter_rows())


def lists(**rows: dict[str, float]) -> pl.DataFrame:
    """A part's lists: row -> item -> score, in the order of a list."""
    found = [
        (row, rank, item, SID[item], score)
        for row, places in rows.items()
        for rank, (item, score) in enumerate(places.items(), 1)
    ]
    schema: Any = {"row_id": str, "rank": pl.Int32, "item_id": str, "sid": str, "score": float}
    return pl.DataFrame(found, schema=schema, orient="row")


def samples(*rows: tuple[str, str, list[str], str]) -> pl.DataFrame:
    """(row, user, history, target)."""
    return pl.DataFrame(rows, schema=["row_id", "user_id", "history_item_ids", "target_item_id"], orient="row")


def items(ranking: pl.DataFrame, row: str = "r") -> list[str]:
    return ranking.filter(pl.col("row_id") == row).sort("rank")["item_id"].to_list()


SHORTCUT = lists(r={"B": 0.8, "A": 0.4, "C": 0.0})
MODEL = lists(r={"A": math.log(0.64), "C": math.log(0.32), "D": math.log(0.32)})
BOTH = {"shortcut": SHORTCUT, "model": MODEL}
ALL = {"none": np.array(["all rows"])}


def test_the_worth_of_an_item_is_computed_by_hand():
    candidates = Candidates.of(BOTH, pl.Series(["r"]))
    worth = dict(zip(candidates.table["item_id"], candidates.worth.tolist(), strict=True))
    # the model's C and D share 0.32: 0.16 each, of A's 0.64 a quarter, whose root is a half
    expected = {"B": [1, 0], "A": [0.5, 1], "C": [0, 0.5], "D": [0, 0.5]}
    assert worth == {item: pytest.approx(of) for item, of in expected.items()}
    choice = Choice(("shortcut", "model"), {"all rows": (0.7, 0.3)}, "none", 0, 0, 1)
    found = combined(candidates, choice, ALL, CODEBOOK, 3).rankings
    assert items(found) == ["B", "A", "C", "D"]
    assert found["score"].exp().to_list() == pytest.approx([0.7, 0.65, 0.15, 0.15])
    assert items(combined(candidates, choice, ALL, CODEBOOK, 2).rankings) == ["B", "A"]


def test_weights_are_tenths_and_the_shortcut_alone_comes_first():
    assert weights_tried(2) == pytest.approx(np.array([[step / 10, (10 - step) / 10] for step in range(10, -1, -1)]))
    assert weights_tried(4).shape == (286, 4) and weights_tried(4)[0].tolist() == [1, 0, 0, 0]
    assert np.allclose(weights_tried(3).sum(axis=1), 1)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_gains_are_those_of_the_list_itself(data):
    """What chooses is what is published: the target's place in the combined list, for any weights."""
    book = pl.DataFrame({"item_id": list("ABCDEFGH"), "sid": [f"<a_{n}>" for n in range(8)]})
    names = book["item_id"].to_list()
    rows = {f"r{n}": data.draw(st.permutations(names)) for n in range(4)}
    drawn = {
        part: pl.concat(
            pl.DataFrame(
                {
                    "row_id": row,
                    "rank": pl.Series([1, 2, 3], dtype=pl.Int32),
                    "item_id": data.draw(st.permutations(order))[:3],
                    "score": sorted(data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3)), reverse=True),
                }
            ).join(book, on="item_id", maintain_order="left")
            for row, order in rows.items()
        ).with_columns(pl.col("score").cast(pl.Float64))
        for part in ("shortcut", "model")
    }
    candidates = Candidates.of(drawn, pl.Series(list(rows)))
    targets = pl.Series([data.draw(st.sampled_from(names)) for _ in rows])
    weights = data.draw(st.sampled_from(weights_tried(2).tolist()))
    choice = Choice(("shortcut", "model"), {"all rows": tuple(weights)}, "none", 0, 0, 4)
    ranking = combined(candidates, choice, {"none": np.array(["all rows"] * 4)}, book, 8).rankings
    for row, target, gain in zip(rows, targets, candidates.gains(np.array(weights), targets), strict=True):
        listed = items(ranking, row)
        assert gain == pytest.approx(1 / math.log2(listed.index(target) + 2) if target in listed else 0)


def test_routes_are_told_by_what_a_row_shows_before_its_answer():
    met = mixture.met_in(samples(("t", "u", ["A", "B"], "C")))
    rows = samples(("r", "u", ["A"], "D"), ("s", "v", ["A", "C"], "D"), ("t", "w", ["B"] * 6, "D"))
    told = {rule: of.tolist() for rule, of in routes(rows, met).items()}
    assert told == {
        "none": ["all rows"] * 3,
        "last item": ["last item met in train", "last item new", "last item met in train"],
        "length": ["up to 5 items", "up to 5 items", "more items"],
    }
    assert routes(rows.with_columns(pl.lit("A").alias("target_item_id")), met)["length"].tolist() == told["length"]


def world(rows: int) -> tuple[pl.DataFrame, Candidates, dict[str, np.ndarray]]:
    """The shortcut is right where the last item was met, the model where it was not."""
    met = [n % 2 == 0 for n in range(rows)]
    valid = samples(*[(f"r{n:04d}", f"u{n}", ["A" if known else "C"], "B") for n, known in enumerate(met)])
    right, wrong = {"B": 1.0, "A": 0.5}, {"A": 1.0, "C": 0.5}
    shortcut = lists(**{f"r{n:04d}": right if known else wrong for n, known in enumerate(met)})
    model = lists(**{f"r{n:04d}": wrong if known else right for n, known in enumerate(met)})
    met_items = mixture.met_in(samples(("t", "u", ["A"], "B")))
    return valid, Candidates.of({"shortcut": shortcut, "model": model}, valid["row_id"]), routes(valid, met_items)


def test_each_route_has_its_own_weights_where_that_helps_rows_that_did_not_choose():
    valid, candidates, by_rule = world(600)
    choice = choose(candidates, valid, by_rule, ("shortcut", "model"))
    assert choice.rule == "last item" and not choice.is_shortcut and choice.rows == 600
    known, new = choice.weights["last item met in train"], choice.weights["last item new"]
    assert known[0] > known[1] and new[1] > new[0]
    # where the shortcut is wrong, B is third: behind its own two, as only the model lists it
    assert choice.ndcg == pytest.approx(1.0) and choice.shortcut == pytest.approx((1 + 0.5) / 2)
    found = combined(candidates, choice, by_rule, CODEBOOK, 3).rankings
    assert found.filter(pl.col("rank") == 1)["item_id"].unique().to_list() == ["B"]
    assert "last item new: shortcut" in str(choice)


def test_a_mixture_that_is_not_above_the_shortcut_is_the_shortcut():
    valid, _, by_rule = world(200)
    right, wrong = {"B": 1.0, "A": 0.5}, {"A": 1.0, "C": 0.5}
    best = {
        "shortcut": lists(**dict.fromkeys(valid["row_id"], right)),
        "model": lists(**dict.fromkeys(valid["row_id"], wrong)),
    }
    choice = choose(Candidates.of(best, valid["row_id"]), valid, by_rule, ("shortcut", "model"))
    assert choice.is_shortcut and choice.weights == {"all rows": (1.0, 0.0)}
    one = valid.with_columns(pl.lit("u").alias("user_id"))  # one user has no other half to be judged on
    assert choose(world(200)[1], one, by_rule, ("shortcut", "model")).is_shortcut


def test_the_other_half_judges_what_a_half_chose():
    """The model is right for one half of the users and wrong for the other: what each half chooses fails the other."""
    valid, _, by_rule = world(40)
    first = valid["user_id"].rank("dense").to_numpy() % 2 == 0
    right, wrong = {"B": 1.0, "A": 0.01}, {"A": 1.0, "B": 0.01}
    of = {
        "shortcut": [wrong if half else right for half in first],
        "model": [right if half else wrong for half in first],
    }
    parts = {part: lists(**dict(zip(valid["row_id"], rows, strict=True))) for part, rows in of.items()}
    candidates = Candidates.of(parts, valid["row_id"])
    choice = mixture.choose(candidates, valid, {"none": by_rule["none"]}, ("shortcut", "model"))
    assert choice.is_shortcut and choice.ndcg == choice.shortcut
