"""Semantic IDs: our residual k-means beside scikit-learn's, and the stage at a million items.

    .venv/bin/python benchmarks/bench_sids.py --size 100000
    .venv/bin/python benchmarks/bench_sids.py --stage 1000000

The first fits three levels of 256 codes on the residuals of the level before, by three makers of
k-means, each in a process of its own. All have the same vectors, a budget of `--iterations` per level,
one start, and `--threads` threads; scikit-learn's settings are otherwise its defaults (k-means++ start,
tolerance 1e-4; MiniBatchKMeans counts epochs). Peak memory is that of the whole process, vectors included.
The second runs the stage `sid_codebook` itself on vectors written in a stream, cold, and then warm on a
catalogue that is 1 % larger.

Vectors: a seeded mixture of two tiers (64 topics of 32 kinds each), unit length. Synthetic: do not read
the errors as those of real text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from machine import hardware

TOPICS, KINDS, BLOCK = 64, 32, 50_000


def mixture(rows: int, dimension: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Unit vectors (n, D) in blocks; the first rows are the same for every `rows`."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(TOPICS, dimension))
    centres = np.repeat(topics, KINDS, axis=0) + 0.7 * rng.normal(size=(TOPICS * KINDS, dimension))
    weights = rng.pareto(1.5, size=len(centres)) + 0.05
    for start in range(0, rows, BLOCK):
        block = np.random.default_rng((seed, start))
        kind = block.choice(len(centres), size=BLOCK, p=weights / weights.sum())
        noise = block.normal(size=(BLOCK, dimension), scale=0.7)
        vectors = (centres[kind] + noise)[: rows - start]
        yield (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def peak_memory() -> int:
    """Peak resident bytes of this process since it began; unlike `ru_maxrss` it is not inherited."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# -- quantizers ---------------------------------------------------------------------------------


