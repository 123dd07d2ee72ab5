"""MiniOneRec's published CSV split: its rows, their order, items and SIDs are kept as they are.

Every row's SIDs are compared with the info file, so a mixture of files of two categories or two
codebooks is found. The rows carry no time, so a snapshot cannot cut them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.errors import InputError
from sidr_core.pipeline.digest import digest
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews import layouts, text
from sidr_core.reviews.csv_rows import csv_batches
from sidr_core.reviews.judge import Judged
from sidr_core.reviews.lines import DamagedFile, numbered_lines, read_whole
from sidr_core.reviews.quarantine import REFUSED_SCHEMA, TEXT_LIMIT
from sidr_core.reviews.records import ReviewParts, stored_part
from sidr_core.reviews.source_files import MINIONEREC_SPLITS, item_files, review_files
from sidr_core.reviews.sources.item_records import Cleaner, ItemRecords

if TYPE_CHECKING:
    from sidr_core.settings import Filters, MiniOneRecSource

#: Raise it when the same files should parse to other rows.
PARSER_VERSION = "4"

_COLUMNS = ("user_id", "history_item_id", "item_id", "history_item_sid", "item_sid")
_SID = re.compile(r"(<[a-z]_\d{1,6}>)+")
#: Longest list cell, in characters (ten items need some 300), and longest history.
_MAX_CELL, _MAX_ITEMS = 100_000, 1_000

_ROWS = {"line": pl.Int64, "user_id": pl.String, "item_id": pl.String, "history_item_ids": pl.List(pl.String)}
#: What a published row does not have: a digest, as each row counts.
_NULL = {"rating": pl.Float64, "timestamp": pl.Int64, "digest": pl.UInt64}


def _require_layouts(files: Mapping[str, Path]) -> dict[str, layouts.Detected]:
    """What each file is. Raises InputError if one is of another layout than its role asks for."""
    expected = dict.fromkeys(MINIONEREC_SPLITS, layouts.MINIONEREC) | {
        "info": layouts.MINIONEREC_INFO,
        "items": layouts.MINIONEREC_ITEMS,
    }
    detected = {name: layouts.detect(path) for name, path in files.items()}
    for name, path in files.items():
        role = name.partition("/")[0]
        layouts.require(path, detected[name], (expected[role],), role)
    return detected


def reviews(inputs: Inputs, source: MiniOneRecSource, filters: Filters, progress: Progress) -> ReviewParts:
    """Rows with `history_item_ids` and `split`, train first, in file order."""
    files = review_files(source)
    detected = _require_layouts(files)
    info = _by_role(files, "info")[1]
    known = _info(info, Cleaner(), filters, progress).records
    sids: dict[str, str] = dict(known.select("item_id", "published_sid").iter_rows())
    parts = []
    for split in MINIONEREC_SPLITS:
        name, path = _by_role(files, split)
        key = {"layout": "minionerec", "split": split, "info": digest(info)}
        parse = partial(_rows, path, detected[name], sids, split)
        parts.append(stored_part(inputs, name, path, PARSER_VERSION, key, parse, filters, progress))
        progress.say(f"{name}: {parts[-1].lines:,} rows")
    return ReviewParts(tuple(parts))


def items(inputs: Inputs, source: MiniOneRecSource, filters: Filters, progress: Progress) -> ItemRecords:
    """Records (line, item_id, title, description, brand, category, published_sid, text, file) in info order."""
    files, cleaner = item_files(source), Cleaner()
    _require_layouts(files)
    name, path = _by_role(files, "info")
    info = _info(path, cleaner, filters, progress)
    details = {key: p for key, p in files.items() if key.startswith("items/")}
    described = _details(next(iter(details.values()))) if details else {}
    fields = [described.get(item, {}) for item in info.records["item_id"]]
    columns = {"description": "description", "brand": "brand", "category": "categories"}
    records = info.records.with_columns(
        pl.lit(name).alias("file"),
        *(
            pl.Series(ours, [cleaner.first(ours, [f.get(theirs)]) for f in fields], dtype=pl.String)
            for ours, theirs in columns.items()
        ),
    )
    progress.say(f"{name}: {len(records):,} items, {len(described):,} described")
    refused = info.refused.with_columns(pl.lit(name).alias("file"))
    return ItemRecords(records, refused, info.lines, dict(cleaner.counts))


def _by_role(files: Mapping[str, Path], role: str) -> tuple[str, Path]:
    return next((name, path) for name, path in files.items() if name.startswith(f"{role}/"))


def _info(path: Path, cleaner: Cleaner, filters: Filters, progress: Progress) -> ItemRecords:
    """The info file: SID, title and item id per line, separated by tabs."""
    rows: list[tuple[int, str, str, str, str]] = []
    refused: list[tuple[int, str, str]] = []
    try:
        for line, raw, fault in numbered_lines(path):
            if not raw.strip():
                continue
            cells = [cell.strip() for cell in raw.split("\t")]
            reason = fault or (None if len(cells) == 3 and all(cells) else "wrong_columns")
            if reason is None and not _SID.fullmatch(cells[0]):
                reason = "bad_sid"
            if reason:
                refused.append((line, reason, raw[:TEXT_LIMIT]))
            else:
                rows.append((line, cells[2], cleaner.title(cells[1]), cells[0], raw[:TEXT_LIMIT]))
    except DamagedFile as error:
        if not filters.allow_truncated:
            raise
        progress.say(f"{path.name} is damaged and used as far as it goes: {error.damage}")
    if not rows:
        raise InputError(
            f"{path} is no info file of MiniOneRec",
            expected="lines of SID, title and item id, separated by tabs",
            found=f"{len(refused)} lines, the first: {refused[0][2][:80]!r}" if refused else "an empty file",
            fix="name <category>.txt of the published `info` folder under `source.info`",
        )
    schema = {"line": pl.Int64, "item_id": pl.String, "title": pl.String, "published_sid": pl.String, "text": pl.String}
    return ItemRecords(
        pl.DataFrame(rows, schema=schema, orient="row"),
        pl.DataFrame(refused, schema=REFUSED_SCHEMA, orient="row"),
        lines=len(rows) + len(refused),
    )


def _details(path: Path) -> dict[str, dict[str, Any]]:
    """Item id -> its fields, from `<category>.item.json`."""
    try:
        value = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        value = str(error)
    if not isinstance(value, dict) or not value or not all(isinstance(v, dict) for v in value.values()):
        raise InputError(
            f"{path} is no item file of MiniOneRec",
            expected="one JSON object: item id -> {title, description, …}",
            found=value[:200] if isinstance(value, str) else f"{type(value).__name__} of another form",
            fix="name <category>.item.json of the published `index` folder under `source.items`",
        )
    return value


def _rows(
    path: Path, detected: layouts.Detected, sids: Mapping[str, str], split: str, progress: Progress
) -> Iterator[Judged]:
    """The rows of one split. Raises InputError if a column is missing."""
    header, form = detected.columns, detected.form
    if form is None or not set(_COLUMNS) <= set(header):
        raise InputError(
            f"{path} lacks columns of MiniOneRec's published split",
            expected=f"a CSV with the columns {', '.join(_COLUMNS)}",
            found=", ".join(header) or "no header",
            fix="fetch the file again",
        )
    for batch in csv_batches(path, form, {name: header.index(name) for name in _COLUMNS}, progress):
        rows: list[tuple[int, str, str, list[str]]] = []
        refused: list[tuple[int, str, str]] = []
        for cells in batch.iter_rows(named=True):
            reason, row = (cells["fault"], None) if cells["fault"] else _row(cells, sids)
            if row is None:
                refused.append((cells["line"], str(reason), cells["raw"][:TEXT_LIMIT]))
            else:
                rows.append((cells["line"], *row))
        nulls = [pl.lit(None, dtype=kind).alias(name) for name, kind in _NULL.items()]
        accepted = pl.DataFrame(rows, schema=_ROWS, orient="row").with_columns(pl.lit(split).alias("split"), *nulls)
        yield Judged(accepted, pl.DataFrame(refused, schema=REFUSED_SCHEMA, orient="row"), len(batch))


def _row(cells: Mapping[str, str], sids: Mapping[str, str]) -> tuple[str | None, tuple[str, str, list[str]] | None]:
    """(user, target, history) of a record, or the reason why it is refused."""
    user, item = cells["user_id"].strip(), cells["item_id"].strip()
    if not user or not item:
        return "missing_field", None
    history, history_sids = _list(cells["history_item_id"]), _list(cells["history_item_sid"])
    if not history or not history_sids or len(history) != len(history_sids):
        return "bad_list", None
    if any(known not in sids for known in (*history, item)):
        return "unknown_item", None
    if [sids[known] for known in (*history, item)] != [*history_sids, cells["item_sid"].strip()]:
        return "sid_mismatch", None
    return None, (user, item, history)


def _list(cell: str) -> list[str] | None:
    """A list cell's values as strings; None if it is no short list of strings and whole numbers."""
    if len(cell) > _MAX_CELL:
        return None
    try:
        value = text.literal(cell)
    except ValueError:
        return None
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        return None
    good = all(isinstance(entry, (str, int)) and not isinstance(entry, bool) for entry in value)
    return [str(entry) for entry in value] if good else None
