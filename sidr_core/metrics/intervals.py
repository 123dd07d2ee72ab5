"""Bootstrap intervals clustered by user, paired differences, and words that follow the numbers.

The rows of one user are not independent, so whole users are drawn with replacement and a draw's
statistic is the mean over the rows of the drawn users (drawing rows instead gives intervals that
are too narrow). With one row per user both are the same.

Letters: R rows, M metrics, U users, D draws. A draw is a vector of U counts, so all statistics are
two matrix products over per-user sums; memory is bounded by drawing in blocks. Draws depend on the users
and the seed alone, so a difference of two models' draws is the draw of their difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Users = Sequence[str] | NDArray[np.generic]

#: Counts held at one time, as float64: 32 MiB.
_BLOCK = 4_000_000

#: A matrix product gives equal columns unequal last bits; metrics of rows and their means differ by far more.
_ROUNDING = 1e-12

HIGHER, LOWER, UNCLEAR = "higher", "lower", "not distinguishable"
#: Chance to find what is there, of the smallest detectable difference.
_POWER = 0.8


@dataclass(frozen=True)
class Intervals:
    """Means over rows with percentile intervals, each of shape (M,)."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Differences:
    """Paired differences a - b, each (M,).

    Attributes:
        interval: see :func:`differences`.
        helped, harmed, same: rows on which a is better, worse and equal.
        se: standard error over users.
        p: of no difference, raw.
        p_within: that the true difference is `margin` or more, either way, raw; 1 where no margin was asked for.
    """

    interval: Intervals
    helped: NDArray[np.int64]
    harmed: NDArray[np.int64]
    same: NDArray[np.int64]
    se: Floats
    p: Floats
    p_within: Floats


@dataclass(frozen=True)
class Verdict:
    """A difference in words: `word` is HIGHER or LOWER where the corrected p is below 1 - confidence."""

    p_holm: float
    word: str


def draw_means(values: Floats, users: Users, *, draws: int, seed: int) -> Floats:
    """The mean of each column of `values` (R, M) in each draw of users: (D, M).

    The same users and seed give the same draws, whatever the values: intervals of two models on the
    same rows are comparable.

    Args:
        values: (R, M) per-row metrics.
        users: (R,) the user of each row.
        draws: D.
        seed: of the draws.

    Raises:
        ValueError: no row, or a single user: then nothing can be said about other users.
    """
    names, index = np.unique(np.asarray(users), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"an interval over users needs at least 2 of them, found {len(names)}")
    sums, counts = user_sums(values, index, len(names)), np.bincount(index).astype(np.float64)
    blocks = weights(len(names), draws, seed)
    return np.concatenate([(drawn @ sums) / (drawn @ counts)[:, None] for drawn in blocks])


def weights(users: int, draws: int, seed: int, block: int = _BLOCK) -> Iterator[Floats]:
    """How often each user is drawn, (d, U) at a time, D rows in all; d is such that `block` holds d x U."""
    generator = np.random.default_rng(seed)
    size = max(1, block // users)
    for start in range(0, draws, size):
        d = min(size, draws - start)
        picks = generator.integers(users, size=(d, users)) + users * np.arange(d)[:, None]
        yield np.bincount(picks.ravel(), minlength=d * users).reshape(d, users).astype(np.float64)


def user_sums(values: Floats, index: NDArray[np.int64], users: int) -> Floats:
    """Sum of the rows (R, M) of each user 0 … U - 1, every one of which has a row: (U, M)."""
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(users))
    return np.add.reduceat(values[order], starts, axis=0)


