"""Where reviews and items come from."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from sidr_core.settings.base import Section


class SampleSource(Section):
    """A seeded generator of Amazon-layout files with learnable tastes. Its data are synthetic.

    Args:
        shift: month, `YYYY-MM`, from which all items trade their parts, so that what was learnt before is worth
            little; null for none. All that lies before it stays as it is without.
    """

    PATHS: ClassVar[tuple[str, ...]] = ()
    kind: Literal["sample"]
    category: Literal["games", "office", "industrial"]
    items: int = Field(default=800, ge=50)
    users: int = Field(default=2500, ge=50)
    seed: int = 7
    shift: str | None = Field(default=None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$")


class _AmazonSource(Section):
    """Reviews and metadata of one Amazon release; paths, globs or http(s) URLs, each with an optional
    `#sha256=<hex>` at its end that the file must match. Without metadata see `filters.items_without_text`.
    """

    PATHS: ClassVar[tuple[str, ...]] = ("reviews", "items")  # fields that name files
    reviews: tuple[str, ...] = Field(min_length=1)
    items: tuple[str, ...] = ()


class Amazon2014Source(_AmazonSource):
    """Amazon 2014: JSON reviews, metadata in Python-dict syntax (read by a literal parser)."""

    kind: Literal["amazon_2014"]


class Amazon2018Source(_AmazonSource):
    """Amazon Reviews 2018 (UCSD v2): JSON lines, gzip or plain."""

    kind: Literal["amazon_2018"]


class Amazon2023Source(_AmazonSource):
    """Amazon Reviews 2023: JSON lines keyed by `parent_asin`, times in milliseconds."""

    kind: Literal["amazon_2023"]


class RatingsCsvSource(Section):
    """Four columns without text: user, item, rating, time, or item first; with or without a header.

    Args:
        order: of the first two columns; `auto` tells it from a header or from the shape of the ids, and
            is an error where it cannot be told.
        items: metadata of any Amazon layout, for titles; may be empty (see `filters.items_without_text`).
    """

    PATHS: ClassVar[tuple[str, ...]] = ("ratings", "items")
    kind: Literal["ratings_csv"]
    ratings: tuple[str, ...] = Field(min_length=1)
    items: tuple[str, ...] = ()
    order: Literal["auto", "user_item", "item_user"] = "auto"


class TablesSource(Section):
    """Your own data: Parquet or CSV files (or folders of them), with a map from our columns to yours.

    Args:
        review_columns: `user_id`, `item_id`, `timestamp`, and optionally `rating`: your names. What is not
            mapped is looked for under our name.
        item_columns: `item_id`, `title`, and optionally `description`, `brand`, `category`, likewise.
    """

    PATHS: ClassVar[tuple[str, ...]] = ("reviews", "items")
    kind: Literal["tables"]
    reviews: tuple[str, ...] = Field(min_length=1)
    items: tuple[str, ...] = ()
    review_columns: dict[Literal["user_id", "item_id", "timestamp", "rating"], str] = Field(default_factory=dict)
    item_columns: dict[Literal["item_id", "title", "description", "brand", "category"], str] = Field(
        default_factory=dict
    )


class MiniOneRecSource(Section):
    """MiniOneRec's published CSV split: its rows, items and SIDs are kept as they are."""

    PATHS: ClassVar[tuple[str, ...]] = ("train", "valid", "test", "info", "items")
    kind: Literal["minionerec"]
    train: str
    valid: str
    test: str
    info: str
    items: str | None = None  # <category>.item.json with descriptions


SingleSource = Annotated[
    SampleSource
    | Amazon2014Source
    | Amazon2018Source
    | Amazon2023Source
    | RatingsCsvSource
    | TablesSource
    | MiniOneRecSource,
    Field(discriminator="kind"),
]


class MixSource(Section):
    """Several sources joined into one catalogue and one SID space; ids become `<member>:<id>`.

    Args:
        sources: member -> its source, two or more. Members share the dataset's snapshots, filters and split.
    """

    PATHS: ClassVar[tuple[str, ...]] = ()
    kind: Literal["mix"]
    sources: dict[str, SingleSource] = Field(min_length=2)

    @field_validator("sources")
    @classmethod
    def _joinable(cls, value: dict[str, SingleSource]) -> dict[str, SingleSource]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"member {name!r}: expected letters, digits and underscores, a letter first")
        published = [name for name, source in value.items() if source.kind == "minionerec"]
        if published and len(published) < len(value):
            raise ValueError(
                f"{published[0]} brings a split of its own without times, so it cannot be mixed with sources of reviews"
            )
        return value


Source = Annotated[
    SampleSource
    | Amazon2014Source
    | Amazon2018Source
    | Amazon2023Source
    | RatingsCsvSource
    | TablesSource
    | MiniOneRecSource
    | MixSource,
    Field(discriminator="kind"),
]


def single_sources(source: Source) -> tuple[SingleSource, ...]:
    """The members of a mix, or the source itself."""
    return tuple(source.sources.values()) if isinstance(source, MixSource) else (source,)
