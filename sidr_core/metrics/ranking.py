"""HR@k, NDCG@k and MRR@k of every row, at item and at SID level; means and intervals come afterwards.

With one relevant item per row HR@k equals Recall@k, NDCG@k is `1 / log2(place + 1)` and MRR@k `1 / place` for
a hit at `place <= k`, else 0.

Deviation from the paper's code, which matches SID strings only (docs/method.md, "Decoding and evaluation"): the
headline is the *item* level. A model that names a SID shared by n items cannot tell them apart, so its hit counts as
the expectation of the metric over a random order of the n places that they occupy. That is the mean
of the metric over those places, not the metric at their mean. SID level is reported beside it, to
compare with papers: the places are the distinct SIDs of the list, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from sidr_core.tables import columns as c

HR, NDCG, MRR = "hr", "ndcg", "mrr"
#: Metrics of a place, in the order of the tables.
RANKED = (HR, NDCG, MRR)
LEVELS = (c.ITEM_LEVEL, c.SID_LEVEL)
_LIST = [c.MODEL, c.MODE, c.ROW_ID]
_PLACE = "place"
_TARGET_SID = "target_sid"


def column(level: str, metric: str, k: int) -> str:
    """Name of a metric's column in the table of :func:`per_row`: `item_ndcg@10`."""
    return f"{level}_{metric}@{k}"


def gains(places: Sequence[int], k: int) -> tuple[float, float, float]:
    """Expected (HR@k, NDCG@k, MRR@k) of a target that is equally likely at each of `places` (from 1).

    >>> gains([1], 10)
    (1.0, 1.0, 1.0)
    >>> gains([3], 10)[:2]  # 1 / log2(4)
    (1.0, 0.5)
    >>> gains([1, 3], 1)  # at place 1 in one of two orders
    (0.5, 0.5, 0.5)
    >>> gains([1, 4], 4)[2]  # (1 + 1/4) / 2
    0.625
    >>> gains([4], 3)
    (0.0, 0.0, 0.0)
    """
    frame = pl.DataFrame({_PLACE: list(places)})
    return frame.select(*_expected(c.ITEM_LEVEL, (k,))).row(0)  # type: ignore[return-value]


def per_row(
    recommendations: pl.DataFrame, test: pl.DataFrame, codebook: pl.DataFrame, ks: Sequence[int]
) -> pl.DataFrame:
    """Score every list, one row per list.

    Places that hold one SID at one score are a group whose inner order is arbitrary; places of one
    SID at different scores (a counter tells the items apart) are not.

    Args:
        recommendations: the contract `Recommendations`, any number of models.
        test: the contract `Samples`; the targets are taken from here.
        codebook: item_id -> sid. A target without a SID is a miss.
        ks: cut-offs.

    Returns:
        model, mode, row_id, user_id, and one column per level, metric and k (see :func:`column`),
        sorted by model, mode and row_id. Lists of rows that are not in `test` are left out.
    """
    sids = codebook.select(pl.col(c.ITEM_ID).alias(c.TARGET), pl.col(c.SID).alias(_TARGET_SID))
    truth = test.select(c.ROW_ID, c.USER_ID, c.TARGET).join(sids, on=c.TARGET, how="left")
    places = recommendations.select(*_LIST, c.RANK, c.ITEM_ID, c.SID, c.SCORE).join(truth, on=c.ROW_ID, how="inner")
    lists = places.select(*_LIST, c.USER_ID).unique()
    scored = lists.join(_item_level(places, ks), on=_LIST, how="left").join(
        _sid_level(places, ks), on=_LIST, how="left"
    )
    return scored.with_columns(pl.selectors.float().fill_null(0.0)).sort(_LIST)


def _item_level(places: pl.DataFrame, ks: Sequence[int]) -> pl.DataFrame:
    """Lists that hold the target item, scored by the places of its group."""
    group = [*_LIST, c.SID, c.SCORE]
    hits = places.filter(pl.col(c.ITEM_ID) == pl.col(c.TARGET)).select(group).unique()
    members = places.join(hits, on=group, how="inner").rename({c.RANK: _PLACE})
    return members.group_by(_LIST).agg(_expected(c.ITEM_LEVEL, ks))


def _sid_level(places: pl.DataFrame, ks: Sequence[int]) -> pl.DataFrame:
    """Lists that hold the target's SID, scored by its place among the distinct SIDs."""
    first = places.group_by([*_LIST, c.SID, _TARGET_SID]).agg(pl.col(c.RANK).min())
    ranked = first.with_columns(pl.col(c.RANK).rank("ordinal").over(_LIST).alias(_PLACE))
    hits = ranked.filter(pl.col(c.SID) == pl.col(_TARGET_SID))
    return hits.group_by(_LIST).agg(_expected(c.SID_LEVEL, ks))


def _expected(level: str, ks: Sequence[int]) -> list[pl.Expr]:
    """Mean of each metric over the rows of a group; rows are the places the target may hold."""
    place = pl.col(_PLACE).cast(pl.Float64)
    metrics = []
    for k in ks:
        inside = place <= k
        gain = pl.when(inside).then(float(np.log(2.0)) / (place + 1).log()).otherwise(0.0)
        inverse = pl.when(inside).then(1 / place).otherwise(0.0)
        values = (inside, gain, inverse)
        metrics += [value.mean().alias(column(level, name, k)) for name, value in zip(RANKED, values, strict=True)]
    return metrics
