"""Reading and writing tables: one writer, the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.errors import StoreError

if TYPE_CHECKING:
    from pandera.polars import DataFrameModel


def write(frame: pl.DataFrame, path: Path, contract: type[DataFrameModel]) -> None:
    """Validate `frame` against its contract and write it as zstd Parquet, columns in contract order.

    Raises:
        pandera.errors.SchemaErrors: a column is missing, of another type, or breaks its rule.
    """
    columns = list(contract.to_schema().columns)
    checked = contract.validate(frame.select(columns), lazy=True)
    assert isinstance(checked, pl.DataFrame)
    write_table(checked, path, row_group=64_000)


def write_table(frame: pl.DataFrame, path: Path, row_group: int | None = None) -> None:
    """Write a table that has no contract as zstd Parquet, `row_group` rows to a group (a million by default)."""
    pq.write_table(frame.to_arrow(), path, compression="zstd", row_group_size=row_group)


def read(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file into memory. Raises StoreError where it is none, or lacks one of `columns`."""
    with sound(path), pq.ParquetFile(path) as file:  # `pq.read_table` imports pandas, which takes a second
        if absent := set(columns or ()) - set(file.schema_arrow.names):
            raise pa.ArrowInvalid(f"no column {min(absent)}")
        table = file.read(columns=columns)
        return pl.from_arrow(table if columns is None else table.select(columns))  # type: ignore[return-value]


def typed(rows: Sequence[Mapping[str, Any]], contract: type[DataFrameModel]) -> pl.DataFrame:
    """Rows as a table with the columns and types of a contract; a column that a row lacks is null."""
    return pl.DataFrame(rows, schema=types_of(contract))


def types_of(contract: type[DataFrameModel]) -> dict[str, Any]:
    """Column -> polars type, in the contract's order."""
    return {name: column.dtype.type for name, column in contract.to_schema().columns.items()}  # type: ignore[union-attr]


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Reads a published Parquet file inside the block; one that is none becomes a StoreError."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # no such file, no right to read it
            raise
        raise StoreError(
            f"the table {path} cannot be read",
            expected="a complete Parquet file, as this project writes them",
            found=str(error).splitlines()[0][:200],
            fix="materialize the asset that it belongs to again",
        ) from None


def iso_date(timestamp: int | None) -> str:
    """`YYYY-MM-DD` of a unix time in seconds, or `unknown`."""
    return "unknown" if timestamp is None else datetime.fromtimestamp(timestamp, UTC).date().isoformat()
