"""How a list is made: think if the mode asks for it, then rank real items only.

Used by the stage `recommendations` and by `sidr recommend`, so both serve the same lists.
Deviation from the paper's code, where a thought without its closing tag is scored as finished: here it
is closed by force and counted as not closed (METHOD.md 10, point 34).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.columns import ITEM_ID, RANK, ROW_ID, SCORE, SID, THINKING

if TYPE_CHECKING:
    from sidr_core.decoding.beam import Beams
    from sidr_core.decoding.index import SidIndex
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.settings import Decoding
    from sidr_core.stage import Progress

#: Columns of one list's places, and of the thoughts behind them.
PLACES = [ROW_ID, RANK, ITEM_ID, SID, SCORE]
REASONING_TEXT, CLOSED, N_TOKENS = "reasoning", "closed", "n_tokens"


@dataclass(frozen=True)
class Lists:
    """Ranked items of some rows.

    Attributes:
        places: row_id, rank (from 1), item_id, sid, score; the items of a shared SID lie side by side.
        thoughts: row_id, reasoning, closed, n_tokens; None in direct mode.
    """

    places: pl.DataFrame
    thoughts: pl.DataFrame | None = None


def neural(
    loaded: Loaded,
    row_ids: Sequence[str],
    histories: Sequence[Sequence[str]],
    mode: str,
    decoding: Decoding,
    progress: Progress | None = None,
) -> Lists:
    """Lists of a checkpoint: `decoding.beam_width` distinct SIDs per row, scores in nats.

    Args:
        loaded: the checkpoint.
        row_ids: R names of rows.
        histories: R lists of SIDs, oldest first.
        mode: `direct`, or `thinking`: one greedy thought of at most `max_thought_tokens`, then the list.
        decoding: widths, batch size and cap.
        progress: told how many rows are done.
    """
    from sidr_core.corpus.prompts import next_item
    from sidr_core.decoding.beam import constrained_beam
    from sidr_core.decoding.thinking import generate_thoughts

    renderer = loaded.renderer
    prompts = [renderer.prompt(next_item(history), mode) for history in histories]
    thoughts = None
    if mode == THINKING:
        written = generate_thoughts(
            loaded.model,
            prompts,
            max_tokens=decoding.max_thought_tokens,
            batch_size=decoding.batch_size,
            renderer=renderer,
            progress=progress,
        )
        prompts = [[*p, *t.ids, *renderer.close_ids] for p, t in zip(prompts, written, strict=True)]
        thoughts = pl.DataFrame(
            {
                ROW_ID: list(row_ids),
                REASONING_TEXT: [str(loaded.tokenizer.decode(list(t.ids))).strip() for t in written],
                CLOSED: [t.closed for t in written],
                N_TOKENS: [len(t.ids) for t in written],
            },
            schema={ROW_ID: pl.String, REASONING_TEXT: pl.String, CLOSED: pl.Boolean, N_TOKENS: pl.Int32},
        )
    beams = constrained_beam(
        loaded.model,
        prompts,
        loaded.index,
        beam_width=decoding.beam_width,
        batch_size=decoding.batch_size,
        pad_id=renderer.pad_id,
        progress=progress,
    )
    return Lists(places_of(beams, loaded.index, row_ids), thoughts)


def places_of(beams: Beams, index: SidIndex, row_ids: Sequence[str]) -> pl.DataFrame:
    """Beams (R, B) as places: each SID gives one place per item that carries it, all at its score."""
    rows, width = beams.leaf.shape
    leaves = pl.DataFrame(
        {
            "leaf": np.arange(len(index.sids)),
            SID: list(index.sids),
            ITEM_ID: [list(items) for items in index.item_ids],
        }
    ).explode(ITEM_ID)
    flat = pl.DataFrame(
        {
            "row": np.repeat(np.arange(rows), width),
            "beam": np.tile(np.arange(width), rows),
            "leaf": beams.leaf.ravel().astype(np.int64),
            SCORE: beams.scores.ravel().astype(np.float64),
        }
    )
    placed = flat.join(leaves, on="leaf", how="inner").sort("row", "beam", ITEM_ID)
    names = pl.DataFrame({"row": np.arange(rows), ROW_ID: list(row_ids)}, schema_overrides={ROW_ID: pl.String})
    ranked = placed.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("row").alias(RANK))
    return ranked.join(names, on="row", how="left", maintain_order="left").select(PLACES)


def counted(ranked: pl.DataFrame, codebook: pl.DataFrame, width: int) -> Lists:
    """Lists of a counter, cut where `width` distinct SIDs are full.

    So item and SID level have as many places as a beam gives; a counter tells items of one SID apart.

    Args:
        ranked: row_id, rank, item_id, score; long enough that `width` SIDs are in it.
        codebook: item_id -> sid; items without one cannot be recommended and are left out.
        width: SIDs per list.
    """
    named = ranked.join(codebook.select(ITEM_ID, SID), on=ITEM_ID, how="inner").sort(ROW_ID, RANK)
    fresh = named.with_columns(pl.col(SID).is_first_distinct().over(ROW_ID).cast(pl.Int32).alias("fresh"))
    kept = fresh.filter(pl.col("fresh").cum_sum().over(ROW_ID) <= width)
    ranked = kept.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(ROW_ID).alias(RANK))
    return Lists(ranked.select(PLACES))
