"""k-means whose clusters have equal size on every level: sizes differ by at most one.

Deviation from the base (docs/method.md, "Codebooks"), whose cluster sizes range over ⌊N/K⌋ ± 1 and which restarts three
times: here every cluster holds ⌊N/K⌋ or ⌈N/K⌉ vectors, and there is one start, from plain k-means.

The assignment of vectors to clusters is exact: it has the least total cost of all with these sizes. Only the K prices
of the clusters are unknown, so it is found from them, in three steps that each leave less to the next: Sinkhorn
iterations at falling temperature set the prices roughly, overfull clusters raise theirs until their surplus prefers
another one (an auction), and what is left moves along shortest paths between clusters, which keeps the assignment
optimal for the sizes it has. Given the cost matrix, memory is O(N + K²).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sidr_core.sids import kmeans
from sidr_core.sids.quantizers import Quantized

if TYPE_CHECKING:
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Quantizer

# Temperatures in deviations of the cost; only the last with prices to begin with.
_TEMPERATURES = (0.3, 0.1, 0.03, 0.01)
_SWEEPS = 3
_ROUNDS = 20
_BLOCK = 8192


def fit(latent: np.ndarray, size: int, config: Quantizer, progress: Progress | None = None) -> Quantized:
    """Centroids, and the codes that make the clusters of latent (N, d) equal on every level."""
    residual = np.array(latent, dtype=np.float32, order="C")
    codes = np.zeros((len(latent), config.levels), dtype=np.int64)
    levels = []
    for level in range(config.levels):
        start = kmeans.train(residual, size, config.iterations, config.seed + level)
        centroids, codes[:, level] = cluster(residual, start, config.iterations)
        levels.append(centroids)
        for rows in kmeans.blocks(len(residual)):
            residual[rows] -= centroids[codes[rows, level]]
        if progress:
            progress.tick(level + 1, config.levels, "levels")
    return Quantized(np.stack(levels), codes=codes)


def cluster(vectors: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Balanced Lloyd iterations from given centroids.

    Args:
        vectors: (N, d) float32.
        centroids: (K, d) float32 to begin with.
        iterations: at most so many.

    Returns:
        centroids (K, d), each the mean of its cluster (an empty one stays where it began), and the
        cluster of every vector (N,) int64.
    """
    prices, error = None, np.inf
    squares = float(np.einsum("nd,nd->", vectors, vectors, dtype=np.float64))
    owner = np.zeros(len(vectors), dtype=np.int64)
    for iteration in range(iterations):
        cost = (centroids**2).sum(axis=1) - 2 * (vectors @ centroids.T)
        # the first balanced means lie so far from the plain ones that their prices say little
        owner, prices = assign(cost, prices if iteration > 1 else None)
        before, error = error, squares + float(cost[np.arange(len(cost)), owner].sum(dtype=np.float64))
        centroids = kmeans.means(vectors, owner, centroids)
        if error >= (1 - kmeans.TOLERANCE) * before:
            break
    return centroids, owner


