"""Backfills with failures, and trainings in the queue that are killed or ended, under a real daemon.

A home of its own with the settings of dagster.yaml, `dagster dev` on it, and its GraphQL. First a backfill of many
snapshots of which some cannot be built, since a byte of what they read is flipped: the others have to succeed, the
failed runs to say why, and a re-execution from failure, once the bytes are right, to build these alone. Then two
trainings in the pool `training`: one is killed, one is ended in the UI.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from tiny import at_home

from builders import small_world

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from screenshot import make_home, web_server  # noqa: E402
from web_api import ENDED, WebApi  # noqa: E402

from sidr_core.pipeline.graph import stage_named  # noqa: E402
from sidr_core.pipeline.profile import load_profile, parse_profile  # noqa: E402
from sidr_core.pipeline.run import run_stage  # noqa: E402
from sidr_core.pipeline.stage import Progress  # noqa: E402
from sidr_core.pipeline.store import Store  # noqa: E402

DATASET = "games"
BUILT = ("interactions", "baseline_popularity", "baseline_item_item")
#: Months of ratings before the first snapshot: a split needs a history.
_BEFORE = 6
QUIET = Progress(lambda line: None)
_RUNS = """query($id: String!) { runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) {
  ... on Runs { results { runId status tags { key value } } } } }"""
_AGAIN = """mutation($id: String!) { reexecutePartitionBackfill(
  reexecutionParams: {parentRunId: $id, strategy: FROM_FAILURE}) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on Error { message } } }"""


class Months:
    """A dataset of invented ratings, one snapshot per month, whose raw outputs are published."""

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        rng, first = random.Random(seed), 2010 * 12
        months = [f"{month // 12}-{month % 12 + 1:02d}" for month in range(first, first + _BEFORE + count)]
        self.keys = months[_BEFORE:]
        rows = ["user_id,item_id,rating,timestamp"]
        for number, month in enumerate(months):
            first = int(time.mktime(time.strptime(f"{month}-01", "%Y-%m-%d")))
            for user in range(30):
                rows += [
                    f"u{user},i{(user * 3 + number + rng.randrange(4)) % 40},5,{first + 86_400 * rng.randrange(1, 27)}"
                ]
        (folder / "reviews.csv").write_text("\n".join(rows))
        (folder / "items.csv").write_text("item_id,title\n" + "\n".join(f"i{n},Game {n}" for n in range(40)))
        fields = {
            "source": {
                "kind": "tables", "reviews": [str(folder / "reviews.csv")], "items": [str(folder / "items.csv")]
            },
            "snapshots": {"start": self.keys[0], "end": self.keys[-1]},
            "filters": {"k_core": 1},
        }  # fmt: skip
        path = folder / "months.yaml"
        path.write_text(yaml.safe_dump({"datasets": {DATASET: fields}}))
        self.environment = make_home(folder / "home", path)
        profile = load_profile(str(path))
        with at_home(Path(self.environment["SIDR_HOME"])) as self.store:
            for month in self.keys:
                for name in ("raw_reviews", "raw_items"):
                    run_stage(profile, DATASET, month, stage_named(name), self.store, QUIET)

    def flip(self, month: str) -> None:
        """Flip a byte of what `interactions` reads of a month; twice is as before."""
        path = self.store.require(DATASET, month, "raw_reviews").folder / "raw_reviews.parquet"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def made(self) -> dict[tuple[str, str], int]:
        """When each output was published, in nanoseconds."""
        found = {}
        for _, month, stage in self.store.refs():
            if stage in BUILT and (artifact := self.store.current(DATASET, month, stage)) is not None:
                found[month, stage] = (artifact.folder / "MANIFEST.json").stat().st_mtime_ns
        return found


@dataclass(frozen=True)
class Backfilled:
    """The runs of a backfill: snapshot -> (run, status), how it ended, and how long it took."""

    backfill: str
    runs: dict[str, tuple[str, str]]
    status: str
    seconds: float

    def of(self, status: str) -> set[str]:
        return {month for month, (_, found) in self.runs.items() if found == status}


def _backfilled(api: WebApi, backfill: str, started: float) -> Backfilled:
    status = api.wait_backfill(backfill, 3600)
    seconds = time.monotonic() - started
    runs = {}
    for run in api.ask(_RUNS, id=backfill)["runsOrError"]["results"]:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        runs[tags["dagster/asset_partition_range_start"]] = (run["runId"], run["status"])
    return Backfilled(backfill, runs, status, seconds)


def _until(done: Callable[[], Any], seconds: float) -> float:
    """Wait for it; returns how long that took.

    Raises:
        TimeoutError: it did not come within `seconds`.
    """
    started = time.monotonic()
    while not done():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.25)
    return time.monotonic() - started


def backfills(count: int, seed: int) -> list[str]:
    """Backfill `count` snapshots of which 5 % (at least one) fail, then these again. Prints; returns what was wrong."""
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as folder:
        months = Months(Path(folder), count, seed)
        failing = set(random.Random(seed).sample(months.keys, max(1, round(count / 20))))
        for month in failing:
            months.flip(month)
        with web_server(months.environment, daemon=True) as address:
            api, keys = WebApi(address), [[DATASET, stage] for stage in BUILT]
            started = time.monotonic()
            first = _backfilled(api, api.backfill(keys, months.keys), started)
            told = ["\n".join(api.errors(run)) for run, status in first.runs.values() if status == "FAILURE"]
            before = months.made()
            for month in failing:
                months.flip(month)
            started = time.monotonic()
            reply = api.ask(_AGAIN, id=first.backfill)["reexecutePartitionBackfill"]
            again = _backfilled(api, reply["backfillId"], started)
        after = months.made()
    print("| backfill | snapshots | runs | succeeded | failed | still started | status | seconds | per run |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    for name, told_of, one in (("all", months.keys, first), ("re-executed from failure", failing, again)):
        good, bad = len(one.of("SUCCESS")), len(one.of("FAILURE"))
        print(
            f"| {name} | {len(told_of)} | {len(one.runs)} | {good} | {bad} | {len(one.runs) - good - bad} "
            f"| {one.status} | {one.seconds:.0f} | {one.seconds / max(1, len(one.runs)):.1f} |"
        )
    built = {key for key in after if after[key] != before.get(key)}
    return _wrong(
        {
            f"failed: {sorted(first.of('FAILURE'))}, damaged: {sorted(failing)}": first.of("FAILURE") == failing,
            "a run neither succeeded nor failed": first.of("SUCCESS") == set(months.keys) - failing,
            "a failed run does not name the damaged file": all("raw_reviews.parquet is damaged" in one for one in told),
            f"re-executed: {sorted(again.runs)}": set(again.runs) == failing == again.of("SUCCESS"),
            f"the re-execution built {sorted(built)}": built == {(m, stage) for m in failing for stage in BUILT},
            "an output is missing": len(after) == len(months.keys) * len(BUILT),
        }
    )


def _wrong(promises: dict[str, bool]) -> list[str]:
    return [promise for promise, kept in promises.items() if not kept]


# -- trainings in the queue ------------------------------------------------------------------

_SFT = {"epochs": 60, "batch_size": 32, "micro_batch": 16, "select_rows": 0, "save_every": 2, "warmup_steps": 2}
_BASE = {"kind": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
TRAINING = "sft_checkpoint"


def _two_trainings(folder: Path) -> tuple[dict[str, str], Store]:
    """The small world, with all that a training needs, as two datasets that train with different settings."""
    fields: dict[str, Any] = json.loads(json.dumps(small_world.profile().raw["datasets"]["toys"]))
    fields |= {"sft": _SFT, "base_model": {**_BASE, "vocab_size": 600}}
    raw = {"datasets": {"toys": fields, "toys_b": {"extends": "toys", "sft": {"learning_rate": 1e-4}}}}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(raw))
    environment = make_home(folder / "home", path)
    profile = parse_profile("test", raw)
    with at_home(Path(environment["SIDR_HOME"])) as store:
        small_world.build(store.root.parent)
        for stage in ("synthetic_corpus", TRAINING):
            shutil.rmtree(store.root / stage)
        shutil.rmtree(store.root / "refs" / "toys" / small_world.SNAPSHOT / f"{TRAINING}.json", ignore_errors=True)
        run_stage(profile, "toys", small_world.SNAPSHOT, stage_named("synthetic_corpus"), store, QUIET)
    for ref in (store.root / "refs" / "toys" / small_world.SNAPSHOT).glob("*_checkpoint.json"):
        ref.unlink()
    shutil.copytree(store.root / "refs" / "toys", store.root / "refs" / "toys_b")
    return environment, store


def _trainer(store: Store) -> int | None:
    """Number of the process that trains, once it has a resume point to go on from."""
    for owner in (store.root / TRAINING).glob(".*.owner"):
        words = owner.read_text().split()
        resume = owner.with_name(owner.name.replace(".", ".resume-", 1).removesuffix(".owner"))
        if len(words) > 1 and list(resume.glob("checkpoint-*/COMPLETE")):
            return int(words[1])
    return None


def trainings() -> list[str]:
    """Two trainings, one killed, one ended, one that goes on. Prints a table; returns what was wrong."""
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as name:
        environment, store = _two_trainings(Path(name))
        rows: list[tuple[str, str]] = []
        with web_server(environment, daemon=True) as address:
            api = WebApi(address)
            one, two = (api.launch([[dataset, TRAINING]], small_world.SNAPSHOT) for dataset in ("toys", "toys_b"))
            _until(lambda: _trainer(store), 300)
            first, waiting = (one, two) if api.status(one) == "STARTED" else (two, one)
            held = api.status(waiting)
            rows.append(("the second training, while the first runs", held))
            pid = _trainer(store)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            noticed = _until(lambda: api.status(first) in ENDED, 300)
            killed = api.status(first)
            rows.append(("`kill -9` of the first", f"{killed} after {noticed:.0f} s"))
            begun = _until(lambda: api.status(waiting) == "STARTED", 300)
            rows.append(("the second starts", f"{begun:.0f} s later"))
            _until(lambda: _trainer(store) not in (None, pid), 300)
            second = _trainer(store)
            assert second is not None
            api.terminate(waiting)
            gone = _until(lambda: not psutil.pid_exists(second) or _is_zombie(second), 120)
            ended = api.wait(waiting, seconds=300)
            rows.append(("*Terminate* of the second", f"{ended}, its process gone after {gone:.1f} s"))
            third = api.launch([["toys", TRAINING]], small_world.SNAPSHOT)
            last = api.wait(third, ENDED, 600)
            rows.append(("the first again", last))
    print("\n| what | found |\n| --- | --- |")
    for row in rows:
        print(f"| {row[0]} | {row[1]} |")
    return _wrong(
        {
            f"the second training was {held}": held == "QUEUED",
            f"the killed run is {killed}": killed == "FAILURE",
            f"the ended run is {ended}": ended == "CANCELED",
            f"the first again: {last}": last == "SUCCESS",
        }
    )


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int:
    """Backfill `count` snapshots, then the trainings; `only` names one of the two: `backfills`, `trainings`."""
    wrong: list[str] = []
    if not only or "backfills" in only:
        wrong += backfills(count, seed)
    if not only or "trainings" in only:
        wrong += trainings()
    for line in wrong:
        print(f"- {line}")
    return len(wrong)
