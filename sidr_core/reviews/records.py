"""Reviews of large files as stored parts: each source file is parsed once per content, to Parquet on disk.

A part holds, in line order, `records.parquet` (columns of :data:`RECORDS`, for published rows also
:data:`PUBLISHED`), `quarantine.parquet` (:data:`REFUSED`) and `repeats.parquet` (numbers of the lines that
are exact duplicates of an earlier one in the file). `raw_reviews` is one pass over the parts; no file is
ever whole in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.errors import InputError
from sidr_core.pipeline.digest import digest
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.pipeline.store import Artifact
from sidr_core.reviews.decode import Judged, digests, judge_csv, judge_json
from sidr_core.reviews.lines import Block, DamagedFile, blocks
from sidr_core.reviews.parsed import Parsed
from sidr_core.reviews.review_layout import ReviewLayout
from sidr_core.tables.ahead import ahead
from sidr_core.tables.sql import connect, frame

if TYPE_CHECKING:
    from sidr_core.settings import Filters

#: Raise it when the same file should be parsed to other records.
PARSER_VERSION = "2"

#: How records are stored, in parts and in `raw_reviews`: ids by dictionary, which is passed on without being
#: unpacked; lines and times by their differences.
ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["user_id", "item_id", "rating", "split", "file", "reason"],
    "dictionary_pagesize_limit": 64 << 20,
    "column_encoding": {"line": "DELTA_BINARY_PACKED", "timestamp": "DELTA_BINARY_PACKED"},
}

# Rows that are collected before they are written as one row group.
_ROW_GROUP = 250_000

RECORDS = pa.schema(
    [
        ("line", pa.int64()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float64()),
        ("timestamp", pa.int64()),
        ("digest", pa.uint64()),
    ]
)
PUBLISHED = pa.schema([("split", pa.string()), ("history_item_ids", pa.list_(pa.string()))])
REFUSED = pa.schema([("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())])
REPEATS = pa.schema([("line", pa.int64())])


@dataclass(frozen=True)
class ReviewPart:
    """What one source file was parsed to; `name` is the file's name in the tables."""

    name: str
    artifact: Artifact

    @property
    def lines(self) -> int:
        """Records read, blank lines not counted: accepted and refused."""
        return self.artifact.manifest["metrics"]["lines"]

    @property
    def damage(self) -> str:
        """Why the file could not be read to its end; "" if it was whole."""
        return self.artifact.manifest["metrics"].get("damage", "")


@dataclass(frozen=True)
class ReviewParts:
    """Parts in the order of the source files."""

    parts: tuple[ReviewPart, ...]

    @property
    def lines(self) -> int:
        return sum(part.lines for part in self.parts)

    def __add__(self, other: ReviewParts) -> ReviewParts:
        return ReviewParts(self.parts + other.parts)


def parse_reviews(
    inputs: Inputs, files: Mapping[str, Path], layout: ReviewLayout, filters: Filters, progress: Progress
) -> ReviewParts:
    """Parse JSON lines, or take over what was parsed from the same bytes before. The caller has checked the layout.

    Raises:
        InputError: a file is damaged, unless `filters.allow_truncated`.
    """
    how = asdict(layout) | {"format": "json"}
    del how["name"]
    return _parsed(inputs, files, how, lambda: judge_json(layout), filters, progress)


def parse_ratings(
    inputs: Inputs,
    files: Mapping[str, Path],
    order: Literal["user_item", "item_user"],
    filters: Filters,
    progress: Progress,
    time_unit: Literal["s", "ms"] = "s",
) -> ReviewParts:
    """Parse CSV of four columns (ids in `order`, rating, time), like :func:`parse_reviews`.

    A first line whose last two cells are no numbers is a header. The caller has resolved `auto` and the unit.
    """
    how = {"format": "csv", "order": order, "time_unit": time_unit}
    return _parsed(inputs, files, how, lambda: judge_csv(order == "user_item", time_unit), filters, progress)


def stored_part(
    inputs: Inputs,
    name: str,
    version: str,
    key: Mapping[str, Any],
    parse: Callable[[], Iterable[Parsed]],
    *,
    distinct: bool,
) -> ReviewPart:
    """The part of a source that comes as frames (tables, published CSV); `parse` runs only if it is not stored.

    Args:
        key: with `version`, all that determines the rows, the file's sha256 among it.
        parse: batches in line order; `records` has `line`, `user_id`, `item_id` and any of `rating`,
            `timestamp`, `split`, `history_item_ids` (the last two come together); `refused` as ever.
        distinct: whether rows that are equal in all these fields are exact duplicates, of which
            `raw_reviews` keeps the first. A published split keeps every row: False.
    """

    def build(folder: Path) -> Report:
        batches = (Judged(_with_digest(b.records, distinct), b.refused, b.lines) for b in parse())
        return Report(metrics=_write(batches, folder))

    return ReviewPart(name, inputs.part("parsed_reviews", version, {**key, "distinct": distinct}, build))


