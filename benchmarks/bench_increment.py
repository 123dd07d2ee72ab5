"""What a second snapshot costs that adds 1 % new reviews, on real Office data.

    .venv/bin/python benchmarks/bench_increment.py            # needs SIDR_REAL_DATA (default ../shared/data)

The reviews are split by time into two files, 99 % and 1 %. The first snapshot knows the first file; the second has
both. `--k-core 1` keeps every item that was ever reviewed, for a larger catalogue. Each snapshot is built by a process
of its own in one SIDR_HOME, down to `item_embeddings`; prints seconds per stage.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from machine import hardware

from sidr_core.render.grid import markdown_table

STAGES = ("raw_reviews", "raw_items", "interactions", "item_embeddings")
CHILD = """
import sys, time, json
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import load_profile, home
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Store
profile, store, stages = load_profile(sys.argv[1]), Store(home() / "store"), {}
for name in sys.argv[3:]:
    started = time.perf_counter()
    outcome = run_stage(profile, "office", sys.argv[2], stage_named(name), store, Progress(lambda line: None))
    metrics = outcome.artifact.manifest["metrics"]
    stages[name] = [time.perf_counter() - started, outcome.reused, metrics.get("rows", metrics.get("items")),
                    metrics.get("encoded")]
print(json.dumps(stages))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SIDR_REAL_DATA", "../shared/data")))
    parser.add_argument("--k-core", type=int, default=5)
    arguments = parser.parse_args()
    folder = arguments.data.resolve() / "amazon_2018"
    if not folder.is_dir():
        sys.exit(f"no real data at {folder}: set SIDR_REAL_DATA")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sizes = split(folder / "Office_Products_5.json.gz", work)
        first = build(work, folder, ["a.json.gz"], "2018-09", arguments.k_core)
        second = build(work, folder, ["a.json.gz", "b.json.gz"], "2018-10", arguments.k_core)
    print(f"{hardware()}, Python {sys.version.split()[0]}; {sizes[0]:,} reviews, then {sizes[1]:,} more\n")
    rows = []
    for stage in STAGES:
        (cold, _, _, encoded), (warm, _, _, anew) = first[stage], second[stage]
        counts = f"{encoded:,} / {anew:,}" if encoded is not None else ""
        rows.append((stage, f"{cold:.2f}", f"{warm:.2f}", f"{warm / cold:.1%}", counts))
    pair = ("raw_reviews", "item_embeddings")
    cold, warm = (sum(snapshot[stage][0] for stage in pair) for snapshot in (first, second))
    rows.append((" + ".join(pair), f"{cold:.2f}", f"{warm:.2f}", f"{warm / cold:.1%}", ""))
    print(markdown_table(("stage", "cold, s", "second snapshot, s", "share", "encoded cold / second"), rows))


def split(source: Path, work: Path) -> tuple[int, int]:
    """Two gzip files: all but the last 1 % of the reviews by time, and those."""
    with gzip.open(source, "rt") as handle:
        lines = sorted(handle, key=lambda line: json.loads(line)["unixReviewTime"])
    cut = round(0.99 * len(lines))
    for name, part in (("a.json.gz", lines[:cut]), ("b.json.gz", lines[cut:])):
        with gzip.open(work / name, "wt") as handle:
            handle.writelines(part)
    return cut, len(lines) - cut


def build(work: Path, folder: Path, files: list[str], snapshot: str, k_core: int) -> dict[str, list[float]]:
    """Seconds, reused, rows and encoded items of each stage."""
    profile = work / f"{snapshot}.yaml"
    office = {
        "source": {
            "kind": "amazon_2018",
            "reviews": [str(work / file) for file in files],
            "items": [str(folder / "meta_Office_Products.json.gz")],
        },
        "snapshots": {"start": "2018-09", "end": "2018-10"},
        "filters": {"keep_duplicates": True, "k_core": k_core},
        "encoder": {"model": "minilm", "max_tokens": 128},
    }
    profile.write_text(yaml.safe_dump({"default_dataset": "office", "datasets": {"office": office}}))
    command = [sys.executable, "-c", CHILD, str(profile), snapshot, *STAGES]
    done = subprocess.run(
        command, env={**os.environ, "SIDR_HOME": str(work / "home")}, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
