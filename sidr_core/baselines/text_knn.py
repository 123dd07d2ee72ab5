"""The stage `baseline_text_knn`: items whose text is nearest to the texts of the history.

A history is the mean of its items' text vectors, each of length 1, an item a places from the end weighted by
`decay ** a`; candidates are ranked by the cosine to it. Nothing is trained. Valid rows choose the decay, and
whether items of the history may come back; where not, they stand last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sidr_core.baselines import training
from sidr_core.baselines.ranking import top_k
from sidr_core.baselines.sequences import Catalogue
from sidr_core.decoding.lists import counted
from sidr_core.errors import InputError
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
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

    def rank(self, samples: pl.DataFrame, k: int) -> pl.DataFrame:
        """The k nearest items of the whole catalogue: row_id, rank, item_id, score (the cosine); ties by popularity."""
        return top_k(self._scores(self.catalogue.histories(samples)), samples[ROW_ID], self.catalogue.ids, k)

    def places(self, samples: pl.DataFrame, k: int) -> pl.DataFrame:
        """Lists by the columns `sidr_core.decoding.lists.RANKING`, every item standing for itself."""
        return counted(self.rank(samples, k), self.catalogue.as_codebook, k).rankings

    def _scores(self, histories: list[list[int]]) -> Iterator[np.ndarray]:
        for start in range(0, len(histories), _BLOCK):
            some = histories[start : start + _BLOCK]
            means = np.stack([self._mean(history) for history in some])
            cosines = means @ self._vectors.T
            if not self._repeats:
                for row, history in zip(cosines, some, strict=True):
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
            tried = TextRanker(vectors, rows.catalogue, decay, repeats)
            places = tried.places(rows.valid, min(training.K, len(rows.catalogue)))
            measured = training.score(places, rows.valid, rows.catalogue.as_codebook)
            log.append({"trial": len(log) + 1, "decay": decay, "repeats": repeats, **measured})
    best = max(log, key=lambda row: row[f"ndcg@{training.K}"])
    progress.say(f"decay {best['decay']}, repeats {best['repeats']}: valid NDCG@10 {best[f'ndcg@{training.K}']:.4f}")
    frame = pl.DataFrame(log, schema_overrides={"trial": pl.Int32})
    return training.publish(
        out_dir,
        "baseline_text_knn",
        {"decay": best["decay"], "repeats": best["repeats"], "dimension": vectors.shape[1]},
        torch.nn.Embedding.from_pretrained(torch.from_numpy(vectors)),
        rows,
        best,
        frame.with_columns((pl.col("trial") == best["trial"]).alias("chosen")),
        TextKnnLog,
        seed=0,
        synthetic=inputs.synthetic,
    )


def load(folder: Path) -> TextRanker:
    """A published ranker."""
    meta, catalogue = training.read(folder)
    table, model = torch.nn.Embedding(len(catalogue), meta["model"]["dimension"]), meta["model"]
    training.load_weights(table, folder)
    return TextRanker(table.weight.detach().numpy(), catalogue, model["decay"], model["repeats"])


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
    found = series_vectors(ordered[VECTOR])
    return found / np.linalg.norm(found, axis=1, keepdims=True)
