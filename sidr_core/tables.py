"""Reading and writing tables: one writer, the same bytes for the same rows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq

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
    pq.write_table(checked.to_arrow(), path, compression="zstd", row_group_size=64_000)


def read(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file into memory."""
    return pl.from_arrow(pq.read_table(path, columns=columns))  # type: ignore[return-value]


def iso_date(timestamp: int | None) -> str:
    """`YYYY-MM-DD` of a unix time in seconds, or `unknown`."""
    return "unknown" if timestamp is None else datetime.fromtimestamp(timestamp, UTC).date().isoformat()
