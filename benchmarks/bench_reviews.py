"""Reviews to samples: `raw_reviews` and `interactions` beside pandas and a plain Python version, in time and memory.

    .venv/bin/python benchmarks/bench_reviews.py --rows 1000000,3000000,10000000

Each runs in a process of its own on the same generated gzip-JSONL file, applies the same filters (types,
range of rating, exact duplicates, items with a record, 5-core) and writes the same sample tables, which are
compared row by row through a hash. Time counts from the first byte read to the last table written, imports
and the reading of the metadata left out. Peak memory is that of the process with its children, imports
included, looked at every 20 ms; CPU seconds are of the whole process. `sidr+1%` is a second snapshot of
`raw_reviews` whose source has one further file of 1 % new reviews, in a new process, over the store that
the cold run left.

The file: records in the layout of 2018 with a text, ids as strings, users and items by a power law, all
sound JSON (pandas cannot pass over a broken line), one rating in a thousand out of range, one line in a
thousand repeated. Synthetic: nothing about tastes may be read from it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from machine import hardware

from sidr_core.render.grid import markdown_table

K, LONGEST, RATIOS = 5, 10, (0.8, 0.1, 0.1)
BLOCK = 50_000
FIRST_DAY, DAYS = 1_356_998_400, 2_068  # 2013-01-01 … 2018-08-31
EXTRA_DAY = 1_535_760_000  # 2018-09-01, where the further file begins
WORDS = ["a", "again", "and", "bad", "bought", "buy", "cheap", "color", "does", "easy", "for", "good", "great", "home"]
WORDS += ["ink", "looks", "nice", "not", "office", "one", "paper", "pen", "price", "product", "quality", "recommend"]
WORDS += ["should", "still", "sturdy", "the", "this", "to", "use", "well", "what", "works", "would", "year"]


# -- data ---------------------------------------------------------------------------------------


def generate(rows: int, folder: Path) -> None:
    """Write `reviews.jsonl.gz` (`rows` lines), `extra.jsonl.gz` (1 % more, later) and `meta.jsonl.gz`."""
    from isal import igzip

    users, items = rows // 8, max(200, rows // 40)
    for name, count, seed, first, days in (
        ("reviews.jsonl.gz", rows, 7, FIRST_DAY, DAYS),
        ("extra.jsonl.gz", rows // 100, 8, EXTRA_DAY, 30),
    ):
        with igzip.IGzipFile(folder / name, "wb", 2) as file:
            for block in _lines(count, users, items, seed, first, days):
                file.write(block)
    with igzip.IGzipFile(folder / "meta.jsonl.gz", "wb", 2) as file:
        for start in range(0, items, BLOCK):
            numbers = range(start, min(start + BLOCK, items))
            file.write("".join(f'{{"asin": "{_item(n)}", "title": "Thing number {n}"}}\n' for n in numbers).encode())


def _item(number: int) -> str:
    return f"B{number:09d}"


def _lines(rows: int, users: int, items: int, seed: int, first: int, days: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, max(1, int(n)))) for n in rng.lognormal(2.3, 0.8, 5_000)]
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        user = (users * rng.random(count) ** 1.7).astype(int).tolist()
        item = (items * rng.random(count) ** 2.2).astype(int).tolist()
        when = (first + 86_400 * rng.integers(0, days, count)).tolist()
        stars = np.where(
            rng.random(count) < 0.001, 11, rng.choice([5, 4, 3, 2, 1], count, p=[0.6, 0.2, 0.1, 0.05, 0.05])
        )
        text = rng.integers(0, len(texts), count).tolist()
        lines = [
            f'{{"overall": {r}.0, "verified": true, "reviewTime": "06 1, 2018", "reviewerID": "A{u:013d}", '
            f'"asin": "{_item(i)}", "reviewText": "{texts[x]}", "summary": "Five Stars", "unixReviewTime": {t}}}\n'
            for r, u, i, x, t in zip(stars.tolist(), user, item, text, when, strict=True)
        ]
        for place in range(1_000, count, 1_000):
            lines[place] = lines[place - 500]
        yield "".join(lines).encode()


# -- the three versions ---------------------------------------------------------------------------


def run_sidr(folder: Path, extra: bool = False) -> dict[str, Any]:
    """The stages, through the store; `extra` adds the further file and runs `raw_reviews` alone."""
    from sidr_core.pipeline import schema_check  # noqa: F401
    from sidr_core.pipeline.graph import stage_named
    from sidr_core.pipeline.profile import parse_profile
    from sidr_core.pipeline.run import run_stage
    from sidr_core.pipeline.stage import Progress
    from sidr_core.pipeline.store import Store

    for stage in ("raw_reviews", "raw_items", "interactions"):
        stage_named(stage).load()
    reviews = [folder / "reviews.jsonl.gz", *([folder / "extra.jsonl.gz"] if extra else [])]
    source = {
        "kind": "amazon_2018",
        "reviews": [str(path) for path in reviews],
        "items": [str(folder / "meta.jsonl.gz")],
    }
    fields = {
        "source": source,
        "snapshots": {"start": "2018-08", "end": "2018-09"},
        "filters": {"k_core": K},
        "split": {"max_history": LONGEST, "ratios": RATIOS},
    }
    profile = parse_profile("bench", {"datasets": {"d": fields}})
    store = Store(folder / "home" / "store")
    seconds = {}
    for stage in ("raw_reviews",) if extra else ("raw_reviews", "raw_items", "interactions"):
        started = time.perf_counter()
        made = run_stage(profile, "d", "2018-09" if extra else "2018-08", stage_named(stage), store, Progress())
        seconds[stage] = time.perf_counter() - started
    failed = [check["name"] for check in made.artifact.manifest["checks"] if not check["passed"]]
    assert not failed, failed
    parsed = len(list((store.root / "parsed_reviews").glob("*/MANIFEST.json")))
    tables = "" if extra else str(made.artifact.folder)
    return {
        "seconds": seconds["raw_reviews"] + seconds.get("interactions", 0),
        "stages": seconds,
        "tables": tables,
        "parsed": parsed,
    }


def run_python(folder: Path) -> dict[str, Any]:
    """One pass per line with `json.loads`, dicts and lists."""
    with gzip.open(folder / "meta.jsonl.gz", "rt") as file:
        items = {record["asin"] for record in map(json.loads, file) if record.get("title")}
    started = time.perf_counter()
    log: list[tuple[str, str, int]] = []
    seen: set[int] = set()
    with gzip.open(folder / "reviews.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            user, item = record.get("reviewerID"), record.get("asin")
            rating, when = record.get("overall"), record.get("unixReviewTime")
            if not (isinstance(user, str) and isinstance(item, str) and user.strip() and item.strip()):
                continue
            if not isinstance(rating, int | float) or not isinstance(when, int | float) or not 0 <= rating <= 5:
                continue
            if not 0 <= when <= 4_102_444_800 or when != int(when):
                continue
            digest = hash((user, item, rating, when, record.get("reviewText")))
            if digest in seen:
                continue
            seen.add(digest)
            if item in items:
                log.append((user, item, int(when)))
    seen.clear()
    size = -1
    while size != len(log):
        size = len(log)
        users, things = Counter(entry[0] for entry in log), Counter(entry[1] for entry in log)
        log = [entry for entry in log if users[entry[0]] >= K and things[entry[1]] >= K]
    walks: dict[str, list[tuple[int, str]]] = {}
    for user, item, when in log:
        walks.setdefault(user, []).append((when, item))
    rows = []
    for order, (user, walk) in enumerate(walks.items()):
        walk.sort(key=lambda event: event[0])
        things = [item for _, item in walk]
        for place in range(1, len(walk)):
            rows.append((walk[place][0], order, place, user, things[max(0, place - LONGEST) : place], things[place]))
    rows.sort(key=lambda row: row[:3])
    return _written(folder / "python", rows, started)


def _written(folder: Path, rows: list[tuple], started: float) -> dict[str, Any]:
    """Write the three tables of (time, order, position, user, history, target) rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    first, second = int(len(rows) * 0.8 + 1e-9), int(len(rows) * 0.9 + 1e-9)
    for name, part in (("train", rows[:first]), ("valid", rows[first:second]), ("test", rows[second:])):
        times, _, places, users, histories, targets = zip(*part, strict=True)
        table = pa.table(
            {
                "row_id": [f"{user}:{place}" for user, place in zip(users, places, strict=True)],
                "user_id": users,
                "position": pa.array(places, pa.int32()),
                "history_item_ids": histories,
                "target_item_id": targets,
                "target_timestamp": times,
            }
        )
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
    return {"seconds": time.perf_counter() - started, "tables": str(folder)}


