"""Ratings-only CSV: four columns without text, user or item first, with or without a header.

Amazon's 2014, 2018 and 2023 releases all offer such files, in different column orders and units of time;
both are told per file. Metadata is optional and may be of any Amazon release.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews import layouts
from sidr_core.reviews.files import resolve
from sidr_core.reviews.parsed import Parsed
from sidr_core.reviews.records import ReviewParts, parse_ratings
from sidr_core.reviews.sources.item_records import AMAZON, parse_metadata

if TYPE_CHECKING:
    from sidr_core.settings import Filters, RatingsCsvSource

_LAYOUTS = (layouts.RATINGS_USER_ITEM, layouts.RATINGS_ITEM_USER, layouts.RATINGS)


def review_files(source: RatingsCsvSource) -> dict[str, Path]:
    """The CSV files by name. Raises InputError if one is missing."""
    return resolve(source.ratings, "ratings")


def item_files(source: RatingsCsvSource) -> dict[str, Path]:
    """The metadata files by name, if any. Raises InputError if one is missing."""
    return resolve(source.items, "items")


def reviews(inputs: Inputs, source: RatingsCsvSource, filters: Filters, progress: Progress) -> ReviewParts:
    """The stored parts of the CSV files.

    Raises:
        InputError: a file is of another layout, its column order cannot be told, or it is damaged.
    """
    parts = ReviewParts(())
    for name, path in review_files(source).items():
        order, unit = _order(path, source.order), layouts.time_unit([path])
        parts += parse_ratings(inputs, {name: path}, order, filters, progress, unit)
    return parts


def items(inputs: Inputs, source: RatingsCsvSource, filters: Filters, progress: Progress) -> Parsed:
    """Records of the metadata files, of any Amazon layout."""
    return parse_metadata(inputs, item_files(source), tuple(AMAZON), filters, progress)


def _order(path: Path, order: Literal["auto", "user_item", "item_user"]) -> Literal["user_item", "item_user"]:
    found = layouts.detect(path)
    layouts.require(path, found, _LAYOUTS, "ratings")
    if order != "auto":
        return order
    if found.name == layouts.RATINGS:
        raise InputError(
            f"{path}: which of the first two columns is the user?",
            expected="a header that names them (user_id, item_id), or ids of Amazon's form",
            found="ids that could be either",
            fix="set `source.order` to `user_item` or `item_user`",
        )
    return "user_item" if found.name == layouts.RATINGS_USER_ITEM else "item_user"
