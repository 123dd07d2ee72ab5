"""What a stage is called with: its settings, the files above it, and a progress that says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidr_core.pipeline.profile import StageConfig
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import DatasetConfig, Window

QUIET = Progress(lambda line: None)
SOURCE = {"kind": "sample", "category": "games", "items": 50, "users": 50}
MONTHS = {"start": "2020-01", "end": "2020-02"}


def stage_config(dataset: str = "toys", snapshot: str = "2020-02", cutoff: int = 0, **sections: Any) -> StageConfig:
    """The settings of a stage that declares every section: those given, as sections or mappings, others by default."""
    config = DatasetConfig.model_validate({"source": SOURCE, "snapshots": MONTHS, **sections})
    names = (*DatasetConfig.model_fields, "unread_tasks", "dataset", "snapshot")
    return StageConfig(config, names, dataset, Window(key=snapshot, cutoff=cutoff))


@dataclass
class Folder:
    """Stands in for the declared files of an upstream output: those that lie in a folder."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name


class StageInputs(dict[str, Folder]):
    """Stands in for the inputs of a stage that is called without a store; `home` holds its caches."""

    synthetic = False
    previous: Folder | None = None
    resume: Path | None = None
    home: Path

    def cache(self, name: str) -> Path:
        return self.home / "cache" / name
