"""For tests of the item vectors: a catalogue, and what the stage reports."""

from pathlib import Path

import polars as pl

from builders.stage import Folder
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Items


def catalogue(folder: Path, **titles: str) -> Folder:
    folder.mkdir(exist_ok=True)
    rows = [(item, titles[item], "about it", "", "", None, False) for item in sorted(titles)]
    schema = dict.fromkeys(("item_id", "title", "description", "brand", "category", "published_sid"), pl.String)
    frame = pl.DataFrame(rows, schema=schema | {"synthetic": pl.Boolean}, orient="row")
    tables.write(frame, folder / "items.parquet", Items)
    return Folder(folder)


def counts(report) -> tuple[int, int]:
    """(texts encoded, texts taken from the cache)."""
    return report.metrics["encoded"], report.metrics["reused"]
