"""`interactions`: k-core users and items, ordered histories, and samples cut by the time of their target.

METHOD 1.2 and 1.3 in DuckDB SQL. Order: a user's reviews by time, equal times in file order; samples
by target time, equal times by the user's first line in the files, then by position. The window is not
widened when few items survive (MiniOneRec does so): it is what the profile says. Rows of a published
split keep their split, order and history; `position` then counts the user's rows from 1.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl

from sidr_core import tables
from sidr_core.columns import TEST, TRAIN, VALID
from sidr_core.contracts import Interactions, Items, Samples
from sidr_core.errors import InputError, ProfileError
from sidr_core.reviews.sql import frame
from sidr_core.stage import Check, Inputs, Progress, Report

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Filters, Split

_SPLITS = (TRAIN, VALID, TEST)

_LOG = """
CREATE TABLE log AS
    SELECT row, user_id, item_id, rating, timestamp FROM reviews SEMI JOIN catalogue USING (item_id)
    WHERE timestamp >= $since AND ($min_rating IS NULL OR rating >= $min_rating)
    QUALIFY $keep_repeats OR row_number() OVER (PARTITION BY user_id, item_id ORDER BY timestamp, row) = 1
"""
_CORE_ROUND = """
CREATE OR REPLACE TABLE log AS
    SELECT log.* FROM log
    SEMI JOIN (SELECT user_id FROM log GROUP BY ALL HAVING count(*) >= $k) USING (user_id)
    SEMI JOIN (SELECT item_id FROM log GROUP BY ALL HAVING count(*) >= $k) USING (item_id)
"""
_TIMED = """
CREATE TABLE interactions AS
    SELECT user_id, item_id, rating, timestamp,
           (row_number() OVER (PARTITION BY user_id ORDER BY timestamp, row) - 1)::INTEGER AS position,
           min(row) OVER (PARTITION BY user_id) AS user_order
    FROM log;
CREATE TABLE samples AS
    SELECT *, row_number() OVER (ORDER BY target_timestamp, user_order, position) - 1 AS place
    FROM (SELECT user_id, position, user_order, item_id AS target_item_id, timestamp AS target_timestamp,
                 list(item_id) OVER (PARTITION BY user_id ORDER BY position
                                     ROWS BETWEEN $max_history PRECEDING AND 1 PRECEDING) AS history_item_ids
          FROM interactions)
    WHERE position >= 1;
ALTER TABLE samples ADD COLUMN split VARCHAR;
UPDATE samples SET split = CASE WHEN place < $first THEN 'train' WHEN place < $second THEN 'valid' ELSE 'test' END;
"""
_PUBLISHED = """
CREATE TABLE samples AS
    SELECT user_id, (row_number() OVER (PARTITION BY user_id ORDER BY row))::INTEGER AS position,
           item_id AS target_item_id, timestamp AS target_timestamp,
           list_slice(history_item_ids, -$max_history, -1) AS history_item_ids, row AS place, split, rating
    FROM reviews;
CREATE TABLE interactions AS
    SELECT user_id, target_item_id AS item_id, rating, target_timestamp AS timestamp, position FROM samples;
"""
_SAMPLES = """
    SELECT user_id || ':' || position AS row_id, user_id, position, history_item_ids, target_item_id, target_timestamp
    FROM samples WHERE split = $split ORDER BY place
"""


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `interactions`, `items`, `train`, `valid` and `test` (each `.parquet`).

    Raises:
        InputError: nothing survives the k-core, or a split is empty.
    """
    with duckdb.connect() as db:
        reviews = tables.read(inputs["raw_reviews"].path("raw_reviews.parquet"))
        items = tables.read(inputs["raw_items"].path("raw_items.parquet"))
        # raw_reviews is written in file and line order: that is what `row` counts.
        db.register("reviews", reviews.with_row_index("row").to_arrow())
        db.register("catalogue", items.to_arrow())
        published = _one(db, "SELECT count(split) FROM reviews") > 0
        rounds = 0
        if published:
            _require_known_items(db)
            _run(db, _PUBLISHED, max_history=config.split.max_history)
        else:
            rounds = _k_core(db, config.filters, progress)
            _cut(db, config.split)
        kept = "catalogue" if published else "catalogue SEMI JOIN interactions USING (item_id)"
        db.execute(f"CREATE TABLE items AS SELECT * FROM {kept}")
        sizes = _write(db, out_dir, inputs.synthetic)
        progress.say(", ".join(f"{name} {size:,}" for name, size in sizes.items()) + " rows")
        checks = _checks(db, config.filters.k_core, published)
        metrics = {**_metrics(db), **{f"{name}_rows": size for name, size in sizes.items()}, "k_core_rounds": rounds}
    return Report(metrics=metrics, checks=checks, markdown={"Dataset": _card(metrics, inputs.synthetic)})


