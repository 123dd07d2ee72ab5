"""What the three Amazon releases have in common; each release is one :class:`Release`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews import layouts
from sidr_core.reviews.files import resolve
from sidr_core.reviews.parsed import Parsed
from sidr_core.reviews.records import ReviewParts, parse_reviews
from sidr_core.reviews.review_layout import ReviewLayout
from sidr_core.reviews.sources.item_records import parse_metadata

if TYPE_CHECKING:
    from sidr_core.settings import Amazon2014Source, Amazon2018Source, Amazon2023Source, Filters

    AmazonSource = Amazon2014Source | Amazon2018Source | Amazon2023Source


@dataclass(frozen=True)
class Release:
    """One release: the layouts that its files may have, and how a review is read.

    Args:
        review_names, item_names: layouts of `sidr_core.reviews.layouts`.
    """

    layout: ReviewLayout
    review_names: tuple[str, ...]
    item_names: tuple[str, ...]

    def review_files(self, source: AmazonSource) -> dict[str, Path]:
        """The review files by name. Raises InputError if one is missing."""
        return resolve(source.reviews, "reviews")

    def item_files(self, source: AmazonSource) -> dict[str, Path]:
        """The metadata files by name. Raises InputError if one is missing."""
        return resolve(source.items, "items")

    def reviews(self, inputs: Inputs, source: AmazonSource, filters: Filters, progress: Progress) -> ReviewParts:
        """The stored parts of the review files. Raises InputError if one is of another layout or damaged."""
        files = self.review_files(source)
        for path in files.values():
            layouts.require(path, layouts.detect(path), self.review_names, "reviews")
        return parse_reviews(inputs, files, self.layout, filters, progress)

    def items(self, inputs: Inputs, source: AmazonSource, filters: Filters, progress: Progress) -> Parsed:
        """Records of the metadata files. Raises InputError if one is of another layout or damaged."""
        return parse_metadata(inputs, self.item_files(source), self.item_names, filters, progress)
