"""Processes that materialize the same at the same moment: one builds, the other waits or reuses.

Two real processes are released together, a random moment apart, on a home where what they are asked for is missing:
single stages, a chain of stages, the chain for two different snapshots, a chain beside `sidr gc`, and the real
command `dagster asset materialize`. After each race every output is read, compared with that of an undisturbed run,
and nothing temporary may lie about; the catalog has to open.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forked import Failed
from runs import PROFILE, ROOT, SNAPSHOT, litter, torn
from tiny_home import DATASET, EARLIER, TinyHome, Whole, content

from sidr_core.pipeline import catalog
from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Store

CHAIN = ("raw_reviews", "raw_items", "interactions", "baseline_popularity", "baseline_item_item")
#: How far apart, in shares of what an undisturbed run takes, the two may start.
APART = 0.5


@dataclass(frozen=True)
class Ran:
    """What a process says of one stage."""

    snapshot: str
    stage: str
    fingerprint: str
    digest: str
    reused: bool
    waited: bool


@dataclass
class Row:
    """A row of the table.

    Attributes:
        outputs: how many outputs were raced for.
        collected: how much a collector beside deleted meanwhile; None without one.
    """

    what: str
    races: int = 0
    outputs: int = 0
    built_by_one: int = 0
    waited: int = 0
    reused: int = 0
    collected: int | None = None
    damaged: list[str] = field(default_factory=list)

    def show(self) -> None:
        counts = (self.races, self.outputs, self.built_by_one, self.waited, self.reused, len(self.damaged))
        deleted = "" if self.collected is None else f", which deleted {self.collected:,}"
        print(f"| {self.what}{deleted} | {' | '.join(f'{n:,}' for n in counts)} |", flush=True)

    def broken(self) -> list[str]:
        """All that is wrong: what was damaged, or what the races did not show."""
        found = list(self.damaged)
        found += [f"{self.what}: not every output was built by one"] if self.built_by_one < self.outputs else []
        found += [f"{self.what}: nothing was deleted meanwhile"] if self.collected == 0 else []
        return found


HEADER = "| what | races | outputs | built by one | waited | reused | damaged |\n| --- |" + " ---: |" * 6


# -- what children do ------------------------------------------------------------------------


def run_all(home: Path, snapshot: str, stages: Sequence[str], barrier: Any, later: float) -> list[Ran]:
    """Meet the other process, wait `later` seconds, and run the stages in order."""
    import torch

    torch.set_num_threads(1)
    profile, store, found = load_profile(str(PROFILE)), Store(home / "store"), []
    barrier.wait(timeout=300)
    time.sleep(later)
    for name in stages:
        said: list[str] = []
        outcome = run_stage(profile, DATASET, snapshot, stage_named(name), store, Progress(said.append))
        waited = any("waiting for" in line for line in said)
        artifact = outcome.artifact
        found.append(Ran(snapshot, name, artifact.fingerprint, content(artifact), outcome.reused, waited))
    return found


def collect(home: Path, barrier: Any, over: Any) -> int:
    """`sidr gc --yes --deep --days 0` until it is over; how much it deleted."""
    from sidr_core.pipeline import gc as garbage

    store, deleted = Store(home / "store"), 0
    barrier.wait(timeout=300)
    while not over.is_set():
        for found in garbage.find(store, 0.0, deep=True):
            deleted += garbage.drop(store, found)
    return deleted


def ask_catalog(home: Path) -> int:
    """Count the rows behind every view of the catalog; how many views there are."""
    import duckdb

    with duckdb.connect(str(catalog.path(Store(home / "store"))), read_only=True) as connection:
        views = connection.execute("select schema_name, view_name from duckdb_views() where not internal").fetchall()
        for schema, view in views:
            connection.execute(f'select count(*) from "{schema}"."{view}"').fetchall()
    return len(views)


# -- the races -------------------------------------------------------------------------------


class Course:
    """A home for races, and how its outputs should look."""

    def __init__(self, folder: Path, wanted: tuple[str, ...], seed: int) -> None:
        self.rng = random.Random(seed)
        self.tiny = TinyHome(folder / "home", wanted)
        self.home = self.tiny.home
        for snapshot in (EARLIER, SNAPSHOT):
            for name in CHAIN if set(CHAIN) <= set(wanted) else ():
                self.tiny.learned(snapshot, name)
        self.expected = dict(self._digests())

    def _digests(self) -> list[tuple[tuple[str, str], str]]:
        where = [(snapshot, stage) for _, snapshot, stage in self.tiny.store.refs()]
        told = self.tiny.child(digests, self.home, where).result()
        assert not isinstance(told, Failed), told
        return list(zip(where, told, strict=True))

    def forget(self) -> None:
        """Empty the home."""
        shutil.rmtree(self.tiny.store.root)
        shutil.rmtree(self.home / "cache", ignore_errors=True)
        catalog.path(self.tiny.store).unlink(missing_ok=True)

    def race(self, row: Row, seconds: float, *entries: tuple[str, Sequence[str]], beside: bool = False) -> None:
        """Release a process per (snapshot, stages) at the same moment, and judge what they did.

        Args:
            seconds: how long an undisturbed run takes: the starts lie at most half of it apart.
            beside: with a process that collects garbage all the while.
        """
        context = multiprocessing.get_context("fork")
        barrier, over = context.Barrier(len(entries) + beside), context.Event()
        children = [
            self.tiny.child(run_all, self.home, *entry, barrier, self.rng.uniform(0, APART * seconds))
            for entry in entries
        ]
        collector = self.tiny.child(collect, self.home, barrier, over) if beside else None
        told = [child.result() for child in children]
        over.set()
        deleted = collector.result() if collector else 0
        row.races += 1
        row.damaged += [f"{one.kind}: {one.text[:300]}" for one in (*told, deleted) if isinstance(one, Failed)]
        if beside:
            row.collected = (row.collected or 0) + (0 if isinstance(deleted, Failed) else deleted)
        self._judge(row, [ran for one in told if not isinstance(one, Failed) for ran in one])

    def _judge(self, row: Row, ran: list[Ran]) -> None:
        by_output: dict[tuple[str, str], list[Ran]] = {}
        for one in ran:
            by_output.setdefault((one.stage, one.fingerprint), []).append(one)  # some are the same for two snapshots
            if one.digest != self.expected[one.snapshot, one.stage]:
                row.damaged.append(f"{one.stage} of {one.snapshot} has other content")
        row.outputs += len(by_output)
        row.built_by_one += sum([one.reused for one in group].count(False) == 1 for group in by_output.values())
        row.waited += sum(one.waited for one in ran)
        row.reused += sum(one.reused for one in ran)
        for where in {(DATASET, one.snapshot, one.stage) for one in ran}:
            row.damaged += [text] if (text := torn(self.tiny.store, where)) else []
        row.damaged += [f"left behind: {path}" for path in litter(self.home)]
        views = self.tiny.child(ask_catalog, self.home).result()
        row.damaged += [f"the catalog: {views.text[:200]}"] if isinstance(views, Failed) else []


def digests(home: Path, where: list[tuple[str, str]]) -> list[str]:
    """Content digests of current outputs."""
    store = Store(home / "store")
    return [content(store.require(DATASET, *one)) for one in where]


def single_stages(course: Course, names: Sequence[str], count: int) -> Row:
    """Two processes, the same stage of the same snapshot; the stages take turns."""
    row = Row("one stage, the same snapshot")
    wholes: dict[str, Whole] = {}
    for number in range(count):
        name = names[number % len(names)]
        whole = wholes[name] = wholes.get(name) or course.tiny.whole(name)
        course.tiny.reset(whole, old=False)
        course.race(row, whole.seconds, (SNAPSHOT, [name]), (SNAPSHOT, [name]))
    return row


def chains(course: Course, count: int) -> list[Row]:
    """Chains of stages: the same snapshot, two snapshots, and beside the collector of garbage."""
    rows = [Row(f"{len(CHAIN)} stages, {what}") for what in ("the same snapshot", "two snapshots", "beside `sidr gc`")]
    for number in range(3 * count):
        course.forget()
        second = EARLIER if number % 3 == 1 else SNAPSHOT
        course.race(rows[number % 3], 2.0, (SNAPSHOT, CHAIN), (second, CHAIN), beside=number % 3 == 2)
    return rows


# -- the real command ------------------------------------------------------------------------


def commands(folder: Path, count: int) -> list[Row]:
    """`dagster asset materialize`, twice at once, for the same and for two snapshots."""
    sys.path.append(str(ROOT / "scripts"))
    from screenshot import make_home

    environment = make_home(folder, PROFILE)
    dagster = Path(sys.executable).with_name("dagster")
    variables = {**os.environ, **environment}
    subprocess.run([dagster, "run", "list", "--limit", "1"], env=variables, check=True, capture_output=True, cwd=folder)
    store = Store(Path(environment["SIDR_HOME"]) / "store")
    select = " or ".join(f'key:"{DATASET}/{name}"' for name in CHAIN[:3])
    rows = [Row("`dagster asset materialize`, the same snapshot"), Row("`dagster asset materialize`, two snapshots")]
    for number in range(count):
        row, snapshots = rows[number % 2], (SNAPSHOT, EARLIER if number % 2 else SNAPSHOT)
        shutil.rmtree(store.root, ignore_errors=True)
        command = [dagster, "asset", "materialize", "-m", "sidr_assets", "--select", select, "--partition"]
        runs = [
            subprocess.Popen(
                [*command, snapshot],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
            for snapshot in snapshots
        ]
        said = [run.communicate()[0] for run in runs]
        row.races += 1
        _judge_commands(row, store, [run.returncode for run in runs], said, set(snapshots))
    return rows


def _judge_commands(row: Row, store: Store, codes: list[int], said: list[str], snapshots: set[str]) -> None:
    row.damaged += [f"exit code {code}: {text[-500:]}" for code, text in zip(codes, said, strict=True) if code]
    lines = "\n".join(said).splitlines()
    outputs = len({(where[2], store.ref(*where)) for where in store.refs()})
    built = sum("built in" in line and "reused" not in line for line in lines)
    row.outputs += outputs
    row.built_by_one += outputs if built == outputs else 0
    row.waited += sum("waiting for" in line for line in lines)
    row.reused += sum("reused (built in" in line for line in lines)
    for snapshot in sorted(snapshots):
        for stage in CHAIN[:3]:
            row.damaged += [text] if (text := torn(store, (DATASET, snapshot, stage))) else []
    row.damaged += [f"left behind: {path}" for path in litter(store.root.parent)]


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int:
    """`count` races for single stages (all, or `only`), a fifth of it for each kind of chain and a tenth for the
    command; prints the table, returns how much was damaged.
    """
    names = [stage.name for stage in STAGES if not only or stage.name in only]
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as name:
        course = Course(Path(name), tuple({*names, *CHAIN}), seed)
        print(HEADER)
        rows = [single_stages(course, names, count)]
        rows[0].show()
        rows += chains(course, max(1, count // 5))
        for row in rows[1:]:
            row.show()
        for row in commands(Path(name) / "command", max(2, count // 10)):
            row.show()
            rows.append(row)
    broken = [line for row in rows for line in row.broken()]
    for line in broken[:20]:
        print(f"- {line}")
    return len(broken)