def _run(db: duckdb.DuckDBPyConnection, script: str, **values: Any) -> None:
    """Execute statements one by one, each with the values that it names."""
    for statement in filter(str.strip, script.split(";")):
        db.execute(statement, {key: value for key, value in values.items() if f"${key}" in statement})


def _one(db: duckdb.DuckDBPyConnection, query: str, **values: Any) -> Any:
    return db.execute(query, values).fetchall()[0][0]


def _counts(db: duckdb.DuckDBPyConnection, table: str) -> str:
    query = f"SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id) FROM {table}"
    return "{:,} reviews of {:,} users and {:,} items".format(*db.execute(query).fetchall()[0])


def _k_core(db: duckdb.DuckDBPyConnection, filters: Filters, progress: Progress) -> int:
    """Make `log`: the filtered reviews in which users and items have at least k each. Returns the rounds.

    Users and items are counted and dropped together until nothing is dropped any more (METHOD 1.2).
    """
    since = _first_second(filters.since)
    _run(db, _LOG, since=since, min_rating=filters.min_rating, keep_repeats=filters.keep_repeats)
    filtered, rounds, before = _counts(db, "log"), 0, -1
    while (size := _one(db, "SELECT count(*) FROM log")) not in (before, 0):
        before = size
        _run(db, _CORE_ROUND, k=filters.k_core)
        rounds += 1
    if size == 0:
        raise InputError(
            f"the {filters.k_core}-core is empty",
            expected=f"users and items with at least {filters.k_core} reviews each",
            found=f"{_counts(db, 'reviews')} read; {filtered} with an accepted item and within the filters; "
            f"none left after {rounds} rounds",
            do="lower `filters.k_core`, widen `filters.since` / `filters.min_rating`, choose a later snapshot, "
            "or check that reviews and items belong together",
        )
    progress.say(f"{filters.k_core}-core after {rounds} rounds: {_counts(db, 'log')}")
    return rounds


