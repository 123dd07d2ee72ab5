"""What every baseline can do: rank the catalogue for some histories.

A baseline is a stage that fits it, an entry in `sidr_core/settings/models.py`, and a function
`load(inputs, config) -> Ranker` that opens what the stage published.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import polars as pl

from sidr_core.decoding.lists import counted
from sidr_core.errors import InputError
from sidr_core.tables.columns import HISTORY, ITEM_ID, RANK, ROW_ID, SCORE, SID


class Ranker(Protocol):
    """A baseline that is ready to rank."""

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """The best `k` items of the whole catalogue for each row.

        Args:
            rows: row_id and history_item_ids (oldest first), R rows.
            k: length of each list. A model that searches SIDs may give fewer: the items of the beam that it searched.

        Returns:
            row_id, rank (from 1), item_id, score; scores of different models do not compare.
        """
        ...


def list_length(codebook: pl.DataFrame, width: int) -> int:
    """How many items a list needs so that it surely holds `width` distinct SIDs, or all if there are fewer.

    Args:
        codebook: item_id -> sid.
    """
    sharing = codebook.height - codebook[SID].n_unique()  # at most so many items repeat a SID
    return min(width + sharing, codebook.height)


def rankings(
    ranker: Ranker, rows: pl.DataFrame, codebook: pl.DataFrame, width: int, repeats: bool = True
) -> pl.DataFrame:
    """Lists of `width` distinct SIDs per row, by the columns `sidr_core.decoding.lists.RANKING`.

    Args:
        repeats: whether SIDs of the history may be listed.
    """
    if repeats:
        return counted(ranker.rank(rows, list_length(codebook, width)), codebook, width).rankings
    longest = int(rows[HISTORY].list.len().max() or 0)  # type: ignore[arg-type]
    ranked = ranker.rank(rows, list_length(codebook, min(width + longest, codebook.height)))
    return counted(not_met(ranked, rows, codebook), codebook, width).rankings


def not_met(ranked: pl.DataFrame, rows: pl.DataFrame, codebook: pl.DataFrame) -> pl.DataFrame:
    """The lines of lists (row_id, item_id, …) whose SID no item of the row's history has."""
    sids = codebook.select(ITEM_ID, SID)
    met = rows.select(ROW_ID, pl.col(HISTORY).alias(ITEM_ID)).explode(ITEM_ID).join(sids, on=ITEM_ID)
    named = ranked.join(sids.rename({SID: "its_sid"}), on=ITEM_ID)
    return named.join(met, left_on=[ROW_ID, "its_sid"], right_on=[ROW_ID, SID], how="anti").drop("its_sid")


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
    kth_score = -np.partition(-block, k - 1, axis=1)[:, k - 1 : k]  # (R, 1)
    candidates = block >= kth_score  # (R, N)
    order = np.empty((len(block), k), dtype=np.int64)
    exact = candidates.sum(axis=1) == k  # (R,)
    columns = np.nonzero(candidates[exact])[1].reshape(-1, k)
    # a stable sort keeps the order of the columns among equal scores
    inner = np.argsort(-np.take_along_axis(block[exact], columns, axis=1), axis=1, kind="stable")
    order[exact] = np.take_along_axis(columns, inner, axis=1)
    # where several items share the k-th score, the whole row is sorted
    order[~exact] = np.argsort(-block[~exact], axis=1, kind="stable")[:, :k]
    return order
