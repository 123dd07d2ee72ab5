"""Reviews of large files as stored parts: each source file is parsed once per content, to Parquet on disk.

A part holds, in line order, `records.parquet` (columns of :data:`RECORDS`, for published rows also
:data:`PUBLISHED`), `quarantine.parquet` (:data:`REFUSED`) and `repeats.parquet` (numbers of the lines that
are exact duplicates of an earlier one in the file). `raw_reviews` is one pass over the parts; no file is
ever whole in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.pipeline.digest import digest
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.pipeline.store import Artifact
from sidr_core.reviews.judge import Judged
from sidr_core.reviews.lines import DamagedFile, damaged_file
from sidr_core.tables.ahead import ahead
from sidr_core.tables.sql import connect, frame

if TYPE_CHECKING:
    from sidr_core.settings import Filters

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

    @property
    def trimmed_ids(self) -> int:
        """Accepted records of which an id had blanks around it."""
        return self.artifact.manifest["metrics"].get("trimmed_ids", 0)


@dataclass(frozen=True)
class ReviewParts:
    """Parts in the order of the source files."""

    parts: tuple[ReviewPart, ...]

    @property
    def lines(self) -> int:
        return sum(part.lines for part in self.parts)


def stored_part(
    inputs: Inputs,
    name: str,
    path: Path,
    version: str,
    key: Mapping[str, Any],
    parse: Callable[[Progress], Iterable[Judged]],
    filters: Filters,
    progress: Progress,
) -> ReviewPart:
    """The part of one source file; `parse` runs only if the same bytes were not parsed in the same way before.

    What a damaged file gave is stored too: to allow it later costs no reading.

    Args:
        name: of the file in the tables.
        key: with `version` and the file's sha256, all that determines the records.
        parse: given where to report progress, the file's records in line order.

    Raises:
        InputError: the file is damaged, unless `filters.allow_truncated`.
    """
    named = progress.named(name)

    def build(folder: Path) -> Report:
        damage = ""

        def until_damage() -> Iterator[Judged]:
            nonlocal damage
            try:
                yield from parse(named)
            except DamagedFile as error:
                damage = error.damage

        # Three threads: one unpacks, one decodes (the only one that holds the interpreter long), one writes.
        metrics = _write(ahead(until_damage()), folder)
        named.say(f"{metrics['lines']:,} lines parsed" + (f"; then the file is damaged: {damage}" if damage else ""))
        return Report(metrics=metrics | ({"damage": damage} if damage else {}))

    part = ReviewPart(name, inputs.part("parsed_reviews", version, {**key, "sha256": digest(path)}, build))
    if part.damage and not filters.allow_truncated:
        raise damaged_file(path, part.damage, f"{part.lines:,} records before that")
    return part


_REPEATS = """
WITH again AS (SELECT digest FROM read_parquet($path) GROUP BY digest HAVING count(*) > 1),
     numbered AS (SELECT line, row_number() OVER (PARTITION BY digest ORDER BY line) AS n
                  FROM read_parquet($path) SEMI JOIN again USING (digest))
SELECT line FROM numbered WHERE n > 1 ORDER BY line
"""


def _write(batches: Iterable[Judged], folder: Path) -> dict[str, Any]:
    """Write the files of a part; returns its numbers of lines and of records with trimmed ids."""
    lines = trimmed = 0
    records, refused = _Writer(folder / "records.parquet", RECORDS), _Writer(folder / "quarantine.parquet", REFUSED)
    with records, refused:
        for batch in batches:
            records.add(batch.accepted)
            refused.add(batch.refused)
            lines += batch.lines
            trimmed += batch.trimmed
    with connect(folder) as db:
        repeats = frame(db, _REPEATS, {"path": str(folder / "records.parquet")})
    with _Writer(folder / "repeats.parquet", REPEATS) as writer:
        writer.add(repeats)
    return {"lines": lines, "trimmed_ids": trimmed}


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
