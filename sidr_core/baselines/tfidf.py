"""Item texts as TF-IDF vectors, their nearest neighbours, and sparse matrices as tensors of a published file.

Shapes: N items, F terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from sidr_core.baselines.sequences import Catalogue
from sidr_core.tables.tensors import read_tensors, unreadable

_FIELDS = ("title", "brand", "category")
#: Items whose neighbours are computed at once.
_BLOCK = 2000
#: Of a sparse matrix, in a file.
_PARTS = ("data", "indices", "indptr", "shape")


def tfidf(items: pl.DataFrame, catalogue: Catalogue) -> sparse.csr_array:
    """(N, F) float32: a vector of length 1 per item, of the words and pairs of neighbouring words of its text.

    Counts are logarithmic. A term of one item alone is left out: it makes nothing similar. An item without any other
    term has the zero vector.

    Args:
        items: the contract `Items`; the text is title, brand and category.

    Raises:
        InputError: an item of the catalogue is missing.
    """
    ordered = catalogue.in_order(items, "text", "materialize interactions and baseline_popularity again")
    texts = ordered.select(pl.concat_str(*_FIELDS, separator=" ", ignore_nulls=True)).to_series().to_list()
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    try:
        return sparse.csr_array(vectorizer.fit_transform(texts), dtype=np.float32)
    except ValueError:  # no term is shared by two items
        return sparse.csr_array((len(texts), 1), dtype=np.float32)


def neighbours(vectors: sparse.csr_array, k: int) -> sparse.csr_array:
    """(N, N) float32: the cosine of each item (row) to the k items nearest to it, itself left out; 0 elsewhere."""
    blocks = []
    for start in range(0, len(vectors.indptr) - 1, _BLOCK):
        cosines: Any = sparse.csr_array(vectors[start : start + _BLOCK] @ vectors.T)  # (block, N)
        cosines.sort_indices()
        for row in range(cosines.shape[0]):
            entries = slice(cosines.indptr[row], cosines.indptr[row + 1])
            values = cosines.data[entries]
            values[cosines.indices[entries] == start + row] = 0
            if len(values) > k:
                values[np.argsort(-values, kind="stable")[k:]] = 0
        cosines.eliminate_zeros()
        blocks.append(cosines)
    return sparse.csr_array(sparse.vstack(blocks, format="csr", dtype=np.float32))


def tensors_of(matrices: Mapping[str, sparse.csr_array]) -> dict[str, torch.Tensor]:
    """Sparse matrices as tensors `<name>.<part>`, for a file of weights."""
    tensors: dict[str, torch.Tensor] = {}
    for name, matrix in matrices.items():
        parts = matrix.data, matrix.indices.astype(np.int32), matrix.indptr, np.array(matrix.shape)
        tensors |= {f"{name}.{part}": torch.from_numpy(array) for part, array in zip(_PARTS, parts, strict=True)}
    return tensors


def matrices_in(path: Path, *names: str) -> list[sparse.csr_array]:
    """The sparse matrices that :func:`tensors_of` made.

    Raises:
        StoreError: the file is damaged, or holds no such matrices.
    """
    tensors, _ = read_tensors(path, "np")
    matrices = []
    for name in names:
        try:
            data, indices, indptr, shape = (tensors[f"{name}.{part}"] for part in _PARTS)
            matrix = sparse.csr_array((data, indices, indptr), shape=tuple(shape.tolist()))
            matrix.check_format(full_check=True)
        except (KeyError, ValueError) as error:
            raise unreadable(path, f"no matrix `{name}`: {error}") from None
        matrices.append(matrix)
    return matrices
