"""Amazon's releases: 2014 (metadata in Python-dict syntax, read by a literal parser, or as JSON), 2018 (UCSD v2), 2023.

In 2023 an item is its `parent_asin`, times are in milliseconds; variants of a product (`asin`) share the parent's
id, as in the release's own benchmark files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews import layouts
from sidr_core.reviews.json_lines import ReviewLayout, json_judge
from sidr_core.reviews.lines import blocks
from sidr_core.reviews.records import ReviewParts, stored_part
from sidr_core.reviews.source_files import item_files, review_files
from sidr_core.reviews.sources.item_records import ItemRecords, parse_metadata
from sidr_core.tables.ahead import ahead

if TYPE_CHECKING:
    from sidr_core.settings import Amazon2014Source, Amazon2018Source, Amazon2023Source, Filters

    AmazonSource = Amazon2014Source | Amazon2018Source | Amazon2023Source

#: Raise it when the same file should be parsed to other records.
PARSER_VERSION = "3"


@dataclass(frozen=True)
class Release:
    """One release: the layouts that its files may have, and how a review is read.

    Args:
        review_names, item_names: layouts of `sidr_core.reviews.layouts`.
    """

    layout: ReviewLayout
    review_names: tuple[str, ...]
    item_names: tuple[str, ...]

    def reviews(self, inputs: Inputs, source: AmazonSource, filters: Filters, progress: Progress) -> ReviewParts:
        """The stored parts of the review files. Raises InputError if one is of another layout or damaged."""
        files = review_files(source)
        for path in files.values():
            layouts.require(path, layouts.detect(path), self.review_names, "reviews")
        return parse_reviews(inputs, files, self.layout, filters, progress)

    def items(self, inputs: Inputs, source: AmazonSource, filters: Filters, progress: Progress) -> ItemRecords:
        """Records of the metadata files. Raises InputError if one is of another layout or damaged."""
        return parse_metadata(inputs, item_files(source), self.item_names, filters, progress)


def parse_reviews(
    inputs: Inputs, files: Mapping[str, Path], layout: ReviewLayout, filters: Filters, progress: Progress
) -> ReviewParts:
    """The stored parts of files of JSON lines, whose layout the caller has checked. Raises InputError for damage."""
    key = asdict(layout) | {"format": "json"}
    return ReviewParts(
        tuple(
            stored_part(
                inputs,
                name,
                path,
                PARSER_VERSION,
                key,
                lambda named, path=path: map(json_judge(layout), ahead(blocks(path, named))),
                filters,
                progress,
            )
            for name, path in files.items()
        )
    )


_BEFORE_2023 = ReviewLayout(("reviewerID",), ("asin",), "overall", "unixReviewTime", "s")
RELEASES = {
    "amazon_2014": Release(
        _BEFORE_2023,
        review_names=(layouts.REVIEWS_2014, layouts.REVIEWS_2014_2018),
        item_names=(layouts.ITEMS_2014, layouts.ITEMS_2014_JSON, layouts.ITEMS_2014_2018),
    ),
    "amazon_2018": Release(
        _BEFORE_2023,
        review_names=(layouts.REVIEWS_2018, layouts.REVIEWS_2014_2018),
        item_names=(layouts.ITEMS_2018, layouts.ITEMS_2014_2018),
    ),
    "amazon_2023": Release(
        ReviewLayout(("user_id",), ("parent_asin", "asin"), "rating", "timestamp", "ms"),
        review_names=(layouts.REVIEWS_2023,),
        item_names=(layouts.ITEMS_2023,),
    ),
}
