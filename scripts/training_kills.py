"""Kills trainings with SIGKILL at random steps and compares what comes of them with undisturbed ones.

Each round copies a working folder in which all that a training stage reads is published, starts the stage as
`python -m sidr_core.pipeline.run <spec.json>` does, kills it at a random moment after a random step, starts it
again, and compares loss path (every column of `training_log.parquet`) and weights with those of the undisturbed run.
The process differs from a plain one in one point: it writes down the number of each finished step.

    .venv/bin/python scripts/training_kills.py --kills 10 --seed 0

Profile: tests/profiles/tiny.yaml, with dropout and short ways between two resume points. Ends with 1 when a
difference is above --tolerance, or a resumed training was not a resumed one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.profile import Profile, parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Artifact, Store

ROOT = Path(__file__).resolve().parent.parent
DATASET, SNAPSHOT = "games", "2018-09"
TRAININGS = ("sft_checkpoint", "activation_checkpoint", "grpo_checkpoint")


def tiny_profile() -> Profile:
    """The tiny profile with dropout, so that a lost random state shows, and GRPO of a few more steps."""
    games = yaml.safe_load((ROOT / "tests" / "profiles" / "tiny.yaml").read_text())["datasets"][DATASET]
    games["base_model"] |= {"dropout": 0.1}
    games["sft"] |= {"epochs": 2, "save_every": 10}
    games["activation"] |= {"save_every": 4}
    games["grpo"] |= {"steps": 8, "save_every": 3, "rollouts": "constrained", "reward": "rank"}
    return parse_profile("tiny", {"datasets": {DATASET: games}})


@dataclass
class Ended:
    """How a stage process ended: the steps it finished, its output, and whether it was killed."""

    steps: list[int]
    output: str
    killed: bool


def run(home: Path, profile: Profile, stage: str, kill_after: int | None = None, wait: float = 0.0) -> Ended:
    """Run a stage in a process; kill it `wait` of a step's time after step `kill_after`.

    Raises:
        RuntimeError: it failed by itself.
    """
    spec, notes = home / "spec.json", home / "steps"
    told = {"profile": {"name": profile.name, "raw": profile.raw}, "dataset": DATASET, "snapshot": SNAPSHOT}
    spec.write_text(json.dumps({**told, "stage": stage, "home": str(home)}))
    notes.unlink(missing_ok=True)
    log = home / "run.log"
    command = [sys.executable, __file__, "--child", str(spec), "--notes", str(notes)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
        try:
            killed = _watch(process, notes, kill_after, wait)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not killed and process.returncode:
        raise RuntimeError(f"{stage} failed:\n{log.read_text()[-2000:]}")
    return Ended(_steps(notes), log.read_text(), killed)


def _watch(process: subprocess.Popen[bytes], notes: Path, kill_after: int | None, wait: float) -> bool:
    """Wait for the process; True if it was time to kill it first."""
    seen = started = time.monotonic()
    while process.poll() is None:
        steps = _steps(notes)
        if steps:
            started, seen = (seen, time.monotonic()) if len(steps) > 1 else (started, seen)
        if kill_after is not None and steps and steps[-1] >= kill_after:
            time.sleep(wait * min(1.0, seen - started))
            return process.poll() is None
        time.sleep(0.005)
    return False


def _steps(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split("\n")[:-1]] if notes.exists() else []


def child(spec: str, notes: str) -> None:
    """The stage process."""
    from sidr_core.training import cards

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        with Path(notes).open("a") as out:
            out.write(f"{state.global_step}\n")

    cards.ProgressCallback.on_step_end = on_step_end
    sys.argv = ["sidr_core.pipeline.run", spec]
    runpy.run_module("sidr_core.pipeline.run", run_name="__main__")


def published(home: Path, stage: str) -> Artifact:
    """The current output of a stage."""
    return Store(home / "store").require(DATASET, SNAPSHOT, stage)


def gaps(one: Artifact, other: Artifact) -> tuple[float, float, float]:
    """Largest differences of the loss path, of all columns of the log, and of the weights; infinite where they differ
    in shape.
    """
    from safetensors.torch import load_file

    left, right = (pl.read_parquet(a.path("training_log.parquet")) for a in (one, other))
    if left.columns != right.columns or left["step"].to_list() != right["step"].to_list():
        return float("inf"), float("inf"), float("inf")
    columns = {name: _gap(left[name], right[name]) for name in left.columns}
    weights, others = (load_file(a.path("model.safetensors")) for a in (one, other))
    if weights.keys() != others.keys():
        return columns["loss"], max(columns.values()), float("inf")
    apart = max(float((value - others[name]).abs().max()) for name, value in weights.items())
    return columns["loss"], max(columns.values()), apart


def _gap(left: pl.Series, right: pl.Series) -> float:
    if left.is_null().to_list() != right.is_null().to_list():
        return float("inf")
    return float((left - right).abs().max() or 0.0)  # type: ignore[arg-type]


def round_of(stage: str, base: Path, home: Path, profile: Profile, step: int, wait: float) -> tuple[str, float]:
    """Kill, resume and compare; a row of the table, and the largest difference."""
    shutil.copytree(base, home)
    for later in TRAININGS[TRAININGS.index(stage) :]:
        shutil.rmtree(home / "store" / later)
    first = run(home, profile, stage, step, wait)
    again = run(home, profile, stage)
    match = re.search(r"resuming after step (\d+)", again.output)
    point = int(match[1]) if match else 0
    whole, resumed = published(base, stage), published(home, stage)
    loss, log, weights = gaps(whole, resumed)
    shutil.rmtree(home)
    repeated = first.steps[-1] - point
    last = again.steps[0] == point + 1 if again.steps else False
    worst = max(log, weights) if first.killed and last else float("inf")
    same = "yes" if resumed.digest == whole.digest else "no"
    state = str(first.steps[-1]) if first.killed else "not killed"
    return f"| {stage} | {state} | {point} | {repeated} | {loss:.1e} | {log:.1e} | {weights:.1e} | {same} |", worst


def main() -> int:
    """Print the table; 1 where a resumed training differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="per stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--stages", nargs="+", choices=TRAININGS, default=TRAININGS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--notes", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.notes)
        return 0
    profile, chance, worst = tiny_profile(), random.Random(args.seed), 0.0
    deepest = max(TRAININGS.index(stage) for stage in args.stages)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        base.mkdir()
        steps: dict[str, int] = {}
        for name in _upstream(TRAININGS[deepest], profile):
            print(f"undisturbed: {name}", file=sys.stderr, flush=True)
            if name in TRAININGS:
                steps[name] = max(run(base, profile, name).steps)
            else:
                run_stage(profile, DATASET, SNAPSHOT, stage_named(name), Store(base / "store"), Progress())
        print("| stage | killed after step | resumed after | repeated | loss | whole log | weights | same bytes |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for stage in args.stages:
            for number in range(args.kills):
                step, wait = chance.randrange(1, steps[stage]), chance.random()
                row, gap = round_of(stage, base, Path(folder) / f"{stage}-{number}", profile, step, wait)
                worst = max(worst, gap)
                print(row, flush=True)
    print(f"\nLargest difference: {worst:.1e}, allowed {args.tolerance:.0e}")
    return int(worst > args.tolerance)


def _upstream(last: str, profile: Profile) -> list[str]:
    """A stage and everything upstream of it, in order."""
    needed, waiting = set(), [last]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += stage_named(name).reads(profile.dataset(DATASET))
    return [stage.name for stage in STAGES if stage.name in needed]


if __name__ == "__main__":
    sys.exit(main())
