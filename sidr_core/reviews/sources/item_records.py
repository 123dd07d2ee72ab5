"""Item records of every source, cleaned alike; what the layouts differ in is data.

A metadata file is parsed once per content. Nothing is refused here for its title: that is a policy,
which `sidr_core.reviews.items` applies, so a change of policy parses nothing again.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.pipeline.digest import digest
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.pipeline.store import Artifact
from sidr_core.reviews import layouts, text
from sidr_core.reviews.lines import DamagedFile, damaged_file, numbered_lines
from sidr_core.reviews.quarantine import quotable
from sidr_core.reviews.records import REFUSED
from sidr_core.reviews.text import BLANKS
from sidr_core.tables import files as tables

if TYPE_CHECKING:
    from sidr_core.settings import Filters

#: Raise it when the same file should parse to other records.
PARSER_VERSION = "4"

RECORDS = pa.schema(
    [
        ("line", pa.int64()),
        *[(name, pa.string()) for name in ("item_id", "title", "description", "brand", "category", "text")],
        ("title_words", pa.int64()),
        ("unusable", pa.string()),  # why the title is no name: title_missing, title_too_short, title_html; else null
    ]
)
_BATCH = 20_000


@dataclass(frozen=True)
class ItemRecords:
    """Item records of one or more files.

    Args:
        records: accepted ones, in file and line order, with columns `file` and `line`.
        refused: columns of :class:`sidr_core.tables.contracts.Quarantine`.
        lines: records read, blank lines not counted.
        metrics: further numbers for the report.
    """

    records: pl.DataFrame
    refused: pl.DataFrame
    lines: int
    metrics: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemLayout:
    """Where the fields of an item stand in a record; a dotted key reaches into an object.

    Args:
        item: the first that is present and not null wins.
        description: the texts of all are joined.
        brand, category: the first that gives text wins.
        shortest_title: characters of a title that is a name; Amazon's releases need two (docs/method.md, "Data").
    """

    item: tuple[str, ...]
    title: str
    description: tuple[str, ...]
    brand: tuple[str, ...]
    category: tuple[str, ...]
    shortest_title: int = 2


_ASIN = ItemLayout(("asin",), "title", ("description",), ("brand",), ("category", "categories"))
_PARENT = ItemLayout(
    ("parent_asin", "asin"),
    "title",
    ("description", "features"),
    ("store", "details.Brand"),
    ("categories", "main_category"),
)
_PLAIN = ItemLayout(("item_id",), "title", ("description",), ("brand", "platform"), ("category", "kind"))
AMAZON: dict[str, ItemLayout] = {
    layouts.ITEMS_2014: _ASIN,
    layouts.ITEMS_2014_JSON: _ASIN,
    layouts.ITEMS_2018: _ASIN,
    layouts.ITEMS_2014_2018: _ASIN,
    layouts.ITEMS_2023: _PARENT,
}
_LAYOUTS = AMAZON | {layouts.ITEMS_PLAIN: _PLAIN}


class Cleaner:
    """Cleans fields and counts, as `cleaned_<field>_<rule>`, how many values of a field a rule changed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def title(self, title: str) -> str:
        """A title as :func:`text.clean_title` leaves it."""
        return self._clean("title", text.clean_title, title)

    def joined(self, field: str, values: Sequence[object]) -> str:
        """The texts of all values, one after the other."""
        return " ".join(filter(None, (self._clean(field, text.clean_value, value) for value in values)))

    def first(self, field: str, values: Sequence[object]) -> str:
        """The first value that has text."""
        return next(filter(None, (self._clean(field, text.clean_value, value) for value in values)), "")

    def path(self, values: Sequence[object]) -> str:
        """The first category path that has text, as `A > B`."""
        return next(filter(None, (self._clean("category", _path, value) for value in values)), "")

    def _clean(self, field: str, function: Callable[[Any, set[str]], str], value: object) -> str:
        changed: set[str] = set()
        cleaned = function(value, changed)
        self.counts.update(f"cleaned_{field}_{rule}" for rule in changed)
        return cleaned


