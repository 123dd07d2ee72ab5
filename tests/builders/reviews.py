"""Runs the first three stages over files that a test writes, in a store of its own."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl

from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.tables import files as tables

DAY = 86_400
JUNE_2018 = 1_527_811_200  # 2018-06-01 00:00 UTC


class Bench:
    """One dataset `d` with monthly snapshots 2018-03 … 2018-10."""

    def __init__(self, home: Path, source: dict[str, Any], **sections: Any) -> None:
        fields = {"source": source, "snapshots": {"start": "2018-03", "end": "2018-10"}, **sections}
        self.profile = parse_profile("test", {"datasets": {"d": fields}})
        self.store = Store(home / "store")
        self.said: list[str] = []

    def run(self, stage: str, snapshot: str = "2018-10") -> Artifact:
        progress = Progress(self.said.append)
        return run_stage(self.profile, "d", snapshot, stage_named(stage), self.store, progress).artifact

    def interactions(self, snapshot: str = "2018-10") -> Artifact:
        self.run("raw_reviews", snapshot)
        self.run("raw_items", snapshot)
        return self.run("interactions", snapshot)

    def published(self) -> list[str]:
        """Stages that have published something, parts included."""
        return sorted({path.parent.parent.name for path in self.store.root.glob("*/*/MANIFEST.json")})


def rows(artifact: Artifact, name: str) -> pl.DataFrame:
    return tables.read(artifact.path(f"{name}.parquet"))


def checks(artifact: Artifact) -> dict[str, bool]:
    """The stage's own checks; the one that all stages share must hold."""
    found = {check["name"]: check["passed"] for check in artifact.manifest["checks"]}
    assert found.pop("schema", True)
    return found


def review(user: str, item: str, time: int = JUNE_2018, rating: float = 5.0, **fields: Any) -> str:
    record = {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time}
    return json.dumps(record | fields)


def item(asin: str, title: str | None = None, **fields: Any) -> str:
    return json.dumps({"asin": asin, "title": title or f"Thing {asin}"} | fields)


def write(path: Path, *lines: str | bytes) -> str:
    """Write lines, packed if the name ends in .gz; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def amazon(folder: Path, reviews: list[str], items: list[str]) -> dict[str, Any]:
    """An Amazon 2018 source of these lines."""
    return {
        "kind": "amazon_2018",
        "reviews": [write(folder / "reviews.json.gz", *reviews)],
        "items": [write(folder / "meta.json.gz", *items)],
    }
