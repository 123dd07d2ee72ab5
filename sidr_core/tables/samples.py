"""Samples: the rows of train, valid and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl


def subset(samples: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """A seeded subset of at most `rows` samples, in their order."""
    if rows >= len(samples):
        return samples
    picks: Sequence[int] = sorted(np.random.default_rng(seed).permutation(len(samples))[:rows].tolist())
    return samples[picks]
