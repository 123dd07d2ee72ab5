"""A checkpoint with the catalogue of a later snapshot: new items without training.

A later snapshot codes its new items by the codebook that the checkpoint was trained with, as long as that lasts
(`sid_codebook` starts warm). So the checkpoint can list them as it is: only the index of legal SIDs is another. The
score of an item that it knows stays the same to the last bit with exact scoring, and with sliced scoring as long as
the same SID tokens are in use. A list can lose an item to a new one, or to the beginning of a new one's SID.

A new item whose SID has a code that no item had at training has no token there. It cannot be listed; its SID is not
bent to another, since a later training would give it the true one. It is counted and named instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.decoding.lists import RANKING, Lists
from sidr_core.errors import InputError
from sidr_core.recommending.lists import checkpoint_lists
from sidr_core.sids.index import SidIndex, levels_of
from sidr_core.sids.tokens import sid_token
from sidr_core.tables.columns import CODES, ITEM_ID, RANK, ROW_ID, SCORE, SID

if TYPE_CHECKING:
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Decoding


@dataclass(frozen=True, eq=False)
class Fresh:
    """A checkpoint over another catalogue.

    Attributes:
        loaded: the checkpoint with the index of that catalogue.
        codebook: the rows of the catalogue that it can list.
        added, removed: items that it can list and did not know, and those that it knew and no longer lists.
        unreachable: items of the catalogue that it cannot list, for want of a token.
    """

    loaded: Loaded
    codebook: pl.DataFrame
    added: list[str]
    removed: list[str]
    unreachable: list[str]

    def __str__(self) -> str:
        text = f"{len(self.added):,} items added to and {len(self.removed):,} removed from what was trained"
        if self.unreachable:
            text += f"; {len(self.unreachable):,} of no token cannot be listed: {', '.join(self.unreachable[:3])}"
        return text


def with_catalogue(loaded: Loaded, codebook: pl.DataFrame) -> Fresh:
    """The checkpoint with the items of `codebook` (item_id, sid, codes) in place of those of its training.

    Raises:
        InputError: an item has another SID than in training, or none of the items has a token for its SID.
    """
    trained = loaded.index.items_at(np.arange(len(loaded.index))).select(ITEM_ID, SID)
    both = trained.join(codebook.select(ITEM_ID, SID), on=ITEM_ID, suffix="_now")
    moved = both.filter(pl.col(SID) != pl.col(f"{SID}_now")).sort(ITEM_ID)
    if moved.height or both.is_empty():
        item, then, now = moved.row(0) if moved.height else ("", "", "")
        raise InputError(
            "this codebook is not the one that the checkpoint was trained with",
            expected="the SID of training for every item that it knows",
            found=f"{moved.height:,} of {both.height:,} items with another one"
            + (f", such as {item}: {then} then, {now} now" if moved.height else ""),
            fix="train on the snapshot of this codebook, or keep to the snapshot of the checkpoint",
        )
    vocabulary = loaded.tokenizer.get_vocab()
    known = np.ones(codebook.height, dtype=bool)
    for level, codes in enumerate(levels_of(codebook[CODES])):
        used, slot = np.unique(codes, return_inverse=True)
        known &= np.array([sid_token(level, code) in vocabulary for code in used])[slot]
    listed = codebook.filter(pl.Series(known))
    index = SidIndex.build(listed, vocabulary.__getitem__)
    return Fresh(
        dataclasses.replace(loaded, index=index),
        listed,
        added=listed.join(trained, on=ITEM_ID, how="anti")[ITEM_ID].sort().to_list(),
        removed=trained.join(codebook, on=ITEM_ID, how="anti")[ITEM_ID].sort().to_list(),
        unreachable=codebook.filter(pl.Series(~known))[ITEM_ID].sort().to_list(),
    )


def fresh_lists(
    fresh: Fresh,
    row_ids: Sequence[str],
    histories: Sequence[Sequence[str]],
    mode: str,
    decoding: Decoding,
    progress: Progress | None = None,
) -> Lists:
    """Lists over the catalogue of a later snapshot, new items :func:`beside_siblings`.

    The arguments behind the first are those of :func:`~sidr_core.recommending.lists.checkpoint_lists`.
    """
    lists = checkpoint_lists(fresh.loaded, row_ids, histories, mode, decoding, progress)
    width = min(decoding.beam_width, len(fresh.loaded.index))
    return Lists(beside_siblings(lists.rankings, fresh, width), lists.thoughts)


def beside_siblings(rankings: pl.DataFrame, fresh: Fresh, width: int) -> pl.DataFrame:
    """Lists in which each new item stands where the items that its SID begins like stand on average.

    A checkpoint gives the last code of a SID that it never wrote next to nothing, so a new item is hardly listed by its
    own score, however well the beginning of its SID fits. Its probability is taken to be the mean of those of the known
    SIDs with the same beginning, as long a one as any has; one that the list lacks counts as 0. Where its own is larger
    it keeps that. Nothing is fitted, and scores of known items stay as they are.

    Args:
        rankings: the columns `sidr_core.decoding.lists.RANKING`, decoded over `fresh.loaded`; scores are natural
            log-probabilities.
        width: SIDs per list.
    """
    is_new = pl.col(ITEM_ID).is_in(pl.Series(fresh.added, dtype=pl.String).implode())
    known = fresh.codebook.filter(~is_new).select(SID, CODES).unique(SID)
    waiting = fresh.codebook.filter(is_new).select(ITEM_ID, SID, CODES)
    chances = rankings.filter(~is_new).select(ROW_ID, SID, SCORE).unique([ROW_ID, SID]).sort(ROW_ID, SID)
    found = [rankings.select(ROW_ID, ITEM_ID, SID, SCORE)]
    for length in range(fresh.loaded.index.levels - 1, 0, -1):
        beginning = pl.col(CODES).list.head(length).alias("beginning")
        families = known.with_columns(beginning).with_columns(pl.len().over("beginning").alias("siblings"))
        placed = waiting.with_columns(beginning).join(
            families.select("beginning", "siblings").unique(), on="beginning", how="inner"
        )
        waiting = waiting.join(placed, on=ITEM_ID, how="anti")
        mass = chances.join(families, on=SID).group_by(ROW_ID, "beginning", maintain_order=True)
        mass = mass.agg(pl.col(SCORE).exp().sum())
        scored = mass.join(placed, on="beginning").with_columns((pl.col(SCORE) / pl.col("siblings")).log())
        found.append(scored.select(ROW_ID, ITEM_ID, SID, SCORE))
    best = pl.concat(found).group_by(ROW_ID, ITEM_ID, SID).agg(pl.col(SCORE).max())
    ranked = best.sort([ROW_ID, SCORE, SID, ITEM_ID], descending=[False, True, False, False])
    first = ranked.with_columns(pl.col(SID).is_first_distinct().over(ROW_ID).cum_sum().over(ROW_ID).alias("place"))
    cut = first.filter(pl.col("place") <= width)
    return cut.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(ROW_ID).alias(RANK)).select(RANKING)
