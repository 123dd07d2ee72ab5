"""Columns of vectors between Parquet and numpy: through Arrow's buffers, never through Python lists.

In a table a vector is a `List(Float32)` of one length throughout. A million of 384 dimensions is 1.5 GB of
numbers; as Python floats it would be more than ten times that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.errors import StoreError
from sidr_core.tables.columns import VECTOR
from sidr_core.tables.files import sound

if TYPE_CHECKING:
    from pandera.polars import DataFrameModel


def vector_series(matrix: np.ndarray) -> pl.Series:
    """(N, D) numbers as a series of N lists of D float32; shares the memory of a float32 matrix."""
    rows, width = matrix.shape
    flat = np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1)
    offsets = np.arange(rows + 1, dtype=np.int64) * width
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
    return pl.Series(VECTOR, lists, dtype=pl.List(pl.Float32))


def series_vectors(series: pl.Series) -> np.ndarray:
    """(N, D) float32 of a series of lists; the inverse of :func:`vector_series`.

    Raises:
        StoreError: a list is missing, of another length, or holds a null.
    """
    return _matrix(series.to_arrow(), f"column {series.name!r}", None)


def iter_vectors(path: Path, rows: int = 16_384) -> Iterator[np.ndarray]:
    """The vectors of a Parquet file in file order, as (n, D) float32 blocks of at most `rows` rows.

    Blocks may be views of Arrow's memory and are then read-only.

    Raises:
        StoreError: a vector is missing, of another length than those before, or holds a null.
    """
    width: int | None = None
    with sound(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=[VECTOR]):
            if batch.num_rows:
                block = _matrix(batch.column(0), f"{path.name}, column {VECTOR!r}", width)
                width = block.shape[1]
                yield block


def read_vectors(path: Path) -> np.ndarray:
    """(N, D) float32: all vectors of a Parquet file in file order, in one array; (0, 0) of an empty file.

    Beyond the result itself it holds one block of rows.

    Raises:
        StoreError: see :func:`iter_vectors`.
    """
    with sound(path), pq.ParquetFile(path) as file:
        rows = file.metadata.num_rows
    matrix = np.zeros((0, 0), dtype=np.float32)
    start = 0
    for block in iter_vectors(path):
        if start == 0:
            matrix = np.empty((rows, block.shape[1]), dtype=np.float32)
        matrix[start : start + len(block)] = block
        start += len(block)
    return matrix


class VectorTable:
    """Writes a table with vectors block by block; each block is checked against the contract and let go.

    A rule that spans blocks (a unique column) is the caller's to keep. As a context manager it closes the file.

    Args:
        contract: its columns, in its order, are what is written.
    """

    def __init__(self, path: Path, contract: type[DataFrameModel]) -> None:
        self._path, self._contract = path, contract
        self._columns = list(contract.to_schema().columns)
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, block: pl.DataFrame) -> None:
        """Append the rows of `block` as a row group. Raises pandera.errors.SchemaErrors."""
        checked = self._contract.validate(block.select(self._columns), lazy=True)
        assert isinstance(checked, pl.DataFrame)
        table = checked.to_arrow()
        if self._writer is None:
            # Floats of vectors repeat too rarely for a dictionary.
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd", use_dictionary=False)
        self._writer.write_table(table)


def _matrix(array: pa.Array, what: str, width: int | None) -> np.ndarray:
    """(N, D) float32 of an Arrow list array."""
    lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
    values = array.flatten()
    if array.null_count or values.null_count or len(lengths) > 1 or (width is not None and width not in lengths):
        raise StoreError(
            f"{what}: not every row is a vector of one length",
            expected="lists of equal length without nulls",
            found=f"lengths {sorted({*lengths.tolist(), *([width] if width else [])})[:5]}, "
            f"{array.null_count} missing lists, {values.null_count} missing numbers",
            fix="materialize the table again",
        )
    flat = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(len(array), -1) if len(array) else flat.reshape(0, 0)
