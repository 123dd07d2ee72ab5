"""Reads CSV of any origin in bounded memory, without trusting a line.

A quoted cell may hold line breaks, so a stray quote would swallow the records behind it. Where what several
lines give is no record, its first line alone is refused, and reading goes on with the second. A line whose quotes
are not doubled is taken where they can be understood in one way only. Blocks without a quote, nearly all of large
files, are split at once.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import polars as pl

from sidr_core.pipeline.stage import Progress
from sidr_core.reviews.lines import Block, DamagedFile, blocks, decodes, lines_of, until_damage
from sidr_core.reviews.quarantine import quotable

_BATCH = 100_000
_BYTE_ORDER_MARK = "\ufeff"
#: Stands for a separator of several characters.
_DELIMITER = "\x1f"
#: What a record may take before it is held to have no end, which bounds what is kept of a file.
RECORD_LINES = 1000
_RECORD_CHARS = 1 << 20
#: How often a line is read again on average, at most, so that quotes that never match cost no more than their lines.
_READINGS = 8


@dataclass(frozen=True)
class CsvForm:
    """How a CSV is written.

    Args:
        separator: what stands between two cells.
        width: cells of a record.
        header: whether its first line names the columns.
    """

    separator: str
    width: int
    header: bool

    @property
    def delimiter(self) -> str:
        """The separator in :meth:`text`: one character, as readers of CSV ask for."""
        return self.separator if len(self.separator) == 1 else _DELIMITER

    def text(self, line: str) -> str:
        """The line with the one-character separator."""
        if self.delimiter == self.separator:
            return line
        return line.replace(_DELIMITER, " ").replace(self.separator, _DELIMITER)


def cells_of(line: str, separator: str) -> list[str]:
    """The cells of a line, without blanks around them; none where it cannot be read."""
    form = CsvForm(separator, 0, header=False)
    try:
        return [cell.strip() for cell in next(csv.reader([form.text(line)], delimiter=form.delimiter), [])]
    except csv.Error:
        return []


def csv_batches(
    path: Path, form: CsvForm, columns: Mapping[str, int], progress: Progress | None = None
) -> Iterator[pl.DataFrame]:
    """Frames with `line` (the record's first, from 1), `fault`, `raw` and a text column for each of `columns`.

    `fault` says why a record cannot be read: the fault of one of its lines, or `wrong_columns`; else it is null.
    `raw` is the record's text, of a record of several lines cut to what the quarantine keeps. Blank lines are none.

    Args:
        columns: name -> the cell's place in a record, from 0.

    Raises:
        DamagedFile: after the last record, if the gzip stream ends too early or is corrupt.
    """
    schema = {"line": pl.Int64, "fault": pl.String, "raw": pl.String} | dict.fromkeys(columns, pl.String)
    lines = _Lines(path, form, progress)
    if form.header:
        lines.skip_header()
    rows: list[tuple[int | str | None, ...]] = []
    try:
        while (first := lines.next_record()) is not None:
            if isinstance(first, int):
                if record := _record(lines, form):
                    cells, fault, raw = record
                    values = [None] * len(columns) if fault else [cells[place] for place in columns.values()]
                    rows.append((first, fault, raw, *values))
                if len(rows) < _BATCH:
                    continue
            if rows:
                yield pl.DataFrame(rows, schema=schema, orient="row")
                rows = []
            if isinstance(first, Block):  # in frames of bounded length: it may hold a million short lines
                plain = first.data.decode().split("\n")
                for start in range(0, len(plain), _BATCH):
                    yield _records(plain[start : start + _BATCH], first.first + start, form, columns)
    except DamagedFile:
        yield pl.DataFrame(rows, schema=schema, orient="row")
        raise
    yield pl.DataFrame(rows, schema=schema, orient="row")


def _is_plain(block: Block) -> bool:
    """Whether each line is a record as it stands: whole text without quotes or other marks."""
    data = block.data
    return (
        block.fault is None
        and not any(mark in data for mark in (b'"', b"\0", _BYTE_ORDER_MARK.encode()))
        and data.count(b"\r") == data.count(b"\r\n") + data.endswith(b"\r")
        and decodes(data)
        and max(map(len, data.split(b"\n"))) <= csv.field_size_limit()
    )


def _records(lines: list[str], first: int, form: CsvForm, columns: Mapping[str, int]) -> pl.DataFrame:
    """The records of some plain lines, of which the first has the number `first`."""
    raw = pl.Series("raw", lines).str.strip_suffix("\r")
    rows = pl.DataFrame([pl.int_range(first, first + len(raw), eager=True).alias("line"), raw])
    cell = pl.col("cells").struct.field
    whole = cell(f"field_{form.width - 1}").is_not_null() & cell(f"field_{form.width}").is_null()
    return (
        rows.filter(pl.col("raw") != "")
        .with_columns(pl.col("raw").str.splitn(form.separator, form.width + 1).alias("cells"))
        .with_columns(pl.when(~whole).then(pl.lit("wrong_columns")).alias("fault"))
        .select(
            "line",
            "fault",
            "raw",
            *(
                pl.when(pl.col("fault").is_null()).then(cell(f"field_{place}")).alias(name)
                for name, place in columns.items()
            ),
        )
    )


def _record(lines: _Lines, form: CsvForm) -> tuple[list[str], str | None, str] | None:
    """Cells, fault and text of the record that begins here; None for a blank line."""
    try:
        cells = next(csv.reader(lines, delimiter=form.delimiter, strict=True), [])
        fault = "wrong_columns" if cells and len(cells) != form.width else None
    except csv.Error:
        cells, fault = [], "wrong_columns"
    if fault and len(lines.taken) > 1:
        lines.put_back_all_but_one()
        cells = []
    if fault and (understood := _with_loose_quotes(form.text(lines.taken[0][1]), form)):
        cells, fault = understood, None
    # A byte order mark that is not the file's first is no part of a name: two files were joined.
    marked = "bad_encoding" if cells and cells[0].startswith(_BYTE_ORDER_MARK) else None
    fault = next((line_fault for _, _, line_fault in lines.taken if line_fault), None) or marked or fault
    if not cells and not fault:
        return None
    return cells, fault, quotable("\n".join(text for _, text, _ in lines.taken))


def _with_loose_quotes(text: str, form: CsvForm) -> list[str]:
    """The cells of a line in which quotes are not doubled (`"19" Monitor"`) or have blanks behind them.

    A quote closes a cell where a separator or the end follows; none are given unless that makes a record's number of
    cells, or where a cell begins with two quotes, of which one is astray.
    """
    separator = re.escape(form.delimiter)
    end = rf"(?:{separator}|\Z)"
    cell = re.compile(
        rf"""(?:"(?!"(?!"|\x20*{end}))((?:[^"]|""|"(?!"|\x20*{end}))*)"\x20*"""
        rf"""|([^"\r{separator}][^\r{separator}]*)?)"""
        rf"(?={end})"
    )
    cells: list[str] = []
    text, place = text.removesuffix("\r"), 0
    while place <= len(text) and len(cells) <= form.width and (match := cell.match(text, place)):
        cells.append((match[2] or "") if match[1] is None else match[1].replace('""', '"'))
        place = match.end() + 1
    understood = place > len(text) and len(cells) == form.width
    return cells if understood and max(map(len, cells)) <= csv.field_size_limit() else []


