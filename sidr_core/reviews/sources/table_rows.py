"""Reads Parquet and CSV tables of any origin in batches of the mapped columns, without trusting a row.

A Parquet row's number counts from 1. A CSV row's number is that of its first line in the file, where the
header is line 1. The separator of a CSV is the comma, semicolon or tab that its header holds most of.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from sidr_core.errors import InputError
from sidr_core.reviews import layouts
from sidr_core.reviews.lines import DamagedFile, line_batches
from sidr_core.reviews.parsed import TEXT_LIMIT
from sidr_core.stage import Progress

#: Ends of names of the files that stand for a folder.
SUFFIXES = (".parquet", ".pq", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
_BATCH = 100_000
_TABLES = (layouts.PARQUET, layouts.TABLE_CSV, *layouts.RATINGS_LAYOUTS)


def columns_of(path: Path, mapped: Mapping[str, str], optional: tuple[str, ...], role: str) -> dict[str, str]:
    """Our name -> the file's name of each mapped column; an optional one may be absent.

    Args:
        mapped: our names -> the file's; see :class:`sidr_core.settings.TablesSource`.
        optional: our names that the profile did not map: they are looked for under our own name.

    Raises:
        InputError: the file is no table with a header, or a mapped column is not in it.
    """
    found = layouts.detect(path)
    header = found.columns
    if found.name not in _TABLES or not header:
        layouts.require(path, found, (layouts.PARQUET, layouts.TABLE_CSV), role)
    if missing := [theirs for theirs in mapped.values() if theirs not in header]:
        raise InputError(
            f"{path} has no column {missing[0]!r}",
            expected=", ".join(f"{theirs} (as {ours})" for ours, theirs in mapped.items()),
            found=str(found),
            do=f"map our names to this file's columns under `source.{role.removesuffix('s')}_columns`; "
            f"this file looks like {layouts.BELONGS[found.name]}",
        )
    return dict(mapped) | {name: name for name in optional if name in header}


def batches(path: Path, columns: Mapping[str, str], progress: Progress | None = None) -> Iterator[pl.DataFrame]:
    """Frames with `line`, `fault` (why the row cannot be read, or null), `raw` (its text, then) and our columns.

    CSV columns are strings, Parquet columns of whatever type they are.

    Raises:
        InputError: a Parquet file is damaged; DamagedFile: a gzip file is, after its last whole row.
    """
    if layouts.detect(path).name == layouts.PARQUET:
        yield from _parquet(path, columns, progress)
    else:
        yield from _csv(path, columns, progress)


def _parquet(path: Path, columns: Mapping[str, str], progress: Progress | None) -> Iterator[pl.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        with pq.ParquetFile(path) as file:
            total = file.metadata.num_rows
            for batch in file.iter_batches(_BATCH, columns=list(dict.fromkeys(columns.values()))):
                rows = pl.DataFrame(pa.table(batch)).select(
                    pl.col(theirs).alias(ours) for ours, theirs in columns.items()
                )
                yield rows.with_columns(
                    pl.int_range(done + 1, done + 1 + pl.len(), dtype=pl.Int64).alias("line"),
                    pl.lit(None, dtype=pl.String).alias("fault"),
                    pl.lit(None, dtype=pl.String).alias("raw"),
                )
                done += len(rows)
                if progress:
                    progress.tick(done, total, "rows")
    except (OSError, pa.ArrowException, pl.exceptions.PanicException) as error:  # types that polars stumbles over
        raise InputError(
            f"{path} cannot be read after row {done:,}",
            expected="a whole Parquet file",
            found=str(error).splitlines()[0][:200],
            do="write or fetch the file again",
        ) from None


def _csv(path: Path, columns: Mapping[str, str], progress: Progress | None) -> Iterator[pl.DataFrame]:
    faults: dict[int, str] = {}
    reader = csv.reader(_text_lines(path, faults, progress), delimiter=layouts.delimiter(layouts.head(path)[0]))
    header = [cell.strip() for cell in next(filter(None, reader))]
    places = [header.index(theirs) for theirs in columns.values()]
    schema = {"line": pl.Int64, "fault": pl.String, "raw": pl.String} | dict.fromkeys(columns, pl.String)
    rows: list[tuple[int | str | None, ...]] = []
    try:
        for line, cells in _records(reader):
            fault = next((faults.pop(n) for n in range(line, reader.line_num + 1) if n in faults), None)
            if fault is None and len(cells) != len(header):
                fault = "wrong_columns"
            values = [None] * len(places) if fault else [cells[place] for place in places]
            raw = ",".join(cells)[:TEXT_LIMIT].encode(errors="replace").decode() if fault else None
            rows.append((line, fault, raw, *values))
            if len(rows) == _BATCH:
                yield pl.DataFrame(rows, schema=schema, orient="row")
                rows = []
    except DamagedFile:
        yield pl.DataFrame(rows, schema=schema, orient="row")
        raise
    yield pl.DataFrame(rows, schema=schema, orient="row")


def _records(reader: csv.reader) -> Iterator[tuple[int, list[str]]]:  # type: ignore[valid-type]
    """(first line, cells) of each record; an unreadable one has no cells, a blank line is none."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield line, []
            continue
        if cells:
            yield line, cells


def _text_lines(path: Path, faults: dict[int, str], progress: Progress | None) -> Iterator[str]:
    """The file's lines with their ends; the number of each damaged line is put into `faults`."""
    for batch in line_batches(path, progress):
        for number, text, fault in batch.iter_rows():
            if fault:
                faults[number] = fault
            yield text + "\n"
