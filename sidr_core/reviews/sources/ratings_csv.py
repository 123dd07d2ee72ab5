"""Ratings-only CSV: four columns without text, user or item first, with or without a header.

Amazon's 2014, 2018 and 2023 releases all offer such files, in different column orders and units of time;
both are told per file. Metadata is optional and may be of any Amazon release.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews import layouts
from sidr_core.reviews.records import ReviewParts, stored_part
from sidr_core.reviews.source_files import item_files, review_files
from sidr_core.reviews.sources.item_records import AMAZON, ItemRecords, parse_metadata
from sidr_core.reviews.sources.table_rows import Table, judged_reviews

if TYPE_CHECKING:
    from sidr_core.settings import Filters, RatingsCsvSource

#: Raise it when the same file should be parsed to other records.
PARSER_VERSION = "5"

_COLUMNS = {
    "user_item": ("user_id", "item_id", "rating", "timestamp"),
    "item_user": ("item_id", "user_id", "rating", "timestamp"),
}


def reviews(inputs: Inputs, source: RatingsCsvSource, filters: Filters, progress: Progress) -> ReviewParts:
    """The stored parts of the CSV files.

    Raises:
        InputError: a file is of another layout, its column order cannot be told, or it is damaged.
    """
    parts = []
    for name, path in review_files(source).items():
        detected = layouts.detect(path)
        layouts.require(path, detected, layouts.RATINGS_LAYOUTS, "ratings")
        order = source.order
        if order == "auto":
            if detected.name == layouts.RATINGS:
                raise InputError(
                    f"{path}: which of the first two columns is the user?",
                    expected="a header that names them (user_id, item_id), or ids of Amazon's form",
                    found="ids that could be either",
                    fix="set `source.order` to `user_item` or `item_user`",
                )
            order = "user_item" if detected.name == layouts.RATINGS_USER_ITEM else "item_user"
        columns = {name: name for name in ("user_id", "item_id", "rating", "timestamp")}
        places = {name: _COLUMNS[order].index(name) for name in columns}
        table = Table(path, detected.form, columns, places)
        parse = partial(judged_reviews, table, source.rating_scale, ratings_csv=True)
        key = {"format": "csv", "order": order, "scale": source.rating_scale}
        parts.append(stored_part(inputs, name, path, PARSER_VERSION, key, parse, filters, progress))
    return ReviewParts(tuple(parts))


def items(inputs: Inputs, source: RatingsCsvSource, filters: Filters, progress: Progress) -> ItemRecords:
    """Records of the metadata files, of any Amazon layout."""
    return parse_metadata(inputs, item_files(source), tuple(AMAZON), filters, progress)
