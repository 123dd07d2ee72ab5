"""Whole runs, killed at random moments.

Each round starts `dagster asset materialize --select games/*` on the tiny test profile, kills its process
group with SIGKILL at a random moment, and starts again on what is left, until a run gets to its end; then a
new empty home is begun. All the while a reader opens every current output and checks every byte. In the end
of each home one undisturbed run must complete, its outputs must equal those of a run that was never
disturbed, and no temporary folder may lie about.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from sidr_core.errors import StoreError
from sidr_core.pipeline import catalog
from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.store import Store

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "tests" / "profiles" / "tiny.yaml"
SNAPSHOT = "2018-10"
#: Their main tables say when they were made (`evaluated_at`); all else is a function of inputs and seed.
TIMED = ("evaluation", "reevaluation")


def start(home: Path) -> subprocess.Popen[bytes]:
    """One run of the whole graph in a process group of its own."""
    instance = home / "dagster"
    instance.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SIDR_PROFILE": str(PROFILE), "SIDR_HOME": str(home), "DAGSTER_HOME": str(instance)}
    dagster = Path(sys.executable).with_name("dagster")
    command = [dagster, "asset", "materialize", "-m", "sidr_assets", "--select", "games/*", "--partition", SNAPSHOT]
    log = (home / "run.log").open("ab")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True, stdin=subprocess.DEVNULL
    )


class Reader(threading.Thread):
    """Opens every current output over and over; a damaged one is a torn read."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self._store, self._ended = store, threading.Event()
        self.reads, self.torn = 0, []

    def run(self) -> None:
        while not self._ended.wait(0.05):
            for where in self._store.refs():
                if (text := torn(self._store, where)) is None:
                    self.reads += 1
                else:
                    self.torn.append(f"{where[2]}: {text}")

    def end(self) -> None:
        self._ended.set()
        self.join()


def torn(store: Store, where: tuple[str, str, str]) -> str | None:
    """What a reader of a current output (dataset, snapshot, stage) meets that is not whole; None if all is well."""
    artifact = store.current(*where)
    if artifact is None:
        return "a current output without a manifest"
    try:
        artifact.verified_folder()
    except StoreError as error:
        return str(error)
    return None


def litter(home: Path) -> list[str]:
    """What no finished run leaves: temporary names in the store, beside the refs and the catalog, in the cache."""
    store = Store(home / "store")
    found = [path for path in store.root.rglob(".*") if not path.name.endswith(".lock")]
    target = catalog.path(store)
    found += [path for path in target.parent.glob(f".{target.name}.*") if path.suffix != ".lock"]
    found += [path for path in (home / "cache").rglob(".tmp-*")]
    return [path.relative_to(home).as_posix() for path in found]


def published(store: Store) -> int:
    """How many stages have a current output."""
    return len(store.refs())


def digests(store: Store) -> dict[str, str]:
    """Content digest of each current output, less those that hold the time of day."""
    names = [stage.name for stage in STAGES if stage.name not in TIMED]
    return {name: store.require("games", SNAPSHOT, name).digest for name in names}


class Life:
    """One home that is killed until a run completes in it, and the reader that watches it."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home, self.store = home, Store(home / "store")
        self.reader = Reader(self.store)
        self.reader.start()

    def damage(self, expected: dict[str, str]) -> list[str]:
        """What is wrong after a last, undisturbed run: nothing should be."""
        code = start(self.home).wait()
        self.reader.end()
        found = list(self.reader.torn)
        if code != 0:
            return [*found, f"the last run exited with {code}: {(self.home / 'run.log').read_text()[-500:]}"]
        found += [f"left behind: {path}" for path in litter(self.home)]
        if digests(self.store) != expected:
            found.append("outputs differ from those of the undisturbed run")
        return found


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int:
    """Print a line per kill and a summary. Returns how much was damaged; `only` has no meaning here."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as folder:
        calm = Path(folder) / "calm"
        calm.mkdir()
        started = time.monotonic()
        if start(calm).wait() != 0:
            print((calm / "run.log").read_text()[-3000:])
            return 1
        whole = time.monotonic() - started
        expected = digests(Store(calm / "store"))
        print(f"an undisturbed run takes {whole:.0f} s", flush=True)
        kills, reads, lives, damage = 0, 0, 0, []
        while kills < count and not damage:
            lives += 1
            life = Life(Path(folder) / f"life{lives}")
            while kills < count:
                run = start(life.home)
                moment = rng.uniform(0, whole)
                try:
                    if (code := run.wait(timeout=moment)) != 0:
                        said = (life.home / "run.log").read_text()[-500:]
                        damage.append(f"life {lives}: a run ended with {code} before its kill: {said}")
                    break  # it ended before its moment came
                except subprocess.TimeoutExpired:
                    os.killpg(run.pid, signal.SIGKILL)
                    run.wait()
                    kills += 1
                    print(f"kill {kills} at {moment:.1f} s, life {lives}: {published(life.store)} stages", flush=True)
            damage += life.damage(expected)
            reads += life.reader.reads
        print(f"{kills} kills in {lives} lives; {reads:,} verified reads; damages: {len(damage)}")
        for line in damage[:10]:
            print(line)
        return len(damage)
