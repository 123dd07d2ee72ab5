"""Bootstrap intervals clustered by user, and paired differences.

The rows of one user are not independent, so whole users are drawn with replacement and a draw's
statistic is the mean over the rows of the drawn users (METHOD.md 8.3; the unclustered bootstrap of
the reproductions gives intervals that are too narrow). With one row per user both are the same.

Letters: R rows, M metrics, U users, D draws. A draw is a vector of U counts, so all statistics are
two matrix products over per-user sums; memory is bounded by drawing in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Counts held at one time, as float64: 32 MiB.
_BLOCK = 4_000_000

HIGHER, LOWER, UNCLEAR = "higher", "lower", "not distinguishable"


@dataclass(frozen=True)
class Intervals:
    """Means over rows with percentile intervals, each of shape (M,)."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Differences:
    """Paired differences a - b: interval, rows on which a is better, worse and equal, and a verdict, each (M,)."""

    interval: Intervals
    helped: NDArray[np.int64]
    harmed: NDArray[np.int64]
    same: NDArray[np.int64]
    verdict: tuple[str, ...]


def bootstrap(
    values: Floats, users: Sequence[str] | NDArray[np.generic], *, draws: int, confidence: float, seed: int
) -> Intervals:
    """Mean of each column with its percentile interval over users drawn with replacement.

    The same users and seed give the same draws, whatever the values: intervals of two models on the
    same rows are comparable.

    Args:
        values: (R, M) per-row metrics.
        users: (R,) the user of each row.
        draws: D.
        confidence: share of draws inside the interval, such as 0.95.
        seed: of the draws.

    Raises:
        ValueError: no row, or a single user: then nothing can be said about other users.
    """
    means = draw_means(values, users, draws=draws, seed=seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return Intervals(values.mean(axis=0), low, high)


def draw_means(
    values: Floats, users: Sequence[str] | NDArray[np.generic], *, draws: int, seed: int
) -> NDArray[np.float64]:
    """The mean of each column of `values` (R, M) in each draw of users: (D, M)."""
    sums, counts = _per_user(values, users)
    if len(counts) < 2:
        raise ValueError(f"an interval over users needs at least 2 of them, found {len(counts)}")
    return np.concatenate(list(_blocks(sums, counts, draws, seed)))


def p_values(gap: Floats, users: Sequence[str] | NDArray[np.generic], *, draws: int, seed: int) -> Floats:
    """Two-sided bootstrap p-value of "the mean difference is 0" per column of `gap` (R, M): (M,).

    Twice the share of draws on the rarer side of 0, zeros on both sides, counting the observed sample as
    one more draw, so that no p is 0 (Davison and Hinkley 1997, 4.11); the least is 2 / (D + 1).
    """
    means = draw_means(gap, users, draws=draws, seed=seed)
    rarer = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    return np.minimum(1.0, 2 * (rarer + 1) / (draws + 1))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for being a family (Holm 1979): below α, wrong with probability at most α over all.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = largest
    return corrected


def paired(
    a: Floats, b: Floats, users: Sequence[str] | NDArray[np.generic], *, draws: int, confidence: float, seed: int
) -> Differences:
    """Difference a - b on the same rows, with its interval and a verdict per column.

    A verdict other than "not distinguishable" says that the interval excludes 0. Intervals are not
    corrected for the number of comparisons that a table shows.

    Args:
        a: (R, M) per-row metrics of the first model.
        b: (R, M) those of the second, in the same order of rows.
        users: (R,) the user of each row.
        draws: D.
        confidence: as in :func:`bootstrap`.
        seed: as in :func:`bootstrap`.

    Raises:
        ValueError: the shapes differ, or there are fewer than two users.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired rows must match: {a.shape} against {b.shape}")
    gap = a - b
    interval = bootstrap(gap, users, draws=draws, confidence=confidence, seed=seed)
    helped, harmed = (gap > 0).sum(axis=0), (gap < 0).sum(axis=0)
    return Differences(interval, helped, harmed, len(gap) - helped - harmed, verdicts(interval.low, interval.high))


def verdicts(low: Floats, high: Floats) -> tuple[str, ...]:
    """In words, whether each interval (M,) of a difference excludes 0."""
    pairs = zip(low, high, strict=True)
    return tuple(HIGHER if below > 0 else LOWER if above < 0 else UNCLEAR for below, above in pairs)


def _per_user(values: Floats, users: Sequence[str] | NDArray[np.generic]) -> tuple[Floats, Floats]:
    """Per-user sums (U, M) and row counts (U,); users in sorted order, so row order is immaterial."""
    _, index = np.unique(np.asarray(users), return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, index, values)
    return sums, counts


def _blocks(sums: Floats, counts: Floats, draws: int, seed: int):
    """Yield the draws' means, (d, M) at a time."""
    generator = np.random.default_rng(seed)
    n = len(counts)
    size = max(1, _BLOCK // n)
    for start in range(0, draws, size):
        d = min(size, draws - start)
        picks = generator.integers(n, size=(d, n)) + n * np.arange(d)[:, None]
        weights = np.bincount(picks.ravel(), minlength=d * n).reshape(d, n).astype(np.float64)
        yield (weights @ sums) / (weights @ counts)[:, None]
