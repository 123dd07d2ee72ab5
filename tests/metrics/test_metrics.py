"""Per-row HR, NDCG and MRR against values worked out by hand, and against an independent library."""

import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core.metrics.ranking import RANKED, column, gains, per_row

KS = (1, 3, 5)


def lists(*rows: tuple[str, str, list[tuple[str, str, float]]]) -> pl.DataFrame:
    """(model, row_id, [(item, sid, score), …]) as a recommendations table."""
    found = [
        {
            "model": model,
            "mode": "direct",
            "row_id": row,
            "rank": rank,
            "item_id": item,
            "sid": sid,
            "score": score,
        }
        for model, row, places in rows
        for rank, (item, sid, score) in enumerate(places, start=1)
    ]
    return pl.DataFrame(found)


def truth(**targets: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"row_id": list(targets), "user_id": [f"u-{r}" for r in targets], "target_item_id": list(targets.values())}
    )


def codebook(**sids: str) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(sids), "sid": list(sids.values())})


OWN = codebook(**{item: f"<a_{i}>" for i, item in enumerate("ABCDEFG")})


def one(recommendations: pl.DataFrame, test: pl.DataFrame, book: pl.DataFrame) -> dict:
    scored = per_row(recommendations, test, book, KS)
    assert scored.height == 1
    return scored.row(0, named=True)


