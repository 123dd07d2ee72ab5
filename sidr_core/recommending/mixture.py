"""A checkpoint's direct list mixed with the item-item counter's: what both know, in one list.

The counter remembers which item followed which; a small model forgets some of these pairs, and knows about items
that the counter never saw together. An item's worth is `(1 - share) * p + share * c / (C + 1)`: p its probability
under the checkpoint (shared by the items of its SID), c its score under the counter, C the sum of the counter's
list. One pseudo-count keeps the counter silent where it has seen nothing. `share` is chosen on valid rows. It is
shallow fusion, as speech recognisers mix a language model in, and no part of the paper's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from sidr_core.decoding.lists import Lists, counted
from sidr_core.metrics.ranking import NDCG, column, per_row
from sidr_core.tables.columns import DIRECT, ITEM_ID, ITEM_LEVEL, MODE, MODEL, RANK, ROW_ID, SCORE, SID

#: The shares that are tried: the checkpoint alone, twentieths, the counter alone.
SHARES = tuple(step / 20 for step in range(21))
_K = 10
_PSEUDO_COUNT = 1.0


@dataclass(frozen=True)
class Share:
    """The counter's share of a mixture.

    Attributes:
        share: 0 is the checkpoint alone, 1 the counter alone.
        ndcg: NDCG@10 (item level) on the valid rows at this share; `neural` and `counter` at 0 and 1.
        rows: valid rows it was chosen on.
    """

    share: float
    ndcg: float
    neural: float
    counter: float
    rows: int


def mixed(neural: pl.DataFrame, counter: pl.DataFrame, share: float, codebook: pl.DataFrame, width: int) -> Lists:
    """Lists of the mixture, of `width` distinct SIDs; the score is the log of an item's worth.

    Args:
        neural: the checkpoint's lists (`lists.RANKING`), scores in nats.
        counter: row_id, rank, item_id, score of the counter for the same rows.
        share: of the counter, 0 to 1. codebook: item_id -> sid.
    """
    listed = chances(neural, "p")
    evidence = pl.col(SCORE) / (pl.col(SCORE).sum().over(ROW_ID) + _PSEUDO_COUNT)
    seen = counter.select(ROW_ID, ITEM_ID, evidence.alias("c"), pl.col(RANK).alias("counted"))
    both = listed.join(seen, on=[ROW_ID, ITEM_ID], how="full", coalesce=True)
    worth = (1 - share) * pl.col("p").fill_null(0.0) + share * pl.col("c").fill_null(0.0)
    # Items of equal worth, such as those that only the other one lists at share 0 or 1, keep the checkpoint's order.
    return by_worth(both.with_columns(worth.alias("worth")), (RANK, "counted"), codebook, width)


def chances(rankings: pl.DataFrame, name: str = "worth") -> pl.DataFrame:
    """row_id, item_id, rank and, as `name`, the probability of each item: that of its SID, shared among its items.

    Args:
        rankings: lists of a checkpoint (`lists.RANKING`), scores in nats.
    """
    sharing = pl.len().over(ROW_ID, SID)
    return rankings.select(ROW_ID, ITEM_ID, (pl.col(SCORE).exp() / sharing).alias(name), RANK)


def by_worth(items: pl.DataFrame, ties: Sequence[str], codebook: pl.DataFrame, width: int) -> Lists:
    """Lists in the order of `worth`, of `width` distinct SIDs; the score is its log.

    Args:
        items: row_id, item_id, `worth` and the columns of `ties`.
        ties: order of items of equal worth, smallest first and null last; then by item id.
        codebook: item_id -> sid.
    """
    order = [ROW_ID, "worth", *ties, ITEM_ID]
    ranked = items.sort(order, descending=[name == "worth" for name in order], nulls_last=True).select(
        ROW_ID,
        pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(ROW_ID).alias(RANK),
        ITEM_ID,
        pl.max_horizontal("worth", pl.lit(1e-30)).log().alias(SCORE),
    )
    return counted(ranked, codebook, width)


def choose_share(
    neural: pl.DataFrame, counter: pl.DataFrame, valid: pl.DataFrame, codebook: pl.DataFrame, width: int
) -> Share:
    """The share of `SHARES` with the highest NDCG@10; of equal ones the lowest.

    Args:
        neural, counter: lists for the rows of `valid`, as of :func:`mixed`. Test rows must never come here.
    """
    lists = [mixed(neural, counter, share, codebook, width).rankings for share in SHARES]
    tried = [ndcg_at(rankings, valid, codebook, width) for rankings in lists]
    best = max(range(len(SHARES)), key=lambda n: (tried[n], -n))
    return Share(SHARES[best], tried[best], tried[0], tried[-1], valid.height)


def ndcg_at(rankings: pl.DataFrame, rows: pl.DataFrame, codebook: pl.DataFrame, k: int) -> float:
    """Mean NDCG at `min(k, 10)`, item level, over some rows; a row without a list gains nothing."""
    k = min(k, _K)
    named = rankings.with_columns(pl.lit("").alias(MODEL), pl.lit(DIRECT).alias(MODE))
    gains = per_row(named, rows, codebook, (k,))[column(ITEM_LEVEL, NDCG, k)].to_list()
    return sum(gains) / rows.height
