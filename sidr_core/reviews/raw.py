"""`raw_reviews` and `raw_items`: every accepted record of the source files, typed, and every refused one.

Records that cannot be read count against `filters.max_quarantine_share`; items that are refused by
rule (no title, a title that is markup or too long, a repeated id; METHOD 1.2) are quarantined with
their reason and never fatal.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import polars as pl

from sidr_core import tables
from sidr_core.contracts import Quarantine, RawItems, RawReviews
from sidr_core.errors import InputError
from sidr_core.reviews.parsed import QUARANTINE_SCHEMA, Parsed, reason_counts
from sidr_core.reviews.sources import amazon_2018, minionerec, sample
from sidr_core.stage import Check, Inputs, Progress, Report

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Source

#: Reasons that are a rule's verdict on a sound record, not damage.
POLICY = ("title_missing", "title_html", "title_too_long", "duplicate_item")

_SOURCES: dict[str, ModuleType] = {"sample": sample, "amazon_2018": amazon_2018, "minionerec": minionerec}


def review_files(source: Source) -> dict[str, Path]:
    """Name -> local path of each file with reviews (none for the sample, which is generated).

    Raises:
        InputError: a file is missing or empty, a glob matches nothing, a download fails.
    """
    return _SOURCES[source.kind].review_files(source)


def item_files(source: Source) -> dict[str, Path]:
    """Name -> local path of each file with item records; like :func:`review_files`."""
    return _SOURCES[source.kind].item_files(source)


def build_reviews(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `raw_reviews.parquet` (known by the end of the snapshot) and `quarantine.parquet`.

    Raises:
        InputError: another layout, too many unreadable records, or none before the snapshot's end.
    """
    parsed = _SOURCES[config.source.kind].reviews(inputs, config.source, progress)
    share = _require_clean(parsed, config.filters.max_quarantine_share, "reviews")
    records = parsed.records
    for name, kind in _DEFAULTS.items():
        if name not in records.columns:
            records = records.with_columns(pl.lit(None, dtype=kind).alias(name))
    window = config.snapshot  # type: ignore[attr-defined]
    known = _cut(records, window.key, window.cutoff).with_columns(pl.lit(inputs.synthetic).alias("synthetic"))
    tables.write(known, out_dir / "raw_reviews.parquet", RawReviews)
    tables.write(parsed.refused, out_dir / "quarantine.parquet", Quarantine)
    counts = reason_counts(parsed.refused)
    metrics = {
        "lines": parsed.lines,
        "rows": len(known),
        "later_than_snapshot": len(records) - len(known),
        "quarantined": len(parsed.refused),
        "quarantine_share": round(share, 6),
        **parsed.metrics,
        **_dates(known),
    }
    check = Check(
        "quarantine_share",
        share <= config.filters.max_quarantine_share,
        f"{len(parsed.refused):,} of {parsed.lines:,} refused, {config.filters.max_quarantine_share:.2%} allowed",
    )
    return Report(metrics=metrics, checks=(check,), markdown={"Refused lines": _table(counts)})


