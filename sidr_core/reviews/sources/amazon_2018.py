"""Amazon Reviews 2018 (UCSD v2): JSON lines, gzip or plain; the 2014 review files look alike.

A file is parsed once per content, in batches by DuckDB; every line that cannot be a record comes
out with its number and reason. Nothing is de-duplicated here: a user's repeat of an item stays
(METHOD 1.2), also as a byte-for-byte equal line, and is only counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.reviews import text
from sidr_core.reviews.files import resolve
from sidr_core.reviews.layouts import require_json
from sidr_core.reviews.lines import line_batches
from sidr_core.reviews.parsed import TEXT_LIMIT, Parsed, combined, load_part
from sidr_core.reviews.sql import frame
from sidr_core.stage import Inputs, Progress, Report
from sidr_core.store import sha256_file

if TYPE_CHECKING:
    from sidr_core.settings import Amazon2018Source

#: Raise it when the same file should parse to other records.
PARSER_VERSION = "1"

_REVIEW_KEYS = ("reviewerID", "asin", "overall", "unixReviewTime")
_ITEM_KEYS = ("asin", "title")
_REVIEWS = pa.schema(
    [
        ("line", pa.int64()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float64()),
        ("timestamp", pa.int64()),
    ]
)
_ITEMS = pa.schema(
    [
        ("line", pa.int64()),
        *[(name, pa.string()) for name in ("item_id", "title", "description", "brand", "category", "text")],
        ("title_words", pa.int64()),
    ]
)
_REFUSED = pa.schema([("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())])

# The last second that counts as a date in seconds (2100-01-01), and where milli- and microseconds begin.
_LATEST, _MILLIS, _MICROS = 4_102_444_800, 100_000_000_000, 100_000_000_000_000

# TRY_CAST comes first and alone: JSON functions fail on text that is no JSON.
_FIELDS = """
    SELECT line, text, fault, json_type(doc) AS kind, json_type(doc, $paths) AS types,
           json_extract_string(doc, $paths) AS value
    FROM (SELECT line, text, fault, TRY_CAST(CASE WHEN fault IS NULL THEN text END AS JSON) AS doc
          FROM batch WHERE trim(text, E' \\t\\r') <> '')
"""
_REVIEW_SQL = f"""
    WITH fields AS MATERIALIZED ({_FIELDS}),
    typed AS (SELECT *, TRY_CAST(value[3] AS DOUBLE) AS rating, TRY_CAST(value[4] AS DOUBLE) AS seconds FROM fields)
    SELECT line, value[1] AS user_id, value[2] AS item_id, rating,
           TRY_CAST(seconds AS BIGINT) AS timestamp, left(text, {TEXT_LIMIT}) AS text, hash(text) AS digest,
      CASE
        WHEN fault IS NOT NULL THEN fault
        WHEN kind IS DISTINCT FROM 'OBJECT' THEN 'bad_json'
        WHEN len([t FOR t IN types IF coalesce(t, 'NULL') = 'NULL']) > 0 THEN 'missing_field'
        WHEN types[1] <> 'VARCHAR' OR types[2] <> 'VARCHAR'
          OR types[3] NOT IN ('DOUBLE', 'BIGINT', 'UBIGINT')
          OR types[4] NOT IN ('DOUBLE', 'BIGINT', 'UBIGINT') THEN 'wrong_type'
        WHEN trim(value[1]) = '' OR trim(value[2]) = '' THEN 'missing_field'
        WHEN contains(value[1], chr(0)) OR contains(value[2], chr(0)) THEN 'nul_byte'
        WHEN NOT coalesce(rating BETWEEN 0 AND 5, false) THEN 'rating_out_of_range'
        WHEN seconds >= {_MICROS} THEN 'time_in_microseconds'
        WHEN seconds >= {_MILLIS} THEN 'time_in_milliseconds'
        WHEN NOT coalesce(seconds BETWEEN 0 AND {_LATEST} AND seconds = floor(seconds), false) THEN 'bad_time'
      END AS reason
    FROM typed ORDER BY line
"""
_REVIEW_PATHS = [f"$.{key}" for key in _REVIEW_KEYS]
_ITEM_SQL = f"""
    WITH fields AS MATERIALIZED ({_FIELDS})
    SELECT line, value, types, left(text, {TEXT_LIMIT}) AS text,
      CASE
        WHEN fault IS NOT NULL THEN fault
        WHEN kind IS DISTINCT FROM 'OBJECT' THEN 'bad_json'
        WHEN types[1] IS NULL OR types[1] = 'NULL' THEN 'missing_field'
        WHEN types[1] <> 'VARCHAR' OR coalesce(types[2], 'NULL') NOT IN ('VARCHAR', 'NULL') THEN 'wrong_type'
        WHEN trim(value[1]) = '' THEN 'missing_field'
        WHEN contains(value[1], chr(0)) THEN 'nul_byte'
      END AS reason
    FROM fields ORDER BY line
"""
_ITEM_PATHS = [f"$.{key}" for key in ("asin", "title", "description", "brand", "category", "categories")]


def review_files(source: Amazon2018Source) -> dict[str, Path]:
    """The review files by name. Raises InputError if one is missing."""
    return resolve(source.reviews, "reviews")


def item_files(source: Amazon2018Source) -> dict[str, Path]:
    """The metadata files by name. Raises InputError if one is missing."""
    return resolve(source.items, "items")


def reviews(inputs: Inputs, source: Amazon2018Source, progress: Progress) -> Parsed:
    """Records of the source's review files; see :func:`parse_reviews`."""
    return parse_reviews(inputs, review_files(source), progress)


