"""`raw_items`: one typed, cleaned record per item, and every refused one.

Records that cannot be read count against `filters.max_quarantine_share`. Items whose title is no name
(missing, markup, too long; docs/method.md, "Data") are quarantined with their reason and never fatal; or, with
`filters.items_without_text: keep`, stay under the best text they have. Of a repeated id the first
usable record stays. A source without metadata has the items that its reviews name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import polars as pl

from sidr_core.errors import InputError
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.render.grid import markdown_table
from sidr_core.reviews import text
from sidr_core.reviews.counting import all_counted
from sidr_core.reviews.quarantine import QUARANTINE_SCHEMA, counts_table, listed, reason_counts, require_clean
from sidr_core.reviews.source_files import without_metadata
from sidr_core.reviews.sources import reader_of
from sidr_core.reviews.sources.item_records import ItemRecords
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Quarantine, RawItems
from sidr_core.tables.sql import frame

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Filters, Source

_FIELDS = ("title", "description", "brand", "category")
_OUTCOMES = {
    "titles_from_text": "titles made of the description, brand or category",
    "titles_placeholder": "titles made of the item's id alone",
    "titles_shortened": "titles cut to `filters.max_title_words`",
}


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `raw_items.parquet`, one record per item id, and `quarantine.parquet`.

    A published split keeps all its items: the title rules were applied by who published it.

    Raises:
        InputError: another layout, too many unreadable records, or no item left.
    """
    source, filters = config.source, config.filters
    read = parsed(inputs, source, filters, progress)
    first = next(iter(read.refused.rows(named=True)), None)
    require_clean("items", reason_counts(read.refused), read.lines, filters.max_quarantine_share, first)
    if filters.items_without_text == "auto" and _keeps(read.records, filters):
        unusable = len(read.records) - read.records["unusable"].null_count()
        progress.say(
            f"{unusable:,} of {len(read.records):,} records have no usable title: as most have none, they are kept "
            "under what else is known of them (`filters.items_without_text`)"
        )
    records, refused, outcomes = _chosen(read, filters)
    counts = reason_counts(refused)
    if records.is_empty():
        raise InputError(
            "no item is left",
            expected="item records with a title",
            found=f"{read.lines} records, refused: {listed(counts)}",
            fix="look at the metadata file; `filters.max_title_words` bounds the length of titles, "
            "`filters.items_without_text: keep` takes items without one",
        )
    refused = refused.sort("file", "line", maintain_order=True)
    records = records.with_columns(pl.lit(inputs.synthetic).alias("synthetic"))
    tables.write(records, out_dir / "raw_items.parquet", RawItems)
    tables.write(refused, out_dir / "quarantine.parquet", Quarantine)
    cleaned = _by_rule(read.metrics)
    metrics = {
        "lines": read.lines,
        "rows": len(records),
        "quarantined": len(refused),
        "trimmed_ids": int(read.metrics.get("trimmed_ids", 0)),
        "described_share": round((records["description"] != "").mean(), 4),  # type: ignore[call-overload]
        **{f"refused_{reason}": count for reason, count in counts.items()},
        **{f"cleaned_{rule}": sum(fields.values()) for rule, fields in cleaned.items()},
        **outcomes,
    }
    unique = records["item_id"].n_unique()
    fates = {"accepted": len(records)} | {f"refused ({reason})": count for reason, count in counts.items()}
    counted = all_counted("records", read.lines, fates)
    progress.say(counted.detail)
    if trimmed := metrics["trimmed_ids"]:
        progress.say(f"{trimmed:,} records have ids with blanks around them, which were cut off")
    checks = Check("unique_items", unique == len(records), f"{unique:,} ids in {len(records):,} records"), counted
    markdown = {
        "Where every record went": counts_table(("records", "count"), {"read": read.lines} | fates),
        "Refused records": counts_table(("reason", "records"), counts),
        "Cleaning": _cleaning(cleaned, outcomes),
    }
    return Report(metrics=metrics, checks=checks, markdown=markdown)