def build_items(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `raw_items.parquet`, one record per item id, and `quarantine.parquet`.

    A published split keeps all its items: the title rules were applied by who published it.

    Raises:
        InputError: another layout, too many unreadable records, or no item left.
    """
    parsed = _SOURCES[config.source.kind].items(inputs, config.source, progress)
    _require_clean(parsed, config.filters.max_quarantine_share, "items")
    records, refused = parsed.records, parsed.refused
    if "published_sid" not in records.columns:
        records = records.with_columns(pl.lit(None, dtype=pl.String).alias("published_sid"))
        too_long = pl.col("title_words") > config.filters.max_title_words
        records, refused = _refuse(records, refused, too_long, "title_too_long")
    records, refused = _refuse(records, refused, ~pl.col("item_id").is_first_distinct(), "duplicate_item")
    counts = reason_counts(refused)
    if records.is_empty():
        raise InputError(
            "no item is left",
            expected="item records with a title",
            found=f"{parsed.lines} records, refused: {_listed(counts)}",
            do="look at the metadata file; `filters.max_title_words` bounds the length of titles",
        )
    refused = refused.sort("file", "line", maintain_order=True)
    records = records.with_columns(pl.lit(inputs.synthetic).alias("synthetic"))
    tables.write(records, out_dir / "raw_items.parquet", RawItems)
    tables.write(refused, out_dir / "quarantine.parquet", Quarantine)
    metrics = {
        "lines": parsed.lines,
        "rows": len(records),
        "quarantined": len(refused),
        "described_share": round((records["description"] != "").mean(), 4),  # type: ignore[call-overload]
        **{f"refused_{reason}": count for reason, count in counts.items()},
    }
    unique = records["item_id"].n_unique()
    check = Check("unique_items", unique == len(records), f"{unique:,} ids in {len(records):,} records")
    return Report(metrics=metrics, checks=(check,), markdown={"Refused records": _table(counts)})


#: Columns that a layout may not have, and their types.
_DEFAULTS = {
    "rating": pl.Float64,
    "timestamp": pl.Int64,
    "split": pl.String,
    "history_item_ids": pl.List(pl.String),
}


def _cut(records: pl.DataFrame, key: str, cutoff: int) -> pl.DataFrame:
    """What was known by the end of the snapshot; a published row has no time and always counts."""
    known = records.filter(pl.col("timestamp").is_null() | (pl.col("timestamp") < cutoff))
    if known.is_empty():
        times = records["timestamp"].drop_nulls()
        span = f"{_date(times.min())} … {_date(times.max())}" if len(times) else "no accepted review"
        raise InputError(
            f"snapshot {key} holds no review",
            expected=f"reviews before {_date(cutoff)}",
            found=f"{len(records):,} reviews, {span}",
            do="choose a later snapshot, or correct `snapshots` in the profile",
        )
    return known


def _require_clean(parsed: Parsed, allowed: float, what: str) -> float:
    """Share of unreadable records. Raises InputError if it is above `allowed`."""
    broken = parsed.refused.filter(~pl.col("reason").is_in(POLICY))
    share = len(broken) / max(parsed.lines, 1)
    if share > allowed:
        first = broken.row(0, named=True)
        raise InputError(
            f"too many {what} cannot be read: {len(broken):,} of {parsed.lines:,} ({share:.1%})",
            expected=f"at most {allowed:.2%} (`filters.max_quarantine_share`)",
            found=f"{_listed(reason_counts(broken))}; first in {first['file']}, line {first['line']} "
            f"({first['reason']}): {first['text'][:120]!r}",
            do="mend the file, or raise `filters.max_quarantine_share` if these lines may go",
        )
    return share


def _refuse(
    records: pl.DataFrame, refused: pl.DataFrame, rule: pl.Expr, reason: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Move the records that a rule names into the quarantine."""
    marked = records.with_columns(rule.alias("refused"))
    gone = marked.filter("refused").with_columns(pl.lit(reason).alias("reason")).select(list(QUARANTINE_SCHEMA))
    return marked.filter(~pl.col("refused")).drop("refused"), pl.concat([refused, gone])


def _dates(records: pl.DataFrame) -> dict[str, str]:
    times = records["timestamp"].drop_nulls()
    return {"first_date": _date(times.min()), "last_date": _date(times.max())} if len(times) else {}


def _date(seconds: object) -> str:
    return datetime.fromtimestamp(int(str(seconds)), UTC).date().isoformat()


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "none"


def _table(counts: dict[str, int]) -> str:
    if not counts:
        return "None."
    rows = "\n".join(f"| {reason} | {count:,} |" for reason, count in counts.items())
    return f"| reason | records |\n| --- | ---: |\n{rows}"
