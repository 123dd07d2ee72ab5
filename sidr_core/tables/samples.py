"""Samples: the rows of train, valid and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl


def picks(count: int, most: int, seed: int) -> Sequence[int]:
    """The places of at most `most` of `count` things, in their order; the same seed draws the same."""
    return range(count) if most >= count else sorted(np.random.default_rng(seed).permutation(count)[:most].tolist())


def subset(samples: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """A seeded subset of at most `rows` samples, in their order."""
    return samples[picks(len(samples), rows, seed)]
