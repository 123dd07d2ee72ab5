"""The lists of a checkpoint: think if the mode asks for it, then rank real items only.

The stage `recommendations`, `sidr recommend` and the server use this, so they give the same lists. Deviation from the
paper's code, which scores a thought without its closing tag as finished: here it is closed by force and counted as
not closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.lists import CLOSED, N_TOKENS, Lists, rankings_of
from sidr_core.tables.columns import DIRECT, REASONING, ROW_ID, TRACE

if TYPE_CHECKING:
    import numpy as np

    from sidr_core.decoding.thinking import Thought
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Decoding

#: Rows ranked at once: what must not be listed takes a byte per row and SID.
_AT_ONCE = 8192
#: Columns of the thoughts behind lists.
THOUGHTS = {ROW_ID: pl.String, TRACE: pl.Int32, REASONING: pl.String, CLOSED: pl.Boolean, N_TOKENS: pl.Int32}


def checkpoint_lists(
    loaded: Loaded,
    row_ids: Sequence[str],
    histories: Sequence[Sequence[str]],
    mode: str,
    decoding: Decoding,
    progress: Progress | None = None,
    allowed: np.ndarray | None = None,
    repeats: bool = True,
) -> Lists:
    """Lists of a checkpoint: `decoding.beam_width` distinct SIDs per row, scores in nats.

    Args:
        loaded: the checkpoint.
        row_ids: R names of rows.
        histories: R lists of SIDs, oldest first.
        mode: `direct`, or `thinking`: `decoding.traces` thoughts of at most `max_thought_tokens`, then the list.
        decoding: widths, batch size, caps, traces and scoring.
        progress: counts the rows done.
        allowed: (S,) or (R, S) bool, the SIDs that may be listed (`SidIndex.leaves_with`); a row with fewer than
            `beam_width` lists them all. Default: all.
        repeats: whether SIDs of the history may be listed.
    """
    from sidr_core.decoding.decoder import Decoder  # torch takes seconds to import

    decoder, turns = Decoder.of(loaded, decoding), [next_item(history) for history in histories]
    thoughts = None if mode == DIRECT else decoder.think(turns, progress)
    done = []
    for start in range(0, max(len(turns), 1), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        listed = allowed if allowed is None or np.ndim(allowed) == 1 or len(allowed) == 1 else allowed[part]
        if not repeats:
            listed = _not_met(loaded, histories[part]) & (True if listed is None else listed)
        if thoughts is None:
            beams = decoder.rank_directly(turns[part], listed, progress)
            done.append(Lists(rankings_of(beams, loaded.index, row_ids[part])))
        else:
            ranked = decoder.rank_after(turns[part], thoughts[part], allowed=listed, progress=progress)
            lists = rankings_of(ranked.beams, loaded.index, row_ids[part])
            done.append(Lists(lists, _thoughts(loaded, row_ids[part], ranked.thoughts)))
    return Lists(
        pl.concat([lists.rankings for lists in done]),
        None if thoughts is None else pl.concat([lists.thoughts for lists in done if lists.thoughts is not None]),
    )


def _not_met(loaded: Loaded, histories: Sequence[Sequence[str]]) -> np.ndarray:
    """(R, S) bool: the SIDs of the index that are not in each history."""
    leaf = loaded.index.leaf_of
    allowed = np.ones((len(histories), len(loaded.index)), dtype=bool)
    for row, history in zip(allowed, histories, strict=True):
        row[[leaf[sid] for sid in set(history) if sid in leaf]] = False
    return allowed


def _thoughts(loaded: Loaded, row_ids: Sequence[str], thoughts: Sequence[Sequence[Thought]]) -> pl.DataFrame:
    """One line per thought, as in :class:`Lists`."""
    lines = [
        (name, trace, thought) for name, row in zip(row_ids, thoughts, strict=True) for trace, thought in enumerate(row)
    ]
    return pl.DataFrame(
        {
            ROW_ID: [name for name, _, _ in lines],
            TRACE: [trace for _, trace, _ in lines],
            REASONING: [str(loaded.tokenizer.decode(list(thought.ids))).strip() for _, _, thought in lines],
            CLOSED: [thought.closed for _, _, thought in lines],
            N_TOKENS: [len(thought.ids) for _, _, thought in lines],
        },
        schema=THOUGHTS,
    )
