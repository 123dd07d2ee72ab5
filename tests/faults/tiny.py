"""The tiny profile's working folder for suites that damage or race: built once, cheap to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.profile import Profile, load_profile
from sidr_core.pipeline.run import Outcome, run_stage
from sidr_core.pipeline.stage import Progress, Stage
from sidr_core.pipeline.store import Store

PROFILE = Path(__file__).resolve().parents[1] / "profiles" / "tiny.yaml"
DATASET, EARLIER, SNAPSHOT = "games", "2018-09", "2018-10"
#: Stages that take well under a second: enough for a short cut.
CHEAP = (
    "raw_reviews", "raw_items", "interactions", "baseline_popularity", "baseline_item_item", "item_embeddings",
    "sid_codebook",
)  # fmt: skip


def chosen(names: tuple[str, ...]) -> tuple[Stage, ...]:
    """The stages of these names with all that they read, in the order of the graph; all stages for no names."""
    wanted = set(names)
    for stage in reversed(STAGES):
        if stage.name in wanted:
            wanted |= {*stage.inputs, *stage.from_earlier}
    return tuple(stage for stage in STAGES if not names or stage.name in wanted)


@contextmanager
def at_home(folder: Path) -> Iterator[Store]:
    """A home in `folder`, for the command line too."""
    before = {name: os.environ.get(name) for name in ("SIDR_HOME", "SIDR_PROFILE")}
    os.environ |= {"SIDR_HOME": str(folder), "SIDR_PROFILE": str(PROFILE)}
    try:
        yield Store(folder / "store")
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class Pipeline:
    """Runs stages of the tiny profile in a store and remembers what was said."""

    def __init__(self, store: Store) -> None:
        self.store, self.said = store, []
        self.profile: Profile = load_profile(str(PROFILE))

    def run(self, stage: Stage, snapshot: str = SNAPSHOT) -> Outcome:
        return run_stage(self.profile, DATASET, snapshot, stage, self.store, Progress(self.said.append, 0.0))

    def rebuilt(self, stages: tuple[Stage, ...], snapshot: str = SNAPSHOT) -> list[str]:
        """Run stages in order; names those that were built, not reused."""
        return [stage.name for stage in stages if not self.run(stage, snapshot).reused]

    def digests(self, stages: tuple[Stage, ...], snapshot: str = SNAPSHOT) -> dict[str, str]:
        return {stage.name: self.store.require(DATASET, snapshot, stage.name).digest for stage in stages}