def _parsed(
    inputs: Inputs,
    files: Mapping[str, Path],
    how: Mapping[str, Any],
    judge: Callable[[], Callable[[Block], Judged]],
    filters: Filters,
    progress: Progress,
) -> ReviewParts:
    """Parts of files that are read in blocks. What damaged files gave is stored too: allowing it costs no reading."""
    parts = []
    for name, path in files.items():

        def build(folder: Path, name: str = name, path: Path = path) -> Report:
            return _parse(path, judge(), folder, progress.named(name))

        key = {**how, "sha256": digest(path)}
        part = ReviewPart(name, inputs.part("parsed_reviews", PARSER_VERSION, key, build))
        if part.damage and not filters.allow_truncated:
            raise InputError(
                f"{path} is damaged",
                expected="a whole gzip file",
                found=f"{part.damage}; {part.lines:,} records before that",
                fix="fetch the file again: the download or copy was probably cut short; "
                "`filters.allow_truncated: true` uses it as far as it goes",
            )
        parts.append(part)
    return ReviewParts(tuple(parts))


def _parse(path: Path, judge: Callable[[Block], Judged], folder: Path, progress: Progress) -> Report:
    damage = ""

    def judged() -> Iterator[Judged]:
        nonlocal damage
        try:
            yield from map(judge, ahead(blocks(path, progress)))
        except DamagedFile as error:
            damage = error.found

    # Three threads: one unpacks, one decodes (the only one that holds the interpreter long), one writes.
    metrics = _write(ahead(judged()), folder)
    progress.say(f"{metrics['lines']:,} lines parsed" + (f"; then the file is damaged: {damage}" if damage else ""))
    return Report(metrics=metrics | ({"damage": damage} if damage else {}))


_REPEATS = """
WITH again AS (SELECT digest FROM read_parquet($path) GROUP BY digest HAVING count(*) > 1),
     numbered AS (SELECT line, row_number() OVER (PARTITION BY digest ORDER BY line) AS n
                  FROM read_parquet($path) SEMI JOIN again USING (digest))
SELECT line FROM numbered WHERE n > 1 ORDER BY line
"""


def _write(batches: Iterable[Judged], folder: Path) -> dict[str, Any]:
    """Write the files of a part; returns the number of lines."""
    lines = 0
    records, refused = _Writer(folder / "records.parquet", RECORDS), _Writer(folder / "quarantine.parquet", REFUSED)
    with records, refused:
        for batch in batches:
            records.add(batch.accepted)
            refused.add(batch.refused)
            lines += batch.lines
    with connect(folder) as db:
        repeats = frame(db, _REPEATS, {"path": str(folder / "records.parquet")})
    with _Writer(folder / "repeats.parquet", REPEATS) as writer:
        writer.add(repeats)
    return {"lines": lines}


class _Writer:
    """Writes frames to one Parquet file in row groups of a fixed size; columns of published rows are added."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pl.DataFrame] = []
        self._rows = 0

    def __enter__(self) -> _Writer:
        return self

    def add(self, rows: pl.DataFrame) -> None:
        """Take over rows; they are written when a row group is full."""
        self._waiting.append(rows)
        self._rows += len(rows)
        if self._rows >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        rows = (
            pl.concat(self._waiting) if self._waiting else pl.DataFrame(schema={n: pl.Null for n in self._schema.names})
        )
        schema = self._schema
        if "split" in rows.columns:
            schema = pa.unify_schemas([schema, PUBLISHED])
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, schema, **ENCODING)
        self._writer.write_table(rows.select(schema.names).to_arrow().cast(schema), row_group_size=_ROW_GROUP)
        self._waiting, self._rows = [], 0

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and (self._rows or self._writer is None):
            self._flush()
        if self._writer:
            self._writer.close()


def _with_digest(records: pl.DataFrame, distinct: bool) -> pl.DataFrame:
    """Frames of a table in the form of a part: absent columns are null, and so is `digest` if every row counts."""
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in _ABSENT.items() if name not in records.columns]
    whole = records.with_columns(*absent)
    found = digests(whole, "timestamp") if distinct else pl.lit(None, dtype=pl.UInt64)
    return whole.with_columns(found.alias("digest"))


_ABSENT = {"rating": pl.Float64, "timestamp": pl.Int64}
