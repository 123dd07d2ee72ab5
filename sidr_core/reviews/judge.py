"""The one judge of a review: typed fields are a review, or there is a reason why they are none.

Whatever a file's layout, its reader gives typed fields and this judge applies the same rules to them. A line's
verdict depends on nothing but the line and the unit of its file's times.

Two reviews are exact duplicates if user, item, rating, time and text are equal; their 64-bit xxh3 digests
stand for them. Among 100 million reviews the chance that two others share one is 3 in 10,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import numpy as np
import polars as pl
import xxhash

Unit = Literal["s", "ms", "us"]

#: The last second that counts as a date: 2100-01-01.
LATEST = 4_102_444_800
#: Unit of unix times -> its name, parts of a second, and the first number that is a time in it and not in the one
#: before: in milliseconds numbers begin in 1973, as seconds they would be the year 5138.
UNITS: dict[Unit, tuple[str, int, int]] = {
    "s": ("seconds", 1, 0),
    "ms": ("milliseconds", 10**3, 10**11),
    "us": ("microseconds", 10**6, 10**14),
}

#: What a reader gives of each record. `time` is in the file's unit; `reason` says why a record could not be read.
TYPED = {
    "line": pl.Int64,
    "user_id": pl.String,
    "item_id": pl.String,
    "rating": pl.Float64,
    "time": pl.Float64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class Judged:
    """The records of a piece of a file, in line order.

    Args:
        accepted: line, user_id, item_id, rating, timestamp (seconds) and digest (see :func:`digests`; null where
            every record counts), of published rows also split and history_item_ids.
        refused: line, reason, text (cut).
        lines: records read; blank lines are none.
        trimmed: accepted records of which an id had blanks around it.
    """

    accepted: pl.DataFrame
    refused: pl.DataFrame
    lines: int
    trimmed: int = 0


def judge(rows: pl.DataFrame, unit: Unit, *, needs_rating: bool) -> pl.DataFrame:
    """The rows (:data:`TYPED`) with a verdict: `reason` is null exactly where one is a review.

    Ids are without the blanks around them, which columns of a fixed width add (`trimmed`: whether there were any);
    `timestamp` is in whole seconds, a fraction is cut off.
    """
    # Few, large expressions: on blocks of some thousand rows each evaluation costs more than its work.
    seconds = pl.col("time") / UNITS[unit][1]
    ids = pl.col("user_id", "item_id")
    return rows.with_columns(
        pl.coalesce("reason", _reason(unit, needs_rating)).alias("reason"),
        seconds.floor().cast(pl.Int64, strict=False).alias("timestamp"),
        pl.any_horizontal(ids.str.strip_chars() != ids).alias("trimmed"),
        ids.str.strip_chars(),
    )


def _reason(unit: Unit, needs_rating: bool) -> pl.Expr:
    """Why typed fields are no review, or null."""
    ids = [pl.col("user_id"), pl.col("item_id")]
    needed = [*ids, pl.col("time"), *([pl.col("rating")] if needs_rating else [])]
    _, parts, least = UNITS[unit]
    time = pl.col("time")
    is_date = time.is_between(least, LATEST * parts)
    of_other_unit = [
        pl.when(time.is_between(max(first, 1), LATEST * scale)).then(pl.lit(f"time_in_{name}"))
        for other, (name, scale, first) in UNITS.items()
        if other != unit
    ]
    return (
        pl.when(pl.any_horizontal(field.is_null() for field in needed))
        .then(pl.lit("missing_field"))
        .when(pl.any_horizontal(field.str.strip_chars() == "" for field in ids))
        .then(pl.lit("missing_field"))
        .when(pl.any_horizontal(field.str.contains("\0", literal=True) for field in ids))
        .then(pl.lit("nul_byte"))
        .when(~pl.col("rating").is_between(0, 5))
        .then(pl.lit("rating_out_of_range"))
        .when(~is_date)
        .then(pl.coalesce(*of_other_unit, pl.lit("bad_time")))
    )


def digests(rows: pl.DataFrame, time: str, texts: Sequence[str | None] | None = None) -> pl.Series:
    """A UInt64 per row that is equal for exact duplicates: of user, item, rating, the column `time`, and text.

    The values are the same on every machine and with every version of the libraries.
    """
    ids = rows.select(pl.concat_str("user_id", "item_id", separator="\0")).to_series().cast(pl.Binary).to_list()
    xxh = xxhash.xxh3_64_intdigest
    encoded = repeat(b"") if texts is None else [(text or "").encode(errors="surrogatepass") for text in texts]
    mixed = np.fromiter(map(xxh, encoded, map(xxh, ids)), np.uint64, len(ids))
    for column in (rows["rating"], rows[time]):
        number = column.cast(pl.Float64).fill_null(-1.0).to_numpy() + 0.0  # so that -0.0 is 0.0
        mixed = (mixed ^ number.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return pl.Series("digest", mixed)
