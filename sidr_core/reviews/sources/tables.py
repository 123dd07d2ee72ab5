"""Your own data: Parquet or CSV tables with a map from SIDR's columns to yours (docs/own-data.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.pipeline.digest import digest
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews.files import passed_over
from sidr_core.reviews.lines import DamagedFile
from sidr_core.reviews.records import ReviewParts, stored_part
from sidr_core.reviews.source_files import TABLE_SUFFIXES, item_files, review_files
from sidr_core.reviews.sources.item_records import ItemLayout, ItemRecords, ItemWriter, load_items, stored_items
from sidr_core.reviews.sources.table_rows import Table, batches, judged_reviews, require_ids, table_of

if TYPE_CHECKING:
    from sidr_core.settings import Filters, TablesSource

#: Raise it when the same file should parse to other reviews.
PARSER_VERSION = "5"

_ITEM = ItemLayout(("item_id",), "title", ("description",), ("brand",), ("category",), shortest_title=1)
_REVIEW_NEEDS, _REVIEW_MAY = ("user_id", "item_id", "timestamp"), ("rating",)
_ITEM_NEEDS, _ITEM_MAY = ("item_id", "title"), ("description", "brand", "category")


def reviews(inputs: Inputs, source: TablesSource, filters: Filters, progress: Progress) -> ReviewParts:
    """The stored parts of the review tables.

    Raises:
        InputError: no table, a mapped column is missing or of a type that cannot be read, or times are no times.
    """
    parts = []
    _name_passed_over(source.reviews, progress)
    for name, path in review_files(source).items():
        table = _mapped(path, source.review_columns, _REVIEW_NEEDS, _REVIEW_MAY, "reviews")
        key = {"layout": "tables", "columns": table.columns, "scale": source.rating_scale}
        parse = partial(judged_reviews, table, source.rating_scale)
        parts.append(stored_part(inputs, name, path, PARSER_VERSION, key, parse, filters, progress))
    return ReviewParts(tuple(parts))


def items(inputs: Inputs, source: TablesSource, filters: Filters, progress: Progress) -> ItemRecords:
    """Records of the item tables. Raises InputError like :func:`reviews`."""
    parts = {}
    _name_passed_over(source.items, progress)
    for name, path in item_files(source).items():
        table = _mapped(path, source.item_columns, _ITEM_NEEDS, _ITEM_MAY, "items")
        parts[name] = stored_items(
            inputs,
            {"layout": "tables", "version": PARSER_VERSION, "columns": table.columns, "sha256": digest(path)},
            lambda out, table=table: _write_items(table, out, progress.named(table.path.name)),
        )
    return load_items(parts, filters)


def _name_passed_over(patterns: Iterable[str], progress: Progress) -> None:
    if hidden := passed_over(patterns, TABLE_SUFFIXES):
        names = ", ".join(str(path) for path in hidden[:3]) + (", …" if len(hidden) > 3 else "")
        progress.say(
            f"not read, as names with . or _ first, locks and backups hold no data (files: {len(hidden):,}): {names}"
        )


def _mapped(
    path: Path, given: Mapping[Any, str | None], needed: tuple[str, ...], optional: tuple[str, ...], role: str
) -> Table:
    mapped = {name: name for name in needed} | {ours: theirs for ours, theirs in given.items() if theirs is not None}
    return table_of(path, mapped, tuple(name for name in optional if name not in given), role)


def _write_items(table: Table, out: ItemWriter, progress: Progress) -> None:
    try:
        for batch in batches(table, progress):
            require_ids(table, batch, ("item_id",))
            rows = batch.with_columns(pl.col("item_id").cast(pl.String))
            for row in rows.iter_rows(named=True):
                if row["fault"]:
                    out.refuse(row["line"], row["fault"], row["raw"])
                else:
                    out.add(row["line"], ",".join(str(row[name]) for name in table.columns), row, _ITEM)
    except DamagedFile as error:
        out.damage = error.damage
