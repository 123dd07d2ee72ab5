"""DuckDB in bounded memory: connections that spill to disk, and results as a frame or streamed to a file."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.errors import SidrError
from sidr_core.tables.ahead import ahead
from sidr_core.tables.files import types_of

if TYPE_CHECKING:
    from pandera.polars import DataFrameModel

#: What DuckDB may hold in memory before it spills, as `SIDR_SQL_MEMORY` says (`4GB`); results and Parquet buffers come
#: on top. It is a matter of the machine, and changes no byte of any output.
MEMORY, MEMORY_VARIABLE = "1200MB", "SIDR_SQL_MEMORY"
_AMOUNT = re.compile(r"[1-9][0-9]{0,6}(MB|GB)", re.ASCII)

#: Rows of a row group, as `sidr_core.tables.files.write` makes them.
_ROW_GROUP = 64_000
#: Rows that are held at once when a table is streamed.
BATCH = 4 * _ROW_GROUP


@contextmanager
def connect(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that spills into a folder below `folder`, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=folder) as spill, duckdb.connect() as db:
        db.execute("SET memory_limit = $memory", {"memory": _memory()})
        db.execute("SET temp_directory = $spill", {"spill": spill})
        yield db


def _memory() -> str:
    given = os.environ.get(MEMORY_VARIABLE) or MEMORY
    if not _AMOUNT.fullmatch(given):
        raise SidrError(
            f"{MEMORY_VARIABLE} is no amount of memory",
            expected=f"a whole number and MB or GB, as in {MEMORY}",
            found=repr(given[:40]),
            fix=f"correct it, or unset it: then it is {MEMORY}",
        )
    return given


def quoted(value: str) -> str:
    """An SQL string literal, for where no value can be bound (in a view)."""
    return "'" + value.replace("'", "''") + "'"


def frame(db: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Rows of a query, with its `$name` parameters bound to `values`."""
    return pl.DataFrame(db.sql(query, params=dict(values or {})).to_arrow_table())


def batches(db: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any] | None = None) -> Iterator[pa.Table]:
    """Rows of a query, some at a time and in their order."""
    for batch in db.sql(query, params=dict(values or {})).to_arrow_reader(BATCH):
        yield pa.Table.from_batches([batch])


def write(tables: Iterable[pa.Table], path: Path, contract: type[DataFrameModel]) -> int:
    """Write rows like `sidr_core.tables.files.write`, to the same bytes, without holding them all.

    Columns are put in the contract's order and types; its rules are checked on the file (`schema_check`).

    Returns:
        The number of rows.
    """
    schema = pl.DataFrame(schema=types_of(contract)).to_arrow().schema
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in ahead(_regrouped(tables, schema)):
            writer.write_table(table, row_group_size=_ROW_GROUP)
            rows += len(table)
    return rows


def _regrouped(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows in tables of exactly `BATCH` rows but for the last, in the schema's columns and types."""
    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table.select(schema.names).cast(schema)])
        while len(waiting) > BATCH:
            yield waiting.slice(0, BATCH)
            waiting = waiting.slice(BATCH)
    yield waiting