@pytest.mark.parametrize(
    ("target", "hr", "ndcg", "mrr"),
    [
        ("A", (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ("B", (0, 1, 1), (0, 1 / math.log2(3), 1 / math.log2(3)), (0, 1 / 2, 1 / 2)),
        ("C", (0, 1, 1), (0, 0.5, 0.5), (0, 1 / 3, 1 / 3)),
        ("D", (0, 0, 1), (0, 0, 1 / math.log2(5)), (0, 0, 1 / 4)),
        ("G", (0, 0, 0), (0, 0, 0), (0, 0, 0)),  # not in the list
        ("unknown", (0, 0, 0), (0, 0, 0), (0, 0, 0)),  # not even in the codebook
    ],
)
def test_one_item_per_sid_gives_the_textbook_values_at_both_levels(target, hr, ndcg, mrr):
    places = [(item, f"<a_{i}>", -float(i)) for i, item in enumerate("ABCD")]
    row = one(lists(("m", "r", places)), truth(r=target), OWN)
    for level in ("item", "sid"):
        assert [row[column(level, "hr", k)] for k in KS] == pytest.approx(hr)
        assert [row[column(level, "ndcg", k)] for k in KS] == pytest.approx(ndcg)
        assert [row[column(level, "mrr", k)] for k in KS] == pytest.approx(mrr)


SHARED = codebook(A="<a_0>", B="<a_1>", C="<a_1>", D="<a_1>", E="<a_2>")
SHARED_LIST = [("A", "<a_0>", -1.0), ("B", "<a_1>", -2.0), ("C", "<a_1>", -2.0), ("D", "<a_1>", -2.0)]


@pytest.mark.parametrize("target", ["B", "C", "D"])
def test_a_shared_sid_counts_with_its_expectation_whichever_of_its_items_is_the_target(target):
    """The group holds places 2, 3, 4: HR@3 = 2/3, NDCG@3 = (1/log2 3 + 1/log2 4) / 3."""
    row = one(lists(("m", "r", SHARED_LIST)), truth(r=target), SHARED)
    assert row["item_hr@1"] == 0
    assert row["item_hr@3"] == pytest.approx(2 / 3)
    assert row["item_hr@5"] == pytest.approx(1)
    assert row["item_ndcg@3"] == pytest.approx((1 / math.log2(3) + 0.5) / 3)
    assert row["item_ndcg@5"] == pytest.approx((1 / math.log2(3) + 0.5 + 1 / math.log2(5)) / 3)
    # the mean place is 3, whose NDCG is 0.5: the expectation is not the metric at the mean place
    assert row["item_ndcg@5"] != pytest.approx(0.5)


def test_sid_level_counts_distinct_sids_as_places():
    places = [*SHARED_LIST, ("E", "<a_2>", -3.0)]
    row = one(lists(("m", "r", places)), truth(r="E"), SHARED)
    assert row["sid_hr@3"] == 1  # third distinct SID
    assert row["sid_ndcg@3"] == pytest.approx(0.5)
    assert row["item_hr@3"] == 0  # fifth item
    assert row["item_ndcg@5"] == pytest.approx(1 / math.log2(6))


def test_a_hit_on_the_sid_is_no_hit_on_the_item():
    """A counter may list only one item of a shared SID: the other one is a miss at item level."""
    row = one(lists(("item_item", "r", [("B", "<a_1>", 0.9)])), truth(r="C"), SHARED)
    assert (row["sid_hr@1"], row["item_hr@1"], row["item_ndcg@5"]) == (1, 0, 0)


def test_items_of_one_sid_at_different_scores_keep_their_own_places():
    places = [("B", "<a_1>", 0.9), ("C", "<a_1>", 0.8)]
    row = one(lists(("item_item", "r", places)), truth(r="B"), SHARED)
    assert (row["item_hr@1"], row["item_ndcg@5"]) == (1, 1)


def test_models_and_rows_are_scored_apart_and_foreign_rows_left_out():
    table = lists(
        ("m", "r1", [("A", "<a_0>", -1.0), ("B", "<a_1>", -2.0)]),
        ("m", "r2", [("B", "<a_1>", -1.0), ("A", "<a_0>", -2.0)]),
        ("n", "r1", [("B", "<a_1>", -1.0)]),
        ("n", "r9", [("A", "<a_0>", -1.0)]),
    )
    scored = per_row(table, truth(r1="A", r2="A"), OWN, KS)
    found = {(row["model"], row["row_id"]): row["item_hr@1"] for row in scored.iter_rows(named=True)}
    assert found == {("m", "r1"): 1, ("m", "r2"): 0, ("n", "r1"): 0}
    assert scored.filter(pl.col("row_id") == "r2")["user_id"].to_list() == ["u-r2"]


def test_row_order_does_not_matter():
    table = lists(("m", "r1", SHARED_LIST), ("m", "r2", SHARED_LIST))
    rows = truth(r1="C", r2="A")
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=3)
    assert per_row(table, rows, SHARED, KS).equals(per_row(shuffled, rows.reverse(), SHARED, KS))


@settings(deadline=None)
@given(
    before=st.integers(0, 6),
    size=st.integers(1, 4),
    after=st.integers(0, 3),
    k=st.integers(1, 8),
    target=st.integers(0, 3),
)
def test_expectation_equals_the_mean_over_all_orders_of_the_group(before, size, after, k, target):
    """Against brute force: every permutation of the group is scored like a plain list."""
    target %= size
    names = [f"b{i}" for i in range(before)] + [f"g{i}" for i in range(size)] + [f"z{i}" for i in range(after)]
    sids = {n: "<a_99>" if n[0] == "g" else f"<a_{i}>" for i, n in enumerate(names)}
    places = [(n, sids[n], -1.0 if n[0] == "g" else -float(i + 2)) for i, n in enumerate(names)]
    row = per_row(lists(("m", "r", places)), truth(r=f"g{target}"), codebook(**sids), (k,)).row(0, named=True)
    ranks = [before + order.index(target) + 1 for order in itertools.permutations(range(size))]
    assert row[column("item", "hr", k)] == pytest.approx(sum(r <= k for r in ranks) / len(ranks))
    ideal = sum(1 / math.log2(r + 1) for r in ranks if r <= k) / len(ranks)
    assert row[column("item", "ndcg", k)] == pytest.approx(ideal)
    assert row[column("item", "mrr", k)] == pytest.approx(sum(1 / r for r in ranks if r <= k) / len(ranks))
    assert gains([before + 1 + i for i in range(size)], k) == pytest.approx(
        [row[column("item", metric, k)] for metric in RANKED]
    )


def test_random_rankings_agree_with_torchmetrics():
    """300 lists of 20 of 60 items; the library sees the same scores as flat predictions with their query."""
    import torch
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

    generator = np.random.default_rng(5)
    items = [f"i{n:02d}" for n in range(60)]
    book = codebook(**{item: f"<a_{n}>" for n, item in enumerate(items)})
    listed, targets, scores, hits = [], {}, [], []
    for row in range(300):
        order, score = generator.permutation(60)[:20], np.sort(generator.standard_normal(20))[::-1]
        target = int(generator.integers(60))
        listed.append(("m", f"r{row}", [(items[i], f"<a_{i}>", float(s)) for i, s in zip(order, score, strict=True)]))
        targets[f"r{row}"] = items[target]
        # What is not listed ranks below all that is. The library's MRR takes no score below 0 for a hit.
        scores.append(np.arange(60, 0, -1, dtype=np.float32))
        hits.append(np.r_[order, np.setdiff1d(np.arange(60), order)] == target)
    ks = (1, 3, 5, 10, 20)
    scored = per_row(lists(*listed), truth(**targets), book, ks)
    flat = torch.tensor(np.concatenate(scores)), torch.tensor(np.concatenate(hits))
    queries = torch.arange(300).repeat_interleave(60)
    judges = {"hr": RetrievalHitRate, "ndcg": RetrievalNormalizedDCG, "mrr": RetrievalMRR}
    for k in ks:
        for metric, judge in judges.items():
            expected = float(judge(top_k=k)(*flat, indexes=queries))
            assert 0 < expected < 1
            for level in ("item", "sid"):
                assert scored[column(level, metric, k)].mean() == pytest.approx(expected, abs=1e-6), (level, metric, k)
