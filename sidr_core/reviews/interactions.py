"""`interactions`: k-core users and items, ordered histories, and samples cut by the time of their target.

The rules of docs/method.md, "Data", in DuckDB SQL over numbered ids. Order: a user's reviews by time, equal times
in file order; samples by target time, equal times by the user's first line in the files, then by position. The
window is not widened when few items survive (MiniOneRec does so): it is what the profile says. Rows of a
published split keep their split, order and history; `position` then counts the user's rows from 1. With
`split.train_only`, train and valid rows of other domains are left out; test rows and items stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from sidr_core.errors import InputError
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews.counting import all_counted, core_share, known_items, unknown_items
from sidr_core.reviews.domains import prefix_of
from sidr_core.reviews.quarantine import counts_table
from sidr_core.reviews.samples import Log, Samples
from sidr_core.tables import contracts
from sidr_core.tables import files as tables
from sidr_core.tables.columns import TEST, TRAIN, VALID
from sidr_core.tables.sql import BATCH, batches, connect, frame, quoted, write

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Filters

_SPLITS = (TRAIN, VALID, TEST)

# Numbers follow the order of the ids, so that sorting by number is sorting by id.
_NUMBERED = """
CREATE TABLE things AS SELECT item_id, (row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS item FROM catalogue;
CREATE TABLE people AS
    SELECT user_id, (row_number() OVER (ORDER BY user_id) - 1)::INTEGER AS user
    FROM (SELECT DISTINCT user_id FROM reviews);
CREATE TABLE log AS
    SELECT row, user, item, rating, timestamp FROM reviews JOIN things USING (item_id) JOIN people USING (user_id)
    WHERE ($since = 0 OR timestamp >= $since) AND ($min_rating IS NULL OR rating >= $min_rating)
"""
_FILTERED = """
SELECT count(*) FILTER (timestamp < $since) AS "before `filters.since`",
       count(*) FILTER (timestamp >= $since AND NOT coalesce($min_rating IS NULL OR rating >= $min_rating, false))
           AS "below `filters.min_rating` or unrated"
FROM reviews SEMI JOIN things USING (item_id)
"""
_FIRST_OF_EACH = " QUALIFY row_number() OVER (PARTITION BY user, item ORDER BY timestamp, row) = 1"
_CORE_ROUND = """
CREATE OR REPLACE TABLE log AS
    SELECT log.* FROM log
    SEMI JOIN (SELECT user FROM log GROUP BY ALL HAVING count(*) >= $k) USING (user)
    SEMI JOIN (SELECT item FROM log GROUP BY ALL HAVING count(*) >= $k) USING (item)
"""
_TIMED = """
CREATE TABLE interactions AS
    SELECT row_number() OVER (ORDER BY user, timestamp, row) - 1 AS place,
           (row_number() OVER (PARTITION BY user ORDER BY timestamp, row) - 1)::INTEGER AS position,
           min(row) OVER (PARTITION BY user) AS user_order, user, item, rating, timestamp
    FROM log
"""
_PUBLISHED = """
CREATE TABLE samples AS
    SELECT user_id, (row_number() OVER (PARTITION BY user_id ORDER BY row))::INTEGER AS position,
           item_id AS target_item_id, timestamp AS target_timestamp,
           list_slice(history_item_ids, -$max_history, -1) AS history_item_ids, row AS place, split, rating
    FROM reviews
"""

_SET_ASIDE = """
UPDATE samples SET split = 'none'
WHERE split <> 'test' AND NOT list_bool_or(list_transform($prefixes, lambda prefix: starts_with(user_id, prefix)))
"""


@dataclass(frozen=True)
class _Made:
    """What was written: rows of each split, where every review went, numbers for the card, and the checks."""

    sizes: dict[str, int]
    fates: dict[str, int]
    metrics: dict[str, Any]
    checks: tuple[Check, ...]


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `interactions`, `items`, `train`, `valid` and `test` (each `.parquet`).

    Raises:
        InputError: nothing survives the k-core, or a split is empty.
    """
    with connect(out_dir) as db:
        # raw_reviews is written in file and line order: that is what `row` counts.
        reviews = quoted(str(inputs["raw_reviews"].path("raw_reviews.parquet")))
        catalogue = quoted(str(inputs["raw_items"].path("raw_items.parquet")))
        db.execute(
            "CREATE VIEW reviews AS SELECT * EXCLUDE (synthetic), file_row_number AS row "
            f"FROM read_parquet({reviews}, file_row_number = true)"
        )
        db.execute(f"CREATE VIEW catalogue AS SELECT * EXCLUDE (synthetic) FROM read_parquet({catalogue})")
        total = _one(db, "SELECT count(*) FROM reviews")
        make = _published if _one(db, "SELECT count(split) FROM reviews") else _timed
        made = make(db, config, out_dir, inputs, progress)
    counted = all_counted("reviews", total, made.fates)
    progress.say(counted.detail)
    progress.say(", ".join(f"{name} {size:,}" for name, size in made.sizes.items()) + " rows")
    metrics = {**made.metrics, **{f"{name}_rows": size for name, size in made.sizes.items()}}
    note = "Synthetic data, made by the built-in generator.\n\n" if inputs.synthetic else ""
    markdown = {
        "Dataset": note + counts_table(("measure", "value"), metrics),
        "Where every review went": counts_table(("reviews", "count"), {"read": total} | made.fates),
    }
    return Report(metrics=metrics, checks=(*made.checks, counted), markdown=markdown)


def _run(db: duckdb.DuckDBPyConnection, script: str, **values: Any) -> None:
    """Execute statements one by one, each with the values that it names."""
    for statement in filter(str.strip, script.split(";")):
        db.execute(statement, {key: value for key, value in values.items() if f"${key}" in statement})


def _one(db: duckdb.DuckDBPyConnection, query: str, **values: Any) -> Any:
    return db.execute(query, values).fetchall()[0][0]


def _counts(db: duckdb.DuckDBPyConnection, table: str, user: str = "user_id", item: str = "item_id") -> str:
    query = f"SELECT count(*), count(DISTINCT {user}), count(DISTINCT {item}) FROM {table}"
    return "{:,} reviews of {:,} users and {:,} items".format(*db.execute(query).fetchall()[0])


def _write_items(db: duckdb.DuckDBPyConnection, items: str, path: Path, synthetic: bool) -> None:
    query = f"SELECT *, $synthetic AS synthetic FROM {items} ORDER BY item_id"
    write(batches(db, query, {"synthetic": synthetic}), path, contracts.Items)


def _require_rows(sizes: Mapping[str, int], source: str) -> None:
    if not all(sizes.values()):
        raise InputError(
            f"the {min(sizes, key=lambda name: sizes[name])} split is empty",
            expected="at least one row in each of train, valid and test",
            found=f"{dict(sizes)}, from {source}",
            fix="add reviews, lower `filters.k_core`, choose a later snapshot, or raise its share in `split.ratios`",
        )


# -- reviews with times ------------------------------------------------------------------------


def _timed(
    db: duckdb.DuckDBPyConnection, config: DatasetConfig, out_dir: Path, inputs: Inputs, progress: Progress
) -> _Made:
    filters, synthetic = config.filters, inputs.synthetic
    unknown = unknown_items(db)
    reviews = _one(db, "SELECT count(*) FROM reviews")
    known = known_items(db, unknown, reviews, filters.max_unknown_item_share, inputs["raw_items"].metrics)
    if not known.passed:
        progress.say(known.detail)
    fates, rounds = _k_core(db, filters, unknown, progress)
    core = core_share(filters.k_core, fates, _counts(db, "log", "user", "item"))
    _run(db, _TIMED)
    log = _write_log(db, out_dir / "interactions.parquet", synthetic)
    by_time = config.split.kind == "time"
    parts = _cut_by_time(db, log, config.split.ratios) if by_time else _last_left_out(log)
    if domains := config.split.train_only:
        chosen = log.of_domains(domains)
        parts |= {name: parts[name][chosen[parts[name]]] for name in (TRAIN, VALID)}
    sizes = {name: len(of_split) for name, of_split in parts.items()}
    _require_rows(sizes, _counts(db, "log", "user", "item"))
    samples = Samples(log, config.split.max_history)
    for name, of_split in parts.items():
        chunks = (of_split[start : start + BATCH] for start in range(0, len(of_split), BATCH))
        write(samples.tables(chunks), out_dir / f"{name}.parquet", contracts.Samples)
    in_core = "(SELECT catalogue.* FROM catalogue SEMI JOIN (FROM things SEMI JOIN log USING (item)) USING (item_id))"
    _write_items(db, in_core, out_dir / "items.parquet", synthetic)
    metrics = {**_timed_metrics(log, samples, parts), "k_core_rounds": rounds, "unknown_items": sum(unknown.values())}
    order = _order_of_time(log, parts) if by_time else _order_of_users(log, parts)
    return _Made(sizes, fates, metrics, (*_log_checks(log, samples, filters.k_core), *order, known, core))


def _cut_by_time(db: duckdb.DuckDBPyConnection, log: Log, ratios: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """Places of the targets of each split, cut by their times. Raises InputError if there are none."""
    if log.time is None:
        raise InputError(
            "these reviews carry no times, so time cannot cut them",
            expected="a time for every review, or `split.kind: leave_one_out`",
            found=f"{len(log.user):,} reviews without one",
            fix="set `split.kind: leave_one_out`",
        )
    query = "SELECT place FROM interactions WHERE position >= 1 ORDER BY timestamp, user_order, position"
    places = _column(db, query).to_numpy()
    train, valid, _ = ratios
    # The tiny addend keeps a product such as 0.29 * 100 = 28.999… from losing a row.
    bounds = 0, int(len(places) * train + 1e-9), int(len(places) * (train + valid) + 1e-9), len(places)
    return {name: places[slice(*span)] for name, span in zip(_SPLITS, pairwise(bounds), strict=True)}


def _last_left_out(log: Log) -> dict[str, np.ndarray]:
    """Places of the targets of each split: each user's last is of test, the one before of valid, those before of train.

    No user's first item is a target, as it has no history.
    """
    starts = log.starts()
    places = np.arange(len(log.user))
    behind = np.append(starts[1:], len(places))[log.user] - 1 - places  # items of the user after this one
    targets = places > starts[log.user]
    return {
        TRAIN: places[targets & (behind > 1)],
        VALID: places[targets & (behind == 1)],
        TEST: places[targets & (behind == 0)],
    }


def _k_core(
    db: duckdb.DuckDBPyConnection, filters: Filters, unknown: Mapping[str, int], progress: Progress
) -> tuple[dict[str, int], int]:
    """Make `log`: the filtered reviews in which users and items have at least k each.

    Users and items are counted and dropped together until nothing is dropped any more (docs/method.md, "Data").

    Returns:
        Where every review went, and the rounds.
    """
    repeats = "" if filters.keep_repeats else _FIRST_OF_EACH
    since = int(datetime.strptime(filters.since, "%Y-%m").replace(tzinfo=UTC).timestamp()) if filters.since else 0
    _run(db, _NUMBERED + repeats, since=since, min_rating=filters.min_rating)
    left_out = {f"of unknown items{f' ({form} differ)' if form else ''}": n for form, n in unknown.items()}
    left_out |= frame(db, _FILTERED, {"since": since, "min_rating": filters.min_rating}).row(0, named=True)
    filtered, rounds, before = _counts(db, "log", "user", "item"), 0, -1
    candidates = _one(db, "SELECT count(*) FROM log")
    if repeats:
        total = _one(db, "SELECT count(*) FROM reviews")
        left_out["repeats of a user and an item"] = total - sum(left_out.values()) - candidates
    while (size := _one(db, "SELECT count(*) FROM log")) not in (before, 0):
        before = size
        _run(db, _CORE_ROUND, k=filters.k_core)
        rounds += 1
    if size == 0:
        raise InputError(
            f"the {filters.k_core}-core is empty",
            expected=f"users and items with at least {filters.k_core} reviews each",
            found=f"{_counts(db, 'reviews')} read; {filtered} with an accepted item and within the filters; "
            f"none left after {rounds} rounds"
            + "".join(f"; {n:,} reviews {reason}" for reason, n in left_out.items() if n),
            fix="lower `filters.k_core`, widen `filters.since` / `filters.min_rating`, choose a later snapshot, "
            "or check that reviews and items belong together",
        )
    core = f"{filters.k_core}-core"
    progress.say(f"{core} after {rounds} rounds: {_counts(db, 'log', 'user', 'item')}")
    return {f"in the {core}": size} | left_out | {f"outside the {core}": candidates - size}, rounds


def _write_log(db: duckdb.DuckDBPyConnection, path: Path, synthetic: bool) -> Log:
    """Write `interactions.parquet`, sorted by user and position, and keep its numbers."""
    users, items = (
        _column(db, query).cast(pa.large_string()).combine_chunks()
        for query in ("SELECT user_id FROM people ORDER BY user", "SELECT item_id FROM things ORDER BY item")
    )
    numbers: dict[str, list[np.ndarray]] = {"user": [], "item": [], "timestamp": []}

    def named() -> Iterator[pa.Table]:
        for table in batches(db, "SELECT user, item, rating, timestamp, position FROM interactions ORDER BY place"):
            for name, arrays in numbers.items():
                if not table[name].null_count:  # times, where the source has none
                    arrays.append(table[name].to_numpy())
            yield pa.table(
                {
                    "user_id": users.take(table["user"].combine_chunks()),
                    "item_id": items.take(table["item"].combine_chunks()),
                    **{name: table[name] for name in ("rating", "timestamp", "position")},
                    "synthetic": pa.array(np.full(len(table), synthetic)),
                }
            )

    write(named(), path, contracts.Interactions)
    user, item, time = (np.concatenate(arrays) if arrays else None for arrays in numbers.values())
    assert user is not None and item is not None
    return Log(user, item, time, users, items)


def _column(db: duckdb.DuckDBPyConnection, query: str) -> pa.ChunkedArray:
    return db.sql(query).to_arrow_table().column(0)


def _log_checks(log: Log, samples: Samples, k: int) -> tuple[Check, ...]:
    """What holds of any split of a log."""
    counts = np.concatenate([np.bincount(log.user), np.bincount(log.item)])
    least = int(counts[counts > 0].min())
    return (
        Check("k_core", least >= k, f"the least is {least}, k is {k}"),
        Check("history_before_target", samples.misplaced == 0, f"{samples.misplaced:,} history items out of place"),
        Check(
            "splits_disjoint", samples.repeated_places == 0, f"{samples.repeated_places:,} (user, position) occur twice"
        ),
    )


def _order_of_time(log: Log, places: Mapping[str, np.ndarray]) -> tuple[Check, ...]:
    """Of a split by time: what is later is never trained on."""
    assert log.time is not None
    times = {name: log.time[at] for name, at in places.items()}
    pairs = (TRAIN, VALID), (VALID, TEST), (TRAIN, TEST)
    overlaps = sum(bool(times[early].max() > times[late].min()) for early, late in pairs)
    shared = _shared(log, places)
    after = int((times[TRAIN] > times[TEST].min()).sum())
    return (
        Check("split_order", overlaps == 0, f"{overlaps} pairs of splits overlap in time"),
        Check(
            "train_only_past",
            shared == after == 0,
            f"{shared:,} test rows in train, {after:,} train targets after the first test target",
        ),
    )


def _order_of_users(log: Log, places: Mapping[str, np.ndarray]) -> tuple[Check, ...]:
    """Of leave-one-out: the order of each user. Of different users the times may cross: this split allows it."""
    split = np.full(len(log.user), -1)
    for number, name in enumerate(_SPLITS):
        split[places[name]] = number
    targets = np.flatnonzero(split >= 0)
    user, number = log.user[targets], split[targets]
    crossed = int(((user[1:] == user[:-1]) & (number[1:] < number[:-1])).sum())
    shared = _shared(log, places)
    note = "leave-one-out: each user's own order; times of different users may cross"
    return (
        Check("split_order", crossed == 0, f"{crossed:,} targets stand before one of an earlier split ({note})"),
        Check("train_only_past", shared == crossed == 0, f"{shared:,} test rows in train ({note})"),
    )


def _shared(log: Log, places: Mapping[str, np.ndarray]) -> int:
    """Test rows that are in train."""
    in_train = np.zeros(len(log.user), dtype=bool)
    in_train[places[TRAIN]] = True
    return int(in_train[places[TEST]].sum())


def _timed_metrics(log: Log, samples: Samples, places: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Numbers of the whole; `cold_target_share`: test targets that are no train target."""
    known = np.zeros(len(log.items), dtype=bool)
    known[log.item[places[TRAIN]]] = True
    return {
        "users": int(np.count_nonzero(np.bincount(log.user))),
        "items": int(np.count_nonzero(np.bincount(log.item))),
        "interactions": len(log.user),
        "mean_history": round(samples.history_items / samples.rows, 4),
        "repeat_target_share": round(samples.repeated_targets / samples.rows, 4),
        "cold_target_share": round(float(1 - known[log.item[places[TEST]]].mean()), 4),
        **(
            {}
            if log.time is None
            else {
                "first_date": tables.iso_date(int(log.time.min())),
                "last_date": tables.iso_date(int(log.time.max())),
            }
        ),
    }


# -- rows of a published split -----------------------------------------------------------------


def _published(
    db: duckdb.DuckDBPyConnection, config: DatasetConfig, out_dir: Path, inputs: Inputs, progress: Progress
) -> _Made:
    _require_known_items(db)
    _run(db, _PUBLISHED, max_history=config.split.max_history)
    if domains := config.split.train_only:
        _run(db, _SET_ASIDE, prefixes=list(map(prefix_of, domains)))
    rows = frame(db, "SELECT split, count(*) AS n FROM samples WHERE split <> 'none' GROUP BY split")
    sizes: dict[str, int] = dict.fromkeys(_SPLITS, 0) | dict(rows.iter_rows())
    _require_rows(sizes, _counts(db, "reviews"))
    for name in _SPLITS:
        query = (
            "SELECT user_id || ':' || position AS row_id, user_id, position, history_item_ids, target_item_id, "
            "target_timestamp FROM samples WHERE split = $split ORDER BY place"
        )
        write(batches(db, query, {"split": name}), out_dir / f"{name}.parquet", contracts.Samples)
    query = (
        "SELECT user_id, target_item_id AS item_id, rating, target_timestamp AS timestamp, position, "
        "$synthetic AS synthetic FROM samples ORDER BY user_id, position"
    )
    written = batches(db, query, {"synthetic": inputs.synthetic})
    write(written, out_dir / "interactions.parquet", contracts.Interactions)
    _write_items(db, "catalogue", out_dir / "items.parquet", inputs.synthetic)
    metrics = {**frame(db, _PUBLISHED_METRICS).row(0, named=True), "k_core_rounds": 0}
    fates = {f"in {name}": size for name, size in sizes.items()}
    fates["of domains outside `split.train_only`"] = _one(db, "SELECT count(*) FROM samples WHERE split = 'none'")
    return _Made(sizes, fates, metrics, _published_checks(db))


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
            fix="check that `source.info` belongs to the same category as the CSV files",
        )


_SHARED = """
SELECT count(*) FROM (SELECT * FROM samples WHERE split = 'test') AS late
SEMI JOIN (SELECT * FROM samples WHERE split = 'train') AS early USING (user_id, history_item_ids, target_item_id)
"""


def _published_checks(db: duckdb.DuckDBPyConnection) -> tuple[Check, ...]:
    fixed = "does not apply: rows of a published split, kept as they are, "
    empty = _one(db, "SELECT count(*) FROM samples WHERE len(history_item_ids) = 0")
    twice = _one(db, "SELECT count(*) - count(DISTINCT (user_id, position)) FROM samples")
    shared = _one(db, _SHARED)
    return (
        Check("k_core", True, fixed + "were filtered by who published them"),
        Check("history_before_target", empty == 0, f"{empty:,} empty histories; order {fixed}carry no time"),
        Check("split_order", True, fixed + "carry no time"),
        Check("splits_disjoint", twice == 0, f"{twice:,} (user, position) occur twice"),
        Check("train_only_past", shared == 0, f"{shared:,} test rows in train; time {fixed}carry none"),
        Check("known_items", True, "each item of the published rows has a record"),
        Check("core_share", True, fixed + "were filtered by who published them"),
    )


_PUBLISHED_METRICS = """
SELECT count(DISTINCT user_id) AS users, (SELECT count(*) FROM catalogue) AS items, count(*) AS interactions,
       round(avg(len(history_item_ids)), 4) AS mean_history,
       round(avg(list_contains(history_item_ids, target_item_id)::INTEGER), 4) AS repeat_target_share,
       round(avg((target_item_id NOT IN (SELECT target_item_id FROM samples WHERE split = 'train'))::INTEGER)
             FILTER (split = 'test'), 4) AS cold_target_share
FROM samples
"""
