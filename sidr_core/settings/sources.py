"""Where reviews and items come from."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from sidr_core.settings.base import Section, Seed

#: A column of a file; a number is the place of one in a file without a header.
_ColumnName = Annotated[str, Field(coerce_numbers_to_str=True)] | None


def _is_scale(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError(f"expected the lowest and the highest rating, found {value}")
    return value


_Scale = Annotated[tuple[float, float], AfterValidator(_is_scale)]


class SampleSource(Section):
    """A seeded generator of files in the Amazon layout, with tastes that can be learnt. Its data are synthetic."""

    PATHS: ClassVar[tuple[str, ...]] = ()
    kind: Literal["sample"]
    """Names this source."""
    category: Literal["games", "office", "industrial"]
    """Which of three catalogues is made up."""
    items: int = Field(default=800, ge=50)
    """Items of the catalogue."""
    users: int = Field(default=2500, ge=50)
    """Users."""
    seed: Seed = 7
    """Of everything that is made up."""
    rule_share: float | None = Field(default=None, ge=0, le=1)
    """Share of next items that a rule over stated facts decides, where the history gives any: the dose of what can be
    worked out. null: that of the category (games 0.88, office 0.55, industrial 0.22).
    """
    detours: float = Field(default=1.0, ge=0, le=10)
    """Weight of what interrupts a series (extras, companions, accessories): the more, the more often the facts that
    decide lie further back than the newest item.
    """
    late_share: float = Field(default=0.0, ge=0, le=0.5)
    """Share of series and lines that are on sale for the last weeks only, so that texts alone tell of them."""
    shift: str | None = Field(default=None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    """Month, `YYYY-MM`, from which all items trade their parts, so that what was learnt before is worth little; null
    for none. All that lies before it stays as it is without.
    """


class _AmazonSource(Section):
    """Reviews and metadata of one Amazon release, as paths, globs or http(s) URLs.

    Each may end in `#sha256=<hex>`, which the file must then match.
    """

    PATHS: ClassVar[tuple[str, ...]] = ("reviews", "items")  # fields that name files
    reviews: tuple[str, ...] = Field(min_length=1)
    """Files of reviews: paths, globs or URLs, each with an optional `#sha256=<hex>` that the file must match."""
    items: tuple[str, ...] = ()
    """Files of metadata, likewise; without any see `filters.items_without_text`."""


class Amazon2014Source(_AmazonSource):
    """Amazon 2014: JSON reviews, metadata in Python-dict syntax (read by a literal parser)."""

    kind: Literal["amazon_2014"]
    """Names this source."""


class Amazon2018Source(_AmazonSource):
    """Amazon Reviews 2018 (UCSD v2): JSON lines, gzip or plain."""

    kind: Literal["amazon_2018"]
    """Names this source."""


class Amazon2023Source(_AmazonSource):
    """Amazon Reviews 2023: JSON lines keyed by `parent_asin`, times in milliseconds."""

    kind: Literal["amazon_2023"]
    """Names this source."""


class RatingsCsvSource(Section):
    """Four columns without text: user, item, rating, time, or item first; with or without a header."""

    PATHS: ClassVar[tuple[str, ...]] = ("ratings", "items")
    kind: Literal["ratings_csv"]
    """Names this source."""
    ratings: tuple[str, ...] = Field(min_length=1)
    """Files of ratings: paths, globs or URLs."""
    items: tuple[str, ...] = ()
    """Metadata of any Amazon layout, for titles; may be empty (see `filters.items_without_text`)."""
    rating_scale: _Scale = (0, 5)
    """Lowest and highest rating of these files; what is given is brought to 0 … 5 in proportion."""
    order: Literal["auto", "user_item", "item_user"] = "auto"
    """Of the first two columns; `auto` tells it from a header or from the shape of the ids, and is an error where it
    cannot.
    """


class TablesSource(Section):
    """Your own data: Parquet or CSV files, or folders of them (docs/own-data.md)."""

    PATHS: ClassVar[tuple[str, ...]] = ("reviews", "items")
    kind: Literal["tables"]
    """Names this source."""
    reviews: tuple[str, ...] = Field(min_length=1)
    """Files of interactions: paths, globs or URLs."""
    items: tuple[str, ...] = ()
    """Files of items, likewise; may be empty."""
    review_columns: dict[Literal["user_id", "item_id", "timestamp", "rating"], _ColumnName] = Field(
        default_factory=dict
    )
    """Our name of a column -> yours, for `user_id`, `item_id`, `timestamp` and optionally `rating`. A column that is
    not named here is looked for under our name; null leaves an optional one out. In a CSV without a header the names
    are numbers, from 1.
    """
    rating_scale: _Scale = (0, 5)
    """Lowest and highest rating of these files; what is given is brought to 0 … 5 in proportion."""
    item_columns: dict[Literal["item_id", "title", "description", "brand", "category"], _ColumnName] = Field(
        default_factory=dict
    )
    """Likewise for `item_id`, `title` and optionally `description`, `brand`, `category`."""

    @field_validator("review_columns", "item_columns")
    @classmethod
    def _needed(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        needed = [name for name in ("user_id", "item_id", "timestamp", "title") if value.get(name, "") is None]
        if needed:
            raise ValueError(f"`{needed[0]}: null`: expected the name of a column, as {needed[0]} is needed")
        return value


class SequencesSource(Section):
    """Sequences without times: one line per user with the columns `user_id` and `item_ids` (separated by blanks, in
    their order), and items as JSON lines. They need `split.kind: leave_one_out`.
    """

    PATHS: ClassVar[tuple[str, ...]] = ("sequences", "items")
    kind: Literal["sequences"]
    """Names this source."""
    sequences: tuple[str, ...] = Field(min_length=1)
    """Tables of sequences: paths, globs or URLs."""
    items: tuple[str, ...] = ()
    """JSON lines with `item_id`, `title` and optionally `description`, `brand` or `platform`, `category` or `kind`; may
    be empty (see `filters.items_without_text`).
    """


class MiniOneRecSource(Section):
    """MiniOneRec's published CSV split: its rows, items and SIDs are kept as they are."""

    PATHS: ClassVar[tuple[str, ...]] = ("train", "valid", "test", "info", "items")
    kind: Literal["minionerec"]
    """Names this source."""
    train: str
    """CSV of the train rows."""
    valid: str
    """CSV of the valid rows."""
    test: str
    """CSV of the test rows."""
    info: str
    """`<category>.txt` with the SID, title and number of each item."""
    items: str | None = None  # <category>.item.json with descriptions
    """`<category>.item.json` with descriptions; null does without."""


SingleSource = Annotated[
    SampleSource
    | Amazon2014Source
    | Amazon2018Source
    | Amazon2023Source
    | RatingsCsvSource
    | TablesSource
    | SequencesSource
    | MiniOneRecSource,
    Field(discriminator="kind"),
]


class MixSource(Section):
    """Several sources joined into one catalogue and one SID space; ids become `<domain>:<id>`."""

    PATHS: ClassVar[tuple[str, ...]] = ()
    kind: Literal["mix"]
    """Names this source."""
    sources: dict[str, SingleSource] = Field(min_length=2)
    """Domain -> its source, two or more. Domains share the dataset's snapshots, filters and split."""

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
    | SequencesSource
    | MiniOneRecSource
    | MixSource,
    Field(discriminator="kind"),
]


def single_sources(source: Source) -> tuple[SingleSource, ...]:
    """The members of a mix, or the source itself."""
    return tuple(source.sources.values()) if isinstance(source, MixSource) else (source,)