def run_pandas(folder: Path) -> dict[str, Any]:
    """`read_json` in chunks of lines, `drop_duplicates`, a 5-core with `groupby`, histories per user."""
    import pandas
    import pyarrow.parquet  # noqa: F401

    pd: Any = pandas  # its stubs do not know `dtype=False`
    items = pd.read_json(folder / "meta.jsonl.gz", lines=True, dtype=False).dropna(subset="title")["asin"]
    started = time.perf_counter()
    names = ["reviewerID", "asin", "overall", "unixReviewTime", "reviewText"]
    chunks = pd.read_json(folder / "reviews.jsonl.gz", lines=True, chunksize=100_000, dtype=False, convert_dates=False)
    log = pd.concat([chunk[names] for chunk in chunks], ignore_index=True)
    log = log[log["overall"].between(0, 5) & log["unixReviewTime"].between(0, 4_102_444_800)]
    log = log.drop_duplicates().drop(columns=["overall", "reviewText"])
    log = log[log["asin"].isin(items)]
    size = -1
    while size != len(log):
        size = len(log)
        users = log.groupby("reviewerID")["asin"].transform("size")
        things = log.groupby("asin")["reviewerID"].transform("size")
        log = log[(users >= K) & (things >= K)]
    log["order"] = log.groupby("reviewerID", sort=False).ngroup()
    log = log.sort_values(["order", "unixReviewTime"], kind="stable")
    log["place"] = log.groupby("order").cumcount()
    targets = log["asin"].tolist()
    places = log["place"].tolist()
    histories = [targets[max(at - place, at - LONGEST) : at] for at, place in enumerate(places)]
    samples = log.assign(history=histories)[lambda frame: frame["place"] >= 1]
    samples = samples.sort_values(["unixReviewTime", "order", "place"], kind="stable")
    out = folder / "pandas"
    out.mkdir(exist_ok=True)
    first, second = int(len(samples) * 0.8 + 1e-9), int(len(samples) * 0.9 + 1e-9)
    for name, part in (
        ("train", samples.iloc[:first]),
        ("valid", samples.iloc[first:second]),
        ("test", samples.iloc[second:]),
    ):
        pd.DataFrame(
            {
                "row_id": part["reviewerID"] + ":" + part["place"].astype(str),
                "user_id": part["reviewerID"],
                "position": part["place"].astype("int32"),
                "history_item_ids": part["history"],
                "target_item_id": part["asin"],
                "target_timestamp": part["unixReviewTime"],
            }
        ).to_parquet(out / f"{name}.parquet", compression="zstd", index=False)
    return {"seconds": time.perf_counter() - started, "tables": str(out)}


