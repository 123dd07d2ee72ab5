"""Your own data: Parquet or CSV tables with a map from SIDR's columns to yours (docs/own-data.md).

Times are unix times in one unit per file (told by their size), ISO 8601 dates, or Parquet timestamps;
a date without an offset is UTC. Rows that cannot be reviews or items are quarantined by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.errors import InputError
from sidr_core.pipeline.digest import digest
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews.files import resolve
from sidr_core.reviews.lines import DamagedFile, undamaged
from sidr_core.reviews.parsed import TEXT_LIMIT, Parsed
from sidr_core.reviews.records import ReviewParts, stored_part
from sidr_core.reviews.sources import table_rows
from sidr_core.reviews.sources.item_records import ItemLayout, ItemWriter, load_items, stored_items

if TYPE_CHECKING:
    from sidr_core.settings import Filters, TablesSource

#: Raise it when the same file should parse to other reviews.
PARSER_VERSION = "2"

_ITEM = ItemLayout(("item_id",), "title", ("description",), ("brand",), ("category",))
_REVIEW_NEEDS, _REVIEW_MAY = ("user_id", "item_id", "timestamp"), ("rating",)
_ITEM_NEEDS, _ITEM_MAY = ("item_id", "title"), ("description", "brand", "category")

_LATEST = 4_102_444_800  # 2100-01-01
# Unit, parts of a second, and the first number that is a time in it rather than in the one before.
_UNITS = (("seconds", 1, 0), ("milliseconds", 10**3, 10**11), ("microseconds", 10**6, 10**14))
#: Smallest plausible median time, 1973: below are dates like 20180601, or counters.
_LEAST = 10**8


def review_files(source: TablesSource) -> dict[str, Path]:
    """The review tables by name. Raises InputError if one is missing or a folder holds none."""
    return resolve(source.reviews, "reviews", table_rows.SUFFIXES)


def item_files(source: TablesSource) -> dict[str, Path]:
    """The item tables by name. Raises InputError if one is missing or a folder holds none."""
    return resolve(source.items, "items", table_rows.SUFFIXES)


def reviews(inputs: Inputs, source: TablesSource, filters: Filters, progress: Progress) -> ReviewParts:
    """The stored parts of the review tables.

    Raises:
        InputError: no table, a mapped column is missing or of a type that cannot be read, or times are no times.
    """
    parts = []
    for name, path in review_files(source).items():
        columns = _mapped(path, source.review_columns, _REVIEW_NEEDS, _REVIEW_MAY, "reviews")
        # A part that was allowed to end early must not serve where that is not allowed.
        key = {"layout": "tables", "columns": columns, "sha256": digest(path), "cut": filters.allow_truncated}
        parse = partial(_judged, path, columns, filters, progress.named(name))
        parts.append(stored_part(inputs, name, PARSER_VERSION, key, parse, distinct=True))
    return ReviewParts(tuple(parts))


def items(inputs: Inputs, source: TablesSource, filters: Filters, progress: Progress) -> Parsed:
    """Records of the item tables. Raises InputError like :func:`reviews`."""
    parts = {}
    for name, path in item_files(source).items():
        columns = _mapped(path, source.item_columns, _ITEM_NEEDS, _ITEM_MAY, "items")
        parts[name] = stored_items(
            inputs,
            {"layout": "tables", "columns": columns, "sha256": digest(path)},
            lambda out, path=path, columns=columns: _write_items(path, columns, out, progress.named(path.name)),
        )
    return load_items(parts, filters)


def _mapped(
    path: Path, given: Mapping[Any, str], needed: tuple[str, ...], optional: tuple[str, ...], role: str
) -> dict[str, str]:
    mapped = {name: name for name in needed} | dict(given)
    return table_rows.columns_of(path, mapped, tuple(name for name in optional if name not in given), role)


def _write_items(path: Path, columns: dict[str, str], out: ItemWriter, progress: Progress) -> None:
    try:
        for batch in table_rows.batches(path, columns, progress):
            _require_ids(path, batch, ("item_id",), columns)
            rows = batch.with_columns(pl.col("item_id").cast(pl.String))
            for row in rows.iter_rows(named=True):
                raw = row["raw"] if row["fault"] else ",".join(str(row[name]) for name in columns)
                if row["fault"]:
                    out.refuse(row["line"], row["fault"], raw)
                else:
                    out.add(row["line"], raw, row, _ITEM)
    except DamagedFile as error:
        out.damage = error.found


def _judged(path: Path, columns: dict[str, str], filters: Filters, progress: Progress) -> Iterator[Parsed]:
    unit = None
    for batch in undamaged(table_rows.batches(path, columns, progress), filters.allow_truncated, progress):
        _require_ids(path, batch, ("user_id", "item_id"), columns)
        if "rating" in columns and batch.schema["rating"].is_nested():
            raise _wrong_type(path, columns["rating"], "numbers", batch.schema["rating"])
        times = _numbers(path, batch, columns)
        unit = unit or _unit(path, times)
        yield _judge(batch, times, unit)


def _require_ids(path: Path, batch: pl.DataFrame, names: tuple[str, ...], columns: dict[str, str]) -> None:
    for name in names:
        kind = batch.schema[name]
        if not (kind.is_integer() or kind in (pl.String, pl.Null) or isinstance(kind, pl.Categorical | pl.Enum)):
            raise _wrong_type(path, columns[name], "text or whole numbers", kind)


def _wrong_type(path: Path, column: str, expected: str, kind: object) -> InputError:
    return InputError(
        f"{path}: column {column!r} cannot be read",
        expected=expected,
        found=f"values of type {kind}",
        fix="write the column in one of these forms, or correct the map of columns in the profile",
    )


def _numbers(path: Path, batch: pl.DataFrame, columns: dict[str, str]) -> pl.DataFrame:
    """`number` (a unix time in some unit) or `seconds` (of a date) of each row, null where there is neither."""
    time = batch["timestamp"]
    if time.dtype.is_temporal() and time.dtype in (pl.Date, pl.Datetime):
        seconds = time.cast(pl.Datetime("us")).dt.epoch("us") if time.dtype == pl.Date else time.dt.epoch("us")
        return pl.DataFrame({"number": pl.Series([None] * len(time), dtype=pl.Float64), "seconds": seconds // 10**6})
    if time.dtype.is_numeric():
        return pl.DataFrame({"number": time.cast(pl.Float64), "seconds": pl.Series([None] * len(time), dtype=pl.Int64)})
    if time.dtype not in (pl.String, pl.Null):
        raise _wrong_type(path, columns["timestamp"], "unix times, ISO dates or timestamps", time.dtype)
    text = time.cast(pl.String).str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    dates = pl.Series(
        [_date(t) if n is None and t else None for t, n in zip(text, number, strict=True)], dtype=pl.Int64
    )
    return pl.DataFrame({"number": number, "seconds": dates})


def _date(text: str) -> int | None:
    """Unix seconds of an ISO 8601 date or time."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() // 1)


