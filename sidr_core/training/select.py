"""Choosing a checkpoint: NDCG@10 on valid rows, measured the way a user would be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sidr_core.decoding.beam import constrained_beam
from sidr_core.decoding.thinking import Thought, generate_thoughts
from sidr_core.sids.index import SidIndex
from sidr_core.tables import columns as c
from sidr_core.tables.samples import subset
from sidr_core.training.examples import history_prompts

if TYPE_CHECKING:
    from sidr_core.models.prompt import PromptRenderer

K = 10
METRICS = ("hr@10", "ndcg@10")


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
        prompts = [self.renderer.prompt(user, self.mode) for user in self.users]
        extra: dict[str, float] = {}
        if self.mode == c.THINKING:
            thoughts = generate_thoughts(
                model, prompts, max_tokens=self.max_thought_tokens, batch_size=128, renderer=self.renderer
            )
            prompts = with_thoughts(prompts, thoughts, self.renderer)
            extra = {
                "close_rate": float(np.mean([thought.closed for thought in thoughts])),
                "thought_tokens": float(np.mean([len(thought.ids) for thought in thoughts])),
            }
        width = min(K, len(self.index.sids))
        beams = constrained_beam(
            model, prompts, self.index, beam_width=width, batch_size=128, pad_id=self.renderer.pad_id
        )
        model.train(training)
        places = np.asarray(beams.leaf) == self.targets[:, None]
        gains = (places / np.log2(np.arange(width) + 2)).sum(axis=1)
        return np.stack([places.any(axis=1), gains], axis=1).astype(np.float64), extra


def with_thoughts(
    prompts: Sequence[list[int]], thoughts: Sequence[Thought], renderer: PromptRenderer
) -> list[list[int]]:
    """Thinking prompts continued by their thought and the closing tag: where the answer begins."""
    return [[*prompt, *thought.ids, *renderer.close_ids] for prompt, thought in zip(prompts, thoughts, strict=True)]