def assign(cost: np.ndarray, prices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of least total cost with equal clusters.

    Where N is no multiple of K, the clusters that most vectors like best take one more.

    Args:
        cost: (N, K) of putting vector n into cluster k.
        prices: (K,) to begin with, those of a similar problem for speed; they do not change the outcome
            but among equals.

    Returns:
        (N,) int64 clusters, (K,) prices under which each vector is where cost + price is least.
    """
    n, k = cost.shape
    liked = np.bincount(cost.argmin(axis=1), minlength=k)
    capacity = np.full(k, n // k)
    capacity[np.argsort(-liked, kind="stable")[: n % k]] += 1
    if prices is None:
        prices = _sinkhorn(cost, capacity, np.zeros(k), _TEMPERATURES)
    else:
        prices = _sinkhorn(cost, capacity, prices, _TEMPERATURES[-1:])
    owner, prices = _auction(cost, capacity, prices)
    return _Paths(cost, capacity, owner, prices).balance()


def _sinkhorn(
    cost: np.ndarray, capacity: np.ndarray, prices: np.ndarray, temperatures: tuple[float, ...]
) -> np.ndarray:
    """Prices (K,) under which soft assignments by cost + price fill each cluster nearly to capacity."""
    spread = float(cost.std(dtype=np.float64))
    if spread == 0:
        return prices
    prices = prices.astype(np.float64)
    for temperature in (spread * factor for factor in temperatures):
        for _ in range(_SWEEPS):
            load = np.zeros(len(prices))
            for start in range(0, len(cost), _BLOCK):
                share = (cost[start : start + _BLOCK] + prices.astype(cost.dtype)) * (-1 / temperature)
                share -= share.max(axis=1, keepdims=True)
                np.exp(share, out=share)
                share /= share.sum(axis=1, keepdims=True)
                load += share.sum(axis=0, dtype=np.float64)
            # a cluster that nobody wants would fall without bound
            prices = prices + temperature * np.log((load + 1e-3) / (capacity + 1e-3))
    return prices


def _auction(cost: np.ndarray, capacity: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raise the prices of overfull clusters until little surplus is left, at most `_ROUNDS` times.

    Prices only rise, and only those of overfull clusters: a vector elsewhere has no reason to move.
    """
    k = len(capacity)
    prices = prices.astype(np.float64)
    owner, margin = _best(cost, prices, np.arange(len(cost)))
    for _ in range(_ROUNDS):
        surplus = np.bincount(owner, minlength=k) - capacity
        if np.maximum(surplus, 0).sum() <= k // 8:
            break
        rows = np.flatnonzero((surplus > 0)[owner])
        for cluster in np.flatnonzero(surplus > 0):
            margins = margin[rows[owner[rows] == cluster]]
            last = int(surplus[cluster])  # so many leave: those to whom the next best is nearly as good
            if last < len(margins):
                margins = np.partition(margins, (last - 1, last))
                prices[cluster] += (margins[last - 1] + margins[last]) / 2
            else:
                prices[cluster] += margins.max()
        owner[rows], margin[rows] = _best(cost, prices, rows)
    return owner, prices


def _best(cost: np.ndarray, prices: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row: the cluster of least cost + price, and how much dearer the next best is."""
    prices = prices.astype(cost.dtype)  # half the time with float32, which rounds the cost no less
    owner = np.empty(len(rows), dtype=np.int64)
    margin = np.zeros(len(rows))
    for start in range(0, len(rows), _BLOCK):
        part = cost[rows[start : start + _BLOCK]] + prices
        here = np.arange(len(part))
        best = part.argmin(axis=1)
        least = part[here, best]
        part[here, best] = np.inf
        owner[start : start + _BLOCK] = best
        margin[start : start + _BLOCK] = part.min(axis=1) - least
    return owner, margin


@dataclass
class _Paths:
    """Successive shortest paths over the graph of clusters.

    The edge i -> j is the vector of cluster i that moves to j at the least extra cost. Cost plus price
    makes every edge at least 0, so that Dijkstra applies; each path moves surplus to where room is.
    """

    cost: np.ndarray
    capacity: np.ndarray
    owner: np.ndarray
    prices: np.ndarray
    members: list[np.ndarray] = field(init=False)
    edges: np.ndarray = field(init=False)

    def balance(self) -> tuple[np.ndarray, np.ndarray]:
        """Move until every cluster holds its capacity."""
        k = len(self.capacity)
        count = np.bincount(self.owner, minlength=k)
        self.members = np.split(np.argsort(self.owner, kind="stable"), np.cumsum(count)[:-1])
        self.edges = np.full((k, k), np.inf)
        if (count != self.capacity).any():
            for cluster in range(k):
                self._refresh(cluster)
        while (count > self.capacity).any():
            path = self._shortest(count > self.capacity, count < self.capacity)
            moved = self._move(path, min(count[path[0]] - self.capacity[path[0]], (self.capacity - count)[path[-1]]))
            count[path[0]] -= moved
            count[path[-1]] += moved
        return self.owner, self.prices

    def _refresh(self, cluster: int) -> None:
        """The least extra cost, prices apart, of moving one member of `cluster` to each other one."""
        self.edges[cluster] = self._extra(cluster).min(axis=0, initial=np.inf)
        self.edges[cluster, cluster] = np.inf

    def _extra(self, cluster: int) -> np.ndarray:
        block = self.cost[self.members[cluster]].astype(np.float64)
        return block - block[:, cluster : cluster + 1]

    def _shortest(self, sources: np.ndarray, targets: np.ndarray) -> list[int]:
        """The cheapest path from an overfull cluster to one with room; prices follow the distances."""
        distance = np.where(sources, 0.0, np.inf)
        parent = np.full(len(distance), -1)
        open_ = np.ones(len(distance), dtype=bool)
        while True:
            here = int(np.where(open_, distance, np.inf).argmin())
            open_[here] = False
            if targets[here]:
                break
            # rounding can leave a hair below zero
            step = np.maximum(self.edges[here] + self.prices - self.prices[here], 0.0)
            nearer = open_ & (distance[here] + step < distance)
            distance[nearer] = distance[here] + step[nearer]
            parent[nearer] = here
        self.prices = self.prices - np.minimum(distance, distance[here])
        path = [here]
        while parent[path[-1]] >= 0:
            path.append(int(parent[path[-1]]))
        return path[::-1]

    def _move(self, path: list[int], most: int) -> int:
        """Move vectors along each edge of the path: one, or more where several cost the same. Returns how many."""
        choices = []
        for i, j in pairwise(path):
            extra = self._extra(i)[:, j]
            choices.append(self.members[i][extra == self.edges[i, j]])
        moved = min(int(most), *(len(choice) for choice in choices))
        for (i, j), choice in zip(pairwise(path), choices, strict=True):
            rows = choice[:moved]
            self.owner[rows] = j
            self.members[i] = self.members[i][~np.isin(self.members[i], rows)]
            self.members[j] = np.concatenate([self.members[j], rows])
        for cluster in path:
            self._refresh(cluster)
        return moved
