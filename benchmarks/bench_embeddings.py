"""`item_embeddings`: the stage's own path at a million items, and the speed of the packaged encoder.

    .venv/bin/python benchmarks/bench_embeddings.py --size 1000000
    .venv/bin/python benchmarks/bench_embeddings.py --encode 1000 --threads 2

The first runs the stage with a synthetic encoder (seeded random unit vectors, so that encoding costs next to
nothing and the rest shows): `cold` on an empty cache; `renamed`, the same catalogue under another name, which
encodes nothing; `1 % new`, a catalogue with 1 % further items. `at once` is what the stage did before it
streamed: all texts and vectors in memory, the column of vectors made of Python lists; it has the same texts,
digests and vectors and no cache, and fails at `MEMORY_LIMIT`. `schema` holds the written table against its
contract, as every publication does.
The second encodes real Office texts (title and description, SIDR_REAL_DATA, default ../shared/data), drawn with a
seed: the project's encoder beside `SentenceTransformer.encode` with its own batches of 32 and with batches of 64,
longest first. Largest difference: of the vectors, from those of the first.

Each row is a process of its own. Peak memory is that of the whole process, imports included.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from machine import hardware

from sidr_core.render.grid import markdown_table

WORDS = ["blue", "gel", "pen", "paper", "printer", "ink", "office", "fine", "point", "laser", "pack", "of", "black"]
BLOCK = 50_000
#: Bytes a worker may ask for: what needs more fails alone instead of taking the machine down.
MEMORY_LIMIT = 12 * 2**30
ROOT = Path(__file__).resolve().parent.parent


def write_catalogue(path: Path, rows: int) -> None:
    """`items.parquet` of so many items with texts of 50 to 600 characters; the first are the same for every size."""
    import polars as pl
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, rows, BLOCK):
        rng = np.random.default_rng((1, start))
        count = min(BLOCK, rows - start)
        words = rng.choice(WORDS, size=(BLOCK, 100))
        lengths = rng.integers(8, 100, size=BLOCK)
        frame = pl.DataFrame(
            {
                "item_id": [f"B{number:09d}" for number in range(start, start + count)],
                "title": [f"Item {number}" for number in range(start, start + count)],
                "description": [" ".join(words[n, : lengths[n]]) for n in range(count)],
                "brand": [""] * count,
                "category": [""] * count,
                "published_sid": pl.Series([None] * count, dtype=pl.String),
                "synthetic": [True] * count,
            }
        )
        table = frame.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


class SyntheticEncoder:
    """Random unit vectors in batches of 64; counts what it is asked."""

    def __init__(self, dimension: int) -> None:
        self._dimension, self._rng = dimension, np.random.default_rng(0)

    def encode(self, texts: Sequence[str], keep: Callable[[Sequence[int], np.ndarray], None]) -> None:
        for start in range(0, len(texts), 64):
            rows = range(start, min(start + 64, len(texts)))
            vectors = self._rng.standard_normal((len(rows), self._dimension), dtype=np.float32)
            keep(rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


class _Inputs(dict[str, Any]):
    """Stands in for the inputs of the stage."""

    def __init__(self, catalogue: Path, home: Path) -> None:
        super().__init__(interactions=SimpleNamespace(path=lambda name: catalogue))
        self._home = home

    def cache(self, name: str) -> Path:
        return self._home / "cache" / name


def run_stage(args: argparse.Namespace) -> dict[str, Any]:
    """The body of `item_embeddings` in this process."""
    from sidr_core.items import embeddings, encoders
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Encoder

    encoders.open_encoder = lambda config: SyntheticEncoder(args.dimension)  # type: ignore[assignment]
    out = Path(args.out)
    out.mkdir()
    inputs, config = _Inputs(Path(args.data), out.parent), SimpleNamespace(encoder=Encoder())
    started = time.perf_counter()
    report = embeddings.build(inputs, config, out, Progress(lambda line: None))  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "encoded": report.metrics["encoded"]}


def run_at_once(args: argparse.Namespace) -> dict[str, Any]:
    """The stage as it was: everything in memory."""
    import polars as pl

    from sidr_core.items.text import item_text, text_digest
    from sidr_core.tables import files as tables
    from sidr_core.tables.contracts import Embeddings

    out = Path(args.out)
    out.mkdir()
    started = time.perf_counter()
    items = tables.read(Path(args.data), ["item_id", "title", "description"]).sort("item_id")
    texts = [item_text(title, about, 4096) for _, title, about in items.iter_rows()]
    digests = [text_digest(text, "settings").hex() for text in texts]
    vectors = np.zeros((len(texts), args.dimension), dtype=np.float32)

    def keep(rows: Sequence[int], found: np.ndarray) -> None:
        vectors[list(rows)] = found

    SyntheticEncoder(args.dimension).encode(texts, keep)
    column = pl.Series(np.stack(list(vectors)).tolist(), dtype=pl.List(pl.Float32))
    frame = pl.DataFrame({"item_id": items["item_id"], "text_digest": digests, "vector": column})
    tables.write(frame, out / "item_embeddings.parquet", Embeddings)
    return {"seconds": time.perf_counter() - started, "encoded": len(texts)}


def run_schema(args: argparse.Namespace) -> dict[str, Any]:
    """The check of the written table."""
    from sidr_core.pipeline import schema_check
    from sidr_core.pipeline.graph import stage_named

    started = time.perf_counter()
    found = schema_check.check(stage_named("item_embeddings"), Path(args.out))
    assert found.passed, found.detail
    return {"seconds": time.perf_counter() - started, "encoded": 0}


def stage(args: argparse.Namespace, folder: Path) -> str:
    """A table with one row per way of running the stage."""
    more = args.size + args.size // 100
    for rows in (args.size, more):
        write_catalogue(folder / f"items {rows}.parquet", rows)
    lines = []
    runs = [
        ("cold", "stage", args.size, "cold"),
        ("renamed", "stage", args.size, "renamed"),
        ("1 % new", "stage", more, "more"),
        ("schema", "schema", args.size, "cold"),
        ("at once", "at once", args.size, "once"),
    ]
    for name, worker_name, rows, out in runs:
        extra = ["--worker", worker_name, "--data", str(folder / f"items {rows}.parquet"), "--out", str(folder / out)]
        result, fault = subprocess_json(extra, args)
        if result is None:
            lines.append((name, f"{rows:,}", f"failed: {fault}", "", "", ""))
            continue
        rate, peak = rows / result["seconds"], result["peak"] / 1e6
        lines.append(
            (name, f"{rows:,}", f"{result['encoded']:,}", f"{result['seconds']:.1f}", f"{rate:,.0f}", f"{peak:,.0f}")
        )
    return markdown_table(("", "items", "encoded", "wall, s", "items/s", "peak MB"), lines)


# -- the packaged encoder -----------------------------------------------------------------------


def office_texts(count: int) -> list[str]:
    """So many texts of real items, drawn with a seed."""
    from sidr_core.items.text import item_text

    data = Path(os.environ.get("SIDR_REAL_DATA") or ROOT.parent / "shared" / "data")
    with gzip.open(data / "minionerec" / "index" / "Office_Products.item.json.gz", "rt") as file:
        items = json.load(file)
    texts = [
        item_text(str(item.get("title") or ""), str(item.get("description") or ""), 2048) for item in items.values()
    ]
    chosen = np.random.default_rng(0).permutation(len(texts))[:count]
    return [texts[n] for n in chosen]


def run_encoder(args: argparse.Namespace) -> dict[str, Any]:
    """Encode with one of the ways; the vectors go to a file."""
    from sidr_core.items.encoders import load_encoder, open_encoder
    from sidr_core.settings import Encoder

    texts, config = office_texts(args.encode), Encoder(max_tokens=args.tokens)
    vectors = np.zeros((len(texts), 384), dtype=np.float32)

    def keep(rows: Sequence[int], found: np.ndarray) -> None:
        vectors[list(rows)] = found

    if args.worker == "project":
        encoder = open_encoder(config)
        encoder.encode(texts[:8], keep)
        started, cpu = time.perf_counter(), time.process_time()
        encoder.encode(texts, keep)
    else:
        model, size = load_encoder(config), int(args.worker)
        order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
        model.encode(texts[:8])
        started, cpu = time.perf_counter(), time.process_time()
        for rows in _parts(order, size) if size > 32 else [list(range(len(texts)))]:
            found = model.encode(
                [texts[n] for n in rows], batch_size=size, normalize_embeddings=True, show_progress_bar=False
            )
            keep(rows, np.asarray(found))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    np.save(args.out, vectors)
    return {"seconds": seconds, "cpu": cpu}


def _parts(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def encoder(args: argparse.Namespace, folder: Path) -> str:
    """A table with one row per way of encoding."""
    lines = []
    first = None
    ways = [("project", "project"), ("encode(), 32", "32"), ("encode(), 64 by length", "64")]
    for name, worker_name in ways:
        out = folder / f"{worker_name}.npy"
        result, fault = subprocess_json(["--worker", worker_name, "--out", str(out)], args)
        if result is None:
            lines.append((name, f"failed: {fault}", "", "", ""))
            continue
        vectors = np.load(out)
        first = vectors if first is None else first
        difference = np.abs(vectors - first).max()
        rate, cpu = args.encode / result["seconds"], 1000 * result["cpu"] / args.encode
        lines.append((name, f"{rate:.1f}", f"{cpu:.1f}", f"{result['peak'] / 1e6:,.0f}", f"{difference:.0e}"))
    return markdown_table(("", "items/s", "CPU s per 1,000 items", "peak MB", "largest difference"), lines)


# -- processes ----------------------------------------------------------------------------------


def subprocess_json(extra: list[str], args: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """What a worker printed last, or why there is nothing."""
    names = ("dimension", "threads", "encode", "tokens")
    same = [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, __file__, *same, *extra]
    done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None, f"exit status {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def peak_memory() -> int:
    """Peak resident bytes of this process since it began; unlike `ru_maxrss` it is not inherited."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def worker(args: argparse.Namespace) -> None:
    """Print what one row did, as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    result = {"stage": run_stage, "at once": run_at_once, "schema": run_schema}.get(args.worker, run_encoder)(args)
    print(json.dumps({**result, "peak": peak_memory()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000, help="items of the synthetic catalogue")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--encode", type=int, default=0, help="encode so many real texts instead")
    parser.add_argument("--tokens", type=int, default=128, help="encoder.max_tokens, for --encode")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    for name in ("worker", "data", "out"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    names = ("numpy", "polars", "pyarrow", "torch", "sentence-transformers")
    print(f"{hardware()}; {args.threads} threads. {', '.join(f'{n} {metadata.version(n)}' for n in names)}.\n")
    print(f"`.venv/bin/python benchmarks/bench_embeddings.py {' '.join(sys.argv[1:])}`\n")
    with tempfile.TemporaryDirectory() as folder:
        print(encoder(args, Path(folder)) if args.encode else stage(args, Path(folder)))


if __name__ == "__main__":
    main()
