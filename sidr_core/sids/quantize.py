"""Vectors to codes: one interface over all quantizers.

A quantizer is a projection of the text vectors into a latent space (`projection.py`: none, whitened,
fused with co-occurrence, the encoder of an RQ-VAE, or two of these in turn) and centroids per level in
that space. Coding a vector is the same for all: the nearest centroid of the residual, level after level.

Deviation from the paper, which trains an RQ-VAE (docs/method.md, "Codebooks"): the default is faiss k-means on the
residuals of the level before, which needs seconds on a CPU and no tuning. The same input and seed give the same bytes.
A kind of quantizer is a module of `quantizers/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from sidr_core.errors import InputError, ProfileError
from sidr_core.sids import kmeans
from sidr_core.sids.projection import Projection, restore
from sidr_core.sids.quantizers import module_of
from sidr_core.tables.tensors import read_tensors, unreadable

if TYPE_CHECKING:
    import polars as pl

    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Quantizer

# One metadata key only: safetensors does not keep the order of several, and equal codebooks have equal bytes.
_META = "projections"
#: Steps of k-means from old centroids: after five they hardly move (docs/log.md, "A codebook fitted anew").
_REFINING = 5


@dataclass(frozen=True)
class Codebook:
    """Projections of vectors (N, D) into d dimensions, and L levels of K centroids there.

    A latent vector is near the sum of one centroid per level. Whatever the quantizer, coding is the
    same: the nearest centroid of the residual, level after level.

    Args:
        centroids: (L, K, d) float32.
        projections: from text vectors to latent ones, in turn; none where the text vectors are quantized.
        fitted: (N, L) codes of the vectors that it was fitted on, in their order; None after loading.
        forced: the fitted codes are other than the greedy ones of :meth:`encode`, such as those of equal clusters.
    """

    centroids: np.ndarray
    projections: tuple[Projection, ...] = ()
    fitted: np.ndarray | None = None
    forced: bool = False

    @property
    def levels(self) -> int:
        return self.centroids.shape[0]

    @property
    def size(self) -> int:
        """Codes per level."""
        return self.centroids.shape[1]

    def project(self, vectors: np.ndarray, items: Sequence[str] | None = None) -> np.ndarray:
        """Text vectors (N, D), with their item ids in the same order where known, to latent (N, d) float32."""
        return _project(self.projections, vectors, items)

    def encode(self, latent: np.ndarray) -> np.ndarray:
        """Nearest centroid of the residual, level after level: (N, d) -> codes (N, L) int64."""
        codes = np.zeros((len(latent), self.levels), dtype=np.int64)
        for rows in kmeans.blocks(len(latent)):
            residual = np.array(latent[rows], dtype=np.float32, order="C")
            for level, centroids in enumerate(self.centroids):
                codes[rows, level] = kmeans.nearest(residual, centroids)
                residual -= centroids[codes[rows, level]]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Sum of the centroids of codes (N, l), l ≤ L: latent (N, d) float32."""
        total = np.zeros((len(codes), self.centroids.shape[2]), dtype=np.float32)
        for level in range(codes.shape[1]):
            total += self.centroids[level][codes[:, level]]
        return total

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """The text vectors (N, D) that codes (N, l) stand for: comparable between quantizers."""
        vectors = self.decode(codes)
        for projection in reversed(self.projections):
            vectors = projection.lift(vectors)
        return vectors

    def save(self, path: Path) -> None:
        """Write the centroids and the projections; equal codebooks give equal bytes."""
        tensors = {
            f"{n}.{name}": np.ascontiguousarray(value)  # safetensors writes the memory as it lies
            for n, projection in enumerate(self.projections)
            for name, value in projection.tensors().items()
        }
        names = json.dumps([projection.name for projection in self.projections])
        save_file({"centroids": np.ascontiguousarray(self.centroids), **tensors}, path, {_META: names})

    @classmethod
    def load(cls, path: Path) -> Codebook:
        """The codebook that :meth:`save` wrote, without `fitted`. Raises StoreError where it is none."""
        tensors, about = read_tensors(path, "np")
        try:
            projections = [
                restore(name, {key.removeprefix(f"{n}."): t for key, t in tensors.items() if key.startswith(f"{n}.")})
                for n, name in enumerate(json.loads(about.get(_META, "[]")))
            ]
            return cls(tensors["centroids"], tuple(projections))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unreadable(path, f"no codebook: {type(error).__name__} {error}") from None


