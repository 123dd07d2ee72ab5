"""Choosing a checkpoint: NDCG@10 on valid rows, measured the way a user would be served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sidr_core.decoding.decoder import Decoder
from sidr_core.sids.index import SidIndex
from sidr_core.tables import columns as c
from sidr_core.tables.samples import subset
from sidr_core.training.examples import history_prompts

if TYPE_CHECKING:
    from sidr_core.models.prompt import PromptRenderer

K = 10
METRICS = ("hr@10", "ndcg@10")
_BATCH = 128


class Selector:
    """Measures NDCG@10 of a model on a fixed seeded subset of valid rows.

    Args:
        valid: the valid samples; test rows cannot come here, no training stage may open them.
        mode: `direct` or `thinking`; max_thought_tokens bounds a thought of the latter.
    """

    def __init__(
        self,
        valid: pl.DataFrame,
        codebook: pl.DataFrame,
        renderer: PromptRenderer,
        *,
        rows: int,
        mode: str,
        max_thought_tokens: int = 0,
        seed: int = 0,
    ) -> None:
        self.samples = subset(valid, rows, seed)
        self.renderer, self.mode, self.max_thought_tokens = renderer, mode, max_thought_tokens
        self.index = SidIndex.build(codebook, renderer.tokenizer.get_vocab().__getitem__)
        self.users = history_prompts(self.samples, codebook)
        sid_of = dict(codebook.select(c.ITEM_ID, c.SID).iter_rows())
        leaf_of = {sid: leaf for leaf, sid in enumerate(self.index.sids)}
        self.targets = np.array([leaf_of[sid_of[item]] for item in self.samples[c.TARGET]])

    def __call__(self, model: Any) -> dict[str, float]:
        """Means of :meth:`rows`: :data:`METRICS`; in thinking mode also `close_rate` and `thought_tokens`."""
        values, thoughts = self.rows(model)
        return dict(zip(METRICS, values.mean(axis=0).tolist(), strict=True)) | thoughts

    def rows(self, model: Any) -> tuple[NDArray[np.float64], dict[str, float]]:
        """:data:`METRICS` of each row of `samples`, (R, 2), and what the thoughts of thinking mode were like."""
        training = model.training
        model.eval()
        width = min(K, len(self.index.sids))
        decoder = Decoder(
            model,
            self.renderer,
            self.index,
            beam_width=width,
            batch_size=_BATCH,
            max_thought_tokens=self.max_thought_tokens,
        )
        extra: dict[str, float] = {}
        if self.mode == c.THINKING:
            ranked = decoder.think_and_rank(self.users)
            beams, thoughts = ranked.beams, [thought for row in ranked.thoughts for thought in row]
            extra = {
                "close_rate": float(np.mean([thought.closed for thought in thoughts])),
                "thought_tokens": float(np.mean([len(thought.ids) for thought in thoughts])),
            }
        else:
            beams = decoder.rank_directly(self.users)
        model.train(training)
        hits = np.asarray(beams.leaf) == self.targets[:, None]
        gains = (hits / np.log2(np.arange(width) + 2)).sum(axis=1)
        return np.stack([hits.any(axis=1), gains], axis=1).astype(np.float64), extra