class _Lines:
    """The lines of a file for a CSV reader, which can be put back; `taken` are those of the record at hand."""

    def __init__(self, path: Path, form: CsvForm, progress: Progress | None) -> None:
        self._form = form
        self._damage: list[DamagedFile] = []  # raised after each line before it was judged
        self._blocks = until_damage(blocks(path, progress), self._damage)
        self._of_block: Iterator[tuple[int, str, str | None]] = iter(())
        self._put_back: deque[tuple[int, str, str | None]] = deque()
        self.taken: list[tuple[int, str, str | None]] = []
        self._chars = 0
        self._readings_left = 0

    def skip_header(self) -> None:
        """Pass over the first line that is not blank."""
        for block in self._blocks:
            lines = block.data.split(b"\n")
            places = (place for place, line in enumerate(lines, 1) if line.decode(errors="replace").strip())
            if header := next(places, 0):
                if header < len(lines):
                    rest = Block(block.first + header, b"\n".join(lines[header:]))
                    self._blocks = chain([rest], self._blocks)
                return

    def next_record(self) -> int | Block | None:
        """Begin a record: the number of its first line, or a whole plain block, or None at the end of the file.

        Raises:
            DamagedFile: at the end of a file that is damaged.
        """
        self.taken, self._chars = [], 0
        if not self._put_back:
            if (line := next(self._of_block, None)) is None:
                block = next(self._blocks, None)
                if block is None and self._damage:
                    raise self._damage[0]
                if block is None or _is_plain(block):
                    return block
                self._of_block = lines_of(block)
                line = next(self._of_block)
            self._readings_left += _READINGS
            self._put_back.append(line)
        return self._put_back[0][0]

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        was_put_back = bool(self._put_back)
        if self.taken:
            too_long = len(self.taken) >= RECORD_LINES or self._chars >= _RECORD_CHARS
            if too_long or (was_put_back and not self._readings_left):
                raise csv.Error("the record has no end")
            self._readings_left -= was_put_back
        if was_put_back:
            line = self._put_back.popleft()
        else:
            self._readings_left += _READINGS
            while (line := next(self._of_block, None)) is None:
                self._of_block = lines_of(next(self._blocks))
        self.taken.append(line)
        self._chars += len(line[1])
        return self._form.text(line[1]) + "\n"

    def put_back_all_but_one(self) -> None:
        """Only the first line belongs to the record at hand."""
        self._put_back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]
