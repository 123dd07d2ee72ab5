"""Choosing a checkpoint: NDCG@10 on valid rows, measured the way a user would be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sidr_core.corpus.catalogue import Catalogue
from sidr_core.decoding.decoder import Decoder
from sidr_core.decoding.lists import Lists, rankings_of
from sidr_core.metrics.ranking import HR, NDCG, column, per_row
from sidr_core.recommending import merged as merging
from sidr_core.sids.index import SidIndex
from sidr_core.tables import columns as c
from sidr_core.tables.samples import subset
from sidr_core.training.examples import history_prompts

if TYPE_CHECKING:
    from sidr_core.decoding.beam import Beams
    from sidr_core.decoding.thinking import Thought
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
        return _named(values) | thoughts

    def rows(self, model: Any) -> tuple[NDArray[np.float64], dict[str, float]]:
        """:data:`METRICS` of each row of `samples`, (R, 2), and what the thoughts of thinking mode were like."""
        return self.scored(*self.decode(model))

    def decode(self, model: Any) -> tuple[Beams, list[Thought]]:
        """The list of each row of `samples`, and in thinking mode the thought before it."""
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
        thoughts: list[Thought] = []
        if self.mode == c.THINKING:
            ranked = decoder.think_and_rank(self.users)
            beams, thoughts = ranked.beams, [thought for row in ranked.thoughts for thought in row]
        else:
            beams = decoder.rank_directly(self.users)
        model.train(training)
        return beams, thoughts

    def scored(self, beams: Beams, thoughts: Sequence[Thought]) -> tuple[NDArray[np.float64], dict[str, float]]:
        """What :meth:`rows` gives, of what :meth:`decode` gave."""
        extra: dict[str, float] = {}
        if thoughts:
            extra = {
                "close_rate": float(np.mean([thought.closed for thought in thoughts])),
                "thought_tokens": float(np.mean([len(thought.ids) for thought in thoughts])),
            }
        width = beams.leaf.shape[1]
        hits = np.asarray(beams.leaf) == self.targets[:, None]
        gains = (hits / np.log2(np.arange(width) + 2)).sum(axis=1)
        return np.stack([hits.any(axis=1), gains], axis=1).astype(np.float64), extra


class MergedSelector:
    """Measures mode merged on the valid rows of two selectors, its weights chosen on the same rows.

    Args:
        direct, thinking: selectors of the same rows.
        catalogue: whose items a thought may name.
        codebook: item_id -> sid.
    """

    mode = c.MERGED

    def __init__(self, direct: Selector, thinking: Selector, catalogue: Catalogue, codebook: pl.DataFrame) -> None:
        self.samples = thinking.samples
        self._direct, self._thinking, self._catalogue, self._codebook = direct, thinking, catalogue, codebook

    def __call__(self, model: Any) -> dict[str, float]:
        """:data:`METRICS` merged, those of each part with its mode before the name, and what the thoughts were like."""
        decoded = [selector.decode(model) for selector in (self._direct, self._thinking)]
        figures = _named(self._merged(*decoded))
        for selector, lists in zip((self._direct, self._thinking), decoded, strict=True):
            values, thoughts = selector.scored(*lists)
            figures |= _named(values, f"{selector.mode}_") | thoughts
        return figures

    def rows(self, model: Any) -> tuple[NDArray[np.float64], dict[str, float]]:
        """:data:`METRICS` of each row of `samples`, (R, 2), item level."""
        return self._merged(self._direct.decode(model), self._thinking.decode(model)), {}

    def _merged(
        self, direct: tuple[Beams, list[Thought]], thinking: tuple[Beams, list[Thought]]
    ) -> NDArray[np.float64]:
        row_ids = self.samples[c.ROW_ID].to_list()
        lists = [Lists(rankings_of(beams, self._thinking.index, row_ids)) for beams, _ in (direct, thinking)]
        decode = self._thinking.renderer.tokenizer.decode
        texts = [str(decode(list(thought.ids))).strip() for thought in thinking[1]]
        thoughts = pl.DataFrame({c.ROW_ID: row_ids, c.TRACE: 0, c.REASONING: texts})
        parts = (lists[0], Lists(lists[1].rankings, thoughts), self._catalogue)
        weights = merging.choose_weights(*parts, self.samples, self._codebook, K)
        merged = merging.merged(*parts, weights, self._codebook, K).rankings
        named = merged.with_columns(pl.lit("").alias(c.MODEL), pl.lit(c.MERGED).alias(c.MODE))
        scores = self.samples.select(c.ROW_ID).join(
            per_row(named, self.samples, self._codebook, (K,)), on=c.ROW_ID, how="left", maintain_order="left"
        )
        columns = [column(c.ITEM_LEVEL, metric, K) for metric in (HR, NDCG)]
        return scores.select(pl.col(columns).fill_null(0.0)).to_numpy()


def _named(values: NDArray[np.float64], prefix: str = "") -> dict[str, float]:
    """The means of (R, 2) under the names of :data:`METRICS`."""
    return {prefix + name: float(mean) for name, mean in zip(METRICS, values.mean(axis=0), strict=True)}
