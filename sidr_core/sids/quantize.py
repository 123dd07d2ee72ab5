"""Residual k-means: vectors to codes, level by level.

Deviation from the paper: METHOD.md 3.1 trains an RQ-VAE; this is faiss k-means on the residuals of the
level before (METHOD.md 3.3), which needs seconds on a CPU and no tuning. The same vectors, seed and
faiss give the same codes: faiss runs on one thread here, since a threaded matrix product may
differ in its last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from sidr_core.settings import Quantizer


@dataclass(frozen=True)
class Codebook:
    """L levels of K centroids in D dimensions; a vector is near the sum of one centroid per level."""

    centroids: np.ndarray  # (L, K, D) float32

    @property
    def levels(self) -> int:
        return self.centroids.shape[0]

    @property
    def size(self) -> int:
        """Codes per level."""
        return self.centroids.shape[1]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Nearest centroid of the residual, level after level: (N, D) -> codes (N, L) int64."""
        codes = np.zeros((len(vectors), self.levels), dtype=np.int64)
        residual = np.ascontiguousarray(vectors, dtype=np.float32).copy()
        for level, centroids in enumerate(self.centroids):
            codes[:, level] = _nearest(residual, centroids)
            residual -= centroids[codes[:, level]]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Sum of the centroids of codes (N, l), l ≤ L: (N, D) float32."""
        total = np.zeros((len(codes), self.centroids.shape[2]), dtype=np.float32)
        for level in range(codes.shape[1]):
            total += self.centroids[level][codes[:, level]]
        return total

    def save(self, path: Path) -> None:
        save_file({"centroids": self.centroids}, path)

    @classmethod
    def load(cls, path: Path) -> Codebook:
        return cls(load_file(path)["centroids"])


def fit(vectors: np.ndarray, config: Quantizer) -> Codebook:
    """Train on vectors (N, D). Fewer than `config.size` codes are used for a small catalogue."""
    size = codes_per_level(vectors, config)
    residual = np.ascontiguousarray(vectors, dtype=np.float32).copy()
    levels = []
    for level in range(config.levels):
        with _one_thread():
            centroids = _kmeans(residual, size, config.iterations, config.seed + level)
        levels.append(centroids)
        residual -= centroids[_nearest(residual, centroids)]
    return Codebook(np.stack(levels))


def codes_per_level(vectors: np.ndarray, config: Quantizer) -> int:
    """`config.size`, or less for a small catalogue, but always enough SIDs for N items.

    At most half as many codes as distinct vectors: with more, the first level alone would tell the
    items apart and leave nothing for the others.
    """
    enough = ceil(round(len(vectors) ** (1 / config.levels), 9))
    return min(config.size, max(2, len(np.unique(vectors, axis=0)) // 2, enough))


def _kmeans(vectors: np.ndarray, size: int, iterations: int, seed: int) -> np.ndarray:
    """(K, D) centroids. Where no more than K vectors are distinct, they are the centroids, the last repeated."""
    distinct = np.unique(vectors, axis=0)
    if len(distinct) <= size:
        return np.concatenate([distinct, np.repeat(distinct[-1:], size - len(distinct), axis=0)])
    kmeans = faiss.Kmeans(vectors.shape[1], size, niter=iterations, seed=seed, min_points_per_centroid=1)
    kmeans.train(vectors)
    assert kmeans.centroids is not None
    return kmeans.centroids.reshape(size, -1).astype(np.float32)


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(N,) number of the nearest centroid; the lowest of equals."""
    if not len(vectors):
        return np.zeros(0, dtype=np.int64)
    with _one_thread():
        index = faiss.IndexFlatL2(centroids.shape[1])
        index.add(np.ascontiguousarray(centroids))
        return index.search(np.ascontiguousarray(vectors), 1)[1][:, 0]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
