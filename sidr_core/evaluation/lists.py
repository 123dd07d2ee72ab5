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

from sidr_core.columns import (
    DIRECT,
    ITEM_ID,
    MODE,
    MODEL,
    RANK,
    ROW_ID,
    SCORE,
    SID,
    THINKING,
    TRACE,
)

if TYPE_CHECKING:
    from sidr_core.decoding.beam import Beams
    from sidr_core.decoding.index import SidIndex
    from sidr_core.decoding.thinking import Thought
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.settings import Decoding
    from sidr_core.stage import Progress

#: Columns of one list's places, and of the thoughts behind them.
PLACES = [ROW_ID, RANK, ITEM_ID, SID, SCORE]
REASONING_TEXT, CLOSED, N_TOKENS = "reasoning", "closed", "n_tokens"

_THOUGHTS = {ROW_ID: pl.String, TRACE: pl.Int32, REASONING_TEXT: pl.String, CLOSED: pl.Boolean, N_TOKENS: pl.Int32}
_K = 10


@dataclass(frozen=True)
class Lists:
    """Ranked items of some rows.

    Attributes:
        places: row_id, rank (from 1), item_id, sid, score; the items of a shared SID lie side by side.
        thoughts: row_id, trace, reasoning, closed, n_tokens, one line per thought; None in direct mode. Trace 0 is
            the one to show: it gives the first item of the list the most probability. Rows that an adaptive
            model did not think about have no line.
    """

    places: pl.DataFrame
    thoughts: pl.DataFrame | None = None


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
    from sidr_core.decoding.traces import think_and_rank

    if mode == DIRECT:
        return Lists(places_of(_direct(loaded, histories, decoding, progress), loaded.index, row_ids))
    traced = think_and_rank(loaded, _prompts(loaded, histories, THINKING), decoding, progress)
    return Lists(places_of(traced.beams, loaded.index, row_ids), _thoughts(loaded, row_ids, traced.thoughts))


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
    direct = _direct(loaded, histories, decoding, progress)
    unsure = np.flatnonzero(margins(direct) <= threshold).tolist()
    surely = places_of(direct, loaded.index, row_ids)
    if not unsure:
        return Lists(surely, pl.DataFrame(schema=_THOUGHTS))
    names = [row_ids[row] for row in unsure]
    thought = neural(loaded, names, [histories[row] for row in unsure], THINKING, decoding, progress)
    kept = surely.filter(~pl.col(ROW_ID).is_in(names))
    return Lists(pl.concat([kept, thought.places]), thought.thoughts)


def choice_rows(valid: pl.DataFrame, decoding: Decoding, loaded: Loaded) -> pl.DataFrame:
    """The valid rows on which something about decoding is chosen: `decoding.choice_rows` drawn by the model's seed."""
    from sidr_core.training.examples import subset

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
    from sidr_core.evaluation import metrics
    from sidr_core.evaluation.protocol import history_sids

    row_ids, histories = valid[ROW_ID].to_list(), history_sids(valid, codebook)
    beams = _direct(loaded, histories, decoding, progress)
    lists = {
        DIRECT: places_of(beams, loaded.index, row_ids),
        THINKING: neural(loaded, row_ids, histories, THINKING, decoding, progress).places,
    }
    both = pl.concat(
        [places.with_columns(pl.lit("").alias(MODEL), pl.lit(mode).alias(MODE)) for mode, places in lists.items()]
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


def places_of(beams: Beams, index: SidIndex, row_ids: Sequence[str]) -> pl.DataFrame:
    """Beams (R, B) as places: each SID gives one place per item that carries it, all at its score."""
    rows, width = beams.leaf.shape
    flat = pl.DataFrame(
        {
            "row": np.repeat(np.arange(rows), width),
            "beam": np.tile(np.arange(width), rows),
            "leaf": beams.leaf.ravel().astype(np.int64),
            SCORE: beams.scores.ravel().astype(np.float64),
        }
    )
    leaves = index.places(np.unique(beams.leaf))
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


def _prompts(loaded: Loaded, histories: Sequence[Sequence[str]], mode: str) -> list[list[int]]:
    from sidr_core.corpus.prompts import next_item

    return [loaded.renderer.prompt(next_item(history), mode) for history in histories]


def _direct(loaded: Loaded, histories: Sequence[Sequence[str]], decoding: Decoding, progress: Progress | None) -> Beams:
    from sidr_core.decoding.beam import constrained_beam

    return constrained_beam(
        loaded.model,
        _prompts(loaded, histories, DIRECT),
        loaded.index,
        beam_width=decoding.beam_width,
        batch_size=decoding.batch_size,
        pad_id=loaded.renderer.pad_id,
        scoring=decoding.scoring,
        progress=progress,
    )


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
