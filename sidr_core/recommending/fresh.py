"""A checkpoint with the catalogue of a later snapshot: new items without training.

A later snapshot codes its new items by the codebook that the checkpoint was trained with, as long as that lasts
(`sid_codebook` starts warm). So the checkpoint can list them as it is: only the index of legal SIDs is another. The
score of an item that it knows stays the same to the last bit with exact scoring, and with sliced scoring as long as
the same SID tokens are in use. A list can lose an item to a new one, or to the beginning of a new one's SID.

A refit from the old centroids (`quantizer.refit.start: previous`) moves some items to another SID, of codes that mean
what they meant: they are listed under the new one, and counted. After a fit from nothing codes mean something else.

A new item whose SID has a code that no item had at training has no token there. It cannot be listed; its SID is not
bent to another, since a later training would give it the true one. It is counted and named instead.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.errors import InputError
from sidr_core.sids.index import SidIndex, levels_of
from sidr_core.sids.tokens import sid_token
from sidr_core.tables.columns import CODES, ITEM_ID, SID

if TYPE_CHECKING:
    from sidr_core.models.checkpoint import Loaded


#: Of the items that a checkpoint knows, so many have their first code still, or the codes mean something else. After a
#: refit from the old centroids it was 94 %, after one from nothing 2 % (docs/codebooks.md, "After a refit").
_SAME = 0.5


@dataclass(frozen=True, eq=False)
class Fresh:
    """A checkpoint over another catalogue.

    Attributes:
        loaded: the checkpoint with the index of that catalogue.
        codebook: the rows of the catalogue that it can list.
        added, removed: items that it can list and did not know, and those that it knew and no longer lists.
        moved: items that it knows under another SID.
        unreachable: items of the catalogue that it cannot list, for want of a token.
    """

    loaded: Loaded
    codebook: pl.DataFrame
    added: list[str]
    removed: list[str]
    moved: list[str]
    unreachable: list[str]

    def __str__(self) -> str:
        text = f"{len(self.added):,} items added to and {len(self.removed):,} removed from what was trained"
        if self.moved:
            text += f"; {len(self.moved):,} have another SID"
        if self.unreachable:
            text += f"; {len(self.unreachable):,} of no token cannot be listed: {', '.join(self.unreachable[:3])}"
        return text


def with_catalogue(loaded: Loaded, codebook: pl.DataFrame) -> Fresh:
    """The checkpoint with the items of `codebook` (item_id, sid, codes) in place of those of its training.

    Raises:
        InputError: most items that it knows have another first code, or none of the items has a token for its SID.
    """
    trained = loaded.index.items_at(np.arange(len(loaded.index))).select(ITEM_ID, SID)
    both = trained.join(codebook.select(ITEM_ID, SID), on=ITEM_ID, suffix="_now")
    moved = both.filter(pl.col(SID) != pl.col(f"{SID}_now")).sort(ITEM_ID)
    first = pl.col(SID, f"{SID}_now").str.split(">").list.first()
    same = both.select(first).select(pl.col(SID) == pl.col(f"{SID}_now")).to_series().mean() or 0.0
    if same < _SAME:  # type: ignore[operator]
        item, then, now = moved.row(0) if moved.height else ("", "", "")
        raise InputError(
            "this codebook is not the one that the checkpoint was trained with",
            expected="the SID of training for most items that it knows, or one with the same first code",
            found=f"{moved.height:,} of {both.height:,} items with another one"
            + (f", such as {item}: {then} then, {now} now" if moved.height else ""),
            fix="train on the snapshot of this codebook, or keep to the snapshot of the checkpoint; with "
            "`quantizer.refit.start: previous` the next refit keeps what codes mean",
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
        moved=moved[ITEM_ID].to_list(),
        unreachable=codebook.filter(pl.Series(~known))[ITEM_ID].sort().to_list(),
    )