def _unit(path: Path, times: pl.DataFrame) -> tuple[str, int, int]:
    """The unit of a file's unix times: that of the median of those that can be one. Dates have none: seconds."""
    numbers = times["number"].drop_nulls()
    median = numbers.filter(numbers.is_between(_LEAST, 10**17, closed="left")).median()
    if numbers.is_empty():
        return _UNITS[0]
    if median is None:
        raise InputError(
            f"{path}: the times are no unix times in seconds, milliseconds or microseconds",
            expected="numbers from 1973 on in one of these units, or ISO dates (2018-06-01)",
            found=f"numbers such as {numbers[0]:.0f}",
            fix="write the times in one of these forms",
        )
    return next(unit for unit in reversed(_UNITS) if unit[2] <= float(median))  # type: ignore[arg-type]


def _judge(batch: pl.DataFrame, times: pl.DataFrame, unit: tuple[str, int, int]) -> Parsed:
    """Accepted and refused rows of a batch."""
    rating = batch["rating"] if "rating" in batch.columns else pl.Series([None] * len(batch), dtype=pl.Float64)
    rows = (
        batch.select("line", "fault", "raw", pl.col("user_id", "item_id").cast(pl.String))
        .hstack(times)
        .with_columns(
            rating.cast(pl.String).str.strip_chars().replace("", None).alias("raw_rating"),
            batch["timestamp"].cast(pl.String).str.strip_chars().replace("", None).alias("raw_time"),
        )
        .with_columns(
            pl.col("raw_rating").cast(pl.Float64, strict=False).alias("rating"),
            pl.coalesce("seconds", (pl.col("number") / unit[1]).floor().cast(pl.Int64, strict=False)).alias(
                "timestamp"
            ),
        )
        .with_columns(pl.coalesce("fault", _field_reason(), _time_reason(*unit)).alias("reason"))
    )
    shown = pl.concat_str("user_id", "item_id", "raw_rating", "raw_time", separator=",", ignore_nulls=True)
    refused = rows.filter(pl.col("reason").is_not_null()).select(
        "line", "reason", pl.coalesce("raw", shown).str.slice(0, TEXT_LIMIT).alias("text")
    )
    accepted = rows.filter(pl.col("reason").is_null()).select("line", "user_id", "item_id", "rating", "timestamp")
    return Parsed(accepted, refused, len(rows))


def _field_reason() -> pl.Expr:
    """Why the fields of a row are none of a review, or null; a rating may be absent."""
    ids = [pl.col("user_id"), pl.col("item_id")]
    blank = [name.is_null() | (name.str.strip_chars() == "") for name in ids]
    return (
        pl.when(pl.any_horizontal(*blank, pl.col("raw_time").is_null()))
        .then(pl.lit("missing_field"))
        .when(pl.any_horizontal(name.str.contains("\0", literal=True) for name in ids))
        .then(pl.lit("nul_byte"))
        .when(pl.col("raw_rating").is_not_null() & pl.col("rating").is_null())
        .then(pl.lit("wrong_type"))
        .when(pl.col("rating").is_nan() | ~pl.col("rating").is_between(0, 5))
        .then(pl.lit("rating_out_of_range"))
        .when(pl.col("number").is_null() & pl.col("seconds").is_null())
        .then(pl.lit("wrong_type"))
    )


def _time_reason(unit: str, parts: int, first: int) -> pl.Expr:
    """Why a row's time is none in this unit, or null."""
    number, seconds = pl.col("number"), pl.col("seconds")
    in_unit = number.is_between(first, _LATEST * parts) & (number == number.floor())
    other = [
        pl.when(number.is_between(max(least, 1), _LATEST * scale)).then(pl.lit(f"time_in_{name}"))
        for name, scale, least in reversed(_UNITS)
        if name != unit
    ]
    return (
        pl.when(number.is_not_null() & ~in_unit)
        .then(pl.coalesce(*other, pl.lit("bad_time")))
        .when(~seconds.is_between(0, _LATEST))
        .then(pl.lit("bad_time"))
    )
