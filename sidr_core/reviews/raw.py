"""`raw_reviews`: every accepted review that was known by the end of the snapshot, and every refused line.

A source file is parsed once per content (`records`); a snapshot is one pass over the parsed parts: cut
by time, without exact duplicates (unless `filters.keep_duplicates`), in file and line order. The pass
copies Parquet row groups with their ids still encoded, so that it costs little beside parsing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.errors import InputError
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews.counting import all_counted
from sidr_core.reviews.quarantine import counts_table, require_clean
from sidr_core.reviews.records import ENCODING, ReviewParts
from sidr_core.reviews.sources import reader_of
from sidr_core.tables.ahead import ahead
from sidr_core.tables.contracts import Quarantine
from sidr_core.tables.files import iso_date
from sidr_core.tables.sql import batches, connect, frame, quoted, write

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Filters

_IDS = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("user_id", _IDS),
        ("item_id", _IDS),
        ("rating", pa.float64()),
        ("timestamp", pa.int64()),
        ("split", pa.string()),
        ("history_item_ids", pa.list_(pa.string())),
        ("file", _IDS),
        ("line", pa.int64()),
        ("synthetic", pa.bool_()),
    ]
)


@dataclass
class _Counts:
    """Rows that stay, repeats, rows later than the snapshot; times of those that stay, None if none has one."""

    rows: int = 0
    repeats: int = 0
    later: int = 0
    first: int | None = None
    last: int | None = None


def build_reviews(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `raw_reviews.parquet` (known by the end of the snapshot) and `quarantine.parquet`.

    Raises:
        InputError: another layout, a damaged file, too many unreadable lines, or no review before the
            snapshot's end.
    """
    filters, window = config.filters, config.snapshot  # type: ignore[attr-defined]
    parts: ReviewParts = reader_of(config.source.kind).reviews(inputs, config.source, filters, progress)
    if filters.keep_duplicates:
        _refuse_copies(parts)
    with connect(out_dir) as db:
        db.execute("CREATE VIEW refused AS " + _union(parts, "quarantine.parquet"))
        reasons = frame(db, "SELECT reason, count(*) AS n FROM refused GROUP BY reason ORDER BY n DESC, reason")
        counts: dict[str, int] = dict(reasons.iter_rows())
        examples = frame(db, "SELECT file, line, reason, text FROM refused LIMIT 1").rows(named=True)
        first = next(iter(examples), None)
        share = require_clean("reviews", counts, parts.lines, filters.max_quarantine_share, first)
        refused = batches(db, "SELECT file, line, reason, text FROM refused")
        write(refused, out_dir / "quarantine.parquet", Quarantine)
        repeats = _repeats(db, parts)
    dropped = [lines[:0] for lines in repeats] if filters.keep_duplicates else repeats
    passed = _copy(parts, dropped, window.cutoff, inputs.synthetic, out_dir / "raw_reviews.parquet")
    if passed.rows == 0:
        raise _empty(parts, window.key, window.cutoff)
    return _report(parts, passed, sum(map(len, repeats)), counts, share, filters, progress)


def _refuse_copies(parts: ReviewParts) -> None:
    """Where every line counts, a file that was saved twice would double them all without a word."""
    first: dict[str, str] = {}
    for part in parts.parts:
        name = first.setdefault(part.artifact.fingerprint, part.name)
        if name != part.name and part.lines:
            raise InputError(
                "a file of reviews is there twice",
                expected="other bytes in every file, since `filters.keep_duplicates` counts every line",
                found=f"the same bytes in {name} and {part.name}",
                fix="delete one, or name the files so that only one is read",
            )


def _report(
    parts: ReviewParts,
    passed: _Counts,
    duplicates: int,
    refused: Mapping[str, int],
    share: float,
    filters: Filters,
    progress: Progress,
) -> Report:
    """Where every line went, in numbers, checks and pages; `refused` is by reason, `share` that of all lines."""
    damaged = {part.name: part.damage for part in parts.parts if part.damage}
    for name, damage in damaged.items():
        progress.say(f"{name} is damaged ({damage}): used as far as it goes, as `filters.allow_truncated` says")
    fates = {
        "accepted": passed.rows,
        "exact duplicates of an earlier line": passed.repeats,
        "later than the snapshot": passed.later,
    } | {f"refused ({reason})": count for reason, count in refused.items()}
    counted = all_counted("lines", parts.lines, fates)
    progress.say(counted.detail)
    if trimmed := sum(part.trimmed_ids for part in parts.parts):
        progress.say(f"{trimmed:,} lines have ids with blanks around them, which were cut off")
    quarantined, lines = sum(refused.values()), parts.lines
    metrics: dict[str, int | float | str] = {
        "lines": lines,
        "rows": passed.rows,
        "later_than_snapshot": passed.later,
        "exact_duplicates": duplicates if filters.keep_duplicates else passed.repeats,
        "trimmed_ids": trimmed,
        "quarantined": quarantined,
        "quarantine_share": round(share, 6),
        "damaged_files": len(damaged),
        **{f"refused_{reason}": count for reason, count in refused.items()},
    }
    if passed.first is not None:
        metrics |= {"first_date": iso_date(passed.first), "last_date": iso_date(passed.last)}
    allowed, most = filters.max_quarantine_share, filters.max_duplicate_share
    repeated = f"{passed.repeats:,} of {lines:,} lines equal an earlier one in user, item, rating, time and text"
    if passed.repeats:
        repeated += " and were left out; where each is a purchase of its own, set `filters.keep_duplicates: true`"
    checks = (
        Check("quarantine_share", share <= allowed, f"{quarantined:,} of {lines:,} refused, {allowed:.2%} allowed"),
        counted,
        Check("duplicate_share", passed.repeats <= most * lines, f"{repeated}; {most:.0%} allowed"),
    )
    markdown = {
        "Where every line went": counts_table(("lines", "count"), {"read": lines} | fates),
        "Refused lines": counts_table(("reason", "records"), refused),
    }
    markdown |= {"Damaged files": counts_table(("file", "damage"), damaged)} if damaged else {}
    return Report(metrics=metrics, checks=checks, markdown=markdown)


