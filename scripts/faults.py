"""Kills a whole run at random moments and looks for damage: `make faults`.

Each round starts `dagster asset materialize --select games/*` on the tiny test profile, kills its process
group with SIGKILL at a random moment, and starts the next round on what is left. All the while a reader
opens every current output and checks every byte. At the end one undisturbed run must complete, its tables
must equal those of a run that was never disturbed, and no temporary file may lie about.

    .venv/bin/python scripts/faults.py --kills 10 --seed 0
"""

from __future__ import annotations

import argparse
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
from sidr_core.graph import STAGES
from sidr_core.store import Store

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT / "tests" / "profiles" / "tiny.yaml"
SNAPSHOT = "2018-10"


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
            for dataset, snapshot, stage in self._store.refs():
                artifact = self._store.current(dataset, snapshot, stage)
                if artifact is None:
                    self.torn.append(f"{stage}: a current output without a manifest")
                    continue
                try:
                    artifact.verified_folder()
                    self.reads += 1
                except StoreError as error:
                    self.torn.append(str(error))

    def end(self) -> None:
        self._ended.set()
        self.join()


def published(store: Store) -> int:
    """How many stages have a current output."""
    return len(store.refs())


def digests(store: Store) -> dict[str, str]:
    """Content digest of each current output, less the evaluation's, which holds the time of day."""
    names = [stage.name for stage in STAGES if stage.name != "evaluation"]
    return {name: store.require("games", SNAPSHOT, name).digest for name in names}


def main() -> int:
    """Run the suite; print a line per kill and a summary. Exit code 1 if anything was damaged."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as folder:
        calm, rough = Path(folder) / "calm", Path(folder) / "rough"
        started = time.monotonic()
        for home in (calm, rough):
            home.mkdir()
        if start(calm).wait() != 0:
            print((calm / "run.log").read_text()[-3000:])
            return 1
        whole = time.monotonic() - started
        print(f"an undisturbed run takes {whole:.0f} s", flush=True)
        store = Store(rough / "store")
        reader = Reader(store)
        reader.start()
        for kill in range(1, options.kills + 1):
            run = start(rough)
            moment = rng.uniform(0, whole)
            try:
                run.wait(timeout=moment)
                print(f"kill {kill}: the run had ended before {moment:.1f} s; {published(store)} stages", flush=True)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                print(f"kill {kill} at {moment:.1f} s: {published(store)} stages published", flush=True)
        code = start(rough).wait()
        reader.end()
        litter = [p.name for p in store.root.rglob(".tmp-*")]
        same = code == 0 and digests(store) == digests(Store(calm / "store"))
        print(f"{reader.reads:,} verified reads, {len(reader.torn)} torn; last run exit {code};")
        print(f"outputs equal to the undisturbed run: {same}; temporary folders left: {len(litter)}")
        for line in [*reader.torn[:5], *litter[:5]]:
            print(line)
        return int(bool(reader.torn or litter or not same))


if __name__ == "__main__":
    sys.exit(main())