class ItemWriter:
    """Writes `records.parquet` and `quarantine.parquet` of a part, and counts what cleaning changed."""

    def __init__(self, folder: Path) -> None:
        self._records = pq.ParquetWriter(folder / "records.parquet", RECORDS, compression="zstd")
        self._refused = pq.ParquetWriter(folder / "quarantine.parquet", REFUSED, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._bad: list[tuple[int, str, str]] = []
        self._cleaner = Cleaner()
        self.lines = self.trimmed_ids = 0
        self.damage = ""  # why the file could not be read to its end

    def __enter__(self) -> ItemWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._records.close()
        self._refused.close()

    def add(self, line: int, raw: str, record: Mapping[str, Any], layout: ItemLayout) -> None:
        """Take a record, cleaned; or refuse it for an id or title that is none."""
        item_id, title = next(iter(_values(record, layout.item)), None), record.get(layout.title)
        if isinstance(item_id, int) and not isinstance(item_id, bool) and layout is _PLAIN:
            item_id = str(item_id)
        if reason := _refusal(item_id, title):
            return self.refuse(line, reason, raw)
        padded_id, title = str(item_id), title or ""
        item_id = padded_id.strip(BLANKS)
        self.trimmed_ids += padded_id != item_id
        name, unusable = self._cleaner.title(title), None
        if len(name) < layout.shortest_title:
            unusable = "title_missing" if not name else "title_too_short"
        elif text.looks_like_markup(title[: text.MAX_FIELD]):
            unusable = "title_html"
        description = self._cleaner.joined("description", _values(record, layout.description))
        brand = self._cleaner.first("brand", _values(record, layout.brand))
        category = self._cleaner.path(_values(record, layout.category))
        words = text.title_words(title)
        self._rows.append((line, item_id, name, description, brand, category, quotable(raw), words, unusable))
        self._count()

    def refuse(self, line: int, reason: str, raw: str) -> None:
        """Put a record into the quarantine."""
        self._bad.append((line, reason, quotable(raw)))
        self._count()

    def report(self) -> Report:
        """Lines read, why the file ended early ("" if it did not), and what cleaning changed."""
        numbers = {"lines": self.lines, "trimmed_ids": self.trimmed_ids}
        return Report(metrics={**numbers, "damage": self.damage, **dict(sorted(self._cleaner.counts.items()))})

    def _count(self) -> None:
        self.lines += 1
        if len(self._rows) + len(self._bad) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._records.write_table(_table(self._rows, RECORDS))
        self._refused.write_table(_table(self._bad, REFUSED))
        self._rows, self._bad = [], []


def parse_metadata(
    inputs: Inputs, files: Mapping[str, Path], accepted: Collection[str], filters: Filters, progress: Progress
) -> ItemRecords:
    """Records (:data:`RECORDS` and `file`) of metadata files, in file and line order.

    Args:
        accepted: names of the layouts that the files may have.

    Raises:
        InputError: a file is of another layout, which is named; or damaged, unless `filters.allow_truncated`.
    """
    parts = {}
    for name, path in files.items():
        detected = layouts.detect(path)
        layouts.require(path, detected, accepted, "items")
        parts[name] = stored_items(
            inputs,
            {"layout": detected.name, "sha256": digest(path)},
            lambda out, path=path, layout=detected.name: _parse(path, out, layout, progress.named(path.name)),
        )
    return load_items(parts, filters)


def stored_items(inputs: Inputs, key: Mapping[str, Any], parse: Callable[[ItemWriter], None]) -> Artifact:
    """The part that `parse` writes, or what an earlier run wrote for the same key."""

    def build(folder: Path) -> Report:
        with ItemWriter(folder) as out:
            parse(out)
        return out.report()

    return inputs.part("parsed_items", PARSER_VERSION, key, build)


def load_items(parts: Mapping[str, Artifact], filters: Filters) -> ItemRecords:
    """The records of parts, each labelled with its file's name. Raises InputError like :func:`parse_metadata`."""
    metrics: Counter[str] = Counter()
    for name, part in parts.items():
        numbers = dict(part.manifest["metrics"])
        damage = numbers.pop("damage", "")
        if damage and not filters.allow_truncated:
            raise damaged_file(name, damage, f"{numbers['lines']:,} lines came before")
        metrics.update(numbers)
        metrics["damaged_files"] += bool(damage)
    records, refused = (
        pl.concat(
            tables.read(part.path(f"{table}.parquet")).with_columns(pl.lit(name, dtype=pl.String).alias("file"))
            for name, part in parts.items()
        )
        for table in ("records", "quarantine")
    )
    return ItemRecords(records, refused, metrics.pop("lines", 0), dict(metrics))


def _parse(path: Path, out: ItemWriter, layout: str, progress: Progress) -> None:
    decode = _python if layout == layouts.ITEMS_2014 else _json
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of unknown escapes in the literals of others
        try:
            for line, raw, fault in numbered_lines(path, progress):
                if not raw.strip():
                    continue
                record = fault or decode(raw)
                if isinstance(record, str):
                    out.refuse(line, record, raw)
                else:
                    out.add(line, raw, record, _LAYOUTS[layout])
        except DamagedFile as error:
            out.damage = error.damage
    progress.say(f"{out.lines:,} lines parsed")


def _json(raw: str) -> dict[str, Any] | str:
    """The record on a line, or why there is none."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return "bad_json"
    return value if isinstance(value, dict) else "bad_json"


def _python(raw: str) -> dict[str, Any] | str:
    """The same of a line in Python's syntax."""
    if len(raw) > text.MAX_LITERAL:
        return "line_too_long"
    try:
        value = text.literal(raw)
    except ValueError:
        return "bad_literal"
    return value if isinstance(value, dict) else "bad_literal"


def _values(record: Mapping[str, Any], keys: Sequence[str]) -> list[object]:
    """The values of the keys that are present and not null."""
    values: list[object] = []
    for key in keys:
        value: object = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            values.append(value)
    return values


def _refusal(item_id: object, title: object) -> str | None:
    if item_id is None:
        return "missing_field"
    if not isinstance(item_id, str) or not isinstance(title, str | None):
        return "wrong_type"
    if not item_id.strip(BLANKS):
        return "missing_field"
    if "\0" in item_id:
        return "nul_byte"
    return "bad_encoding" if any("\ud800" <= char <= "\udfff" for char in item_id) else None


def _path(category: object, changed: set[str]) -> str:
    """`["A", "B"]` or `[["A", "B"], …]` (2014) as `A > B`; markup that upstream left in the list is dropped."""
    if isinstance(category, list) and category and isinstance(category[0], list):
        category = category[0]
    parts = category if isinstance(category, list) else [category]
    return " > ".join(filter(None, (text.clean_text(part, changed) for part in parts if isinstance(part, str))))


def _table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)
