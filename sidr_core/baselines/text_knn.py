"""The stage `baseline_text_knn`: items whose text is nearest to the texts of the history.

A history is the mean of its items' text vectors, each of length 1, an item a positions before the last weighted by
`decay ** a`; candidates are ranked by their cosine to it. Nothing is trained. Valid rows choose the decay, and
whether items of the history may be recommended again; where not, they come last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sidr_core.baselines import training
from sidr_core.baselines.ranking import top_k
from sidr_core.baselines.sequences import Catalogue
from sidr_core.errors import InputError
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, ROW_ID, VECTOR
from sidr_core.tables.contracts import TextKnnLog
from sidr_core.tables.vectors import series_vectors

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

_BLOCK = 512
#: Below every cosine.
_LAST = -2.0


class TextRanker:
    """Ranks by text.

    Args:
        vectors: (N, D) of length 1, in the catalogue's order.
        decay: weight of an item over that of the one after it.
        repeats: whether items of the history may be recommended.
    """

    def __init__(self, vectors: np.ndarray, catalogue: Catalogue, decay: float, repeats: bool) -> None:
        self._vectors, self.catalogue, self._decay, self._repeats = vectors, catalogue, decay, repeats

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """See :class:`~sidr_core.baselines.ranking.Ranker`; the score is the cosine, ties go to the more popular."""
        return top_k(self._scores(self.catalogue.histories(rows)), rows[ROW_ID], self.catalogue.ids, k)

    def _scores(self, histories: list[list[int]]) -> Iterator[np.ndarray]:
        for start in range(0, len(histories), _BLOCK):
            block = histories[start : start + _BLOCK]
            means = np.stack([self._mean(history) for history in block])  # (R, D)
            cosines = means @ self._vectors.T  # (R, N)
            if not self._repeats:
                for row, history in zip(cosines, block, strict=True):
                    row[history] = _LAST
            yield cosines

    def _mean(self, history: list[int]) -> np.ndarray:
        weights = self._decay ** np.arange(len(history) - 1, -1, -1, dtype=np.float32)
        total = weights @ self._vectors[history]
        return total / max(float(np.linalg.norm(total)), 1e-12)


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Choose on valid rows, and keep the vectors that rank."""
    settings = config.text_knn
    rows = training.Rows.of(inputs, settings.select_rows, seed=0)
    vectors = _vectors(tables.read(inputs["item_embeddings"].path("item_embeddings.parquet")), rows.catalogue)
    log: list[dict[str, Any]] = []
    for repeats in (True, False):
        for decay in settings.decays:
            ranker = TextRanker(vectors, rows.catalogue, decay, repeats)
            measured = training.measure(ranker, rows.valid, rows.catalogue.as_codebook)
            log.append({"trial": len(log) + 1, "decay": decay, "repeats": repeats, **measured})
    best = max(log, key=lambda row: row[f"ndcg@{training.K}"])
    progress.say(f"decay {best['decay']}, repeats {best['repeats']}: valid NDCG@10 {best[f'ndcg@{training.K}']:.4f}")
    frame = pl.DataFrame(log, schema_overrides={"trial": pl.Int32})
    fitted = training.Fitted(
        TextRanker(vectors, rows.catalogue, best["decay"], best["repeats"]),
        torch.nn.Embedding.from_pretrained(torch.from_numpy(vectors)),
        best,
        frame.with_columns((pl.col("trial") == best["trial"]).alias("chosen")),
    )
    shape = {"decay": best["decay"], "repeats": best["repeats"], "dimension": vectors.shape[1]}
    return training.publish(
        out_dir, "baseline_text_knn", shape, fitted, rows, seed=0, synthetic=inputs.synthetic, contract=TextKnnLog
    )


def load(inputs: Mapping[str, StageInput], config: DatasetConfig) -> TextRanker:
    """The published vectors with the weights that were chosen, ready to rank."""
    folder = inputs["baseline_text_knn"].folder()
    meta, catalogue = training.read(folder)
    shape = meta["model"]
    table = torch.nn.Embedding(len(catalogue), shape["dimension"])
    training.load_weights(table, folder)
    return TextRanker(table.weight.detach().numpy(), catalogue, shape["decay"], shape["repeats"])


def _vectors(embeddings: pl.DataFrame, catalogue: Catalogue) -> np.ndarray:
    """(N, D) of length 1, in the catalogue's order.

    Raises:
        InputError: an item has no vector.
    """
    ordered = pl.DataFrame({ITEM_ID: catalogue.ids}).join(embeddings, on=ITEM_ID, how="inner", maintain_order="left")
    if ordered.height < len(catalogue):
        raise InputError(
            f"{len(catalogue) - ordered.height} items have no text vector",
            expected="one vector for every item of the catalogue",
            found=f"{ordered.height} of {len(catalogue)}",
            fix="materialize item_embeddings again",
        )
    vectors = series_vectors(ordered[VECTOR])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
