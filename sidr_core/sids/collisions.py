"""One SID per item: colliding items get other codes at the last level.

Deviation: the base code re-encodes colliding groups with Sinkhorn up to 20 times and accepts what
is left (METHOD.md 3.2). Here the items of a prefix (all levels but the last) get the set of last
codes with the least total squared distance, one each, by optimal assignment; nothing is left. If a
prefix has more items than codes, those farthest from it move to the nearest prefix with room.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from sidr_core.sids.quantize import Codebook

Prefix = tuple[int, ...]


def reassign(book: Codebook, vectors: np.ndarray, codes: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Codes (N, L) without collisions, given greedy codes.

    Args:
        vectors: (N, D).
        codes: (N, L); those of `fixed` items collide with no other fixed one.
        fixed: (N,) bool, items that keep their codes; the others take what these leave free.

    Raises:
        ValueError: more items than SIDs.
    """
    if len(codes) > book.size**book.levels:
        raise ValueError(f"{len(codes)} items do not fit into {book.size} ** {book.levels} SIDs")
    result = _move_surplus(book, vectors, codes.copy(), fixed)
    groups: dict[Prefix, list[int]] = defaultdict(list)
    for n, prefix in enumerate(_prefixes(result)):
        groups[prefix].append(n)
    for members in groups.values():
        _assign_last(book, vectors, result, np.array(members), fixed)
    return result


def _assign_last(
    book: Codebook, vectors: np.ndarray, codes: np.ndarray, members: np.ndarray, fixed: np.ndarray
) -> None:
    """Give the free members of one prefix group a last code each, in place."""
    if len(np.unique(codes[members, -1])) == len(members):
        return
    taken = codes[members[fixed[members]], -1]
    loose = members[~fixed[members]]
    free = np.setdiff1d(np.arange(book.size), taken)
    residual = vectors[loose] - book.decode(codes[loose, :-1])
    rows, columns = linear_sum_assignment(_squared(residual, book.centroids[-1][free]))
    codes[loose[rows], -1] = free[columns]


def _move_surplus(book: Codebook, vectors: np.ndarray, codes: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Move items out of prefixes that hold more of them than there are last codes."""
    count = Counter(_prefixes(codes))
    for prefix in sorted(p for p, n in count.items() if n > book.size):
        loose = np.array([n for n, p in enumerate(_prefixes(codes)) if p == prefix and not fixed[n]])
        away = ((vectors[loose] - book.decode(codes[loose, :-1])).astype(np.float64) ** 2).sum(axis=1)
        surplus = loose[np.argsort(-away, kind="stable")][: count[prefix] - book.size]
        for n in surplus:
            target = next(p for p in _near_prefixes(book, vectors[n], prefix) if count[p] < book.size)
            codes[n, :-1] = target
            residual = vectors[n : n + 1] - book.decode(codes[n : n + 1, :-1])
            codes[n, -1] = np.argmin(_squared(residual, book.centroids[-1])[0])
            count[prefix] -= 1
            count[target] += 1
    return codes


def _near_prefixes(book: Codebook, vector: np.ndarray, prefix: Prefix) -> Iterator[Prefix]:
    """Other prefixes: those with another last code by distance, then another code one level up, …, then all."""
    for level in reversed(range(len(prefix))):
        residual = vector - book.decode(np.array([prefix[:level]], dtype=np.int64).reshape(1, level))[0]
        for code in np.argsort(_squared(residual[None], book.centroids[level])[0], kind="stable"):
            rest = residual - book.centroids[level][code]
            deeper = Codebook(book.centroids[level + 1 : len(prefix)]).encode(rest[None])[0]
            yield (*prefix[:level], int(code), *(int(c) for c in deeper))
    yield from product(range(book.size), repeat=len(prefix))


def _prefixes(codes: np.ndarray) -> list[Prefix]:
    return [tuple(row) for row in codes[:, :-1].tolist()]


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) of (n, D) and (m, D), in float64."""
    return cdist(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")
