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

from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.lists import CLOSED, N_TOKENS, REASONING_TEXT, Lists, rankings_of
from sidr_core.tables.columns import DIRECT, MODE, MODEL, ROW_ID, THINKING, TRACE

if TYPE_CHECKING:
    from sidr_core.decoding.beam import Beams
    from sidr_core.decoding.decoder import Decoder
    from sidr_core.decoding.thinking import Thought
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Decoding


_THOUGHTS = {ROW_ID: pl.String, TRACE: pl.Int32, REASONING_TEXT: pl.String, CLOSED: pl.Boolean, N_TOKENS: pl.Int32}
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
        mode: `direct`, or `thinking`: `decoding.traces` thoughts of at most `max_thought_tokens`, then the list.
        decoding: widths, batch size, caps, traces and scoring.
        progress: told how many rows are done.
    """
    decoder, turns = _decoder(loaded, decoding), _turns(histories)
    if mode == DIRECT:
        direct = decoder.rank_directly(turns, progress=progress)
        return Lists(rankings_of(direct, loaded.index, row_ids))
    ranked = decoder.think_and_rank(turns, progress=progress)
    return Lists(rankings_of(ranked.beams, loaded.index, row_ids), _thoughts(loaded, row_ids, ranked.thoughts))


def adaptive(
    loaded: Loaded,
    row_ids: Sequence[str],
    histories: Sequence[Sequence[str]],
    threshold: float,
    decoding: Decoding,
    progress: Progress | None = None,
) -> Lists:
    """Lists of a checkpoint that thinks only where its direct list is unsure.

    Args:
        threshold: `Threshold.margin` of :func:`choose_threshold`, chosen on valid rows.

    The other arguments are those of :func:`neural`.
    """
    direct = _decoder(loaded, decoding).rank_directly(_turns(histories), progress=progress)
    unsure = np.flatnonzero(margins(direct) <= threshold).tolist()
    surely = rankings_of(direct, loaded.index, row_ids)
    if not unsure:
        return Lists(surely, pl.DataFrame(schema=_THOUGHTS))
    names = [row_ids[row] for row in unsure]
    thought = neural(loaded, names, [histories[row] for row in unsure], THINKING, decoding, progress)
    kept = surely.filter(~pl.col(ROW_ID).is_in(names))
    return Lists(pl.concat([kept, thought.rankings]), thought.thoughts)


def choice_rows(valid: pl.DataFrame, decoding: Decoding, loaded: Loaded) -> pl.DataFrame:
    """The valid rows on which something about decoding is chosen: `decoding.choice_rows` drawn by the model's seed."""
    from sidr_core.tables.samples import subset

    return subset(valid.sort(ROW_ID), decoding.choice_rows, loaded.meta["seed"])


def choose_threshold(
    loaded: Loaded,
    valid: pl.DataFrame,
    codebook: pl.DataFrame,
    decoding: Decoding,
    progress: Progress | None = None,
) -> Threshold:
    """The margin below which thinking pays, by NDCG@10.

    Every margin that occurs is tried; of equal results the one that thinks least is taken.

    Args:
        valid: valid samples, of :func:`choice_rows`; test rows must never come here.
        codebook: item_id -> sid.
    """
    from sidr_core.metrics import ranking as metrics
    from sidr_core.recommending.rows import history_sids

    row_ids, histories = valid[ROW_ID].to_list(), history_sids(valid, codebook)
    beams = _decoder(loaded, decoding).rank_directly(_turns(histories), progress=progress)
    lists = {
        DIRECT: rankings_of(beams, loaded.index, row_ids),
        THINKING: neural(loaded, row_ids, histories, THINKING, decoding, progress).rankings,
    }
    both = pl.concat(
        [ranking.with_columns(pl.lit("").alias(MODEL), pl.lit(mode).alias(MODE)) for mode, ranking in lists.items()]
    )
    k = min(_K, decoding.beam_width)
    gain = metrics.column("item", metrics.NDCG, k)
    scored = metrics.per_row(both, valid, codebook, (k,)).sort(MODE, ROW_ID)
    direct, thinking = (scored.filter(pl.col(MODE) == mode)[gain].to_numpy() for mode in (DIRECT, THINKING))
    return best_threshold(margins(beams), direct, thinking)


def best_threshold(margin: np.ndarray, direct: np.ndarray, thinking: np.ndarray) -> Threshold:
    """The threshold with the highest mean of `thinking` where margin <= threshold, else `direct`; all (R,).

    >>> import numpy as np
    >>> found = best_threshold(np.array([0.1, 0.2, 0.9]), np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    >>> found.margin, round(found.share, 3), round(found.ndcg, 3)
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


def margins(beams: Beams) -> np.ndarray:
    """How far each list's first SID leads, (R,): its share of the list's probability less that of the second."""
    shares = np.exp(beams.scores.astype(np.float64) - beams.scores[:, :1])
    shares /= shares.sum(axis=1, keepdims=True)
    return shares[:, 0] - (shares[:, 1] if shares.shape[1] > 1 else 0.0)


def _decoder(loaded: Loaded, decoding: Decoding) -> Decoder:
    from sidr_core.decoding.decoder import Decoder  # torch takes seconds to import

    return Decoder.of(loaded, decoding)


def _turns(histories: Sequence[Sequence[str]]) -> list[str]:
    return [next_item(history) for history in histories]


def _thoughts(loaded: Loaded, row_ids: Sequence[str], thoughts: Sequence[Sequence[Thought]]) -> pl.DataFrame:
    """One line per thought, as in :class:`Lists`."""
    lines = [
        (name, trace, thought) for name, row in zip(row_ids, thoughts, strict=True) for trace, thought in enumerate(row)
    ]
    return pl.DataFrame(
        {
            ROW_ID: [name for name, _, _ in lines],
            TRACE: [trace for _, trace, _ in lines],
            REASONING_TEXT: [str(loaded.tokenizer.decode(list(thought.ids))).strip() for _, _, thought in lines],
            CLOSED: [thought.closed for _, _, thought in lines],
            N_TOKENS: [len(thought.ids) for _, _, thought in lines],
        },
        schema=_THOUGHTS,
    )
