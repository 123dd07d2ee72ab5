"""Turns blocks of lines into typed reviews, and says why a line is none.

JSON lines are decoded by msgspec straight into the few fields that are needed. What it refuses is read
again by Python's parser, which is laxer in one point (NaN and Infinity are numbers), to name the reason.
A line's verdict depends on nothing but the line. Of equal keys in an object the last one counts.

Two reviews are exact duplicates if user, item, rating, time and text are equal; their 64-bit xxh3 digests
stand for them. Among 100 million reviews the chance that two others share one is 3 in 10,000.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import polars as pl
import xxhash

from sidr_core.reviews.lines import Block, decodes
from sidr_core.reviews.parsed import TEXT_LIMIT

if TYPE_CHECKING:
    from sidr_core.reviews.review_layout import ReviewLayout

Unit = Literal["s", "ms"]

#: user, item, rating, time and text of one line; None where it has none.
Fields = tuple[str | None, str | None, float | None, float | None, str | None]

_MARK = b"\xef\xbb\xbf"
_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
# The last second that counts as a date (2100-01-01), and numbers that are too large for a date in seconds
# but dates in milli- or microseconds (from 1973 on).
_LATEST, _MILLIS, _MICROS = 4_102_444_800, 100_000_000_000, 100_000_000_000_000
_COLUMNS = {
    "line": pl.Int64,
    "user_id": pl.String,
    "item_id": pl.String,
    "rating": pl.Float64,
    "time": pl.Float64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class Judged:
    """The records of one block.

    Args:
        accepted: line, user_id, item_id, rating, timestamp (seconds), digest (see :func:`digests`).
        refused: line, reason, text (cut).
        lines: records read; blank lines are none.
    """

    accepted: pl.DataFrame
    refused: pl.DataFrame
    lines: int


def judge_json(layout: ReviewLayout) -> Callable[[Block], Judged]:
    """A function that reads blocks of JSON lines of one layout."""
    decode = _decoder(layout)

    def judge(block: Block) -> Judged:
        raw = block.data.split(b"\n")
        return _judged(block, raw, _json_rows(block, raw, layout, decode), layout.time_unit)

    return judge


def judge_csv(user_first: bool, unit: Unit) -> Callable[[Block], Judged]:
    """A function that reads blocks of four-column CSV; a header on line 1 is passed over."""

    def judge(block: Block) -> Judged:
        raw = block.data.split(b"\n")
        return _judged(block, raw, _csv_rows(block, raw, user_first), unit)

    return judge


@dataclass(frozen=True)
class _Rows:
    """Lines that were read: `frame` has :data:`_COLUMNS`; `texts` are the texts of its rows, None if no row has one."""

    frame: pl.DataFrame
    texts: list[str | None] | None = None


def _judged(block: Block, raw: list[bytes], rows: _Rows, unit: Unit) -> Judged:
    # Few, large expressions: on blocks of some thousand rows each evaluation costs more than its work.
    seconds = pl.col("time") if unit == "s" else pl.col("time") / 1000
    whole = rows.frame.with_columns(
        pl.coalesce("reason", _reason(unit)).alias("reason"),
        seconds.floor().cast(pl.Int64, strict=False).alias("timestamp"),
    )
    sound = whole["reason"].is_null()
    accepted, refused, texts = whole, whole.clear(), rows.texts
    if not sound.all():
        accepted, refused = whole.filter(sound), whole.filter(~sound)
        texts = texts and list(compress(texts, sound))
    columns = [accepted[name] for name in ("line", "user_id", "item_id", "rating", "timestamp")]
    kept = pl.DataFrame([*columns, digests(accepted, "time", texts)])
    quoted = [raw[line - block.first].decode(errors="replace")[:TEXT_LIMIT] for line in refused["line"]]
    text = pl.Series("text", quoted, dtype=pl.String)
    return Judged(kept, pl.DataFrame([refused["line"], refused["reason"], text]), len(whole))


def digests(rows: pl.DataFrame, time: str, texts: Sequence[str | None] | None = None) -> pl.Series:
    """A UInt64 per row that is equal for exact duplicates: of user, item, rating, the column `time`, and text.

    The values are the same on every machine and with every version of the libraries.
    """
    ids = rows.select(pl.concat_str("user_id", "item_id", separator="\0")).to_series().cast(pl.Binary).to_list()
    xxh = xxhash.xxh3_64_intdigest
    said = repeat(b"") if texts is None else [(text or "").encode(errors="surrogatepass") for text in texts]
    mixed = np.fromiter(map(xxh, said, map(xxh, ids)), np.uint64, len(ids))
    for column in (rows["rating"], rows[time]):
        number = column.cast(pl.Float64).fill_null(-1.0).to_numpy() + 0.0  # so that -0.0 is 0.0
        mixed = (mixed ^ number.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return pl.Series("digest", mixed)


def _reason(unit: Unit) -> pl.Expr:
    """Why typed fields are no review, or null. Missing values are null, values of another type are refused before."""
    ids = [pl.col("user_id"), pl.col("item_id")]
    time = pl.col("time")
    least, scale = (0, 1) if unit == "s" else (_MILLIS, 1000)
    is_date = time.is_between(least, _LATEST * scale) & (time == time.floor())
    in_micros = time.is_between(_MICROS, _LATEST * 1_000_000)
    other_unit = (
        pl.when(time.is_between(_MILLIS, _LATEST * 1000)).then(pl.lit("time_in_milliseconds"))
        if unit == "s"
        else pl.when(time.is_between(1, _LATEST)).then(pl.lit("time_in_seconds"))
    )
    return (
        pl.when(pl.any_horizontal(pl.col("user_id", "item_id", "rating", "time").is_null()))
        .then(pl.lit("missing_field"))
        .when(pl.any_horizontal(name.str.strip_chars() == "" for name in ids))
        .then(pl.lit("missing_field"))
        .when(pl.any_horizontal(name.str.contains("\0", literal=True) for name in ids))
        .then(pl.lit("nul_byte"))
        .when(~pl.col("rating").is_between(0, 5))
        .then(pl.lit("rating_out_of_range"))
        .when(in_micros)
        .then(pl.lit("time_in_microseconds"))
        .otherwise(pl.coalesce(other_unit, pl.when(~is_date).then(pl.lit("bad_time"))))
    )


def _frame(lines: np.ndarray, users: Any, items: Any, ratings: Any, times: Any) -> pl.DataFrame:
    """Rows of lines with these numbers, none of them refused yet."""
    values = {"line": lines, "user_id": users, "item_id": items, "rating": ratings, "time": times}
    made = [pl.Series(name, column, dtype=_COLUMNS[name]) for name, column in values.items()]
    return pl.DataFrame([*made, pl.repeat(None, len(lines), dtype=pl.String, eager=True).alias("reason")])


def _fault(block: Block, line: bytes) -> str | None:
    """What makes a line unfit to be looked at."""
    if block.fault:
        return block.fault
    if b"\0" in line:
        return "nul_byte"
    return None if decodes(line) else "bad_encoding"


def _line_by_line(block: Block, numbered: Iterable[tuple[int, bytes]], read: Callable[[bytes], Fields | str]) -> _Rows:
    """Rows of lines of which some cannot be read; `read` gives a line's fields or the reason."""
    rows: list[tuple[int | str | float | None, ...]] = []
    texts: list[str | None] = []
    for number, line in numbered:
        if line.strip(b" \t\r"):
            found = _fault(block, line) or read(line)
            fields, reason = ((None,) * 5, found) if isinstance(found, str) else (found, None)
            rows.append((number, *fields[:4], reason))
            texts.append(fields[4])
    return _Rows(pl.DataFrame(rows, schema=_COLUMNS, orient="row"), texts)


