"""Runs the whole graph of a stand-in in a temporary home, each stage where the profile's launcher puts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sidr_core.errors import SidrError
from sidr_core.pipeline import launch
from sidr_core.pipeline.graph import stages_of
from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.run import check_failure, reuse_stage, run_stage
from sidr_core.pipeline.stage import Progress, Stage
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.rehearsal import data, models, server
from sidr_core.rehearsal.stand_in import stand_in


@dataclass(frozen=True)
class Scene:
    """One stage of a rehearsal: its output, and how long it took."""

    stage: str
    where: str
    seconds: float
    artifact: Artifact


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal leaves until its home is removed.

    Args:
        profile: the stand-in. replaced: a line about each model that stood in.
    """

    profile: Profile
    dataset: str
    store: Store
    scenes: tuple[Scene, ...]
    replaced: tuple[str, ...]

    @property
    def snapshot(self) -> str:
        return self.profile.newest(self.dataset)


@contextmanager
def rehearsed(profile: Profile, dataset: str, progress: Progress) -> Iterator[Rehearsed]:
    """Play every stage that a dataset's stand-in has; inside the block its home is `SIDR_HOME`, afterwards it is gone.

    Raises:
        SidrError: a stage failed, or one of its blocking checks did, as the real run's would.
    """
    folder = Path(tempfile.mkdtemp(prefix="sidr-rehearsal-"))
    try:
        with _home(folder / "home"), server.serving() as url:
            small = stand_in(profile, dataset, folder, url)
            data.write(profile.dataset(dataset), folder)
            replaced = models.write(profile.dataset(dataset), folder)
            store = Store(folder / "home" / "store")
            scenes = tuple(_play(small, dataset, stage, store, progress) for stage in stages_of(small.dataset(dataset)))
            yield Rehearsed(small, dataset, store, scenes, tuple(replaced))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """`SIDR_HOME` inside the block: the ledger and the caches are found by it."""
    before = os.environ.get("SIDR_HOME")
    os.environ["SIDR_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SIDR_HOME"]
        else:
            os.environ["SIDR_HOME"] = before


def _play(profile: Profile, dataset: str, stage: Stage, store: Store, progress: Progress) -> Scene:
    started, snapshot = time.monotonic(), profile.newest(dataset)
    where = profile.dataset(dataset).launch.of(stage.name)
    if where == "process":
        artifact = run_stage(profile, dataset, snapshot, stage, store, progress).artifact
    else:
        artifact = _launched(profile, dataset, stage, store, where)
    if failure := check_failure(dataset, snapshot, stage, artifact):
        raise failure
    seconds = time.monotonic() - started
    progress.say(f"{stage.name}: {seconds:.1f} s ({where})")
    return Scene(stage.name, where, seconds, artifact)


def _launched(profile: Profile, dataset: str, stage: Stage, store: Store, where: str) -> Artifact:
    """A stage in the processes that its launcher starts. Raises the first process's SidrError, or one with its end."""
    snapshot, settings = profile.newest(dataset), profile.dataset(dataset).launch
    with tempfile.TemporaryDirectory(prefix="sidr-launch-") as folder:
        spec = launch.write_spec(Path(folder), profile, dataset, snapshot, stage.name, store.root.parent)
        done = subprocess.run(launch.command(settings, where, spec), capture_output=True, text=True, check=False)
        if done.returncode:
            failure = launch.Failure.read(Path(folder) / launch.FAILURE)
            known = failure.as_user_error() if failure is not None else None
            raise known or SidrError(
                f"the rehearsal stops at {stage.name}: its processes failed",
                expected="exit code 0",
                found=f"{done.returncode}; {done.stderr[-1500:]}",
                fix="see the text above; the real run would have met it after hours",
            )
    outcome = reuse_stage(profile, dataset, snapshot, stage, store)
    assert outcome is not None, "the child published into another store"
    return outcome.artifact
