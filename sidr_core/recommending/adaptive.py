"""A checkpoint that thinks only where its direct list is unsure.

A list is unsure if its first SID leads by little. How little is chosen on valid rows, by NDCG@10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sidr_core.decoding.lists import Lists
from sidr_core.metrics.ranking import NDCG, column, per_row
from sidr_core.tables.columns import DIRECT, ITEM_LEVEL, MODE, MODEL, RANK, ROW_ID, SCORE, SID, THINKING

_K = 10


@dataclass(frozen=True)
class Threshold:
    """Where an adaptive model thinks: rows whose direct list leads by at most `margin`.

    Attributes:
        margin: probability of the first SID less that of the second, both as shares of the whole list; below 0:
            no row thinks.
        ndcg: NDCG@10 (item level) on the valid rows at this margin; `direct` and `thinking` without a choice.
        share: of the valid rows that think.
        rows: valid rows it was chosen on.
    """

    margin: float
    ndcg: float
    direct: float
    thinking: float
    share: float
    rows: int


def adaptive(direct: Lists, thinking: Lists, threshold: float) -> Lists:
    """Lists of a checkpoint that thinks only where its direct list is unsure.

    Args:
        direct, thinking: lists of one checkpoint for the same rows, scores in nats.
        threshold: `Threshold.margin` of :func:`choose_threshold`, chosen on valid rows.
    """
    unsure = margins(direct.rankings).filter(pl.col("margin") <= threshold).select(ROW_ID)
    sure = direct.rankings.join(unsure, on=ROW_ID, how="anti")
    thought = thinking.rankings.join(unsure, on=ROW_ID, how="semi")
    assert thinking.thoughts is not None
    return Lists(pl.concat([sure, thought]), thinking.thoughts.join(unsure, on=ROW_ID, how="semi"))


def choose_threshold(direct: Lists, thinking: Lists, valid: pl.DataFrame, codebook: pl.DataFrame, k: int) -> Threshold:
    """The margin below which thinking pays, by NDCG at `min(k, 10)`.

    Every margin that occurs is tried; of equal results the one with the fewest thoughts is taken.

    Args:
        direct, thinking: lists of one checkpoint for `valid`, scores in nats.
        valid: valid samples, of :func:`~sidr_core.recommending.rows.choice_rows`; never test rows.
        codebook: item_id -> sid.
    """
    lists = ((DIRECT, direct), (THINKING, thinking))
    both = pl.concat(
        [one.rankings.with_columns(pl.lit("").alias(MODEL), pl.lit(mode).alias(MODE)) for mode, one in lists]
    )
    k = min(_K, k)
    gain = column(ITEM_LEVEL, NDCG, k)
    scored = per_row(both, valid, codebook, (k,)).sort(MODE, ROW_ID)
    of_direct, of_thinking = (scored.filter(pl.col(MODE) == mode)[gain].to_numpy() for mode in (DIRECT, THINKING))
    return best_threshold(margins(direct.rankings)["margin"].to_numpy(), of_direct, of_thinking)


def best_threshold(margin: np.ndarray, direct: np.ndarray, thinking: np.ndarray) -> Threshold:
    """The threshold with the highest mean of `thinking` where margin <= threshold, else `direct`; all (R,).

    >>> import numpy as np
    >>> chosen = best_threshold(np.array([0.1, 0.2, 0.9]), np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    >>> chosen.margin, round(chosen.share, 3), round(chosen.ndcg, 3)
    (0.1, 0.333, 0.667)
    """
    order = np.argsort(margin, kind="stable")
    steps, last = np.unique(margin[order], return_index=True)
    ends = np.append(last[1:], len(margin))  # rows that think at each step
    gained = np.append(0.0, np.cumsum((thinking - direct)[order])[ends - 1])
    best = int(np.argmax(gained > gained.max() - 1e-9))  # sums of floats: equal up to rounding
    return Threshold(
        margin=-1.0 if best == 0 else float(steps[best - 1]),
        ndcg=float(direct.mean() + gained[best] / len(margin)),
        direct=float(direct.mean()),
        thinking=float(thinking.mean()),
        share=0.0 if best == 0 else float(ends[best - 1] / len(margin)),
        rows=len(margin),
    )


def margins(rankings: pl.DataFrame) -> pl.DataFrame:
    """How far each list's first SID leads: its share of the list's probability less that of the second.

    Args:
        rankings: lists of a checkpoint (`lists.RANKING`), scores in nats.

    Returns:
        row_id and margin, in the order of row_id.
    """
    sids = rankings.sort(ROW_ID, RANK).unique([ROW_ID, SID], keep="first", maintain_order=True)
    chance = (pl.col(SCORE) - pl.col(SCORE).max()).exp()
    lead = (chance.first() - chance.slice(1, 1).sum()) / chance.sum()
    return sids.group_by(ROW_ID, maintain_order=True).agg(lead.alias("margin"))