# -- JSON lines --------------------------------------------------------------------------------


def _decoder(layout: ReviewLayout) -> Callable[[bytes], msgspec.Struct]:
    """Decodes a line to a struct with `rating`, `time`, and `user_0`, `user_1`, …, `item_0`, …, `text_0`, … by key."""
    keys = {f"{field}_{n}": key for field in _BY_KEYS for n, key in enumerate(getattr(layout, field))}
    fields = [("rating", float), ("time", float), *((name, str | None, None) for name in keys)]
    renamed = {"rating": layout.rating, "time": layout.time, **keys}
    return msgspec.json.Decoder(msgspec.defstruct("Review", fields, rename=renamed.get, gc=False, frozen=True)).decode


#: Fields for which the first key counts that is there and not null.
_BY_KEYS = ("user", "item", "text")


def _json_rows(
    block: Block, raw: list[bytes], layout: ReviewLayout, decode: Callable[[bytes], msgspec.Struct]
) -> _Rows:
    def lax(line: bytes) -> Fields | str:
        return read_json(line, layout)

    if block.fault:
        return _line_by_line(block, enumerate(raw, block.first), lax)
    whole = decodes(block.data)

    def attempt(line: bytes) -> msgspec.Struct | None:
        try:
            return decode(line) if whole or decodes(line) else None
        except _UNREADABLE:
            return None

    try:
        found: list[Any] = list(map(decode if whole else attempt, raw))
    except _UNREADABLE:
        found = list(map(attempt, raw))
    if None not in found:
        return _decoded(found, np.arange(block.first, block.first + len(found)), layout)
    read = [number for number, record in enumerate(found) if record is not None]
    strict = _decoded([found[number] for number in read], np.array(read, np.int64) + block.first, layout)
    others = ((number, line) for number, line in enumerate(raw, block.first) if found[number - block.first] is None)
    return _merged(strict, _line_by_line(block, others, lax))


