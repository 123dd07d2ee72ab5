"""The check `schema`: the tables that a stage wrote satisfy their contracts, as they are on disk.

Writers validate what they have in memory; this reads the written files, whatever wrote them (SQL, blocks, other
processes). Column names and types are compared with the file's schema. Data is read a batch at a time, and only of
columns that have a rule, or that must not be null and whose statistics do not prove it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from sidr_core.pipeline.report import Check
from sidr_core.pipeline.stage import SCHEMA, Stage
from sidr_core.tables import contracts

if TYPE_CHECKING:
    from pandera.api.polars.container import DataFrameSchema

#: Rows in memory at a time.
_BATCH_ROWS = 65_536
#: Violations that are reported per table.
_MAX_REPORTED = 3


def check(stage: Stage, folder: Path) -> Check:
    """Validate every Parquet file in `folder` against the contract that `stage.tables` names for it.

    Files of a folder in it are parts of one table, which has the folder's name.
    """
    passed, lines = True, []
    for path in sorted(folder.rglob("*.parquet")):
        name = stage.tables.get(path.stem if path.parent == folder else path.parent.name)
        broken = ["it has no contract: name one in sidr_core/pipeline/graph.py"]
        if name is not None:
            broken = violations(path, getattr(contracts, name).to_schema())
        passed &= not broken
        rows = pq.read_metadata(path).num_rows
        lines.append(f"{path.stem}: {'; '.join(broken[:_MAX_REPORTED]) if broken else f'{rows:,} rows'}")
    if stage.name in stage.tables and not (folder / f"{stage.name}.parquet").is_file():
        passed = False
        lines.append(f"{stage.name}: the table is missing")
    return Check(SCHEMA.name, passed, ". ".join(lines))


def violations(path: Path, schema: DataFrameSchema, batch_rows: int = _BATCH_ROWS) -> list[str]:
    """How a Parquet file breaks its contract, one line per column and rule; empty if it does not.

    Args:
        batch_rows: rows in memory at a time; a column that must be unique takes 8 more bytes per row.
    """
    with pq.ParquetFile(path) as file:
        empty = pl.DataFrame(pl.from_arrow(file.schema_arrow.empty_table()))
        if broken := _broken(empty, schema):
            return broken
        rest = schema.select_columns(columns_to_read(file, schema))
        unique = [name for name, column in schema.columns.items() if column.unique]
        lines: dict[str, str] = {}
        hashes = {name: [np.zeros(0, dtype=np.uint64)] for name in unique}
        not_unique = rest.update_columns({name: {"unique": False} for name in unique}) if unique else rest
        for batch in _batches(file, list(rest.columns), batch_rows):
            for line in _broken(batch, not_unique):
                lines.setdefault(line.split(", e.g. ")[0], line)
            for name in unique:
                hashes[name].append(batch[name].hash().to_numpy())
        repeated = [name for name in unique if _has_repeats(file, name, np.concatenate(hashes[name]), batch_rows)]
    return [*lines.values(), *(f"{name} is not unique" for name in repeated)]


def _batches(file: pq.ParquetFile, columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
    if columns:
        for batch in file.iter_batches(batch_size=rows, columns=columns):
            yield pl.DataFrame(pl.from_arrow(batch)).select(columns)


def columns_to_read(file: pq.ParquetFile, schema: DataFrameSchema) -> list[str]:
    """Columns whose values have to be read: those with a rule, and those that must not be null but may be."""
    nulls: dict[str, bool] = {}
    for group in range(file.metadata.num_row_groups):
        for number in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(number)
            stats = column.statistics
            never_null = column.is_stats_set and stats.has_null_count and stats.null_count == 0
            name = column.path_in_schema.split(".")[0]
            nulls[name] = nulls.get(name, False) or not never_null
    return [
        name
        for name, column in schema.columns.items()
        if schema.checks or column.checks or column.unique or (not column.nullable and nulls.get(name, False))
    ]


def _broken(frame: pl.DataFrame, schema: DataFrameSchema) -> list[str]:
    """One line per broken rule, with an example."""
    from pandera.errors import SchemaErrors

    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases
        lines: dict[tuple[str, str], str] = {}
        for case, context, column, rule in cases.select(
            "failure_case", "schema_context", "column", "check"
        ).iter_rows():
            name = column if context == "Column" else case
            example = f", e.g. {str(case)[:60]!r}" if context == "Column" and rule != "not_nullable" else ""
            lines.setdefault((name, rule), f"{name} breaks {rule}{example}")
        return list(lines.values())
    return []


def _has_repeats(file: pq.ParquetFile, name: str, hashes: np.ndarray, batch_rows: int) -> bool:
    """Whether a value occurs twice: of values with equal hashes the values themselves are compared."""
    hashes.sort()
    repeated = pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
    if repeated.is_empty():
        return False
    candidates = [batch.filter(batch[name].hash().is_in(repeated)) for batch in _batches(file, [name], batch_rows)]
    return pl.concat(candidates)[name].is_duplicated().any()