def summary(values: Floats, means: Floats, confidence: float) -> Intervals:
    """Mean of each column of `values` (R, M) with the percentile interval of its draws `means` (D, M)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return Intervals(values.mean(axis=0), low, high)


def bootstrap(values: Floats, users: Users, *, draws: int, confidence: float, seed: int) -> Intervals:
    """Mean of each column of `values` (R, M) with its percentile interval over users drawn with replacement.

    Arguments and errors are those of :func:`draw_means`; `confidence` is the share of draws inside the interval.
    """
    return summary(values, draw_means(values, users, draws=draws, seed=seed), confidence)


def unseen_share(users: int, confidence: float) -> float:
    """The largest share of users who may have what none of `users` had: the exact two-sided (Clopper-Pearson) bound.

    >>> round(unseen_share(100, 0.95), 4)  # 1 - 0.025 ** (1 / 100)
    0.0362
    """
    return 1 - ((1 - confidence) / 2) ** (1 / users)


def share_summary(values: Floats, means: Floats, users: int, confidence: float) -> Intervals:
    """:func:`summary` of metrics between 0 and 1, where a column that is 0 (or 1) on every row has no empty interval.

    No draw of users can show what no user had, so its interval would be a point. It reaches to :func:`unseen_share`.
    """
    interval, bound = summary(values, means, confidence), unseen_share(users, confidence)
    none, all_ = (values == 0).all(axis=0), (values == 1).all(axis=0)
    return Intervals(interval.value, np.where(all_, 1 - bound, interval.low), np.where(none, bound, interval.high))


def p_of(means: Floats) -> Floats:
    """Two-sided bootstrap p-value of "the mean is 0" per column of draws (D, M): (M,).

    Twice the share of draws on the rarer side of 0, zeros on both sides, counting the observed sample as
    one more draw, so that no p is 0 (Davison and Hinkley 1997, 4.11); the least is 2 / (D + 1).
    """
    means = np.where(np.abs(means) < _ROUNDING, 0.0, means)
    rarer = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    return np.minimum(1.0, 2 * (rarer + 1) / (len(means) + 1))


def differences(
    gap: Floats, means: Floats, users: Users, confidence: float, margin: float | None = None
) -> Differences:
    """What the per-row differences of two metrics between 0 and 1 say about each column.

    Few users who differ make the draws too sure of themselves. So p is at least the least p that an exact test by signs
    can give with so many of them, 2 / 2^n; and where nobody differs, the interval reaches as far as
    :func:`unseen_share`. `p_within` is the larger of two one-sided p-values (TOST), from the draws.

    Args:
        gap: (R, M).
        means: (D, M), the draws of `gap`.
        users: (R,) the user of each row.
        confidence: of the interval.
        margin: differences below it, either way, count as none.
    """
    _, index = np.unique(np.asarray(users), return_inverse=True)
    count = int(index.max()) + 1
    differing = (np.abs(user_sums(gap, index, count)) > _ROUNDING).sum(axis=0)
    helped, harmed = (gap > _ROUNDING).sum(axis=0), (gap < -_ROUNDING).sum(axis=0)
    drawn, bound = summary(gap, means, confidence), unseen_share(count, confidence)
    unchanged = helped + harmed == 0
    interval = Intervals(drawn.value, np.where(unchanged, -bound, drawn.low), np.where(unchanged, bound, drawn.high))
    se = np.where(unchanged, bound / _normal((1 + confidence) / 2), means.std(axis=0, ddof=1))
    p = np.maximum(p_of(means), np.minimum(1.0, 2.0 ** (1 - differing)))
    p_within = np.ones_like(p)
    if margin is not None:
        least = margin - _ROUNDING
        outside = np.maximum((means <= -least).sum(axis=0), (means >= least).sum(axis=0))
        # At least the chance that a share `margin` of all users differs and none of these does.
        p_within = np.maximum((outside + 1) / (len(means) + 1), (1 - margin) ** count)
    return Differences(interval, helped, harmed, len(gap) - helped - harmed, se, p, p_within)


def smallest_detectable(se: float, confidence: float, family: int = 1) -> float:
    """The smallest true difference that such a comparison shows in 80 of 100 cases, as one of a family (Bonferroni).

    >>> round(smallest_detectable(0.01, 0.95), 4)  # (1.960 + 0.842) x 0.01
    0.028
    """
    return se * (_normal(1 - (1 - confidence) / (2 * family)) + _normal(_POWER))


def _normal(share: float) -> float:
    """The quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(share)


def paired(
    a: Floats, b: Floats, users: Users, *, draws: int, confidence: float, seed: int, margin: float | None = None
) -> Differences:
    """Difference a - b on the same rows. Say it in words with :func:`judge`, with all that are shown together.

    Args:
        a: (R, M) per-row metrics of the first model.
        b: (R, M) those of the second, in the same order of rows.
        users: (R,) the user of each row.
        draws: D.
        confidence: as in :func:`bootstrap`.
        seed: as in :func:`bootstrap`.
        margin: as in :func:`differences`.

    Raises:
        ValueError: the shapes differ, or there are fewer than two users.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired rows must match: {a.shape} against {b.shape}")
    return differences(a - b, draw_means(a - b, users, draws=draws, seed=seed), users, confidence, margin)


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


def judge(difference: Sequence[float], p: Sequence[float], confidence: float) -> list[Verdict]:
    """Differences that are shown together, as one family: corrected p-values, and what they allow to say.

    >>> [verdict.word for verdict in judge([0.1, -0.1, 0.1], [0.01, 0.02, 0.3], 0.95)]
    ['higher', 'lower', 'not distinguishable']
    """
    words = [HIGHER if value > 0 else LOWER if value < 0 else UNCLEAR for value in difference]
    # A p that equals the level must not pass for being rounded below it.
    alpha = (1 - confidence) * (1 - 1e-9)
    return [Verdict(p, word if p < alpha else UNCLEAR) for p, word in zip(holm(p), words, strict=True)]


def judge_family(rows: Iterable[dict[str, Any]], confidence: float, difference: str = "difference") -> None:
    """Judge all `rows` that have a `p` as one family of tests: each gets `p_holm` and `verdict`, see :func:`judge`.

    Args:
        rows: the lines of a table, changed in place; those without `p` (or with None) are left alone.
        confidence: as in :func:`judge`.
        difference: the key of the difference that `p` belongs to.
    """
    family = [row for row in rows if row.get("p") is not None]
    verdicts = judge([row[difference] for row in family], [row["p"] for row in family], confidence)
    for row, verdict in zip(family, verdicts, strict=True):
        row |= {"p_holm": verdict.p_holm, "verdict": verdict.word}


def least_draws(family: int, confidence: float) -> int:
    """The fewest draws D with which one of a family of differences can be told from 0: 2 / (D + 1) times the family
    must be below 1 - confidence.

    >>> least_draws(1, 0.95), least_draws(30, 0.95)
    (40, 1200)
    """
    return int(2 * family / round(1 - confidence, 12) + 1e-9)
