"""Single stages, killed at random moments.

Each kill: a stage is started from what was there before it (an old output of its own current, or none), in a forked
child, and gets SIGKILL at a moment uniform over a little more than its own duration. Then every current output must
be whole, the stage's ref name the old output or the new one, and every other ref what it named. A quick stage then
runs to its end after every kill; a slow one is killed up to five times in a row first, so that each run is the next
run of a kill. At the end its content must be that of an undisturbed run, and nothing temporary lie about. All the
while another process reads what is current of the stage and checks every byte.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from forked import Failed, afresh
from runs import SNAPSHOT, torn
from tiny_home import DATASET, TinyHome, Whole

from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.store import Store

#: A stage that takes longer is not run to its end after every kill.
QUICK_SECONDS = 0.3
KILLS_IN_A_ROW = 5
HEADER = (
    "| stage | duration s | kills | before publish | during | after | reads beside | torn | next run completed | "
    "litter | same content |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass
class Counts:
    """A row of the table."""

    kills: int = 0
    moments: dict[str, int] = field(default_factory=lambda: {"before": 0, "during": 0, "after": 0})
    ends: int = 0
    completed: int = 0
    same: int = 0
    broken: list[str] = field(default_factory=list)
    litter: int = 0
    torn: int = 0
    seconds: list[float] = field(default_factory=list)  # of runs that were not disturbed


class Beside:
    """A process that reads what is current of a stage; it waits while the home is set back."""

    def __init__(self, store: Store, stage: str) -> None:
        self.lock, self._end = multiprocessing.Lock(), multiprocessing.Event()
        self._told, answer = multiprocessing.Pipe(duplex=False)
        where = (DATASET, SNAPSHOT, stage)
        self._process = multiprocessing.get_context("fork").Process(
            target=_read, args=(store, where, self.lock, self._end, answer), daemon=True
        )
        self._process.start()

    def end(self) -> tuple[int, list[str]]:
        """How often it read, and what was torn."""
        self._end.set()
        told = self._told.recv()
        self._process.join()
        return told


def _read(store: Store, where: tuple[str, str, str], lock: Any, end: Any, answer: Any) -> None:
    reads, found = 0, []
    while not end.wait(0.01):
        with lock:
            if where not in store.refs():
                continue
            text = torn(store, where)
        reads += 1
        if text:
            found.append(f"read beside: {text}")
    answer.send((reads, found))


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int:
    """Kill each stage (or those of `only`) `count` times; print a table. Returns how many promises were broken."""
    return afresh("stages:broken", count, seed, only)


def broken(count: int, seed: int, only: list[str]) -> int:
    """The suite, in a process of its own."""
    wanted = tuple(only) or tuple(stage.name for stage in STAGES)
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as folder:
        home = TinyHome(Path(folder) / "home", wanted)
        print(HEADER, flush=True)
        return sum(_stage(home, name, count, random.Random(f"{seed}/{name}")) for name in home.wanted)


def _stage(home: TinyHome, name: str, count: int, chance: random.Random) -> int:
    """All kills of a stage, and its row; how many promises were broken."""
    whole = home.whole(name)
    others = {where: fp for where, fp in home.refs().items() if where != (DATASET, SNAPSHOT, name)}
    counts, beside = Counts(seconds=[whole.seconds]), Beside(home.store, name)
    in_a_row = 1 if whole.seconds <= QUICK_SECONDS else KILLS_IN_A_ROW
    while counts.kills < count:
        with beside.lock:
            home.reset(whole, old=chance.random() < 0.5)
        before = home.store.ref(DATASET, SNAPSHOT, name)
        for _ in range(min(in_a_row, count - counts.kills)):
            killed = _kill(home, whole, counts, chance)
            _look(home, whole, before, others, counts, killed)
            if home.store.ref(DATASET, SNAPSHOT, name) == whole.fingerprint:
                break  # there is nothing left to be killed
        _finish(home, whole, counts)
    reads, found = beside.end()
    if not reads:
        counts.broken.append("nothing was read beside")
    counts.torn += len(found)
    counts.broken += found
    moments = " | ".join(str(counts.moments[moment]) for moment in ("before", "during", "after"))
    print(
        f"| {name} | {median(counts.seconds):.2f} | {counts.kills} | {moments} | {reads:,} | {counts.torn} | "
        f"{counts.completed} of {counts.ends} | {counts.litter} | {counts.same} of {counts.ends} |",
        flush=True,
    )
    for line in counts.broken[:10]:
        print(f"- {name}: {line}", flush=True)
    return len(counts.broken)


def _kill(home: TinyHome, whole: Whole, counts: Counts, chance: random.Random) -> bool:
    """Whether the stage was killed; a child that came to its end before its moment was not, and does not count."""
    child = home.run(whole.stage)
    # On a busy machine durations drift; the first was taken before all was imported.
    child.ends_within(chance.uniform(0, 1.05 * median(counts.seconds[1:][-5:] or counts.seconds)))
    child.kill()
    killed = os.WIFSIGNALED(child.status)
    counts.kills += killed
    return killed


def _look(
    home: TinyHome,
    whole: Whole,
    before: str | None,
    others: dict[tuple[str, str, str], str | None],
    counts: Counts,
    killed: bool,
) -> None:
    """What a kill left: the old output or the new one, whole, and everything else as it was."""
    refs = home.refs()
    now = refs.pop((DATASET, SNAPSHOT, whole.stage), None)
    if now == whole.fingerprint:
        counts.moments["after"] += killed
    else:
        moved = (home.store.root / whole.stage / whole.fingerprint).exists()
        counts.moments["during" if moved else "before"] += killed
        if now != before:
            counts.broken.append(f"the ref names {now}, neither the old output nor the new one")
    if refs != others:
        counts.broken.append("a ref of another stage changed")
    damaged = home.damaged()
    counts.torn += len(damaged)
    counts.broken += damaged


def _finish(home: TinyHome, whole: Whole, counts: Counts) -> None:
    """The next run, undisturbed."""
    counts.ends += 1
    child = home.run(whole.stage)
    told = child.result()
    if isinstance(told, Failed):
        counts.broken.append(f"the next run failed: {told.text}")
        return
    counts.completed += 1
    if not told[2]:
        counts.seconds.append(child.seconds)
    if told[:2] == (whole.fingerprint, whole.digest):
        counts.same += 1
    else:
        counts.broken.append("the next run gave another content")
    litter = home.litter()
    counts.litter += len(litter)
    counts.broken += [f"left behind: {path}" for path in litter]
