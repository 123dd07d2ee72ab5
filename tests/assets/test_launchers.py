"""Stages in processes of their own, through Dagster: same results, errors reported once, nothing lives on."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.launcher.base import WorkerStatus
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

ROOT = Path(__file__).resolve().parents[2]

from builders import small_world  # noqa: E402
from builders.small_world import SNAPSHOT  # noqa: E402
from sidr_assets.definitions import build_definitions  # noqa: E402
from sidr_assets.local_runs import LocalRunLauncher  # noqa: E402
from sidr_core.pipeline.graph import stage_named  # noqa: E402
from sidr_core.pipeline.profile import Profile, parse_profile  # noqa: E402
from sidr_core.pipeline.run import run_stage  # noqa: E402
from sidr_core.pipeline.stage import Progress  # noqa: E402
from sidr_core.pipeline.store import Store  # noqa: E402

#: What a materialization says about its own circumstances.
OWN = {"seconds", "all numbers", "folder"}
TINY = {"kind": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
#: Two hundred and forty steps, a resume point after each second one.
SFT = {"epochs": 60, "batch_size": 32, "micro_batch": 16, "select_rows": 0, "save_every": 2, "warmup_steps": 2}
SFT["tasks"] = {"practice": 0.0, "sid_to_fact": 0.0}


def profile(sft: dict | None = None, **launched) -> Profile:
    fields = dict(small_world.profile().raw["datasets"]["toys"])
    fields["decoding"] = fields["decoding"] | {"models": list(small_world.MODELS)}
    fields |= {"base_model": TINY | {"vocab_size": 600}, "sft": SFT | (sft or {}), "launch": launched}
    return parse_profile("test", {"datasets": {"toys": fields}})


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The small world with a real corpus and no checkpoint."""
    home = tmp_path_factory.mktemp("launchers") / "home"
    small_world.build(home)
    store = Store(home / "store")
    for stage in ("synthetic_corpus", "sft_checkpoint"):
        shutil.rmtree(store.root / stage)
    run_stage(profile(), "toys", SNAPSHOT, stage_named("synthetic_corpus"), store, Progress(lambda line: None))
    return home


@pytest.fixture
def home(built, tmp_path, monkeypatch) -> Path:
    shutil.copytree(built, tmp_path / "home")
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "home"


def materialize(profile: Profile, stage: str) -> dg.ExecuteInProcessResult:
    job = build_definitions(profile, (stage_named(stage),)).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        return job.execute_in_process(partition_key=SNAPSHOT, instance=instance, raise_on_error=False)


def materialized(result: dg.ExecuteInProcessResult) -> tuple:
    (event,) = result.get_asset_materialization_events()
    made = event.materialization
    metadata = {name: value for name, value in made.metadata.items() if name not in OWN}
    checks = [(e.check_name, e.passed, e.severity, e.description) for e in result.get_asset_check_evaluations()]
    return made.tags["dagster/data_version"], metadata, checks


def test_an_asset_tells_the_same_wherever_it_ran(home) -> None:
    results = []
    for kind in ("process", "subprocess"):
        shutil.rmtree(home / "store" / "baseline_popularity")
        result = materialize(profile(kind=kind, stages=["baseline_popularity"]), "baseline_popularity")
        assert result.success
        results.append(materialized(result))
    assert results[0] == results[1]
    assert results[1][1]["reused"].value is False
    assert results[1][2], "the check of the table came back"


def test_what_is_there_starts_no_process(home, monkeypatch) -> None:
    monkeypatch.setattr(dg.PipesSubprocessClient, "run", None)
    result = materialize(profile(kind="subprocess", stages=["baseline_popularity"]), "baseline_popularity")
    assert result.success
    assert materialized(result)[1]["reused"].value is True


def test_the_childs_lines_are_the_runs(home, capfd) -> None:
    shutil.rmtree(home / "store" / "synthetic_corpus")
    result = materialize(profile(kind="subprocess", stages=["synthetic_corpus"]), "synthetic_corpus")
    assert result.success
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "16 items, 12 train rows" in line)
    assert "INFO - __ASSET_JOB" in line, "it is in the run's log, not on the child's stderr"


@pytest.mark.slow
def test_a_mistake_met_by_all_processes_is_reported_once(home) -> None:
    result = materialize(profile({"max_length": 16}, kind="accelerate", processes=2), "sft_checkpoint")
    assert not result.success
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    error = failed.step_failure_data.error
    assert error is not None
    assert error.cls_name == "InputError"
    assert error.message.count("is too long to train on") == 1
    assert "expected: at most max_length = 16 tokens" in error.message


