"""Reads Parquet and CSV tables of any origin in batches of the mapped columns, without trusting a row.

A Parquet row's number counts from 1. A CSV row's number is that of its first line in the file, where the
header is line 1. The separator of a CSV is the comma, semicolon or tab that its header holds most of.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Progress
from sidr_core.reviews import layouts
from sidr_core.reviews.lines import DamagedFile, line_batches
from sidr_core.reviews.parsed import TEXT_LIMIT

#: Ends of names of the files that stand for a folder.
SUFFIXES = (".parquet", ".pq", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
_BATCH = 100_000
_MARK = "\ufeff"
#: What a record may take before it is held to have no end, which bounds what is kept of a file.
RECORD_LINES = 1000
_RECORD_CHARS = 1 << 20
#: How often a line is read again on average, at most, so that quotes that never match cost no more than their lines.
_AGAIN = 8
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
            fix=f"map our names to this file's columns under `source.{role.removesuffix('s')}_columns`; "
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

    from sidr_core.reviews.sources import parquet_rows

    done = 0
    try:
        for table, total in parquet_rows.batches(path, list(dict.fromkeys(columns.values())), _BATCH):
            rows = pl.DataFrame(table).select(pl.col(theirs).alias(ours) for ours, theirs in columns.items())
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
            fix="write or fetch the file again",
        ) from None


def _csv(path: Path, columns: Mapping[str, str], progress: Progress | None) -> Iterator[pl.DataFrame]:
    records = csv_records(path, layouts.delimiter(layouts.head(path)[0]), progress)
    header = next(records).cells
    places = [header.index(theirs) for theirs in columns.values()]
    schema = {"line": pl.Int64, "fault": pl.String, "raw": pl.String} | dict.fromkeys(columns, pl.String)
    rows: list[tuple[int | str | None, ...]] = []
    try:
        for record in records:
            values = [None] * len(places) if record.fault else [record.cells[place] for place in places]
            rows.append((record.line, record.fault, record.raw if record.fault else None, *values))
            if len(rows) == _BATCH:
                yield pl.DataFrame(rows, schema=schema, orient="row")
                rows = []
    except DamagedFile:
        yield pl.DataFrame(rows, schema=schema, orient="row")
        raise
    yield pl.DataFrame(rows, schema=schema, orient="row")


@dataclass(frozen=True)
class CsvRecord:
    """One record of a CSV; the first is the header.

    Args:
        line: number of its first line. cells: none where it cannot be read.
        fault: why it cannot be used: the fault of one of its lines, or `wrong_columns`; else null.
        raw: its text, cut to what the quarantine keeps.
    """

    line: int
    cells: list[str]
    fault: str | None
    raw: str


def csv_records(path: Path, separator: str = ",", progress: Progress | None = None) -> Iterator[CsvRecord]:
    """The records of a CSV with a header; blank lines are none.

    A quoted cell may hold line breaks, so a stray quote would swallow the records behind it. Where what several
    lines give is no record, its first line alone is refused, and reading goes on with the second. A line whose quotes
    are not doubled is taken where they can be understood in one way only.

    Raises:
        DamagedFile: after the last record, if the gzip stream ends too early or is corrupt.
    """
    lines = _Lines(_numbered(path, progress))
    width = 0
    while (first := lines.next_record()) is not None:
        try:
            cells = next(csv.reader(lines, delimiter=separator, strict=True), [])
            fault = "wrong_columns" if cells and width not in (0, len(cells)) else None
        except csv.Error:
            cells, fault = [], "wrong_columns"
        if fault and len(lines.taken) > 1:
            lines.put_back_all_but_one()
            cells = []
        if fault and not width:  # read as where the layout was detected
            cells, fault = layouts.cells_of(lines.taken[0][1], separator), None
        if fault and (understood := _with_loose_quotes(lines.taken[0][1], separator, width)):
            cells, fault = understood, None
        taken = lines.taken
        # A byte order mark that is not the file's first is no part of a name: two files were joined.
        marked = "bad_encoding" if cells and cells[0].startswith(_MARK) else None
        fault = next((line_fault for _, _, line_fault in taken if line_fault), None) or marked or fault
        if cells or fault:
            raw = "\n".join(text for _, text, _ in taken)[:TEXT_LIMIT].encode(errors="replace").decode()
            yield CsvRecord(first, [cell.strip() for cell in cells] if not width else cells, fault, raw)
            width = width or len(cells)


def _with_loose_quotes(text: str, separator: str, width: int) -> list[str]:
    """The cells of a line in which quotes are not doubled (`"19" Monitor"`) or have blanks behind them.

    A quote closes a cell where a separator or the end follows; none are given unless that makes `width` cells, or
    where a cell begins with two quotes, of which one is astray.
    """
    end = rf"(?:{re.escape(separator)}|\Z)"
    cell = re.compile(
        rf"""(?:"(?!"(?!"|\x20*{end}))((?:[^"]|""|"(?!"|\x20*{end}))*)"\x20*"""
        rf"""|([^"\r{re.escape(separator)}][^\r{re.escape(separator)}]*)?)"""
        rf"(?={end})"
    )
    cells: list[str] = []
    text, place = text.removesuffix("\r"), 0
    while place <= len(text) and len(cells) <= width and (found := cell.match(text, place)):
        cells.append((found[2] or "") if found[1] is None else found[1].replace('""', '"'))
        place = found.end() + 1
    whole = place > len(text) and len(cells) == width
    return cells if whole and max(map(len, cells)) <= csv.field_size_limit() else []


class _Lines:
    """The lines of a file for a CSV reader, which can be put back; `taken` are those of the record at hand."""

    def __init__(self, source: Iterator[tuple[int, str, str | None]]) -> None:
        self._source = self._held(source)
        self._damage: DamagedFile | None = None
        self._waiting: deque[tuple[int, str, str | None]] = deque()
        self.taken: list[tuple[int, str, str | None]] = []
        self._chars = 0
        self._again = 0

    def next_record(self) -> int | None:
        """Begin a record: the number of its first line, None at the end of the file."""
        self.taken, self._chars = [], 0
        if not self._waiting:
            found = next(self._source, None)
            if found is None and self._damage is not None:
                raise self._damage
            if found is None:
                return None
            self._waiting.append(found)
        return self._waiting[0][0]

    def _held(self, source: Iterator[tuple[int, str, str | None]]) -> Iterator[tuple[int, str, str | None]]:
        """The lines; the damage that ends them is kept until each of them was judged."""
        try:
            for line in source:
                self._again += _AGAIN
                yield line
        except DamagedFile as error:
            self._damage = error

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.taken:
            put_back = bool(self._waiting)
            if len(self.taken) >= RECORD_LINES or self._chars >= _RECORD_CHARS or (put_back and not self._again):
                raise csv.Error("the record has no end")
            self._again -= put_back
        line = self._waiting.popleft() if self._waiting else next(self._source)
        self.taken.append(line)
        self._chars += len(line[1])
        return line[1] + "\n"

    def put_back_all_but_one(self) -> None:
        """Only the first line belongs to the record at hand."""
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _numbered(path: Path, progress: Progress | None) -> Iterator[tuple[int, str, str | None]]:
    """(number, text, fault) of every line."""
    for batch in line_batches(path, progress):
        yield from batch.iter_rows()
