"""k-means on the residuals of the level before: the default, seconds on a CPU and no tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sidr_core.sids import kmeans
from sidr_core.sids.quantizers import Quantized

if TYPE_CHECKING:
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Quantizer


def fit(latent: np.ndarray, size: int, config: Quantizer, progress: Progress | None = None) -> Quantized:
    """Centroids learnt from one sample of latent (N, d)."""
    residual = np.array(kmeans.sample(latent, kmeans.SAMPLE * size, config.seed), order="C")  # (n, d)
    levels: list[np.ndarray] = []
    for level in range(config.levels):
        if levels:
            residual -= levels[-1][kmeans.nearest(residual, levels[-1])]
        levels.append(kmeans.train(residual, size, config.iterations, config.seed + level))
        if progress:
            progress.tick(level + 1, config.levels, "levels")
    return Quantized(np.stack(levels))
