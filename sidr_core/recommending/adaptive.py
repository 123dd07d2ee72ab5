"""A checkpoint that thinks only where its direct list is unsure.

A list is unsure if its first SID leads by little. How little is chosen on valid rows, by NDCG@10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.lists import Lists, rankings_of
from sidr_core.metrics.ranking import NDCG, column, per_row
from sidr_core.recommending.lists import THOUGHTS, checkpoint_lists
from sidr_core.recommending.rows import history_sids
from sidr_core.tables.columns import DIRECT, ITEM_LEVEL, MODE, MODEL, ROW_ID, THINKING

if TYPE_CHECKING:
    from sidr_core.decoding.beam import Beams
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Decoding

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

    The other arguments are those of :func:`~sidr_core.recommending.lists.checkpoint_lists`.
    """
    beams = _direct_beams(loaded, histories, decoding, progress)
    direct = rankings_of(beams, loaded.index, row_ids)
    unsure = np.flatnonzero(margins(beams) <= threshold).tolist()
    if not unsure:
        return Lists(direct, pl.DataFrame(schema=THOUGHTS))
    names = [row_ids[row] for row in unsure]
    thinking = checkpoint_lists(loaded, names, [histories[row] for row in unsure], THINKING, decoding, progress)
    sure = direct.filter(~pl.col(ROW_ID).is_in(names))
    return Lists(pl.concat([sure, thinking.rankings]), thinking.thoughts)


def choose_threshold(
    loaded: Loaded,
    valid: pl.DataFrame,
    codebook: pl.DataFrame,
    decoding: Decoding,
    progress: Progress | None = None,
) -> Threshold:
    """The margin below which thinking pays, by NDCG@10.

    Every margin that occurs is tried; of equal results the one with the fewest thoughts is taken.

    Args:
        valid: valid samples, of :func:`~sidr_core.recommending.rows.choice_rows`; never test rows.
        codebook: item_id -> sid.
    """
    row_ids, histories = valid[ROW_ID].to_list(), history_sids(valid, codebook)
    beams = _direct_beams(loaded, histories, decoding, progress)
    lists = {
        DIRECT: rankings_of(beams, loaded.index, row_ids),
        THINKING: checkpoint_lists(loaded, row_ids, histories, THINKING, decoding, progress).rankings,
    }
    both = pl.concat(
        [ranking.with_columns(pl.lit("").alias(MODEL), pl.lit(mode).alias(MODE)) for mode, ranking in lists.items()]
    )
    k = min(_K, decoding.beam_width)
    gain = column(ITEM_LEVEL, NDCG, k)
    scored = per_row(both, valid, codebook, (k,)).sort(MODE, ROW_ID)
    direct, thinking = (scored.filter(pl.col(MODE) == mode)[gain].to_numpy() for mode in (DIRECT, THINKING))
    return best_threshold(margins(beams), direct, thinking)


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


def margins(beams: Beams) -> np.ndarray:
    """How far each list's first SID leads, (R,): its share of the list's probability less that of the second."""
    shares = np.exp(beams.scores.astype(np.float64) - beams.scores[:, :1])
    shares /= shares.sum(axis=1, keepdims=True)
    return shares[:, 0] - (shares[:, 1] if shares.shape[1] > 1 else 0.0)


def _direct_beams(
    loaded: Loaded, histories: Sequence[Sequence[str]], decoding: Decoding, progress: Progress | None
) -> Beams:
    from sidr_core.decoding.decoder import Decoder  # torch takes seconds to import

    return Decoder.of(loaded, decoding).rank_directly([next_item(history) for history in histories], progress=progress)