def _first_second(since: str | None) -> int:
    if since is None:
        return 0
    try:
        return int(datetime.strptime(since, "%Y-%m").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise ProfileError(
            "`filters.since` is no month", expected="YYYY-MM", found=repr(since), do="correct it in the profile"
        ) from None


def _cut(db: duckdb.DuckDBPyConnection, split: Split) -> None:
    """Make `interactions` and `samples`, cut at floor(0.8 N) and floor(0.9 N) for the default ratios."""
    total = _one(db, "SELECT count(*) - count(DISTINCT user_id) FROM log")
    train, valid, _ = split.ratios
    # The tiny addend keeps a product such as 0.29 * 100 = 28.999… from losing a row.
    first, second = int(total * train + 1e-9), int(total * (train + valid) + 1e-9)
    _run(db, _TIMED, max_history=split.max_history, first=first, second=second)


def _require_known_items(db: duckdb.DuckDBPyConnection) -> None:
    unknown = db.execute(
        "SELECT item_id FROM (SELECT item_id FROM reviews UNION SELECT unnest(history_item_ids) FROM reviews) "
        "ANTI JOIN catalogue USING (item_id) ORDER BY item_id"
    ).fetchall()
    if unknown:
        raise InputError(
            "the published rows name items that have no record",
            expected="every target and history item in raw_items",
            found=f"{len(unknown):,} unknown items, first {unknown[0][0]!r}",
            do="check that `source.info` belongs to the same category as the CSV files",
        )


def _write(db: duckdb.DuckDBPyConnection, out_dir: Path, synthetic: bool) -> dict[str, int]:
    """Write the five tables; returns the rows of each split. Raises InputError if one is empty."""
    label = pl.lit(synthetic).alias("synthetic")
    samples = {name: frame(db, _SAMPLES, {"split": name}) for name in _SPLITS}
    sizes = {name: len(rows) for name, rows in samples.items()}
    if not all(sizes.values()):
        raise InputError(
            f"the {min(sizes, key=lambda name: sizes[name])} split is empty",
            expected="at least one row in each of train, valid and test",
            found=f"{sizes}, from {_counts(db, 'interactions')}",
            do="choose a later snapshot, or lower `filters.k_core`",
        )
    for name, rows in samples.items():
        tables.write(rows, out_dir / f"{name}.parquet", Samples)
    log = frame(db, "SELECT * FROM interactions ORDER BY user_id, position")
    tables.write(log.with_columns(label), out_dir / "interactions.parquet", Interactions)
    items = frame(db, "SELECT * EXCLUDE (synthetic) FROM items ORDER BY item_id")
    tables.write(items.with_columns(label), out_dir / "items.parquet", Items)
    return sizes


_LEAST = """
SELECT least((SELECT min(n) FROM (SELECT count(*) AS n FROM interactions GROUP BY user_id)),
             (SELECT min(n) FROM (SELECT count(*) AS n FROM interactions GROUP BY item_id)))
"""
# Every history item is looked up again at the position where it must lie: before its target, in order.
_MISPLACED = """
WITH places AS (
    SELECT user_id, position, target_timestamp, unnest(history_item_ids) AS item_id,
           position - len(history_item_ids) + generate_subscripts(history_item_ids, 1) - 1 AS at
    FROM samples)
SELECT count(*) FROM places LEFT JOIN interactions AS seen
    ON seen.user_id = places.user_id AND seen.position = places.at AND seen.item_id = places.item_id
WHERE seen.item_id IS NULL OR places.at >= places.position OR seen.timestamp > places.target_timestamp
"""
_OVERLAPS = """
WITH spans AS (SELECT split, min(target_timestamp) AS low, max(target_timestamp) AS high FROM samples GROUP BY split)
SELECT count(*) FROM spans AS early JOIN spans AS late ON early.high > late.low
WHERE (early.split, late.split) IN (('train', 'valid'), ('train', 'test'), ('valid', 'test'))
"""


def _checks(db: duckdb.DuckDBPyConnection, k: int, published: bool) -> tuple[Check, ...]:
    twice = _one(db, "SELECT count(*) - count(DISTINCT (user_id, position)) FROM samples")
    disjoint = Check("splits_disjoint", twice == 0, f"{twice:,} (user, position) occur twice")
    if published:
        fixed = "does not apply: rows of a published split, kept as they are, "
        empty = _one(db, "SELECT count(*) FROM samples WHERE len(history_item_ids) = 0")
        return (
            Check("k_core", True, fixed + "were filtered by who published them"),
            Check("history_before_target", empty == 0, f"{empty:,} empty histories; order {fixed}carry no time"),
            Check("split_order", True, fixed + "carry no time"),
            disjoint,
        )
    least, misplaced, overlaps = _one(db, _LEAST), _one(db, _MISPLACED), _one(db, _OVERLAPS)
    return (
        Check("k_core", least >= k, f"the least is {least}, k is {k}"),
        Check("history_before_target", misplaced == 0, f"{misplaced:,} history items out of place"),
        Check("split_order", overlaps == 0, f"{overlaps} pairs of splits overlap in time"),
        disjoint,
    )


_METRICS = """
SELECT (SELECT count(DISTINCT user_id) FROM interactions) AS users,
       (SELECT count(*) FROM items) AS items,
       (SELECT count(*) FROM interactions) AS interactions,
       round(avg(len(history_item_ids)), 4) AS mean_history,
       round(avg(list_contains(history_item_ids, target_item_id)::INTEGER), 4) AS repeat_target_share,
       round(avg((target_item_id NOT IN (SELECT target_item_id FROM samples WHERE split = 'train'))::INTEGER)
             FILTER (split = 'test'), 4) AS cold_target_share,
       strftime(to_timestamp((SELECT min(timestamp) FROM interactions)) AT TIME ZONE 'UTC', '%Y-%m-%d') AS first_date,
       strftime(to_timestamp((SELECT max(timestamp) FROM interactions)) AT TIME ZONE 'UTC', '%Y-%m-%d') AS last_date
FROM samples
"""


def _metrics(db: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Numbers of the whole; `cold_target_share`: test targets that are no train target. No date: left out."""
    row = frame(db, _METRICS).row(0, named=True)
    return {name: value for name, value in row.items() if value is not None}


def _card(metrics: dict[str, Any], synthetic: bool) -> str:
    rows = "\n".join(
        f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value} |"
        for name, value in metrics.items()
    )
    note = "Synthetic data, made by the built-in generator.\n\n" if synthetic else ""
    return f"{note}| measure | value |\n| --- | ---: |\n{rows}"
