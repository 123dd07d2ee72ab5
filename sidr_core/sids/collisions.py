"""What becomes of items with equal codes: other last codes (`reassign`), a number (`suffix`), or nothing (`share`).

The base accepts what its own resolution leaves (docs/method.md, "Collisions"). Here:

- `reassign`: the items of a prefix (all levels but the last) get the set of last codes with the least
  total squared distance, one each, by optimal assignment; nothing is left. If a prefix has more items
  than codes, those farthest from it move to the nearest prefix with room.
- `suffix`: one level more for every item, so that all SIDs have equally many; 0 for the first of a SID.
- `share`: the items of a SID stay a set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from sidr_core.errors import ProfileError
from sidr_core.sids.quantize import Codebook

Policy = Literal["reassign", "suffix", "share"]
Prefix = tuple[int, ...]

# Items whose distances to the last centroids are computed at once: 16,384 × 256 × 8 bytes = 32 MB.
_BLOCK = 16_384


def resolve(book: Codebook, latent: np.ndarray, codes: np.ndarray, fixed: np.ndarray, policy: Policy) -> np.ndarray:
    """The codes of every item under a collision policy.

    Args:
        latent: (N, d).
        codes: (N, L) greedy codes; for `suffix` with fixed items (N, L + 1), where those of the fixed
            items end in their suffix and the last column of the others is ignored.
        fixed: (N,) bool, items that keep their codes, suffix included.

    Returns:
        (N, L): `reassign` without collisions, `share` as given; (N, L + 1) for `suffix`, numbered in row
        order from 0 by what the fixed items leave free.

    Raises:
        ProfileError: `reassign`, and more items than SIDs.
    """
    if policy == "reassign":
        return reassign(book, latent, codes, fixed)
    if policy == "suffix":
        return add_suffix(codes, fixed, book.levels)
    return codes[:, : book.levels]


def reassign(book: Codebook, latent: np.ndarray, codes: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Codes (N, L) without collisions, given greedy codes.

    Args:
        latent: (N, d).
        codes: (N, L); those of `fixed` items collide with no other fixed one.
        fixed: (N,) bool, items that keep their codes; the others take what these leave free.

    Raises:
        ProfileError: more items than SIDs.
    """
    if len(codes) > book.size**book.levels:
        raise ProfileError(
            "sid_codebook: more items than SIDs",
            expected=f"at most {book.size} ** {book.levels} items",
            found=f"{len(codes):,} items",
            fix="raise `quantizer.size` or `quantizer.levels`, or set `quantizer.collisions` to `suffix` or `share`",
        )
    result = _move_surplus(book, latent, codes.copy(), fixed)
    for group, distance in _colliding(book, latent, result, fixed):
        loose = group[~fixed[group]]
        free = np.setdiff1d(np.arange(book.size), result[group[fixed[group]], -1], assume_unique=True)
        rows, columns = linear_sum_assignment(distance[:, free])
        result[loose[rows], -1] = free[columns]
    return result


def add_suffix(codes: np.ndarray, fixed: np.ndarray, levels: int) -> np.ndarray:
    """(N, levels + 1): each item's number among those of its SID; see :func:`resolve`."""
    if not fixed.any():
        suffix = np.zeros(len(codes), dtype=np.int64)
    elif codes.shape[1] == levels + 1:
        suffix = np.where(fixed, codes[:, -1], 0)
    else:
        raise ValueError("fixed items come with their suffix as a last column")
    codes = codes[:, :levels]
    group = group_numbers(codes)
    loose = np.flatnonzero(~fixed)
    taken = np.isin(group, group[fixed])
    suffix[loose] = _rank(group[loose])
    used: dict[int, set[int]] = {}
    for number, value in zip(group[fixed].tolist(), suffix[fixed].tolist(), strict=True):
        used.setdefault(number, set()).add(value)
    following: dict[int, int] = {}
    for n in loose[taken[loose]].tolist():
        number = int(group[n])
        value = following.get(number, 0)
        while value in used[number]:
            value += 1
        suffix[n], following[number] = value, value + 1
    return np.concatenate([codes, suffix[:, None]], axis=1)


