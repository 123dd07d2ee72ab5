"""Vectors to codes: one interface over all quantizers.

A quantizer is a projection of the text vectors into a latent space (`projection.py`: none, whitened,
fused with co-occurrence, the encoder of an RQ-VAE, or two of these in turn) and centroids per level in
that space. Coding a vector is the same for all: the nearest centroid of the residual, level after level.

Deviation from the paper: METHOD.md 3.1 trains an RQ-VAE; the default is faiss k-means on the residuals of
the level before (METHOD.md 3.3), which needs seconds on a CPU and no tuning. The same input and seed give
the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from sidr_core.errors import InputError, ProfileError
from sidr_core.sids import balanced, kmeans
from sidr_core.sids.projection import Projection, restore
from sidr_core.tables.tensors import read_tensors, unreadable

if TYPE_CHECKING:
    import polars as pl

    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Quantizer

# One metadata key only: safetensors does not keep the order of several, and equal codebooks have equal bytes.
_META = "projections"


@dataclass(frozen=True)
class Codebook:
    """Projections of vectors (N, D) into d dimensions, and L levels of K centroids there.

    A latent vector is near the sum of one centroid per level. Whatever the quantizer, coding is the
    same: the nearest centroid of the residual, level after level.

    Args:
        centroids: (L, K, d) float32.
        projections: from text vectors to latent ones, in turn; none where the text vectors are quantized.
        fitted: (N, L) codes of the vectors that it was fitted on, in their order; None after loading.
            They are the greedy codes of :meth:`encode` except for `balanced_kmeans`, where they alone
            have equal clusters.
    """

    centroids: np.ndarray
    projections: tuple[Projection, ...] = ()
    fitted: np.ndarray | None = None

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
        found = self.decode(codes)
        for projection in reversed(self.projections):
            found = projection.lift(found)
        return found

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
        progress: told of long steps.

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
    if config.kind == "balanced_kmeans":
        centroids, codes = _balanced(latent, size, config, progress)
        return Codebook(centroids, projections, codes)
    if config.kind == "rqvae":
        from sidr_core.sids import rqvae  # torch takes seconds to import

        encoder, centroids = rqvae.fit(latent, size, config, progress)
        book = Codebook(centroids, (*projections, encoder))
        latent = encoder.project(latent)
    else:
        book = Codebook(_residual_kmeans(latent, size, config, progress), projections)
    return replace(book, fitted=book.encode(latent))


def codes_per_level(vectors: np.ndarray, config: Quantizer) -> int:
    """`config.size`, or less for a small catalogue, but always enough SIDs for N items.

    At most half as many codes as distinct vectors: with more, the first level alone would tell the
    items apart and leave nothing for the others.
    """
    enough = ceil(round(len(vectors) ** (1 / config.levels), 9))
    return min(config.size, max(2, len(kmeans.distinct(vectors)) // 2, enough))


def _check(vectors: np.ndarray, config: Quantizer) -> None:
    if config.kind == "published":
        raise ProfileError(
            "sid_codebook: a published index has no quantizer to fit",
            expected="residual_kmeans, balanced_kmeans or rqvae",
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
    wrong = sum(int((~np.isfinite(vectors[rows].sum(axis=1, dtype=np.float64))).sum()) for rows in _rows(vectors))
    if wrong:
        raise InputError(
            "sid_codebook: vectors are not finite",
            expected="finite numbers",
            found=f"{wrong:,} of {len(vectors):,} vectors with NaN or infinity",
            fix="materialize `item_embeddings` again, with another `encoder.dtype` if it is half precision",
        )


def _rows(vectors: np.ndarray) -> Iterator[slice]:
    return kmeans.blocks(len(vectors))


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


def _residual_kmeans(latent: np.ndarray, size: int, config: Quantizer, progress: Progress | None) -> np.ndarray:
    """(L, K, d) centroids, learnt from one sample of latent (N, d)."""
    residual = np.array(kmeans.sample(latent, kmeans.SAMPLE * size, config.seed), order="C")
    levels: list[np.ndarray] = []
    for level in range(config.levels):
        if levels:
            residual -= levels[-1][kmeans.nearest(residual, levels[-1])]
        levels.append(kmeans.train(residual, size, config.iterations, config.seed + level))
        _tell(progress, level, config)
    return np.stack(levels)


def _balanced(
    latent: np.ndarray, size: int, config: Quantizer, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """(L, K, d) centroids and the (N, L) codes with equal clusters on every level."""
    residual = np.array(latent, dtype=np.float32, order="C")
    codes = np.zeros((len(latent), config.levels), dtype=np.int64)
    levels = []
    for level in range(config.levels):
        start = kmeans.train(residual, size, config.iterations, config.seed + level)
        centroids, codes[:, level] = balanced.kmeans(residual, start, config.iterations)
        levels.append(centroids)
        for rows in _rows(residual):
            residual[rows] -= centroids[codes[rows, level]]
        _tell(progress, level, config)
    return np.stack(levels), codes


def _tell(progress: Progress | None, level: int, config: Quantizer) -> None:
    if progress is not None:
        progress.tick(level + 1, config.levels, "levels")