@pytest.mark.long
def test_stopped_and_killed_trainings_leave_nobody_and_go_on(home, tmp_path) -> None:
    """Two processes; the real command line gets SIGTERM in the first run and SIGKILL in the second."""
    command, environment = _command_line(home, tmp_path)
    ends = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = _newest_point(home)  # the run before may have written another one after it was last looked at
        run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            _wait_for_point(home, run, after=before)
            family = psutil.Process(run.pid).children(recursive=True)
            ranks = [p for p in family if "-u -m sidr_core.pipeline.run" in " ".join(p.cmdline())]
            assert len(ranks) == 2
            run.send_signal(number)
            assert not _left(ranks, 10)
            assert not _left(family, 30), "what only waits for the ranks may be slow on a busy machine"
            run.communicate(timeout=60)
        finally:
            run.kill()
            run.wait()
        ends.append(_monitored(tmp_path))
    assert ends == ["FAILURE", "FAILURE"], "the killed one by run monitoring"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming after step" in done.stderr
    assert Store(home / "store").require("toys", SNAPSHOT, "sft_checkpoint").manifest["metrics"]["steps"] == 240


def _command_line(home: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    path = folder / "test.yaml"
    plain = yaml.safe_load(yaml.safe_dump(profile(kind="accelerate", processes=2).raw["datasets"]["toys"] | {}))
    path.write_text(yaml.safe_dump({"datasets": {"toys": plain}}))
    environment = _instance_folder(folder) | {"SIDR_HOME": str(home), "SIDR_PROFILE": str(path)}
    dagster = str(Path(sys.executable).with_name("dagster"))
    command = [dagster, "asset", "materialize", "-m", "sidr_assets", "--select", 'key:"toys/sft_checkpoint"']
    return [*command, "--partition", SNAPSHOT], environment


def _instance_folder(folder: Path) -> dict[str, str]:
    """The environment of a Dagster instance with the project's own settings and a storage of its own."""
    settings = (ROOT / "dagster.yaml").read_text().replace(".sidr/dagster", str(folder / "storage"))
    (folder / "dagster.yaml").write_text(settings)
    return {**os.environ, "DAGSTER_HOME": str(folder)}


def _left(family: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after a time; zombies have ended."""
    _, alive = psutil.wait_procs(family, timeout=seconds)
    return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def _monitored(folder: Path) -> str:
    """Status of the newest run after a round of Dagster's run monitoring."""
    with (
        dg.DagsterInstance.from_config(str(folder)) as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as context,
    ):
        assert not [error for error in execute_run_monitoring_iteration(context, logging.getLogger()) if error]
        return instance.get_runs(limit=1)[0].status.value


def _newest_point(home: Path) -> int:
    """Step of the newest whole resume point, 0 if there is none."""
    points = home.glob("store/sft_checkpoint/.resume-*/checkpoint-*/COMPLETE")
    return max((int(point.parent.name.rpartition("-")[2]) for point in points), default=0)


def _wait_for_point(home: Path, run: subprocess.Popen, after: int) -> None:
    """Return when a run has written a whole resume point behind a step."""
    end = time.monotonic() + 240
    while time.monotonic() < end and run.poll() is None:
        if _newest_point(home) > after:
            return
        time.sleep(0.05)
    raise AssertionError("no resume point was written")


# -- the pool and the health of runs ---------------------------------------------------------


def test_trainings_share_a_pool(home) -> None:
    names = ("sft_checkpoint", "activation_checkpoint", "grpo_checkpoint", "recommendations")
    definitions = build_definitions(profile(), tuple(stage_named(name) for name in names))
    pools = {
        key.path[1]: definitions.resolve_assets_def(key).op.pool
        for key in definitions.resolve_asset_graph().materializable_asset_keys
    }
    assert pools == {**dict.fromkeys(names[:3], "training"), "recommendations": None}


def test_runs_of_one_pool_leave_a_new_queue_one_by_one_in_their_order(tmp_path) -> None:
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__"), "job")
    job = build_definitions(profile(), (stage_named("sid_codebook"),)).resolve_implicit_global_asset_job_def()
    _instance_folder(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
        for month in ("2018-09", "2018-10"):
            run = instance.create_run_for_job(job, tags={"month": month}, remote_job_origin=origin)
            instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=None))  # type: ignore[arg-type]
        leaving = daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), None)
    assert [run.tags["month"] for run in leaving] == ["2018-09"]


def test_a_run_whose_process_lives_is_healthy(home) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        launcher = LocalRunLauncher()
        launcher.register_instance(instance)
        job = build_definitions(
            profile(), (stage_named("baseline_popularity"),)
        ).resolve_implicit_global_asset_job_def()
        job.execute_in_process(partition_key=SNAPSHOT, instance=instance)
        (run,) = instance.get_runs()
        assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