def group_numbers(codes: np.ndarray) -> np.ndarray:
    """(N,) numbers of the distinct rows of codes (N, L), in the order of the codes; all 0 where L = 0."""
    key = np.zeros(len(codes), dtype=np.int64)
    if not codes.size:
        return key
    radix = int(codes.max()) + 1
    limit = 1
    for column in codes.T:
        if limit * radix >= 2**62:  # the numbers so far are replaced by their ranks, which are below N
            key = np.unique(key, return_inverse=True)[1]
            limit = len(codes)
        key = key * radix + column
        limit *= radix
    return np.unique(key, return_inverse=True)[1]


def _rank(groups: np.ndarray) -> np.ndarray:
    """Each row's place among the rows of its group, in row order."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    start = np.searchsorted(ordered, ordered)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - start
    return rank


def _colliding(
    book: Codebook, latent: np.ndarray, codes: np.ndarray, fixed: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The items of each prefix in which two share a SID, and the distances of its loose items (m, K).

    Distances leave out the residual's own length, which is the same for all codes.
    """
    prefix, sid = group_numbers(codes[:, :-1]), group_numbers(codes)
    crowded = np.zeros(prefix.max(initial=0) + 1, dtype=bool)
    crowded[prefix[np.bincount(sid)[sid] > 1]] = True
    items = np.flatnonzero(crowded[prefix])
    items = items[np.argsort(prefix[items], kind="stable")]
    groups = np.split(items, np.flatnonzero(np.diff(prefix[items])) + 1) if len(items) else []
    for part in _parts(groups):
        loose = np.concatenate([group[~fixed[group]] for group in part])
        distance = _distances(latent[loose] - book.decode(codes[loose, :-1]), book.centroids[-1])
        ends = np.cumsum([np.count_nonzero(~fixed[group]) for group in part])
        yield from zip(part, np.split(distance, ends[:-1]), strict=True)


def _parts(groups: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The groups in runs of at least `_BLOCK` items, the last of fewer."""
    part: list[np.ndarray] = []
    held = 0
    for group in groups:
        part.append(group)
        held += len(group)
        if held >= _BLOCK:
            yield part
            part, held = [], 0
    if part:
        yield part


def _move_surplus(book: Codebook, latent: np.ndarray, codes: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Move items out of prefixes that hold more of them than there are last codes."""
    numbers = group_numbers(codes[:, :-1])
    full = np.flatnonzero(np.bincount(numbers) > book.size)
    if not len(full):
        return codes
    count = Counter(map(tuple, codes[:, :-1].tolist()))
    for number in full:
        here = np.flatnonzero(numbers == number)
        prefix: Prefix = tuple(codes[here[0], :-1].tolist())
        loose = here[~fixed[here]]
        away = ((latent[loose] - book.decode(codes[loose, :-1])).astype(np.float64) ** 2).sum(axis=1)
        surplus = loose[np.argsort(-away, kind="stable")][: count[prefix] - book.size]
        for n in surplus:
            target = next(p for p in _near_prefixes(book, latent[n], prefix) if count[p] < book.size)
            codes[n, :-1] = target
            residual = latent[n : n + 1] - book.decode(codes[n : n + 1, :-1])
            codes[n, -1] = np.argmin(_distances(residual, book.centroids[-1])[0])
            count[prefix] -= 1
            count[target] += 1
    return codes


def _near_prefixes(book: Codebook, vector: np.ndarray, prefix: Prefix) -> Iterator[Prefix]:
    """Other prefixes: those with another last code by distance, then another code one level up, …, then all."""
    for level in reversed(range(len(prefix))):
        residual = vector - book.decode(np.array([prefix[:level]], dtype=np.int64).reshape(1, level))[0]
        for code in np.argsort(_distances(residual[None], book.centroids[level])[0], kind="stable"):
            rest = residual - book.centroids[level][code]
            deeper = Codebook(book.centroids[level + 1 : len(prefix)]).encode(rest[None])[0]
            yield (*prefix[:level], int(code), *(int(c) for c in deeper))
    yield from product(range(book.size), repeat=len(prefix))


def _distances(residual: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances (n, K) of (n, d) and (K, d), less the squared length of the residual, in float64."""
    centroids = centroids.astype(np.float64)
    return (centroids**2).sum(axis=1) - 2 * (residual.astype(np.float64) @ centroids.T)
