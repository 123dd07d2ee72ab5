"""The stage `baseline_text_knn`: items whose text is nearest to the texts of the history.

A history is the mean of its items' text vectors, each of length 1, an item a positions before the last weighted by
`decay ** a`; candidates are ranked by their cosine to it. Vectors are those of the encoder, or TF-IDF. Nothing is
trained. Valid rows choose the decay, and whether items of the history may be recommended again; where not, they come
last.

Shapes: R rows, N items, D dimensions or terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from scipy import sparse

from sidr_core.baselines import training
from sidr_core.baselines.ranking import top_k
from sidr_core.baselines.sequences import Catalogue, Histories
from sidr_core.baselines.tfidf import matrices_in, tensors_of, tfidf
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ROW_ID, VECTOR
from sidr_core.tables.vectors import series_vectors

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

_BLOCK = 512
#: Below every cosine.
_LAST = -2.0


class TextRanker:
    """Ranks by text.

    Args:
        vectors: (N, D) of length 1, or 0 where a text has none, in the catalogue's order.
        decay: weight of an item over that of the one after it.
        repeats: whether items of the history may be recommended.
    """

    def __init__(
        self, vectors: np.ndarray | sparse.csr_array, catalogue: Catalogue, decay: float, repeats: bool
    ) -> None:
        self._vectors, self.catalogue, self._decay, self._repeats = vectors, catalogue, decay, repeats

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """See :class:`~sidr_core.baselines.ranking.Ranker`; the score is the cosine, ties go to the more popular."""
        return top_k(self._scores(rows), rows[ROW_ID], self.catalogue.ids, k)

    def _scores(self, rows: pl.DataFrame) -> Iterator[np.ndarray]:
        for start in range(0, rows.height, _BLOCK):
            histories = Histories.of(rows.slice(start, _BLOCK), self.catalogue)
            means: Any = histories.weighted(self._decay) @ self._vectors
            means = means.toarray() if sparse.issparse(means) else means  # (R, D)
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
            cosines = np.ascontiguousarray((self._vectors @ means.T).T)  # (R, N)
            if not self._repeats:
                cosines[histories.row, histories.item] = _LAST
            yield cosines


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Choose on valid rows, and keep the vectors that rank."""
    from sidr_core.tables.contracts import ChoiceLog  # a second or two to import, which a server spares

    settings = config.text_knn
    rows = training.Rows.of(inputs, settings.select_rows, seed=0)
    vectors: Any
    if settings.vectors == "tfidf":
        vectors = tfidf(tables.read(inputs["interactions"].path("items.parquet")), rows.catalogue)
        weights = tensors_of({"vectors": vectors})
    else:
        vectors = _vectors(tables.read(inputs["item_embeddings"].path("item_embeddings.parquet")), rows.catalogue)
        weights = {"weight": torch.from_numpy(vectors)}
    codebook = rows.catalogue.as_codebook
    tried = [
        (decay, repeats, training.measure(TextRanker(vectors, rows.catalogue, decay, repeats), rows.valid, codebook))
        for repeats in (True, False)
        for decay in settings.decays
    ]
    decay, repeats, best = max(tried, key=lambda one: one[2][f"ndcg@{training.K}"])
    progress.say(f"decay {decay}, repeats {repeats}: valid NDCG@10 {best[f'ndcg@{training.K}']:.4f}")
    log = training.choice_log(
        [(f"decay {d}, repeats {r}", m[f"ndcg@{training.K}"], m[f"hr@{training.K}"]) for d, r, m in tried]
    )
    fitted = training.Fitted(TextRanker(vectors, rows.catalogue, decay, repeats), weights, best, log)
    shape = {"decay": decay, "repeats": repeats, "vectors": settings.vectors, "dimension": int(vectors.shape[1])}
    return training.publish(
        out_dir, "baseline_text_knn", shape, fitted, rows, seed=0, synthetic=inputs.synthetic, contract=ChoiceLog
    )


def load(inputs: Mapping[str, StageInput], config: DatasetConfig) -> TextRanker:
    """The published vectors with the weights that were chosen, ready to rank."""
    folder = inputs["baseline_text_knn"].folder()
    meta, catalogue = training.read(folder)
    shape = meta["model"]
    if shape["vectors"] == "tfidf":
        (vectors,) = matrices_in(folder / training.WEIGHTS, "vectors")
    else:
        table = torch.nn.Embedding(len(catalogue), shape["dimension"])
        training.load_weights(table, folder)
        vectors = table.weight.detach().numpy()
    return TextRanker(vectors, catalogue, shape["decay"], shape["repeats"])


def _vectors(embeddings: pl.DataFrame, catalogue: Catalogue) -> np.ndarray:
    """(N, D) of length 1, in the catalogue's order.

    Raises:
        InputError: an item has no vector.
    """
    ordered = catalogue.in_order(embeddings, "text vector", "materialize item_embeddings again")
    vectors = series_vectors(ordered[VECTOR])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