def _union(parts: ReviewParts, name: str, columns: str = "*") -> str:
    """SQL for one file of all parts, in order, with `file` and `part` (the part's number)."""
    return " UNION ALL ".join(
        f"SELECT {columns}, {quoted(part.name)} AS file, {number} AS part "
        f"FROM read_parquet({quoted(str(part.artifact.path(name)))})"
        for number, part in enumerate(parts.parts)
    )


# Repeats inside a file are known since it was parsed. Across files, what the largest holds is looked up in
# all others together, so that a small new file costs one reading of the digests.
_SHARED = """
CREATE TABLE shared AS
WITH others AS (SELECT digest, part FROM records WHERE part <> $largest),
     largest AS (SELECT digest, part FROM records SEMI JOIN others USING (digest) WHERE part = $largest)
SELECT digest, min(part) AS first FROM (FROM others UNION ALL FROM largest)
GROUP BY digest HAVING min(part) <> max(part)
"""


def _repeats(db: duckdb.DuckDBPyConnection, parts: ReviewParts) -> list[np.ndarray]:
    """Per part the numbers of the lines that repeat an earlier one, of this part or of one before; sorted."""
    repeats = [pq.read_table(part.artifact.path("repeats.parquet"))["line"].to_numpy() for part in parts.parts]
    if len(parts.parts) == 1:
        return repeats
    db.execute("CREATE VIEW records AS " + _union(parts, "records.parquet", "line, digest"))
    rows = [part.artifact.manifest["files"]["records.parquet"]["rows"] for part in parts.parts]
    db.execute(_SHARED, {"largest": int(np.argmax(rows))})
    if not db.execute("SELECT count(*) FROM shared").fetchall()[0][0]:
        return repeats
    later = frame(db, "SELECT part, line FROM records JOIN shared USING (digest) WHERE part > first")
    return [np.union1d(lines, later.filter(part=number)["line"].to_numpy()) for number, lines in enumerate(repeats)]


def _copy(parts: ReviewParts, repeats: Sequence[np.ndarray], cutoff: int, synthetic: bool, path: Path) -> _Counts:
    """Write what stays of each part, in order; returns what was passed."""
    passed = _Counts()

    def tables() -> Iterator[pa.Table]:
        for part, lines in zip(parts.parts, repeats, strict=True):
            path = part.artifact.path("records.parquet")
            file = pq.ParquetFile(path, read_dictionary=["user_id", "item_id"])
            columns = [name for name in file.schema_arrow.names if name != "digest"]
            groups = (file.read_row_group(number, columns=columns) for number in range(file.num_row_groups))
            for table in ahead(groups):
                yield _labelled(_known(table, lines, cutoff, passed), part.name, synthetic)

    # Dictionary-typed columns are an encoding here; without the stored schema readers see plain strings.
    with pq.ParquetWriter(path, _SCHEMA, store_schema=False, **ENCODING) as writer:
        for table in tables():
            if len(table):
                writer.write_table(table)
    return passed


def _known(table: pa.Table, repeats: np.ndarray, cutoff: int, passed: _Counts) -> pa.Table:
    """The rows that are no repeats and were known at `cutoff`; a published row has no time and always counts."""
    if len(table) == 0:
        return table
    lines = table["line"].to_numpy()
    here = repeats[np.searchsorted(repeats, lines[0]) : np.searchsorted(repeats, lines[-1], "right")]
    if len(here):
        table = table.filter(pa.array(~np.isin(lines, here)))
        passed.repeats += len(here)
    times = pl.Series(table["timestamp"])
    known = (times < cutoff).fill_null(True)
    if not known.all():
        table, times = table.filter(known.to_arrow()), times.filter(known)
        passed.later += len(known) - len(table)
    if (stays := times.drop_nulls().to_numpy()).size:
        passed.first = min(int(stays.min()), passed.first or int(stays.min()))
        passed.last = max(int(stays.max()), passed.last or 0)
    passed.rows += len(table)
    return table


def _labelled(table: pa.Table, name: str, synthetic: bool) -> pa.Table:
    """The rows with all columns of :data:`_SCHEMA`; `file` is one code of a dictionary of one name."""
    rows = len(table)
    columns = {column: table[column] for column in table.column_names} | {
        "file": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([name])),
        "synthetic": pa.array(np.full(rows, synthetic)),
    }
    return pa.table([columns.get(f.name, pa.nulls(rows, f.type)) for f in _SCHEMA], schema=_SCHEMA)


def _empty(parts: ReviewParts, key: str, cutoff: int) -> InputError:
    paths = [str(part.artifact.path("records.parquet")) for part in parts.parts]
    query = "SELECT count(*), min(timestamp), max(timestamp) FROM read_parquet($paths)"
    rows, first, last = duckdb.execute(query, {"paths": paths}).fetchall()[0]
    span = "no accepted review" if first is None else f"{iso_date(first)} … {iso_date(last)}"
    return InputError(
        f"snapshot {key} holds no review",
        expected=f"reviews before {iso_date(cutoff)}",
        found=f"{rows:,} reviews, {span}",
        fix="choose a later snapshot, or correct `snapshots` in the profile",
    )
