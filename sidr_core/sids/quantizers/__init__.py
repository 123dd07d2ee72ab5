"""The quantizers, one module per kind, named by it. Each has

    fit(latent, size, config, progress) -> Quantized

which learns centroids from latent vectors (N, d) float32: `config.levels` levels of `size` codes each, a function of
vectors, settings and `config.seed`. `progress` is told of levels or epochs, unless it is None.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

import numpy as np

from sidr_core.sids.projection import Projection


class Quantized(NamedTuple):
    """What a quantizer learnt.

    Attributes:
        centroids: (L, K, d') float32, in the latent space or behind `encoder`.
        encoder: from the latent space to that of the centroids, where they lie in another one.
        codes: (N, L) of the vectors, where they are other than the nearest centroid of the residual at each level.
    """

    centroids: np.ndarray
    encoder: Projection | None = None
    codes: np.ndarray | None = None


def module_of(kind: str) -> ModuleType:
    """The module of a kind of `quantizer.kind`, of all but `published`."""
    return importlib.import_module(f"sidr_core.sids.quantizers.{kind}")