def fit(
    vectors: np.ndarray,
    config: Quantizer,
    *,
    histories: pl.DataFrame | None = None,
    item_ids: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Codebook:
    """Train on text vectors (N, D). Fewer than `config.size` codes are used for a small catalogue.

    Beside the vectors it holds, for `residual_kmeans`, a sample of 256 vectors per centroid and blocks of
    65,536; for `balanced_kmeans` a copy of the vectors and N × K float32 of costs; for `whitened`,
    `fused` and `rqvae` the latent vectors.

    Args:
        vectors: (N, D).
        histories: the train samples (`history_item_ids`, `target_item_id`), for `vectors: fused`.
        item_ids: of the vectors, in their order, for `vectors: fused`.
        progress: counts levels or epochs.

    Returns:
        The codebook, with `fitted` codes. The latent vectors are `book.project(vectors, item_ids)`.

    Raises:
        InputError: no vectors, vectors that are not finite, or no co-occurrence to fuse.
        ProfileError: a kind that has nothing to fit.
    """
    _check(vectors, config)
    size = codes_per_level(vectors, config)
    projections = _projections(vectors, config, histories, item_ids)
    latent = _project(projections, vectors, item_ids)
    quantized = module_of(config.kind).fit(latent, size, config, progress)
    if quantized.encoder is not None:
        projections, latent = (*projections, quantized.encoder), quantized.encoder.project(latent)
    book = Codebook(quantized.centroids, projections)
    forced = quantized.codes is not None
    return replace(book, fitted=quantized.codes if forced else book.encode(latent), forced=forced)


def refined(book: Codebook, vectors: np.ndarray, items: Sequence[str] | None = None) -> Codebook:
    """A codebook after some steps of k-means from its own centroids, level after level, so that its codes go on meaning
    what they meant. Its projections stay, and so does the centroid of a code that no vector is near to.

    Args:
        vectors: text vectors (N, D). items: their ids, where the projection needs them.
    """
    centroids, residual = book.centroids.copy(), book.project(vectors, items)
    for of_level in centroids:
        for _ in range(_REFINING):
            of_level[:] = kmeans.means(residual, kmeans.nearest(residual, of_level), of_level)
        residual = residual - of_level[kmeans.nearest(residual, of_level)]
    return Codebook(centroids, book.projections)


def codes_per_level(vectors: np.ndarray, config: Quantizer) -> int:
    """`config.size`, or less for a small catalogue, but always enough SIDs for N items.

    At most half as many codes as distinct vectors: with more, the first level alone would separate the items and leave
    nothing for the others.
    """
    enough = ceil(round(len(vectors) ** (1 / config.levels), 9))
    return min(config.size, max(2, len(kmeans.distinct(vectors)) // 2, enough))


def _check(vectors: np.ndarray, config: Quantizer) -> None:
    if config.kind == "published":
        raise ProfileError(
            "sid_codebook: a published index has no quantizer to fit",
            expected="a quantizer that is fitted to vectors, such as residual_kmeans",
            found="quantizer.kind: published",
            fix="take the SIDs of the source, or choose another kind",
        )
    if not vectors.size:
        raise InputError(
            "sid_codebook: there is nothing to quantize",
            expected="one vector per item",
            found=f"vectors of shape {vectors.shape}",
            fix="look at `interactions`: its filters may have left no item",
        )
    # a sum is finite only if all are, and needs no mask as large as the vectors
    sums = (vectors[rows].sum(axis=1, dtype=np.float64) for rows in kmeans.blocks(len(vectors)))
    wrong = sum(int((~np.isfinite(block)).sum()) for block in sums)
    if wrong:
        raise InputError(
            "sid_codebook: vectors are not finite",
            expected="finite numbers",
            found=f"{wrong:,} of {len(vectors):,} vectors with NaN or infinity",
            fix="materialize `item_embeddings` again, with another `encoder.dtype` if it is half precision",
        )


def _projections(
    vectors: np.ndarray, config: Quantizer, histories: pl.DataFrame | None, item_ids: Sequence[str] | None
) -> tuple[Projection, ...]:
    """What `config.vectors` names."""
    if config.vectors == "text":
        return ()
    from sidr_core.sids import cooccurrence

    if config.vectors == "whitened":
        return (cooccurrence.fit_whitened(vectors, config.whitened_size),)
    if histories is None or item_ids is None:
        raise ValueError("fused vectors need the train histories and the item ids")
    fused = cooccurrence.fit_fused(vectors, item_ids, histories, config.fused_size, config.fused_weight, config.seed)
    return (fused,)


def _project(projections: Sequence[Projection], vectors: np.ndarray, items: Sequence[str] | None) -> np.ndarray:
    for projection in projections:
        vectors = projection.project(vectors, items)
    return np.ascontiguousarray(vectors, dtype=np.float32)
