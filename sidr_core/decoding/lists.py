"""Ranked lists of items, from beams or from the scores of a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.sids.index import ITEM_ROW, LEAF
from sidr_core.tables.columns import ITEM_ID, RANK, ROW_ID, SCORE, SID

if TYPE_CHECKING:
    from sidr_core.decoding.beam import Beams
    from sidr_core.sids.index import SidIndex


#: Columns of a ranking, one row per item of a list.
RANKING = [ROW_ID, RANK, ITEM_ID, SID, SCORE]


CLOSED, N_TOKENS = "closed", "n_tokens"


@dataclass(frozen=True)
class Lists:
    """Ranked items of some rows.

    Attributes:
        rankings: row_id, rank (from 1), item_id, sid, score; the items of a shared SID lie side by side.
        thoughts: row_id, trace, reasoning, closed, n_tokens, one line per thought; None in direct mode. Trace 0 is
            the one to show: it gives the first item of the list the most probability. Rows that an adaptive
            model did not think about have no line.
    """

    rankings: pl.DataFrame
    thoughts: pl.DataFrame | None = None


def rankings_of(beams: Beams, index: SidIndex, row_ids: Sequence[str], items: np.ndarray | None = None) -> pl.DataFrame:
    """Beams (R, B) as rankings: each SID gives one row per item that carries it, all at its score.

    Args:
        items: (I,) or (R, I) bool over `SidIndex.item_ids`, the items that may be listed, where the beam was filtered
            by `index.leaves_with(items)`: of the items that share a SID the others are left out.
    """
    rows, width = beams.leaf.shape
    flat = pl.DataFrame(
        {
            "row": np.repeat(np.arange(rows), width),
            "beam": np.tile(np.arange(width), rows),
            LEAF: beams.leaf.ravel().astype(np.int64),
            SCORE: beams.scores.ravel().astype(np.float64),
        }
    ).filter(pl.col(LEAF) >= 0)
    leaves = index.items_at(flat[LEAF].unique().sort().to_numpy())
    placed = flat.join(leaves, on=LEAF, how="inner").sort("row", "beam", ITEM_ID)
    if items is not None:
        each = np.atleast_2d(items)
        placed = placed.filter(pl.Series(each[placed["row"].to_numpy() % len(each), placed[ITEM_ROW].to_numpy()]))
    names = pl.DataFrame({"row": np.arange(rows), ROW_ID: list(row_ids)}, schema_overrides={ROW_ID: pl.String})
    ranked = placed.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("row").alias(RANK))
    return ranked.join(names, on="row", how="left", maintain_order="left").select(RANKING)


def counted(ranked: pl.DataFrame, codebook: pl.DataFrame, width: int) -> Lists:
    """Lists of a counter, cut where `width` distinct SIDs are full.

    So the list is as long as a beam's at item and at SID level; a counter tells items of one SID apart.

    Args:
        ranked: row_id, rank, item_id, score; long enough that `width` SIDs are in it.
        codebook: item_id -> sid; items without one cannot be recommended and are left out.
        width: SIDs per list.
    """
    named = ranked.join(codebook.select(ITEM_ID, SID), on=ITEM_ID, how="inner").sort(ROW_ID, RANK)
    fresh = named.with_columns(pl.col(SID).is_first_distinct().over(ROW_ID).cast(pl.Int32).alias("fresh"))
    first_sids = fresh.filter(pl.col("fresh").cum_sum().over(ROW_ID) <= width)
    ranked = first_sids.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(ROW_ID).alias(RANK))
    return Lists(ranked.select(RANKING))
