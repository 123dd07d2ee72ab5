"""Reads Parquet and CSV tables of any origin in batches of the mapped columns, without trusting a row.

A Parquet row's number counts from 1. A CSV row's number is that of its first line in the file, where the
header is line 1. Times are unix times in one unit per file (told by their size), ISO 8601 dates, or Parquet
timestamps; a date without an offset is UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Progress
from sidr_core.reviews import layouts
from sidr_core.reviews.csv_rows import CsvForm, csv_batches
from sidr_core.reviews.judge import UNITS, Judged, Unit, digests, judge
from sidr_core.reviews.quarantine import TEXT_LIMIT

_BATCH = 100_000
_TABLES = (layouts.PARQUET, layouts.TABLE_CSV, *layouts.RATINGS_LAYOUTS)
#: Smallest plausible median time, 1973: below are dates like 20180601, or counters.
_LEAST_TIME = 10**8
#: What databases and other programs write into a cell that holds nothing.
_NOTHING = ("\\N", "NULL", "null", "None", "nan", "NaN", "NA", "N/A", "#N/A", "<NA>")
_TIME_FORMS = (
    "unix times in seconds, milliseconds or microseconds, with or without a fraction; ISO 8601 dates and times "
    "(2018-06-01, 2018-06-01T09:30:00+02:00); Parquet dates and timestamps"
)


@dataclass(frozen=True)
class Table:
    """A file and the columns of it that are read.

    Args:
        form: of a CSV; None for Parquet.
        columns: our name -> the file's.
        places: our name -> the column's place in a CSV, from 0.
    """

    path: Path
    form: CsvForm | None
    columns: Mapping[str, str]
    places: Mapping[str, int]


def table_of(path: Path, mapped: Mapping[str, str], optional: tuple[str, ...], role: str) -> Table:
    """The table at `path` with its mapped columns.

    Args:
        mapped: our names -> the file's; see :class:`sidr_core.settings.TablesSource`.
        optional: our names that the profile did not map: they are looked for under our own name.

    Raises:
        InputError: the file is no table with a header, or a mapped column is not in it.
    """
    detected = layouts.detect(path)
    header, form = detected.columns, detected.form
    if form and not set(mapped.values()) & set(header) and all(map(str.isdecimal, mapped.values())):
        # Columns by their numbers: there is no header.
        header = tuple(str(number) for number in range(1, form.width + 1))
        form = replace(form, header=False)
    elif detected.name not in _TABLES or not header:
        layouts.require(path, detected, (layouts.PARQUET, layouts.TABLE_CSV), role)
    setting = f"`source.{role.removesuffix('s')}_columns`"
    for theirs in mapped.values():
        if not theirs or theirs not in header:
            raise InputError(
                f"{path} has no column {theirs!r}",
                expected=", ".join(f"{theirs} (as {ours})" for ours, theirs in mapped.items()),
                found=str(detected),
                fix=f"map our names to this file's columns under {setting}; if its first line is no header, by their "
                f"numbers ('1', '2', …); this file looks like {layouts.BELONGS.get(detected.name, 'a table')}",
            )
        if header.count(theirs) > 1:
            raise InputError(
                f"{path} has {header.count(theirs)} columns {theirs!r}",
                expected="one column of each name that is mapped",
                found=str(detected),
                fix=f"rename one of them in the file, or map another under {setting}",
            )
    columns = dict(mapped) | {name: name for name in optional if header.count(name) == 1}
    return Table(path, form, columns, {ours: header.index(theirs) for ours, theirs in columns.items()})


def batches(table: Table, progress: Progress | None = None) -> Iterator[pl.DataFrame]:
    """Frames with `line`, `fault` (why the row cannot be read, or null), `raw` (a CSV row's text) and our columns.

    CSV columns are strings, Parquet columns of whatever type they are. What stands for nothing, as `NULL`, is null.

    Raises:
        InputError: a Parquet file is damaged; DamagedFile: a gzip file is, after its last whole row.
    """
    csv = table.form and csv_batches(table.path, table.form, table.places, progress)
    for batch in csv or _parquet(table.path, table.columns, progress):
        texts = pl.col([name for name in table.columns if batch.schema[name] == pl.String])
        yield batch.with_columns(pl.when(~texts.is_in(_NOTHING)).then(texts))


def _parquet(path: Path, columns: Mapping[str, str], progress: Progress | None) -> Iterator[pl.DataFrame]:
    import pyarrow as pa

    from sidr_core.reviews.sources import parquet_rows

    done = 0
    try:
        for table, total in parquet_rows.batches(path, list(dict.fromkeys(columns.values())), _BATCH):
            frame = pl.DataFrame(table)  # by series: `pl.col` reads names such as `*` and `^…$` as patterns
            rows = pl.DataFrame({ours: frame[theirs] for ours, theirs in columns.items()})
            yield rows.with_columns(
                pl.int_range(done + 1, done + 1 + pl.len(), dtype=pl.Int64).alias("line"),
                pl.lit(None, dtype=pl.String).alias("fault"),
                pl.lit(None, dtype=pl.String).alias("raw"),
            )
            done += len(rows)
            if progress:
                progress.tick(done, total, "rows")
    except (OSError, pa.ArrowException, pl.exceptions.PanicException) as error:  # types that polars stumbles over
        raise InputError(
            f"{path} cannot be read after row {done:,}",
            expected="a whole Parquet file",
            found=str(error).splitlines()[0][:200],
            fix="write or fetch the file again",
        ) from None


def require_ids(table: Table, batch: pl.DataFrame, names: tuple[str, ...]) -> None:
    """Raise InputError unless the columns of these names of ours hold text or whole numbers."""
    for name in names:
        kind = batch.schema[name]
        if not (kind.is_integer() or kind in (pl.String, pl.Null) or isinstance(kind, pl.Categorical | pl.Enum)):
            raise _wrong_type(table, name, "text or whole numbers", kind)


def _wrong_type(table: Table, name: str, expected: str, kind: object) -> InputError:
    return InputError(
        f"{table.path}: column {table.columns[name]!r} cannot be read",
        expected=expected,
        found=f"values of type {kind}",
        fix="write the column in one of these forms, or correct the map of columns in the profile",
    )


def judged_reviews(
    table: Table, scale: tuple[float, float], progress: Progress, *, ratings_csv: bool = False
) -> Iterator[Judged]:
    """The reviews of a table.

    Args:
        scale: lowest and highest rating, which become 0 and 5.
        ratings_csv: whether it has nothing but the four columns: then a rating is needed, and a refused line is
            quoted as it stands.

    Raises:
        InputError: a column is of a type or in a form that cannot be read; see :func:`batches`.
    """
    unit: Unit | None = None
    for place, batch in enumerate(batches(table, progress)):
        number, date = _times(table, batch)
        unit = unit or _unit(table, number)
        rows = _typed(table, batch, pl.coalesce(number, date * UNITS[unit or "s"][1]), scale)
        if place == 0:
            _require_readable(table, rows, scale)
        verdicts = judge(rows, unit or "s", needs_rating=ratings_csv)
        accepted = verdicts.filter(pl.col("reason").is_null())
        mapped = pl.concat_str("user_id", "item_id", "raw_rating", "raw_time", separator=",", ignore_nulls=True)
        text = pl.when(pl.lit(ratings_csv) | pl.col("fault").is_not_null()).then("raw").otherwise(mapped)
        yield Judged(
            accepted.select("line", "user_id", "item_id", "rating", "timestamp", digests(accepted, "time")),
            verdicts.filter(pl.col("reason").is_not_null()).select(
                "line", "reason", text.str.slice(0, TEXT_LIMIT).alias("text")
            ),
            len(rows),
            accepted.filter("trimmed").height,
        )


def _typed(table: Table, batch: pl.DataFrame, time: pl.Expr, scale: tuple[float, float]) -> pl.DataFrame:
    """The rows as the judge reads them, with `fault`, `raw`, `raw_rating` and `raw_time`. Raises InputError."""
    require_ids(table, batch, ("user_id", "item_id"))
    ratings = batch["rating"] if "rating" in batch.columns else pl.repeat(None, len(batch), eager=True)
    if ratings.dtype.is_nested():
        raise _wrong_type(table, "rating", "numbers", ratings.dtype)
    rating = pl.col("raw_rating").cast(pl.Float64, strict=False)
    if scale != (0, 5):
        rating = (rating - scale[0]) * 5 / (scale[1] - scale[0])
    rows = batch.select(
        "line",
        pl.col("user_id", "item_id").cast(pl.String),
        _filled(ratings).alias("raw_rating"),
        _filled(batch["timestamp"]).alias("raw_time"),
        time.alias("time"),
        "fault",
        "raw",
    ).with_columns(rating.alias("rating"))
    unread = (pl.col("raw_rating").is_not_null() & pl.col("rating").is_null()) | (
        pl.col("raw_time").is_not_null() & pl.col("time").is_null()
    )
    return rows.with_columns(pl.coalesce("fault", pl.when(unread).then(pl.lit("wrong_type"))).alias("reason"))


def _require_readable(table: Table, rows: pl.DataFrame, scale: tuple[float, float]) -> None:
    """Raise InputError where a file's first rows hold no time or rating that can be read, or another scale."""
    for name, raw, typed, forms in (
        ("timestamp", "raw_time", "time", _TIME_FORMS),
        ("rating", "raw_rating", "rating", "numbers; `rating: null` in the map leaves the column out"),
    ):
        given = rows.filter(pl.col(raw).is_not_null())
        if len(given) and given[typed].null_count() == len(given):
            raise InputError(
                f"{table.path}: column {table.columns[name]!r} cannot be read as {name}",
                expected=forms,
                found=f"values such as {given[raw][0][:60]!r}",
                fix="write the column in one of these forms, or correct the map of columns in the profile",
            )
    rated = rows.drop_nulls("rating").drop_nans("rating")
    outside = rated.filter(~pl.col("rating").is_between(0, 5))
    if 2 * len(outside) > len(rated):
        raise InputError(
            f"{table.path}: the ratings in column {table.columns['rating']!r} are of another scale",
            expected=f"ratings from {scale[0]:g} to {scale[1]:g} (`source.rating_scale`)",
            found=f"{len(outside):,} of the first {len(rated):,} outside, such as {outside['raw_rating'][0]}",
            fix="set `source.rating_scale` to the lowest and the highest rating, such as [1, 10]; or leave ratings "
            "out (`review_columns: {rating: null}` of `tables`)",
        )


def _filled(column: pl.Series) -> pl.Series:
    """The values as text, null where they are blank."""
    return column.cast(pl.String).str.strip_chars().replace("", None)


def _times(table: Table, batch: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Of each row a unix time in some unit, and the unix seconds of a date; null where there is none."""
    time = batch["timestamp"]
    none = pl.repeat(None, len(time), dtype=pl.Float64, eager=True)
    if time.dtype.is_temporal() and time.dtype in (pl.Date, pl.Datetime):
        moments = time.cast(pl.Datetime("us")) if time.dtype == pl.Date else time
        return none, moments.dt.epoch("us") / 10**6
    if time.dtype.is_numeric():
        return time.cast(pl.Float64), none
    if time.dtype not in (pl.String, pl.Null):
        raise _wrong_type(table, "timestamp", _TIME_FORMS, time.dtype)
    text = time.cast(pl.String).str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    if number.null_count() == text.null_count():
        return number, none
    dates = [_date(t) if n is None and t else None for t, n in zip(text, number, strict=True)]
    return number, pl.Series(dates, dtype=pl.Float64)


def _date(text: str) -> float | None:
    """Unix seconds of an ISO 8601 date or time."""
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _unit(table: Table, numbers: pl.Series) -> Unit | None:
    """The unit of a file's unix times: that of the median of those that can be one; None where there are none."""
    numbers = numbers.drop_nulls()
    plausible = numbers.filter(numbers.is_between(_LEAST_TIME, 10**17, closed="left"))
    median = plausible.quantile(0.5, interpolation="lower")  # a value of the file, not one between two units
    if numbers.is_empty():
        return None
    if median is None:
        raise InputError(
            f"{table.path}: the numbers in column {table.columns['timestamp']!r} are no unix times in seconds, "
            "milliseconds or microseconds",
            expected=f"times from 1973 on: {_TIME_FORMS}",
            found=f"numbers such as {numbers[0]:.0f}",
            fix="write the times in one of these forms, or map another column as `timestamp`",
        )
    return next(unit for unit in reversed(UNITS) if UNITS[unit][2] <= median)