def items(inputs: Inputs, source: Amazon2018Source, progress: Progress) -> Parsed:
    """Records of the source's metadata files; see :func:`parse_items`."""
    return parse_items(inputs, item_files(source), progress)


def parse_reviews(inputs: Inputs, files: Mapping[str, Path], progress: Progress) -> Parsed:
    """Records (line, user_id, item_id, rating, timestamp in seconds, file) in file and line order."""
    return combined([(name, _parsed(inputs, "reviews", path, progress.named(name))) for name, path in files.items()])


def parse_items(inputs: Inputs, files: Mapping[str, Path], progress: Progress) -> Parsed:
    """Records (line, item_id, title, description, brand, category, text, file); `text` is the raw line, cut."""
    return combined([(name, _parsed(inputs, "items", path, progress.named(name))) for name, path in files.items()])


def _parsed(inputs: Inputs, role: str, path: Path, progress: Progress) -> Parsed:
    """Parse a file, or take over what an earlier run made of the same bytes."""
    part = inputs.part(
        f"parsed_{role}",
        PARSER_VERSION,
        {"layout": "amazon_2018", "sha256": sha256_file(path)},
        lambda folder: _parse(role, path, folder, progress),
    )
    return load_part(part)


def _parse(role: str, path: Path, folder: Path, progress: Progress) -> Report:
    schema, judge = (_REVIEWS, _judged_reviews) if role == "reviews" else (_ITEMS, _judged_items)
    lines = 0
    digests: list[pl.Series] = []
    with (
        pq.ParquetWriter(folder / "records.parquet", schema, compression="zstd") as records,
        pq.ParquetWriter(folder / "quarantine.parquet", _REFUSED, compression="zstd") as quarantine,
        duckdb.connect() as connection,
    ):
        for batch in _checked(path, role, progress):
            judged = judge(connection, batch)
            accepted = judged["reason"].is_null()
            _append(records, judged.filter(accepted), schema)
            _append(quarantine, judged.filter(~accepted), _REFUSED)
            lines += len(judged)
            if "digest" in judged.columns:
                digests.append(judged["digest"])
    progress.say(f"{lines:,} lines parsed")
    repeats = {"exact_duplicates": lines - pl.concat(digests).n_unique()} if digests else {}
    return Report(metrics={"lines": lines, **repeats})


def _checked(path: Path, role: str, progress: Progress) -> Iterator[pl.DataFrame]:
    """The file's batches, once its first lines are seen to be of this layout."""
    keys, name = (_REVIEW_KEYS, "reviews") if role == "reviews" else (_ITEM_KEYS, "metadata")
    checked = False
    for batch in line_batches(path, progress):
        if not checked:
            require_json(path, batch["text"].head(1000).to_list(), keys, f"Amazon 2014/2018 {name}", role)
            checked = True
        yield batch
    if not checked:
        require_json(path, [], keys, f"Amazon 2014/2018 {name}", role)


def _append(writer: pq.ParquetWriter, rows: pl.DataFrame, schema: pa.Schema) -> None:
    writer.write_table(rows.select(schema.names).to_arrow().cast(schema))


def _judged_reviews(connection: duckdb.DuckDBPyConnection, batch: pl.DataFrame) -> pl.DataFrame:
    connection.register("batch", batch.to_arrow())
    return frame(connection, _REVIEW_SQL, {"paths": _REVIEW_PATHS})


def _judged_items(connection: duckdb.DuckDBPyConnection, batch: pl.DataFrame) -> pl.DataFrame:
    connection.register("batch", batch.to_arrow())
    rows = frame(connection, _ITEM_SQL, {"paths": _ITEM_PATHS})
    cleaned = [_item(row) for row in rows.iter_rows(named=True)]
    names = ("item_id", "title", "description", "brand", "category", "reason")
    schema = {name: pl.String for name in names} | {"title_words": pl.Int64}
    return rows.drop("value", "types", "reason").hstack(pl.DataFrame(cleaned, schema=schema, orient="row"))


def _item(row: dict[str, Any]) -> tuple[str | int | None, ...]:
    """Cleaned fields and the reason of refusal: the rules of METHOD 1.2 that need no configuration."""
    if row["reason"] is not None:
        return (None, None, None, None, None, row["reason"], None)
    asin, title, description, brand, category, categories = (
        _field(value, kind) for value, kind in zip(row["value"], row["types"], strict=True)
    )
    title = title[: text.MAX_FIELD] if title else ""
    name, reason = text.clean_title(title), None
    if len(name) <= 1:
        reason = "title_missing"
    elif text.looks_like_markup(title):
        reason = "title_html"
    shelf = _path(category or categories)
    words = text.title_words(title)
    return (asin, name, text.clean_value(description), text.clean_value(brand), shelf, reason, words)


def _field(value: str | None, kind: str | None) -> Any:
    """A JSON field as a Python value: a string, a list, or None for every other kind."""
    if kind == "ARRAY":
        return json.loads(value or "[]")
    return value if kind == "VARCHAR" else None


def _path(category: object) -> str:
    """`["A", "B"]` or `[["A", "B"], …]` (2014) as `A > B`; markup that upstream left in the list is dropped."""
    if isinstance(category, list) and category and isinstance(category[0], list):
        category = category[0]
    parts = category if isinstance(category, list) else [category]
    return " > ".join(filter(None, (text.clean_text(part) for part in parts if isinstance(part, str))))