def parsed(inputs: Inputs, source: Source, filters: Filters, progress: Progress) -> ItemRecords:
    """The item records of a source; without metadata, one for every item that its reviews name.

    Raises:
        InputError: another layout, a damaged file, or no metadata where items without text are dropped.
    """
    if not without_metadata(source):
        return reader_of(source.kind).items(inputs, source, filters, progress)
    if filters.items_without_text == "drop":
        raise InputError(
            "this source has no item metadata, and items without text are dropped",
            expected="metadata under `source.items`, or `filters.items_without_text: keep`",
            found="`source.items` is empty and `filters.items_without_text` is `drop`",
            fix="name a metadata file, or set `keep`: items are then known by their ids alone",
        )
    parts = reader_of(source.kind).reviews(inputs, source, filters, progress).parts
    paths = [str(part.artifact.path("records.parquet")) for part in parts]
    with duckdb.connect() as db:
        query = "SELECT DISTINCT item_id FROM read_parquet($paths) ORDER BY item_id"
        ids = frame(db, query, {"paths": paths})
    records = ids.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("line"),
        "item_id",
        *(pl.lit("").alias(name) for name in (*_FIELDS, "text")),
        pl.lit(0, dtype=pl.Int64).alias("title_words"),
        pl.lit("title_missing").alias("unusable"),
        pl.lit("reviews").alias("file"),
    )
    return ItemRecords(records, pl.DataFrame(schema=QUARANTINE_SCHEMA), len(records))


def _chosen(read: ItemRecords, filters: Filters) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Records that stay, records that are refused with their reason, and what became of titles."""
    records, refused, outcomes = read.records, read.refused.select(list(QUARANTINE_SCHEMA)), {}
    keeps = _keeps(records, filters)
    if "published_sid" not in records.columns:
        records = records.with_columns(pl.lit(None, dtype=pl.String).alias("published_sid"))
        too_long = pl.col("unusable").is_null() & (pl.col("title_words") > filters.max_title_words)
        if not keeps:
            records, refused = _refuse(records, refused, pl.col("unusable"))
            records, refused = _refuse(records, refused, pl.when(too_long).then(pl.lit("title_too_long")))
        # A usable record goes before an earlier one of the same item without a usable title.
        records = records.with_row_index("place").sort(pl.col("unusable").is_not_null(), "place")
    repeated = pl.when(~pl.col("item_id").is_first_distinct()).then(pl.lit("duplicate_item"))
    records, refused = _refuse(records, refused, repeated)
    if "unusable" in records.columns and keeps:
        records, outcomes = _titled(records.sort("place"), filters.max_title_words)
    return records, refused, outcomes


def _keeps(records: pl.DataFrame, filters: Filters) -> bool:
    """Whether items without a usable title stay (`filters.items_without_text`)."""
    if filters.items_without_text != "auto":
        return filters.items_without_text == "keep"
    return "unusable" in records.columns and 2 * (len(records) - records["unusable"].null_count()) > len(records)


def _titled(records: pl.DataFrame, words: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Every record with a title of at most `words` words: its own, even a short one, or one from what else is known."""
    other = pl.coalesce(pl.col(name).replace("", None) for name in ("description", "brand", "category"))
    usable = pl.col("unusable").is_null() | (pl.col("unusable") == "title_too_short")
    marked = records.with_columns(
        pl.when(usable).then("title").otherwise(pl.coalesce(other, pl.format("Item {}", "item_id"))).alias("uncut"),
        (~usable & other.is_not_null()).alias("titles_from_text"),
        (~usable & other.is_null()).alias("titles_placeholder"),
    ).with_columns(pl.col("uncut").str.split(" ").list.head(words).list.join(" ").alias("title"))
    marked = marked.with_columns((usable & (pl.col("title") != pl.col("uncut"))).alias("titles_shortened"))
    return marked, {name: int(marked[name].sum()) for name in _OUTCOMES}


def _refuse(records: pl.DataFrame, refused: pl.DataFrame, reason: pl.Expr) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Move the records that have a reason into the quarantine."""
    marked = records.with_columns(reason.alias("reason"))
    gone = marked.filter(pl.col("reason").is_not_null()).select(list(QUARANTINE_SCHEMA))
    return marked.filter(pl.col("reason").is_null()).drop("reason"), pl.concat([refused, gone])


def _by_rule(metrics: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Rule -> field -> how many values it changed, of the sources' `cleaned_<field>_<rule>`."""
    counts = {rule: {field: metrics.get(f"cleaned_{field}_{rule}", 0) for field in _FIELDS} for rule in text.RULES}
    return {rule: fields for rule, fields in counts.items() if any(fields.values())}


def _cleaning(cleaned: Mapping[str, Mapping[str, int]], outcomes: Mapping[str, int]) -> str:
    """Markdown: how many values of each field each rule changed, refused records included."""
    rows = [(text.RULES[rule], *(f"{fields[field]:,}" for field in _FIELDS)) for rule, fields in cleaned.items()]
    rows += [(_OUTCOMES[name], f"{count:,}", "", "", "") for name, count in outcomes.items() if count]
    return markdown_table(("values changed", *_FIELDS), rows) if rows else "Nothing was changed."