def _decoded(found: list[Any], lines: np.ndarray, layout: ReviewLayout) -> _Rows:
    """Rows of decoded lines with these numbers."""

    def column(name: str) -> list[Any]:
        return list(map(attrgetter(name), found))

    def coalesced(field: str) -> list[str | None]:
        first, *others = (f"{field}_{n}" for n in range(len(getattr(layout, field))))
        values = column(first)
        for name in others if None in values else ():
            values = [value if value is not None else other for value, other in zip(values, column(name), strict=True)]
        return values

    frame = _frame(lines, coalesced("user"), coalesced("item"), column("rating"), column("time"))
    return _Rows(frame, coalesced("text"))


def _merged(one: _Rows, other: _Rows) -> _Rows:
    """The rows of both, by line."""
    frame = pl.concat([one.frame, other.frame])
    order = np.argsort(frame["line"].to_numpy(), kind="stable")
    texts = [*(one.texts or ()), *(other.texts or ())]
    return _Rows(frame[order], [texts[place] for place in order])


def read_json(line: bytes, layout: ReviewLayout) -> Fields | str:
    """Fields of a line, or why it has none, by Python's JSON parser (whole numbers too become floats)."""
    try:
        record = json.loads(line.decode(), parse_int=float)  # bytes would be tried as UTF-16 too
    except (ValueError, RecursionError):
        return "bad_json"
    if not isinstance(record, dict):
        return "bad_json"
    user, item = (_first([record.get(key) for key in keys]) for keys in (layout.user, layout.item))
    rating, time = record.get(layout.rating), record.get(layout.time)
    if any(value is None for value in (user, item, rating, time)):
        return "missing_field"
    if not (isinstance(user, str) and isinstance(item, str) and isinstance(rating, float) and isinstance(time, float)):
        return "wrong_type"
    try:
        (user + item).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape
        return "bad_json"
    text = _first([record.get(key) for key in layout.text])
    return user, item, rating, time, text if isinstance(text, str | None) else json.dumps(text)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


# -- four-column CSV ---------------------------------------------------------------------------


def _csv_rows(block: Block, raw: list[bytes], user_first: bool) -> _Rows:
    if block.first == 1 and not _fault(block, raw[0]) and _is_header(raw[0].decode()):
        raw = raw[1:]
        block = Block(2, block.data, block.fault)
    order = (0, 1, 2, 3) if user_first else (1, 0, 2, 3)
    odd = _fault(block, block.data) or _MARK in block.data
    cells = None if odd else [_cells(line.decode()) for line in raw]
    if cells is None or any(len(row) != 4 for row in cells):
        return _line_by_line(block, enumerate(raw, block.first), lambda line: _read_csv(line, order))
    columns = [[row[place] for row in cells] for place in order]
    cleaned = [pl.Series(column, dtype=pl.String).str.strip_chars() for column in columns[2:]]
    ratings, times = (column.cast(pl.Float64, strict=False) for column in cleaned)
    if ratings.null_count() or times.null_count():
        return _line_by_line(block, enumerate(raw, block.first), lambda line: _read_csv(line, order))
    numbers = np.arange(block.first, block.first + len(raw))
    return _Rows(_frame(numbers, columns[0], columns[1], ratings, times))


def _read_csv(line: bytes, order: tuple[int, ...]) -> Fields | str:
    if line.startswith(_MARK):  # not the file's first bytes: two files were joined, and it is no part of an id
        return "bad_encoding"
    cells = _cells(line.decode())
    if len(cells) != 4:
        return "wrong_columns"
    user, item, rating, time = (cells[place] for place in order)
    if not rating.strip() or not time.strip():
        return "missing_field"
    stars, when = _number(rating), _number(time)
    return "wrong_type" if stars is None or when is None else (user, item, stars, when, None)


def _cells(line: str) -> list[str]:
    line = line.rstrip("\r")
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _number(cell: str) -> float | None:
    return pl.Series([cell], dtype=pl.String).str.strip_chars().cast(pl.Float64, strict=False)[0]


def _is_header(line: str) -> bool:
    cells = _cells(line)
    return len(cells) == 4 and all(cell.strip() and _number(cell) is None for cell in cells[2:])
