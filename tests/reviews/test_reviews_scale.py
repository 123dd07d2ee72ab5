"""Parsed once, copied cheaply; the benchmark's versions agree."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from builders.reviews import DAY, JUNE_2018, Bench, amazon, item, review, rows, write
from sidr_core.reviews import lines, records
from sidr_core.tables import sql

BENCH = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_reviews.py"


def log(count, seed=1, users=60, items=30):
    rng = random.Random(seed)
    return [
        review(f"U{rng.randrange(users)}", f"I{rng.randrange(items):02d}", JUNE_2018 + n * 3600, reviewText=str(n))
        for n in range(count)
    ]


def test_files_are_parsed_once_however_often_they_are_read(tmp_path):
    old = write(tmp_path / "old.json.gz", *log(400))
    new = write(tmp_path / "new.json.gz", review("U1", "I01", JUNE_2018 + 40 * DAY))
    items = [write(tmp_path / "meta.json", *[item(f"I{n:02d}") for n in range(30)])]

    def run(snapshot, *files):
        """Metrics, and names of the files that were parsed."""
        bench = Bench(tmp_path / "home", {"kind": "amazon_2018", "reviews": list(files), "items": items})
        metrics = bench.run("raw_reviews", snapshot).manifest["metrics"]
        return metrics, [line.partition(":")[0] for line in bench.said if "lines parsed" in line]

    metrics, parsed = run("2018-06", old)
    assert (metrics["rows"], parsed) == (400, ["old.json.gz"])
    renamed = str(shutil.copy(old, tmp_path / "renamed.json.gz"))
    for path in (old, renamed):
        metrics, parsed = run("2018-08", path)
        assert (metrics["rows"], parsed) == (400, [])
    metrics, parsed = run("2018-08", old, new)
    assert (metrics["rows"], metrics["lines"], parsed) == (401, 401, ["new.json.gz"])


def test_small_batches_give_the_same_tables(tmp_path, monkeypatch):
    reviews = [*log(3_000), "{broken", *log(50, seed=1), *log(1_000, seed=2)]
    items = [item(f"I{n:02d}") for n in range(28)]
    made = Bench(tmp_path / "one", amazon(tmp_path / "data", reviews, items)).interactions()
    monkeypatch.setattr(lines, "CHUNK", 5_000)
    monkeypatch.setattr(lines.blocks, "__defaults__", (None, 5_000, lines.MAX_LINE))
    monkeypatch.setattr(records, "_ROW_GROUP", 300)
    monkeypatch.setattr(sql, "BATCH", 70)
    monkeypatch.setattr("sidr_core.reviews.interactions.BATCH", 70)
    bench = Bench(tmp_path / "two", amazon(tmp_path / "data", reviews, items))
    again = bench.interactions()
    raw = bench.run("raw_reviews")
    assert pq.ParquetFile(raw.path("raw_reviews.parquet")).num_row_groups > 10
    assert rows(raw, "raw_reviews")["line"].is_sorted()
    assert raw.manifest["metrics"]["exact_duplicates"] == len(reviews) - len(set(reviews)) >= 50
    for name in ("interactions", "items", "train", "valid", "test"):
        assert rows(made, name).equals(rows(again, name))
    assert made.manifest["metrics"] == again.manifest["metrics"]


def test_nothing_but_the_tables_is_published(tmp_path):
    bench = Bench(tmp_path / "home", amazon(tmp_path / "data", log(400), [item(f"I{n:02d}") for n in range(30)]))
    assert set(bench.interactions().files) == {
        f"{name}.parquet" for name in ("interactions", "items", "train", "valid", "test")
    }
    assert set(bench.run("raw_reviews").files) == {"raw_reviews.parquet", "quarantine.parquet"}
    part = next((bench.store.root / "parsed_reviews").glob("*/MANIFEST.json"))
    assert set(json.loads(part.read_text())["files"]) == {
        f"{name}.parquet" for name in ("records", "quarantine", "repeats")
    }


def test_readers_see_plain_strings(tmp_path):
    bench = Bench(tmp_path / "home", amazon(tmp_path / "data", log(400), [item("I01")]))
    schema = pq.read_schema(bench.run("raw_reviews").path("raw_reviews.parquet"))
    assert {str(schema.field(name).type) for name in ("user_id", "item_id", "file")} == {"string"}


def test_the_benchmark_versions_agree(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH.parent)
    spec = importlib.util.spec_from_file_location("bench_reviews", BENCH)
    assert spec and spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.generate(40_000, tmp_path)
    made = {}
    for version in ("sidr", "python", "pandas"):
        command = [sys.executable, str(BENCH), "--version", version, "--folder", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        made[version] = bench.content(json.loads(done.stdout.splitlines()[-1])["tables"])
    assert made["sidr"] == made["python"] == made["pandas"]
    assert sum(count for count, _ in made["sidr"].values()) > 20_000
    further = bench.run_sidr(tmp_path, extra=True)
    assert further["parsed"] == 2
