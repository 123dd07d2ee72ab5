"""The check `schema`: the tables that a stage wrote, as they lie on disk, keep their contracts.

Writers validate what they hold in memory; this reads what was published, whoever wrote it (SQL, blocks, other
processes). Column names and types are compared on the file's schema. Of the data only those columns are read
that have a rule, or whose statistics do not already prove that nothing is missing, a batch at a time.
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
_BATCH = 65_536
#: Broken rules that are told per table.
_TOLD = 3


def check(stage: Stage, folder: Path) -> Check:
    """Validate every Parquet file directly in `folder` against the contract that `stage.tables` names for it."""
    passed, told = True, []
    for path in sorted(folder.glob("*.parquet")):
        name = stage.tables.get(path.stem)
        broken = ["it has no contract: name one in sidr_core/graph.py"]
        if name is not None:
            broken = violations(path, getattr(contracts, name).to_schema())
        passed &= not broken
        rows = pq.read_metadata(path).num_rows
        told.append(f"{path.stem}: {'; '.join(broken[:_TOLD]) if broken else f'{rows:,} rows'}")
    if stage.name in stage.tables and not (folder / f"{stage.name}.parquet").is_file():
        passed = False
        told.append(f"{stage.name}: the table is missing")
    return Check(SCHEMA.name, passed, ". ".join(told))


def violations(path: Path, schema: DataFrameSchema) -> list[str]:
    """What in a Parquet file breaks its contract, one line per column and rule; empty if nothing does.

    Memory: one batch of rows, and 8 bytes per row for a column that must be unique.
    """
    with pq.ParquetFile(path) as file:
        empty = pl.DataFrame(pl.from_arrow(file.schema_arrow.empty_table()))
        if broken := _broken(empty, schema):
            return broken
        rest = schema.select_columns(_to_read(file, schema))
        unique = [name for name, column in schema.columns.items() if column.unique]
        found: dict[str, str] = {}
        hashes: dict[str, list[np.ndarray]] = {name: [] for name in unique}
        plain = rest.update_columns({name: {"unique": False} for name in unique}) if unique else rest
        for batch in _batches(file, list(rest.columns)):
            for line in _broken(batch, plain):
                found.setdefault(line.split(", e.g. ")[0], line)
            for name in unique:
                hashes[name].append(batch[name].hash().to_numpy())
        repeated = [name for name in unique if _has_repeats(file, name, np.concatenate([*hashes[name], _NONE]))]
    return [*found.values(), *(f"{name} is not unique" for name in repeated)]


_NONE = np.zeros(0, dtype=np.uint64)


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    if columns:
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield pl.DataFrame(pl.from_arrow(batch)).select(columns)


def _to_read(file: pq.ParquetFile, schema: DataFrameSchema) -> list[str]:
    """Columns whose values must be seen: those with a rule, and those that may hold a null and must not."""
    nulls: dict[str, bool] = {}
    for group in range(file.metadata.num_row_groups):
        for number in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(number)
            sure = column.is_stats_set and column.statistics.has_null_count and column.statistics.null_count == 0
            name = column.path_in_schema.split(".")[0]
            nulls[name] = nulls.get(name, False) or not sure
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
            named = column if context == "Column" else case
            example = f", e.g. {str(case)[:60]!r}" if context == "Column" and rule != "not_nullable" else ""
            lines.setdefault((named, rule), f"{named} breaks {rule}{example}")
        return list(lines.values())
    return []


def _has_repeats(file: pq.ParquetFile, name: str, hashes: np.ndarray) -> bool:
    """Whether a value occurs twice: values with equal hashes are compared themselves."""
    hashes.sort()
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(twice):
        return False
    alike = [batch.filter(batch[name].hash().is_in(pl.Series(twice))) for batch in _batches(file, [name])]
    return pl.concat(alike)[name].is_duplicated().any()
