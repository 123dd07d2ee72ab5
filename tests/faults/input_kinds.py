"""Sound files of every layout, and one damaged record of each sort for them.

A :class:`Kind` is a file of one source that is read record by record. It writes a record as a line, and its faults
say how a sound record is damaged and with what reason it must be refused.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

#: What is done to the text of a line.
TEXT = ("bad line", "stray quote", "NUL", "invalid UTF-8", "BOM", "10 MB line")
#: What is done to a field.
TIMES = ("time NaN", "time infinite", "time negative", "time in s", "time in ms", "time in us")
FIELDS = ("missing field", "wrong type")
DUPLICATE = "duplicate"
ALL = (*TEXT, DUPLICATE, *TIMES, *FIELDS)

NOON = 1_527_854_400  # 2018-06-01 12:00 UTC
LONG = 10 << 20
NAN, INFINITE = float("nan"), float("inf")
_SCALES = {"s": 1, "ms": 1_000, "us": 1_000_000}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}

Record = dict[str, Any]
Table = Sequence[Record | bytes]


@dataclass(frozen=True)
class Kind:
    """One sort of file.

    Args:
        name: for people. stage: what reads it. file: its name in the tables and below the folder.
        write: a record as a line, without its end; None for Parquet.
        record: the sound record with a number.
        item, time: the names of these fields; `unit` is the one of its times ("" if they have none).
        source: the profile's `source`, given the folder in which the file and its companions lie.
        header: lines before the records. companions: file name -> lines.
        reasons: fault -> reason, for all faults that it can have; None: not refused but dropped or kept.
        wrong: field and value of the wrong type. missing: the field that is taken away.
        per_file: whether its unit of time is told from the file, so that half of another unit is no fault.
    """

    name: str
    stage: str
    file: str
    write: Callable[[Record], bytes] | None
    record: Callable[[int], Record]
    item: str
    source: Callable[[Path], dict[str, Any]]
    reasons: Mapping[str, str | None]
    wrong: tuple[str, Any]
    missing: str
    time: str = ""
    unit: str = ""
    header: tuple[bytes, ...] = ()
    companions: Mapping[str, tuple[bytes, ...]] = ()  # type: ignore[assignment]
    per_file: bool = False

    def damaged(self, fault: str, number: int) -> Record | bytes:
        """The sound record with a number, damaged; a line of text, or for Parquet a record."""
        record = {name: _flat(value) for name, value in self.record(number).items()}
        if fault == "missing field" and self.write in (_json, _python):
            del record[self.missing]
        elif fault == "missing field":
            record[self.missing] = "" if self.write else None
        elif fault == "wrong type":
            record[self.wrong[0]] = self.wrong[1]
        elif fault in TIMES:
            record[self.time] = self._odd_time(fault, record[self.time])
        elif fault == "NUL":
            record[self.item] = f"{record[self.item]}\0"
        elif fault == "10 MB line":
            record[self.item] = "x" * LONG
        if self.write is None:
            return record
        line = self.write(record)
        if fault == "NUL":
            return line.replace(b"\\u0000", b"\0").replace(b"\\x00", b"\0")
        edits: dict[str, Callable[[bytes], bytes]] = {
            "bad line": lambda text: text[: len(text) // 2],
            "stray quote": lambda text: text.replace(b",", b',"', 1),
            "invalid UTF-8": lambda text: text[:6] + b"\xff\xfe" + text[6:],
            "BOM": lambda text: b"\xef\xbb\xbf" + text,
        }
        return edits[fault](line) if fault in edits else line

    def _odd_time(self, fault: str, time: float) -> float:
        fixed = {"time NaN": NAN, "time infinite": INFINITE, "time negative": -abs(time)}
        if fault in fixed:
            return fixed[fault]
        return time // _SCALES[self.unit] * _SCALES[fault.removeprefix("time in ")]

    def put(self, folder: Path, records: Table, name: str = "") -> None:
        """Write the file, and what lies beside it."""
        path = folder / (name or self.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.write is None:
            pl.DataFrame(list(records), schema_overrides={self.time: pl.Float64} if self.time else None).write_parquet(
                path
            )
        else:
            path.write_bytes(self.text(records))
        for other, lines in dict(self.companions).items():
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(b"\n".join(lines) + b"\n")

    def text(self, records: Table, end: bytes = b"\n") -> bytes:
        """The bytes of a text file."""
        assert self.write is not None
        lines = [record if isinstance(record, bytes) else self.write(record) for record in records]
        return b"".join(line + end for line in (*self.header, *lines))


# -- ways to write a record --------------------------------------------------------------------


def _flat(value: Any) -> Any:
    """Damaged records stand on one line, so that half of one is one line too."""
    return value.replace("\n", " ") if isinstance(value, str) else value


def _json(record: Record) -> bytes:
    return json.dumps(record).encode()


def _python(record: Record) -> bytes:
    return repr(record).encode()


def _cells(record: Record) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(record.values())
    return out.getvalue().encode()


def _tabs(record: Record) -> bytes:
    return "\t".join(record.values()).encode()


# -- records -----------------------------------------------------------------------------------


def _who(number: int) -> tuple[str, str, float, int]:
    rng = random.Random(number)
    user, item = f"A{rng.randrange(500):012d}", f"B{rng.randrange(200):09d}"
    return user, item, float(rng.randint(1, 5)), NOON + 60 * number


def _of_2018(number: int) -> Record:
    user, item, rating, time = _who(number)
    return {"overall": rating, "verified": True, "reviewerID": user, "asin": item, "unixReviewTime": time}


def _of_2014(number: int) -> Record:
    return {**_of_2018(number), "helpful": [0, 0], "reviewText": f"Bought it. Number {number}."}


def _of_2023(number: int) -> Record:
    user, item, rating, time = _who(number)
    return {
        "rating": rating,
        "text": "ok",
        "asin": item,
        "parent_asin": item,
        "user_id": user,
        "timestamp": time * 1000,
    }


def _user_first(number: int) -> Record:
    return dict(zip(("user", "item", "rating", "time"), _who(number), strict=True))


def _item_first(number: int) -> Record:
    user, item, rating, time = _who(number)
    return {"item": item, "user": user, "rating": rating, "time": time}


_SIDS = {str(n): f"<a_{n // 10}><b_{n % 10}><c_0>" for n in range(50)}


def _published(number: int) -> Record:
    rng = random.Random(number)
    history = [str(rng.randrange(50)) for _ in range(3)]
    target = str(rng.randrange(50))
    return {
        "user_id": f"A{number}",
        "history_item_title": str([f"Thing {known}" for known in history]),
        "item_title": f"Thing, {target}",
        "history_item_id": str([int(known) for known in history]),
        "item_id": target,
        "history_item_sid": str([_SIDS[known] for known in history]),
        "item_sid": _SIDS[target],
    }


def _thing(number: int) -> Record:
    return {"asin": f"B{number:09d}", "title": f"Thing {number}", "brand": "Quill", "description": ["A thing, red."]}


def _thing_2023(number: int) -> Record:
    return {"parent_asin": f"B{number:09d}", "title": f"Thing {number}", "store": "Quill", "features": ["red"]}


def _thing_2014(number: int) -> Record:
    return {**_thing(number), "imUrl": "http://x", "description": 'It\'s a "thing"'}


def _product(number: int) -> Record:
    return {"sku": f"P{number}", "name": f"Thing {number}", "text": f'5" wide, "red"\nand {number} long', "shelf": "A"}


def _info(number: int) -> Record:
    return {"sid": f"<a_{number // 100}><b_{number % 100}><c_0>", "title": f"Thing {number}", "id": str(number)}


# -- kinds -------------------------------------------------------------------------------------

_LINE = {"NUL": "nul_byte", "invalid UTF-8": "bad_encoding", "10 MB line": "line_too_long"}
_OF_JSON = {**_LINE, "bad line": "bad_json", "BOM": "bad_json"}
_OF_CSV = {**_LINE, "bad line": "wrong_columns", "stray quote": "wrong_columns", "BOM": "bad_encoding"}
_OF_FIELDS = {"missing field": "missing_field", "wrong type": "wrong_type"}


def _of_time(unit: str, others: tuple[str, ...] = ("s", "ms", "us")) -> dict[str, str | None]:
    bad = dict.fromkeys(("time NaN", "time infinite", "time negative"), "bad_time")
    return {**bad, **{f"time in {other}": f"time_in_{_NAMES[other]}" for other in others if other != unit}}


def _amazon(release: str, record: Callable[[int], Record], thing: Callable[[int], Record], python: bool) -> list[Kind]:
    reviews, items = f"reviews_{release}.json", f"meta_{release}.json"
    in_2023 = release == "2023"
    unit, item = ("ms" if in_2023 else "s"), ("parent_asin" if in_2023 else "asin")

    def source(folder: Path) -> dict[str, Any]:
        paths = {"reviews": [str(folder / f"{reviews}*")], "items": [str(folder / f"{items}*")]}
        return {"kind": f"amazon_{release}", **paths}

    of_items = {**_OF_JSON, DUPLICATE: "duplicate_item", **_OF_FIELDS}
    if python:
        of_items |= {"bad line": "bad_literal", "BOM": "bad_literal"}
    return [
        Kind(
            f"amazon_{release} reviews", "raw_reviews", reviews, _json, record, "asin", source,
            {**_OF_JSON, DUPLICATE: None, **_of_time(unit), **_OF_FIELDS},
            ("rating" if in_2023 else "overall", "five stars"), "user_id" if in_2023 else "reviewerID",
            "timestamp" if in_2023 else "unixReviewTime", unit,
        ),
        Kind(
            f"amazon_{release} items", "raw_items", items, _python if python else _json, thing, item, source,
            of_items, ("title", 7), item,
        ),
    ]  # fmt: skip


def _ratings(order: str, record: Callable[[int], Record]) -> Kind:
    def source(folder: Path) -> dict[str, Any]:
        return {"kind": "ratings_csv", "ratings": [str(folder / "ratings.csv*")]}

    return Kind(
        f"ratings_csv {order}", "raw_reviews", "ratings.csv", _cells, record, "item", source,
        {**_OF_CSV, DUPLICATE: None, **_of_time("s", ("ms", "us")), **_OF_FIELDS},
        ("rating", "five stars"), "user", "time", "s", per_file=True,
    )  # fmt: skip


def _tables(ending: str) -> list[Kind]:
    text = ending == "csv"
    columns = {"user_id": "user", "item_id": "item", "timestamp": "time"}
    names = {"item_id": "sku", "title": "name", "description": "text", "category": "shelf"}

    def source(folder: Path) -> dict[str, Any]:
        paths = {"reviews": [str(folder / f"orders.{ending}*")], "items": [str(folder / f"products.{ending}*")]}
        return {"kind": "tables", **paths, "review_columns": columns, "item_columns": names}

    of_reviews = {**(_OF_CSV if text else {"NUL": "nul_byte"}), DUPLICATE: None, **_of_time("s", ("ms", "us"))}
    of_items = {**(_OF_CSV if text else {"NUL": "nul_byte"}), DUPLICATE: "duplicate_item"}
    of_reviews["missing field"] = of_items["missing field"] = "missing_field"
    if text:
        of_reviews["wrong type"] = "wrong_type"
    return [
        Kind(
            f"tables {ending} reviews", "raw_reviews", f"orders.{ending}", _cells if text else None, _user_first,
            "item", source, of_reviews, ("rating", "five stars"), "user", "time", "s",
            (b"user,item,rating,time",) if text else (), per_file=True,
        ),
        Kind(
            f"tables {ending} items", "raw_items", f"products.{ending}", _cells if text else None, _product, "sku",
            source, of_items, ("sku", ""), "sku", header=(b"sku,name,text,shelf",) if text else (),
        ),
    ]  # fmt: skip


def _minionerec() -> list[Kind]:
    header = ",".join(_published(0)).encode()
    some = (header, *(_cells(_published(-n)) for n in range(1, 4)))
    info = tuple(f"{sid}\tThing, {known}\t{known}".encode() for known, sid in _SIDS.items())

    def source(folder: Path) -> dict[str, Any]:
        roles = {name: str(folder / name / "Office.csv*") for name in ("train", "valid", "test")}
        return {"kind": "minionerec", **roles, "info": str(folder / "info" / "Office.txt*")}

    splits = {"valid/Office.csv": some, "test/Office.csv": some}
    return [
        Kind(
            "minionerec train", "raw_reviews", "train/Office.csv", _cells, _published, "item_id", source,
            {**_OF_CSV, DUPLICATE: None, "missing field": "missing_field", "wrong type": "bad_list"},
            ("history_item_id", "five"), "user_id", header=(header,),
            companions={**splits, "info/Office.txt": info},
        ),
        Kind(
            "minionerec info", "raw_items", "info/Office.txt", _tabs, _info, "id", source,
            {**_LINE, "bad line": "wrong_columns", "BOM": "bad_sid", DUPLICATE: "duplicate_item",
             "missing field": "wrong_columns", "wrong type": "bad_sid"},
            ("sid", "five"), "title", companions={**splits, "train/Office.csv": some},
        ),
    ]  # fmt: skip


def kinds() -> list[Kind]:
    """Every sort of file that is read record by record."""
    return [
        *_amazon("2014", _of_2014, _thing_2014, True),
        *_amazon("2018", _of_2018, _thing, False),
        *_amazon("2023", _of_2023, _thing_2023, False),
        _ratings("user_item", _user_first),
        _ratings("item_user", _item_first),
        *_tables("csv"),
        *_tables("parquet"),
        *_minionerec(),
    ]