def run_sidr(vectors: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Fit, code, and resolve collisions."""
    from sidr_core.settings import Quantizer
    from sidr_core.sids.collisions import resolve
    from sidr_core.sids.quality import collision_rate, relative_error, squared_errors
    from sidr_core.sids.quantize import fit

    started = time.perf_counter()
    book = fit(vectors, Quantizer(levels=args.levels, size=args.codes, iterations=args.iterations))
    codes = book.encode(vectors)
    quantized = time.perf_counter() - started
    final = resolve(book, vectors, codes, np.zeros(len(vectors), dtype=bool), "reassign")
    seconds = time.perf_counter() - started
    return {
        "quantize_s": quantized,
        "resolve_s": seconds - quantized,
        "error": relative_error(vectors, squared_errors(book, vectors, codes)),
        "final_error": relative_error(vectors, squared_errors(book, vectors, final)),
        "collisions": collision_rate(codes),
        "final_collisions": collision_rate(final),
    }


def run_sklearn(vectors: np.ndarray, args: argparse.Namespace, mini: bool) -> dict[str, Any]:
    """One estimator per level, on the residuals of the level before."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    from sidr_core.sids.quality import collision_rate, relative_error

    started = time.perf_counter()
    residual, codes = vectors.copy(), []
    for level in range(args.levels):
        maker: Any = MiniBatchKMeans if mini else KMeans
        model = maker(args.codes, n_init=1, max_iter=args.iterations, random_state=level).fit(residual)
        labels = model.predict(residual).astype(np.int64)
        residual -= model.cluster_centers_[labels].astype(np.float32)
        codes.append(labels)
    seconds = time.perf_counter() - started
    errors = (residual.astype(np.float64) ** 2).sum(axis=1)
    rate = collision_rate(np.stack(codes, axis=1))
    return {"quantize_s": seconds, "error": relative_error(vectors, errors), "collisions": rate}


WORKERS: dict[str, Callable[[np.ndarray, argparse.Namespace], dict[str, Any]]] = {
    "sidr": run_sidr,
    "sklearn KMeans": lambda vectors, args: run_sklearn(vectors, args, mini=False),
    "sklearn MiniBatchKMeans": lambda vectors, args: run_sklearn(vectors, args, mini=True),
}


def quantizers(args: argparse.Namespace, folder: Path) -> str:
    """A table with one row per maker of k-means; one that failed says so."""
    path = folder / "vectors.npy"
    np.save(path, np.concatenate(list(mixture(args.size, args.dimension))))
    lines = [
        "| | fit + code, s | resolve, s | relative error | collisions | after resolving | error then | peak MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in WORKERS:
        found, fault = subprocess_json(["--worker", name, "--data", str(path)], args)
        if found is None:
            lines.append(f"| {name} | failed: {fault} | | | | | | |")
            continue
        cells = [
            f"{found['quantize_s']:.1f}",
            f"{found['resolve_s']:.1f}" if "resolve_s" in found else "–",
            f"{found['error']:.4f}",
            f"{found['collisions']:.2%}",
            f"{found['final_collisions']:.2%}" if "final_collisions" in found else "–",
            f"{found['final_error']:.4f}" if "final_error" in found else "–",
            f"{found['peak'] / 1e6:,.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- the stage ----------------------------------------------------------------------------------


def write_world(folder: Path, rows: int, dimension: int) -> None:
    """`items.parquet` and `item_embeddings.parquet` of so many items, in a stream."""
    import polars as pl
    import pyarrow.parquet as pq

    from sidr_core.tables.vectors import vector_series

    folder.mkdir()
    start = 0
    writers: dict[str, pq.ParquetWriter] = {}
    for vectors in mixture(rows, dimension):
        numbers = np.arange(start, start + len(vectors))
        start += len(vectors)
        item_id = pl.Series("item_id", numbers).cast(pl.String).str.zfill(8)
        rng = np.random.default_rng(start)
        items = pl.DataFrame({"item_id": item_id}).with_columns(
            pl.format("Item {}", "item_id").alias("title"),
            pl.lit("").alias("description"),
            pl.Series("brand", rng.integers(500, size=len(vectors))).cast(pl.String),
            pl.Series("category", rng.integers(50, size=len(vectors))).cast(pl.String),
            pl.lit(None, dtype=pl.String).alias("published_sid"),
            pl.lit(True).alias("synthetic"),
        )
        embeddings = pl.DataFrame({"item_id": item_id, "text_digest": item_id, "vector": vector_series(vectors)})
        for name, frame in (("items", items), ("item_embeddings", embeddings)):
            table = frame.to_arrow()
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema, compression="zstd")
            writers[name].write_table(table)
    for writer in writers.values():
        writer.close()


class _Folder:
    """Stands in for a published output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name


class _Inputs(dict[str, _Folder]):
    previous: _Folder | None = None


def run_stage(args: argparse.Namespace) -> dict[str, Any]:
    """The body of `sid_codebook` in this process."""
    from types import SimpleNamespace

    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Quantizer, Window
    from sidr_core.sids.codebook import build

    world = _Folder(Path(args.data))
    inputs = _Inputs(interactions=world, item_embeddings=world)
    inputs.previous = _Folder(Path(args.previous)) if args.previous else None
    quantizer = Quantizer(levels=args.levels, size=args.codes, iterations=args.iterations)
    config = SimpleNamespace(quantizer=quantizer, snapshot=Window(key="2020-01", cutoff=0))
    out = Path(args.out)
    out.mkdir()
    started = time.perf_counter()
    report = build(inputs, config, out, Progress())  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "metrics": dict(report.metrics),
        "failed": [c.name for c in report.checks if not c.passed],
    }


def stage(args: argparse.Namespace, folder: Path) -> str:
    """A table with the stage cold and warm."""
    more = args.stage + max(1, args.stage // 100)
    lines = [
        "| | items | wall, s | peak MB | collisions before | after | relative error | failed checks |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, rows, previous in (("cold", args.stage, ""), ("warm, 1 % more", more, str(folder / "cold"))):
        world, out = folder / f"world {rows}", folder / name.split(",")[0]
        write_world(world, rows, args.dimension)
        extra = ["--worker", "stage", "--data", str(world), "--out", str(out), "--previous", previous]
        found, fault = subprocess_json(extra, args)
        if found is None:
            lines.append(f"| {name} | {rows:,} | failed: {fault} | | | | | |")
            break
        metrics = found["metrics"]
        cells = [
            f"{rows:,}",
            f"{found['seconds']:.1f}",
            f"{found['peak'] / 1e6:,.0f}",
            f"{metrics['collision_rate_before']:.2%}",
            f"{metrics['collision_rate']:.2%}",
            f"{metrics['reconstruction_error']:.4f}",
            ", ".join(found["failed"]) or "none",
        ]
        lines.append(f"| {name}: {metrics['started']} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- processes ----------------------------------------------------------------------------------


def subprocess_json(extra: list[str], args: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """What a worker printed last, or why there is nothing."""
    names = ("dimension", "levels", "codes", "iterations", "threads")
    same = [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, __file__, *same, *extra]
    done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None, f"exit status {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def worker(args: argparse.Namespace) -> None:
    """Print what one competitor did, as JSON."""
    found = run_stage(args) if args.worker == "stage" else WORKERS[args.worker](np.load(args.data), args)
    print(json.dumps({**found, "peak": peak_memory()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000, help="vectors for the comparison")
    parser.add_argument("--stage", type=int, help="run the stage at so many items instead")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codes", type=int, default=256, help="codes per level")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    for name in ("worker", "data", "out", "previous"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("faiss-cpu", "scikit-learn", "numpy", "polars")
    )
    print(f"{hardware()}; {args.threads} threads. {versions}.\n")
    print(f"`.venv/bin/python benchmarks/bench_sids.py {' '.join(sys.argv[1:])}`\n")
    with tempfile.TemporaryDirectory() as folder:
        if args.stage:
            print(stage(args, Path(folder)))
        else:
            print(f"{args.size:,} × {args.dimension}, {args.levels} × {args.codes}, {args.iterations} iterations\n")
            print(quantizers(args, Path(folder)))


if __name__ == "__main__":
    main()
