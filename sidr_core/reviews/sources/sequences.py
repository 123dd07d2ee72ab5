"""Sequences without times: a table with one line per user, whose items stand in their order, separated by blanks.

Items are JSON lines with `item_id` and `title`, and what else there is (`brand` or `platform`, `category` or `kind`,
`description`). An order is all that such data know of time: no snapshot cuts them, and only `split.kind:
leave_one_out` can split them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews import layouts
from sidr_core.reviews.csv_rows import csv_batches
from sidr_core.reviews.judge import Judged
from sidr_core.reviews.quarantine import TEXT_LIMIT
from sidr_core.reviews.records import ReviewParts, stored_part
from sidr_core.reviews.source_files import item_files, review_files
from sidr_core.reviews.sources.item_records import ItemRecords, parse_metadata

if TYPE_CHECKING:
    from sidr_core.settings import Filters, SequencesSource

#: Raise it when the same files should parse to other rows.
PARSER_VERSION = "1"

#: What a sequence does not have: a digest, as an item that comes twice was met twice.
_NULL = {"rating": pl.Float64, "timestamp": pl.Int64, "digest": pl.UInt64}
_ITEM_TABLES = (layouts.ITEMS_PLAIN,)


def reviews(inputs: Inputs, source: SequencesSource, filters: Filters, progress: Progress) -> ReviewParts:
    """One row per item of a sequence, in the order of the file and of the sequence.

    Raises:
        InputError: a file is of another layout, or damaged.
    """
    parts = []
    for name, path in review_files(source).items():
        detected = layouts.detect(path)
        layouts.require(path, detected, (layouts.SEQUENCES,), "sequences")
        parse = partial(_rows, path, detected)
        parts.append(stored_part(inputs, name, path, PARSER_VERSION, {"layout": "sequences"}, parse, filters, progress))
    return ReviewParts(tuple(parts))


def items(inputs: Inputs, source: SequencesSource, filters: Filters, progress: Progress) -> ItemRecords:
    """Records of the item files. Raises InputError like :func:`reviews`."""
    return parse_metadata(inputs, item_files(source), _ITEM_TABLES, filters, progress)


def _rows(path: Path, detected: layouts.Detected, progress: Progress) -> Iterator[Judged]:
    """The items of each line. A line is refused whole: without one of its items it would be another sequence."""
    assert detected.form is not None
    places = {name: detected.columns.index(name) for name in layouts.SEQUENCE_COLUMNS}
    for batch in csv_batches(path, detected.form, places, progress):
        read = batch.with_columns(
            pl.col("user_id").str.strip_chars(), pl.col("item_ids").str.strip_chars().str.split(" ").alias("item_id")
        ).with_columns(_reason().alias("reason"))
        refused = read.filter(pl.col("reason").is_not_null())
        sound = read.filter(pl.col("reason").is_null()).select("line", "user_id", "item_id").explode("item_id")
        yield Judged(
            sound.with_columns(pl.lit(None, dtype=kind).alias(name) for name, kind in _NULL.items()),
            refused.select("line", "reason", pl.col("raw").fill_null("").str.slice(0, TEXT_LIMIT).alias("text")),
            len(sound) + len(refused),
        )


def _reason() -> pl.Expr:
    """Why a line is no sequence, or null."""
    ids = pl.col("user_id"), pl.col("item_ids")
    return (
        pl.when(pl.col("fault").is_not_null())
        .then(pl.col("fault"))
        .when(pl.any_horizontal((field.is_null() | (field == "")) for field in ids))
        .then(pl.lit("missing_field"))
        .when(pl.any_horizontal(field.str.contains("\0", literal=True) for field in ids))
        .then(pl.lit("nul_byte"))
        .when(pl.col("item_id").list.contains(""))
        .then(pl.lit("bad_list"))
    )
