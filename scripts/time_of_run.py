"""Draws where the time of a dataset's newest snapshot went: seconds and peak memory of each stage, from the manifests.

    .venv/bin/python scripts/time_of_run.py --home .sidr --dataset games --out docs/images/time-of-run.png

Prints the same as a table. Nothing is computed: a stage that was reused counts with the time that it once took.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from sidr_core.pipeline.profile import home
from sidr_core.pipeline.store import Store
from sidr_core.render.figures import COLOURS, new_figure, save_png
from sidr_core.render.grid import markdown_table


def stages(store: Store, dataset: str) -> pl.DataFrame:
    """One row per stage of the newest snapshot, slowest first: stage, seconds, share, peak_mib."""
    refs = [(snapshot, stage) for owner, snapshot, stage in store.refs() if owner == dataset]
    if not refs:
        raise SystemExit(f"nothing of {dataset} is published in {store.root}")
    newest = max(snapshot for snapshot, _ in refs)
    manifests = [store.require(dataset, newest, stage).manifest for snapshot, stage in refs if snapshot == newest]
    frame = pl.DataFrame(
        {
            "stage": [manifest["stage"] for manifest in manifests],
            "seconds": [float(manifest["seconds"]) for manifest in manifests],
            "peak_mib": [manifest["peak_memory_bytes"] / 2**20 for manifest in manifests],
        }
    )
    return frame.with_columns(share=pl.col("seconds") / pl.col("seconds").sum()).sort("seconds", descending=True)


def draw(frame: pl.DataFrame, path: Path, title: str) -> None:
    """Horizontal bars of the stages that took a hundredth of the time or more; the others are one bar."""
    slow = frame.filter(pl.col("share") >= 0.01)
    names = [*slow["stage"], f"{frame.height - slow.height} others"]
    seconds = [*slow["seconds"], frame["seconds"].sum() - slow["seconds"].sum()]
    figure = new_figure(7.0, 1.2 + 0.3 * len(names))
    panel = figure.subplots()
    bars = panel.barh(range(len(names))[::-1], seconds, color=COLOURS[0])
    panel.bar_label(bars, [f"{value:.0f} s" for value in seconds], fontsize=8, padding=3)
    panel.set_yticks(range(len(names))[::-1], labels=names, fontsize=8)
    panel.set_xlabel("seconds", fontsize=8)
    panel.margins(x=0.12)
    panel.set_title(title, fontsize=10)
    save_png(figure, path)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=home())
    parser.add_argument("--dataset", default="games")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    frame = stages(Store(arguments.home / "store"), arguments.dataset)
    total = frame["seconds"].sum()
    draw(frame, arguments.out, f"{arguments.dataset}: {total / 60:.1f} min of stages")
    rows = [(s, f"{seconds:.1f}", f"{share:.1%}", f"{peak:,.0f}") for s, seconds, peak, share in frame.iter_rows()]
    print(markdown_table(("stage", "seconds", "share", "peak MiB"), rows))


if __name__ == "__main__":
    main()
