"""Reads reviews out of blocks of JSON lines.

msgspec decodes a line straight into the few fields that are needed. What it refuses is read again by Python's
parser, which is laxer in one point (NaN and Infinity are numbers), to name the reason. Of equal keys in an
object the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl

from sidr_core.reviews.judge import TYPED, Judged, digests, judge
from sidr_core.reviews.lines import Block, decodes
from sidr_core.reviews.quarantine import TEXT_LIMIT

#: user, item, rating, time and text of one line; None where it has none.
Fields = tuple[str | None, str | None, float | None, float | None, str | None]

_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
#: Fields for which the first key counts that is there and not null.
_BY_KEYS = ("user", "item", "text")


@dataclass(frozen=True)
class ReviewLayout:
    """How a line of JSON becomes a review.

    Args:
        user, item: JSON keys, the first that is present and not null wins.
        rating, time: JSON keys.
        time_unit: of `time`; tables hold seconds.
        text: JSON keys of the review's text, used to tell exact duplicates apart; the first one wins.
    """

    user: tuple[str, ...]
    item: tuple[str, ...]
    rating: str
    time: str
    time_unit: Literal["s", "ms"]
    text: tuple[str, ...] = ("reviewText", "text")


@dataclass(frozen=True)
class _Rows:
    """Lines that were read: `frame` has the columns of :data:`TYPED`, `texts` the review's text of each row."""

    frame: pl.DataFrame
    texts: list[str | None]


def json_judge(layout: ReviewLayout) -> Callable[[Block], Judged]:
    """A function that reads and judges blocks of JSON lines of one layout."""
    # A struct with `rating`, `time`, and `user_0`, `user_1`, …, `item_0`, …, `text_0`, … by key.
    keys = {f"{field}_{n}": key for field in _BY_KEYS for n, key in enumerate(getattr(layout, field))}
    fields = [("rating", float), ("time", float), *((name, str | None, None) for name in keys)]
    renamed = {"rating": layout.rating, "time": layout.time, **keys}
    review = msgspec.defstruct("Review", fields, rename=renamed.get, gc=False, frozen=True)
    decode = msgspec.json.Decoder(review).decode

    def judged(block: Block) -> Judged:
        lines = block.data.split(b"\n")
        rows = _read(block, lines, layout, decode)
        verdicts = judge(rows.frame, layout.time_unit, needs_rating=True)
        sound = verdicts["reason"].is_null()
        accepted, refused, texts = verdicts, verdicts.clear(), rows.texts
        if not sound.all():
            accepted, refused = verdicts.filter(sound), verdicts.filter(~sound)
            texts = list(compress(texts, sound))
        columns = [accepted[name] for name in ("line", "user_id", "item_id", "rating", "timestamp")]
        raw = [lines[number - block.first].decode(errors="replace")[:TEXT_LIMIT] for number in refused["line"]]
        return Judged(
            pl.DataFrame([*columns, digests(accepted, "time", texts)]),
            pl.DataFrame([refused["line"], refused["reason"], pl.Series("text", raw, dtype=pl.String)]),
            len(verdicts),
            accepted.filter("trimmed").height,
        )

    return judged


def _read(block: Block, lines: list[bytes], layout: ReviewLayout, decode: Callable[[bytes], msgspec.Struct]) -> _Rows:
    """All lines at once where each can be decoded, else the others by the lax parser."""
    if block.fault:
        return _line_by_line(block, enumerate(lines, block.first), layout)
    is_utf8 = decodes(block.data)

    def attempt(line: bytes) -> msgspec.Struct | None:
        try:
            return decode(line) if is_utf8 or decodes(line) else None
        except _UNREADABLE:
            return None

    try:
        records: list[Any] = list(map(decode if is_utf8 else attempt, lines))
    except _UNREADABLE:
        records = list(map(attempt, lines))
    if None not in records:
        return _decoded(records, np.arange(block.first, block.first + len(records)), layout)
    decoded = [place for place, record in enumerate(records) if record is not None]
    strict = _decoded([records[place] for place in decoded], np.array(decoded, np.int64) + block.first, layout)
    undecoded = ((block.first + place, line) for place, line in enumerate(lines) if records[place] is None)
    lax = _line_by_line(block, undecoded, layout)
    frame, texts = pl.concat([strict.frame, lax.frame]), [*strict.texts, *lax.texts]
    order = np.argsort(frame["line"].to_numpy(), kind="stable")
    return _Rows(frame[order], [texts[place] for place in order])


def _decoded(records: list[Any], lines: np.ndarray, layout: ReviewLayout) -> _Rows:
    """Rows of decoded lines with these numbers."""

    def column(name: str) -> list[Any]:
        return list(map(attrgetter(name), records))

    def first_present(field: str) -> list[str | None]:
        first, *others = (f"{field}_{n}" for n in range(len(getattr(layout, field))))
        values = column(first)
        for name in others if None in values else ():
            values = [value if value is not None else other for value, other in zip(values, column(name), strict=True)]
        return values

    columns = (lines, first_present("user"), first_present("item"), column("rating"), column("time"))
    typed = [pl.Series(name, values, dtype=TYPED[name]) for name, values in zip(TYPED, columns, strict=False)]
    unrefused = pl.repeat(None, len(lines), dtype=pl.String, eager=True).alias("reason")
    return _Rows(pl.DataFrame([*typed, unrefused]), first_present("text"))


def _line_by_line(block: Block, numbered: Iterable[tuple[int, bytes]], layout: ReviewLayout) -> _Rows:
    """Rows of lines that may be unreadable; blank ones are none."""
    rows: list[tuple[int | str | float | None, ...]] = []
    texts: list[str | None] = []
    for number, line in numbered:
        if line.strip(b" \t\r"):
            outcome = block.fault or ("nul_byte" if b"\0" in line else read_json(line, layout))
            fields, reason = ((None,) * 5, outcome) if isinstance(outcome, str) else (outcome, None)
            rows.append((number, *fields[:4], reason))
            texts.append(fields[4])
    return _Rows(pl.DataFrame(rows, schema=TYPED, orient="row"), texts)


def read_json(line: bytes, layout: ReviewLayout) -> Fields | str:
    """Fields of a line, or why it has none, by Python's JSON parser (whole numbers too become floats)."""
    try:
        record = json.loads(line.decode(), parse_int=float)  # bytes would be tried as UTF-16 too
    except UnicodeDecodeError:
        return "bad_encoding"
    except (ValueError, RecursionError):
        return "bad_json"
    if not isinstance(record, dict):
        return "bad_json"
    user, item, text = (
        next((record[key] for key in keys if record.get(key) is not None), None)
        for keys in (layout.user, layout.item, layout.text)
    )
    rating, time = record.get(layout.rating), record.get(layout.time)
    if any(value is None for value in (user, item, rating, time)):
        return "missing_field"
    if not (isinstance(user, str) and isinstance(item, str) and isinstance(rating, float) and isinstance(time, float)):
        return "wrong_type"
    try:
        (user + item).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape
        return "bad_json"
    return user, item, rating, time, text if isinstance(text, str | None) else json.dumps(text)
