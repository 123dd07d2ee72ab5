"""A day in the life of a dataset, scripted and timed: prints the table of docs/operations.md.

Invented reviews in the layout of Amazon 2018 lie in one file per month. Each step is its own process, as
under the daemon; the sensor and the schedule are those of the code location, evaluated by hand. A step
prints the seconds of each stage; `=` marks one that was reused.

    .venv/bin/python scripts/day.py           # the quickstart's sizes
    .venv/bin/python scripts/day.py --tiny    # the tests' sizes
    .venv/bin/python scripts/day.py --ui      # two months by one backfill in the UI, with pictures (`day_in_ui.py`)
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DATASET, FIRST, SECOND, THIRD = "games", "2018-08", "2018-09", "2018-10"
KILLED = "activation_checkpoint"


class Day:
    """The home of the day: its files, its profile, and what its steps took."""

    def __init__(self, home: Path, tiny: bool) -> None:
        self.home, self.files = home, home / "files"
        self.columns: dict[str, dict[str, Any]] = {}
        name = ROOT / ("tests/profiles/tiny.yaml" if tiny else "profiles/quickstart.yaml")
        self.fields = yaml.safe_load(name.read_text())["datasets"][DATASET]
        self.sample = self.fields["source"]
        self.fields["source"] = {
            "kind": "amazon_2018",
            "reviews": [str(self.files / "reviews-*.jsonl.gz")],
            "items": [str(self.files / "meta.jsonl.gz")],
        }
        self.fields["snapshots"] = {"cadence": "monthly", "start": FIRST, "end": THIRD}
        for folder in (self.files, home / "dagster"):
            folder.mkdir(parents=True)
        (home / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        os.environ |= {
            "SIDR_PROFILE": str(home / "day.yaml"),
            "SIDR_HOME": str(home / "sidr"),
            "DAGSTER_HOME": str(home / "dagster"),
        }
        self.write_profile()

    def write_profile(self) -> None:
        profile = {"datasets": {DATASET: self.fields}}
        (self.home / "day.yaml").write_text(yaml.safe_dump(profile))

    def deliver(self, months: list[str], shift: str | None = None) -> None:
        """Write the files of some months, dated at the last day of theirs; with `shift`, of changed tastes."""
        from sidr_core.reviews.sources import sample
        from sidr_core.settings import SampleSource

        with tempfile.TemporaryDirectory() as folder:
            sample.generate(SampleSource(**self.sample, shift=shift), Path(folder))
            (self.files / "meta.jsonl.gz").write_bytes((Path(folder) / sample.ITEMS).read_bytes())
            with gzip.open(Path(folder) / sample.REVIEWS, "rt") as lines:
                by_month = _by_month(list(lines))
        os.utime(self.files / "meta.jsonl.gz", (0, 0))
        for month in months:
            path = self.files / f"reviews-{month}.jsonl.gz"
            with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                packed.write("".join(by_month[month]).encode())
            day = datetime.strptime(f"{month}-28", "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
            os.utime(path, (day, day))

    def step(self, title: str, snapshot: str, stages: tuple[str, ...] = (), bump: str = "") -> dict[str, Any]:
        """Materialize stages of a snapshot (all, if none is named) in a process of its own."""
        print(f"{title} ({snapshot})", file=sys.stderr, flush=True)
        started = time.monotonic()
        done = self._start(snapshot, stages, bump)
        output, _ = done.communicate()
        if done.returncode:
            raise SystemExit(f"{title} failed; see {self.home / 'day.log'}")
        self.columns[title] = {"seconds": time.monotonic() - started, **json.loads(output.splitlines()[-1])}
        return self.columns[title]

    def crash(self, title: str, snapshot: str, after: float) -> None:
        """Start a whole run and kill it `after` seconds into the stage `KILLED`."""
        print(f"{title} ({snapshot})", file=sys.stderr, flush=True)
        started = time.monotonic()
        process = self._start(snapshot, (), "")
        while not list((self.home / "sidr" / "store" / KILLED).glob(".tmp-*")):
            if process.poll() is not None:
                raise SystemExit(f"the run ended before {KILLED} began; see {self.home / 'day.log'}")
            time.sleep(0.05)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL or not list((self.home / "sidr" / "store" / KILLED).glob(".tmp-*")):
            raise SystemExit(f"{KILLED} was over before it could be killed: give a smaller --kill-after")
        self.columns[title] = {"seconds": time.monotonic() - started, "stages": {KILLED: "killed"}, "drift": ""}

    def _start(self, snapshot: str, stages: tuple[str, ...], bump: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--snapshot", snapshot, "--stages", ",".join(stages), "--bump", bump]
        log = (self.home / "day.log").open("a")
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )


def _by_month(lines: list[str]) -> dict[str, list[str]]:
    """Review lines by `YYYY-MM`; a damaged one goes with the line before it."""
    by_month: dict[str, list[str]] = {}
    month = ""
    for line in lines:
        try:
            date = json.loads(line)["reviewTime"]
            month = datetime.strptime(date, "%m %d, %Y").strftime("%Y-%m")
        except json.JSONDecodeError:
            pass
        by_month.setdefault(month, []).append(line)
    return by_month


def materialize(snapshot: str, stages: list[str], bump: str) -> dict[str, Any]:
    """The child process of a step: run it; returns the seconds of each stage and the result of the check `drift`."""
    import dagster as dg

    from sidr_assets.definitions import build_definitions
    from sidr_core.pipeline.graph import STAGES
    from sidr_core.pipeline.profile import load_profile

    bumped = tuple(dataclasses.replace(s, code_version="bumped") if s.name == bump else s for s in STAGES)
    job = build_definitions(load_profile(), bumped).resolve_implicit_global_asset_job_def()
    selection = [dg.AssetKey([DATASET, name]) for name in stages] or None
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(partition_key=snapshot, instance=instance, asset_selection=selection)
    reused = {
        event.asset_key.path[1]: bool(event.materialization.metadata["reused"].value)
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }
    seconds = {
        str(event.step_key).removeprefix(f"{DATASET}__"): event.step_success_data.duration_ms / 1000
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.STEP_SUCCESS
    }
    texts = {name: f"{took:.1f}{' =' if reused.get(name) else ''}" for name, took in seconds.items()}
    drift = [check for check in result.get_asset_check_evaluations() if check.check_name == "drift"]
    verdict = f"{'passed' if drift[0].passed else 'raised'}: {drift[0].description}" if drift else ""
    return {"stages": texts, "drift": verdict}


def sensor_asks(defs: Any, cursor: str | None) -> tuple[str | None, str | None]:
    """The snapshot that the sensor for new files asks for, if any, and its cursor."""
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs)
        tick = defs.resolve_sensor_def(f"{DATASET}_new_files").evaluate_tick(context)
    return (tick.run_requests[0].partition_key if tick.run_requests else None), tick.cursor


def schedule_asks(defs: Any, when: str) -> str:
    """The snapshot that the schedule asks for at a time."""
    import dagster as dg

    at = datetime.fromisoformat(when).replace(tzinfo=UTC)
    context = dg.build_schedule_context(scheduled_execution_time=at, repository_def=defs.get_repository_def())
    (request,) = defs.resolve_schedule_def(f"{DATASET}_reevaluation").evaluate_tick(context).run_requests or []
    assert request.partition_key is not None
    return request.partition_key


def live(day: Day, after: float) -> None:
    """The steps of the day."""
    from sidr_assets.definitions import build_definitions
    from sidr_assets.schedules import STAGES as SCHEDULED
    from sidr_core.pipeline.profile import load_profile

    day.deliver([f"2018-{month:02d}" for month in range(3, 9)])
    defs = build_definitions(load_profile(str(day.home / "day.yaml")))
    _, cursor = sensor_asks(defs, None)
    day.step("cold build", FIRST)
    day.step("nothing changed", FIRST)
    day.deliver([SECOND])
    asked, cursor = sensor_asks(defs, cursor)
    assert asked == SECOND, f"the sensor asked for {asked}"
    day.step("new file", asked)
    day.step("code bump of sid_codebook", SECOND, bump="sid_codebook")
    day.step("and back", SECOND)
    day.fields["activation"]["learning_rate"] *= 1.01
    day.write_profile()
    day.crash("crash", SECOND, after)
    day.step("recovery", SECOND)
    day.deliver([THIRD])
    day.step("scheduled re-evaluation", schedule_asks(defs, "2018-11-05T06:00"), SCHEDULED)
    day.deliver([THIRD], shift=THIRD)
    day.step("shifted tastes", schedule_asks(defs, "2018-11-12T06:00"), SCHEDULED)


def table(day: Day) -> str:
    """Seconds per stage and step, as Markdown."""
    from sidr_core.pipeline.graph import STAGES
    from sidr_core.render.grid import markdown_table

    rows = [
        [f"`{stage.name}`", *(str(column["stages"].get(stage.name, "")) for column in day.columns.values())]
        for stage in STAGES
    ]
    rows.append(["whole process", *(f"{column['seconds']:.1f}" for column in day.columns.values())])
    drift = [f"- `drift`, {title}: {column['drift']}" for title, column in day.columns.items() if column["drift"]]
    return "\n".join([markdown_table(["stage", *day.columns], rows), "", *drift])


def main() -> None:
    """Live the day, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes of the tests' profile")
    parser.add_argument("--kill-after", type=float, default=5.0, help=f"seconds into {KILLED} at which it is killed")
    parser.add_argument("--snapshot", help=argparse.SUPPRESS)
    parser.add_argument("--stages", default="", help=argparse.SUPPRESS)
    parser.add_argument("--bump", default="", help=argparse.SUPPRESS)
    parser.add_argument("--ui", action="store_true", help="two months in the UI, in a browser, instead")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="where the pictures of --ui go")
    arguments = parser.parse_args()
    if arguments.ui:
        import day_in_ui

        sys.exit(day_in_ui.live(arguments.out))
    if arguments.snapshot:
        print(
            json.dumps(
                materialize(arguments.snapshot, [name for name in arguments.stages.split(",") if name], arguments.bump)
            )
        )
        return
    with tempfile.TemporaryDirectory(prefix="sidr-day-") as folder:
        day = Day(Path(folder), arguments.tiny)
        try:
            live(day, min(arguments.kill_after, 0.5) if arguments.tiny else arguments.kill_after)
        except SystemExit:
            print((day.home / "day.log").read_text()[-4000:], file=sys.stderr)
            raise
        sizes = "tests/profiles/tiny.yaml" if arguments.tiny else "profiles/quickstart.yaml"
        print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; sizes of {sizes}\n")
        print(table(day))


if __name__ == "__main__":
    main()