VERSIONS = {
    "sidr": run_sidr,
    "sidr+1%": lambda folder: run_sidr(folder, extra=True),
    "pandas": run_pandas,
    "python": run_python,
}


# -- measuring ------------------------------------------------------------------------------------


def measured(version: str, folder: Path) -> dict[str, Any]:
    """Run one version in a process of its own; adds `peak`, the most memory of it and its children, in bytes."""
    import psutil

    log, before = folder / f"{version}.log", resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as err:
        child = subprocess.Popen(
            [sys.executable, __file__, "--version", version, "--folder", str(folder)],
            stdout=subprocess.PIPE,
            stderr=err,
        )
        process, peak = psutil.Process(child.pid), 0
        while child.poll() is None:
            try:
                peak = max(peak, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
        out, _ = child.communicate()
    if child.returncode:
        return {"failed": log.read_text().strip().splitlines()[-1:] or [f"exit status {child.returncode}"]}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(out.splitlines()[-1]) | {"peak": peak, "cpu": cpu}


def content(tables: str) -> dict[str, tuple[int, int]]:
    """Rows and a hash over the ordered rows of each sample table."""
    import duckdb

    query = (
        "SELECT count(*), coalesce(bit_xor(hash(file_row_number, row_id, user_id, position, history_item_ids, "
        "target_item_id, target_timestamp)), 0) FROM read_parquet($path, file_row_number = true)"
    )
    return {
        name: duckdb.execute(query, {"path": f"{tables}/{name}.parquet"}).fetchall()[0]
        for name in ("train", "valid", "test")
    }


def linear(rows: list[int], seconds: list[float]) -> str:
    """How far the times lie from one line through them."""
    slope, start = np.polyfit(rows, seconds, 1)
    apart = np.abs(np.polyval([slope, start], rows) / np.array(seconds) - 1).max()
    return f"{slope * 1e6:.2f} s per million rows + {start:.2f} s; farthest point {apart:.1%} off the line"


def bench(sizes: list[int], versions: list[str], base: Path) -> None:
    """Print the table of all sizes and versions."""
    libraries = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("duckdb", "polars", "pyarrow", "msgspec", "pandas")
    )
    print(f"{hardware()}. Python {sys.version.split()[0]}, {libraries}.\n")
    print(f"`{' '.join(['benchmarks/bench_reviews.py', *sys.argv[1:]])}`\n")
    lines: list[tuple[str, ...]] = []
    times: dict[str, dict[int, float]] = {}
    notes: list[str] = []
    for rows in sizes:
        folder = base / str(rows)
        folder.mkdir()
        generate(rows, folder)
        size = (folder / "reviews.jsonl.gz").stat().st_size
        ours: dict[str, Any] = {}
        expected = None
        for version in versions:
            result = measured(version, folder)
            print(f"{version}, {rows:,} rows: {result.get('failed', 'done')}", file=sys.stderr)
            if "failed" in result:
                lines.append((f"{rows:,}", version, f"failed: {result['failed'][0]}", "", "", "", "", ""))
                continue
            seconds = result["seconds"]
            times.setdefault(version, {})[rows] = seconds
            rate, samples, same = f"{rows / seconds:,.0f}", "", ""
            if result["tables"]:
                made = content(result["tables"])
                expected, samples = expected or made, f"{sum(count for count, _ in made.values()):,}"
                same = "yes" if made == expected else "NO"
            if version == "sidr":
                ours = result
            if version == "sidr+1%" and ours:
                share = seconds / ours["stages"]["raw_reviews"]
                rate, same = f"{share:.1%} of cold `raw_reviews`", f"{result['parsed'] - ours['parsed']} file parsed"
            memory = f"{result['peak'] / 2**30:.2f} GiB"
            lines.append((f"{rows:,}", version, f"{seconds:.1f}", f"{result['cpu']:.1f}", rate, memory, samples, same))
        stages = ", ".join(f"{name} {value:.1f} s" for name, value in ours.get("stages", {}).items())
        notes.append(f"- {rows:,} rows, {size / 2**20:.0f} MiB packed: {stages}")
    header = ("rows", "version", "seconds", "CPU s", "rows/s", "peak memory", "samples", "same tables")
    print(markdown_table(header, lines, "rlrrrrrl"))
    print("\n" + "\n".join(notes))
    for version, seconds_of in times.items():
        if len(seconds_of) > 2:
            print(f"- {version}: {linear(list(seconds_of), list(seconds_of.values()))}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000", help="sizes, separated by commas")
    parser.add_argument("--versions", default=",".join(VERSIONS), help="which to run, in this order")
    parser.add_argument("--version", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    if args.version:
        print(json.dumps(VERSIONS[args.version](args.folder)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bench([int(size) for size in args.rows.split(",")], args.versions.split(","), Path(folder))


if __name__ == "__main__":
    main()
