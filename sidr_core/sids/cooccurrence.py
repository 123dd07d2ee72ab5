"""Projections that are fitted to a catalogue: whitening, and co-occurrence fused with text.

Co-occurrence: two items are a pair where one is the target of a train row and the other one of the last `WINDOW`
items before it, so that each co-occurrence counts once, however the rows overlap. The pairs' positive pointwise mutual
information, symmetric and without an item's pairs with itself, is factored by a truncated SVD; an item's vector is its
row of U·√Σ at unit length, so items that co-occur with the same items are near. The paper quantizes text alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import polars as pl
from scipy import sparse
from scipy.sparse.linalg import svds

from sidr_core.errors import InputError
from sidr_core.sids.kmeans import BLOCK, blocks
from sidr_core.sids.projection import Fused, Whitened, unit
from sidr_core.tables.columns import HISTORY, TARGET

WINDOW = 5
# Of the mean variance: added to each direction's, so that directions of mere noise are not blown up.
_NOISE = 1e-1
_NO_VARIANCE = 1e-7
_ROUNDING = 1e-6

_PAIRS = f"""
    WITH pairs AS (
        SELECT {TARGET} AS target, unnest(list_reverse({HISTORY})[1:{WINDOW}]) AS other FROM samples
    )
    SELECT a.row AS target, b.row AS other, count(*) AS times
    FROM pairs JOIN items a ON a.item = target JOIN items b ON b.item = other
    WHERE a.row <> b.row GROUP BY ALL ORDER BY ALL
"""


def fit_whitened(vectors: np.ndarray, size: int) -> Whitened:
    """The principal directions of vectors (N, D) and their deviations.

    Args:
        size: directions kept at most, the strongest; 0 keeps all that vary.
    """
    dimension = vectors.shape[1]
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((dimension, dimension))
    for rows in blocks(len(vectors), BLOCK // 4):
        centred = vectors[rows] - mean
        covariance += centred.T @ centred
    variance, directions = np.linalg.eigh(covariance / len(vectors))
    variance, directions = variance[::-1].clip(min=0), directions[:, ::-1]
    varying = int((variance > _NO_VARIANCE * variance[0]).sum())
    kept = max(1, min(size or dimension, varying))
    noise = _NOISE * variance.mean() if variance[0] > 0 else 1.0
    scale = np.sqrt(variance[:kept] + noise)
    return Whitened(*(np.ascontiguousarray(part, dtype=np.float32) for part in (mean, directions[:, :kept], scale)))


def fit_fused(
    vectors: np.ndarray, item_ids: Sequence[str], histories: pl.DataFrame, size: int, weight: float, seed: int
) -> Fused:
    """Text joined with co-occurrence.

    Args:
        vectors: (N, D).
        item_ids: of the vectors, in their order.
        histories: the train samples: `history_item_ids`, oldest first, and `target_item_id`.
        size: dimensions of the co-occurrence vectors; fewer where fewer items have one.
        weight: share of the squared length that co-occurrence gets.

    Raises:
        InputError: no two items of the catalogue co-occur.
    """
    known, behaviour = cooccurrence_vectors(histories, item_ids, size, seed)
    if not len(known):
        raise InputError(
            "sid_codebook: `quantizer.vectors: fused` needs items that co-occur",
            expected=f"train rows whose last {WINDOW} items and target are in the catalogue",
            found=f"{histories.height:,} train rows, no pair of items tied more than chance would",
            fix="set `quantizer.vectors: text`, or use a dataset with more interactions",
        )
    text = unit(vectors[known])
    # ridge: as strong as the mean variance of the text's directions
    gram = text.T.astype(np.float64) @ text
    ridge = np.eye(len(gram)) * np.trace(gram) / len(gram)
    expected = np.linalg.solve(gram + ridge, text.T.astype(np.float64) @ behaviour)
    items = tuple(str(item_ids[n]) for n in known.tolist())
    return Fused(items, behaviour, expected.astype(np.float32), weight)


def cooccurrence_vectors(
    histories: pl.DataFrame, item_ids: Sequence[str], size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `item_ids` that have a co-occurrence vector (n,), and these, of unit length (n, b) float32.

    n is 0 where no two items are tied more than chance would; b is `size`, or less where fewer items have a vector.
    """
    information = _information(histories, item_ids)
    known = np.flatnonzero(np.diff(information.indptr))
    if not len(known):
        return known, np.zeros((0, 0), dtype=np.float32)
    information = information[known][:, known]
    behaviour = factors(information, size, seed)  # (n, b)
    length = np.linalg.norm(behaviour, axis=1)
    covered = length > _ROUNDING * length.max()  # the other items lie in none of the strongest directions
    return known[covered], np.ascontiguousarray(unit(behaviour[covered]), dtype=np.float32)


def factors(matrix: sparse.csr_array, size: int, seed: int) -> np.ndarray:
    """Rows of U·√Σ (N, b) of a truncated SVD of a matrix (N, F), strongest first; b is `size`, or min(N, F) if less."""
    rows, columns = matrix.shape  # type: ignore[misc]
    least = min(rows, columns)
    size = min(size, least)
    if size < least - 1:
        start = np.random.default_rng(seed).normal(size=least)
        left, strength, _ = svds(matrix, k=size, v0=start)
        assert left is not None and strength is not None
        left, strength = left[:, ::-1], strength[::-1]
    else:
        left, strength, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    return left[:, :size] * np.sqrt(strength[:size])


def _information(histories: pl.DataFrame, item_ids: Sequence[str]) -> sparse.csr_array:
    """(N, N) symmetric positive pointwise mutual information of the pairs."""
    items = pl.DataFrame({"item": list(item_ids), "row": np.arange(len(item_ids), dtype=np.int64)})
    with duckdb.connect() as db:
        db.register("samples", histories.select(HISTORY, TARGET).to_arrow())
        db.register("items", items.to_arrow())
        rows, others, times = (np.asarray(part) for part in db.sql(_PAIRS).fetchnumpy().values())
    total = len(item_ids)
    one_way = sparse.csr_array((times.astype(np.float64), (rows, others)), shape=(total, total))
    counts = sparse.coo_array(one_way + one_way.T)
    if not counts.nnz:
        return sparse.csr_array((total, total))
    degree = np.asarray(counts.sum(axis=1))
    left, right = counts.coords
    information = np.log(counts.data * degree.sum() / (degree[left] * degree[right]))
    kept = information > 0
    return sparse.csr_array((information[kept], (left[kept], right[kept])), shape=(total, total))
