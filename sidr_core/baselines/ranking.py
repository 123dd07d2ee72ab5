"""Lists from scores: the best k items of each row, ties in a fixed order. For every model that scores all items."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from sidr_core.errors import InputError
from sidr_core.tables.columns import ITEM_ID, RANK, ROW_ID, SCORE


def by_popularity(popularity: pl.DataFrame) -> pl.DataFrame:
    """The popularity table in the order that breaks ties: most popular first, then by item id."""
    return popularity.sort([SCORE, ITEM_ID], descending=[True, False])


def top_k(blocks: Iterable[np.ndarray], row_ids: pl.Series, item_ids: pl.Series, k: int) -> pl.DataFrame:
    """The k items of highest score of each row.

    Args:
        blocks: scores (R_b, N) of consecutive rows, R_b summing to R; N items in tie-break order.
        row_ids: (R,); item_ids: (N,); k: length of each list.

    Returns:
        row_id, rank (from 1), item_id, score; R × k rows, in the order of `row_ids`.

    Raises:
        InputError: the catalogue holds fewer than k items.
    """
    if k > len(item_ids):
        raise InputError(
            "the catalogue is smaller than a list",
            expected=f"at least {k} items",
            found=f"{len(item_ids)}",
            fix="lower `decoding.beam_width`, or keep more items in `filters`",
        )
    best, scores = [np.zeros((0, k), dtype=np.int64)], [np.zeros((0, k))]
    for block in blocks:
        order = _first_k(block, k)
        best.append(order)
        scores.append(np.take_along_axis(block, order, axis=1).astype(np.float64))
    picked = np.concatenate(best)
    return pl.DataFrame(
        {
            ROW_ID: np.repeat(row_ids.to_numpy(), k),
            RANK: np.tile(np.arange(1, k + 1, dtype=np.int32), len(picked)),
            ITEM_ID: item_ids.gather(picked.ravel()),
            SCORE: np.concatenate(scores).ravel(),
        },
        schema_overrides={ROW_ID: pl.String},
    )


def _first_k(block: np.ndarray, k: int) -> np.ndarray:
    """Columns (R, k) of the k highest scores of each row (R, N), equal ones in the order of the columns."""
    least = -np.partition(-block, k - 1, axis=1)[:, k - 1 : k]
    kept = block >= least
    order = np.empty((len(block), k), dtype=np.int64)
    exact = kept.sum(axis=1) == k
    columns = np.nonzero(kept[exact])[1].reshape(-1, k)
    # a stable sort keeps the order of the columns among equal scores
    inner = np.argsort(-np.take_along_axis(block[exact], columns, axis=1), axis=1, kind="stable")
    order[exact] = np.take_along_axis(columns, inner, axis=1)
    # where the k-th score is shared, so many candidates remain that the whole row is sorted
    order[~exact] = np.argsort(-block[~exact], axis=1, kind="stable")[:, :k]
    return order
