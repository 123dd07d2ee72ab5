"""A home with outputs of the tiny profile, in which one stage at a time is broken, looked at and set back.

Every stage runs in a forked child, through :func:`sidr_core.pipeline.run.run_stage`. For each stage there is an *old*
output besides the right one: the same files under another fingerprint, current before some of the runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import Child, Failed, learn, preload
from runs import PROFILE, SNAPSHOT, TIMED, litter, torn

from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress, Stage
from sidr_core.pipeline.store import Artifact, Store

DATASET = "games"
EARLIER = "2018-09"


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run of a stage gave."""

    stage: str
    fingerprint: str
    digest: str  # of the content, without the time of day
    old: str  # the fingerprint of the old output
    parts: tuple[tuple[str, str], ...]
    seconds: float
    largest: int  # bytes of its largest file
    bytes: int


class TinyHome:
    """The home at `folder`, with everything that the stages `wanted` read.

    Args:
        log: where the output of the children goes; default: in the home.
    """

    def __init__(self, folder: Path, wanted: tuple[str, ...], log: Path | None = None) -> None:
        folder.mkdir(parents=True)
        self.home, self.store, self.log = folder, Store(folder / "store"), log or folder / "children.log"
        os.environ |= {"SIDR_HOME": str(folder), "TOKENIZERS_PARALLELISM": "false"}
        self.wanted = [stage.name for stage in STAGES if stage.name in wanted]
        for snapshot, name in needed(self.wanted):
            self.learned(snapshot, name)

    def learned(self, snapshot: str, name: str) -> None:
        """Materialize a stage, and import in this process what it needed."""
        told = self.child(learn, build, self.home, snapshot, name).result()
        if isinstance(told, Failed):
            raise RuntimeError(f"{name} failed undisturbed: {told.stack or told.text}")
        preload(told[1])

    def child(self, function: Callable[..., Any], *args: Any) -> Child:
        return Child(self.log, function, *args)

    def run(self, name: str) -> Child:
        """Start the stage in a child; gives (fingerprint, digest, reused)."""
        return self.child(build, self.home, SNAPSHOT, name)

    def whole(self, name: str) -> Whole:
        """Run the stage undisturbed from nothing, and publish the old output besides."""
        first = self.current(name)
        self._forget(name, first.fingerprint, tuple(map(tuple, first.manifest["parts"])))
        child = self.run(name)
        told = child.result()
        if isinstance(told, Failed):
            raise RuntimeError(f"{name} failed undisturbed: {told.stack or told.text}")
        made = self.current(name)
        old = self.child(publish_old, self.store, made).result()
        for where, fp in self.refs().items():
            if fp == made.fingerprint and where != (DATASET, SNAPSHOT, name):  # another snapshot with the same output
                self.store.set_ref(*where, old)
        sizes = [entry["bytes"] for entry in made.manifest["files"].values()]
        parts = tuple(map(tuple, made.manifest["parts"]))
        return Whole(name, told[0], told[1], old, parts, child.seconds, max(sizes, default=0), sum(sizes))

    def reset(self, whole: Whole, old: bool) -> None:
        """As before the stage ran: with the old output current, or with none."""
        if old:
            self.store.set_ref(DATASET, SNAPSHOT, whole.stage, whole.old)
        self._forget(whole.stage, whole.fingerprint, whole.parts, keep_ref=old)

    def _forget(self, name: str, fp: str, parts: tuple[tuple[str, ...], ...], keep_ref: bool = False) -> None:
        if not keep_ref:
            (self.store.root / "refs" / DATASET / SNAPSHOT / f"{name}.json").unlink(missing_ok=True)
        for stage, one in ((name, fp), *parts):
            for path in (self.store.root / stage / one, self.store.resume_folder(stage, one)):
                shutil.rmtree(path, ignore_errors=True)
        if name == "item_embeddings":
            shutil.rmtree(self.home / "cache", ignore_errors=True)

    def current(self, name: str) -> Artifact:
        return self.store.require(DATASET, SNAPSHOT, name)

    def refs(self) -> dict[tuple[str, str, str], str | None]:
        """Every current fingerprint."""
        return {where: self.store.ref(*where) for where in self.store.refs()}

    def damaged(self) -> list[str]:
        """Every current output that is not whole."""
        return [f"{'/'.join(where)}: {text}" for where in self.store.refs() if (text := torn(self.store, where))]

    def litter(self) -> list[str]:
        return litter(self.home)


def needed(wanted: list[str]) -> list[tuple[str, str]]:
    """(snapshot, stage) of these stages in this snapshot and of all that they can read, in order."""
    config = load_profile(str(PROFILE)).dataset(DATASET)
    found: set[tuple[str, str]] = set()

    def add(snapshot: str, stage: Stage) -> None:
        if (snapshot, stage.name) in found:
            return
        found.add((snapshot, stage.name))
        for name in stage.reads(config):
            add(snapshot, stage_named(name))
        if snapshot == SNAPSHOT:
            for name in (*stage.reads_earlier(config), *((stage.name,) if stage.warm else ())):
                add(EARLIER, stage_named(name))

    for name in wanted:
        add(SNAPSHOT, stage_named(name))
    return [(when, stage.name) for when in (EARLIER, SNAPSHOT) for stage in STAGES if (when, stage.name) in found]


# -- what children do ------------------------------------------------------------------------


def build(home: Path, snapshot: str, name: str) -> tuple[str, str, bool]:
    """Run a stage; its fingerprint, its digest and whether it was reused."""
    import torch

    torch.set_num_threads(1)
    silent = Progress(lambda line: None)
    store = Store(home / "store")
    outcome = run_stage(load_profile(str(PROFILE)), DATASET, snapshot, stage_named(name), store, silent)
    return outcome.artifact.fingerprint, content(outcome.artifact), outcome.reused


def content(artifact: Artifact) -> str:
    """Content digest of an output; of a table that holds the time of day, the table without it."""
    if artifact.stage not in TIMED:
        return artifact.digest
    from sidr_core.tables import files as tables

    file = f"{artifact.stage}.parquet"
    rest = artifact.digest_of(name for name in artifact.files if name != file)
    return f"{rest}:{tables.read(artifact.path(file)).drop('evaluated_at').write_csv()}"


def publish_old(store: Store, artifact: Artifact) -> str:
    """The same files under another fingerprint."""

    def copy(folder: Path) -> None:
        shutil.copytree(artifact.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("MANIFEST.json"))

    made, _ = store.obtain(artifact.stage, "old", {"copy of": artifact.fingerprint}, copy, synthetic=True)
    return made.fingerprint
