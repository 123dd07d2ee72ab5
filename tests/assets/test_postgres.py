"""Several machines on one history of runs: the shipped instance file on a real Postgres, and who judges whose run."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import WorkerStatus

from builders import postgres
from builders.s3_server import S3Server
from sidr_assets.hosts import HOST_TAG, note_host
from sidr_assets.local_runs import LocalRunLauncher

ROOT = Path(__file__).resolve().parents[2]
if postgres.binaries() is None:
    pytest.skip("there is no Postgres here: apt-get install postgresql", allow_module_level=True)
for package in ("dagster_postgres", "dagster_aws", "psycopg2"):
    pytest.importorskip(package, reason="the extra `cluster` is not installed: pip install '.[cluster]'")


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    """The instance of `deploy/postgres/dagster.yaml`, with logs in a bucket."""
    folder = tmp_path_factory.mktemp("dagster")
    shutil.copy(ROOT / "deploy" / "postgres" / "dagster.yaml", folder)
    with postgres.running() as environment, S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, **server.environment, "SIDR_LOG_BUCKET": "logs"}.items():
            patch.setenv(name, value)
        with dg.DagsterInstance.from_config(str(folder)) as made:
            made.server = server  # for the test of the logs
            yield made


def run_with(instance, dead: bool = False) -> dg.DagsterRun:
    """A run that an asset has executed, by a process that lives or not, and is not known to have ended."""

    @dg.op
    def work() -> None:
        print("a line of the log")

    @dg.job
    def job() -> None:
        work()

    result = job.execute_in_process(instance=instance)
    run = instance.get_run_by_id(result.run_id)
    if dead:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        instance.report_engine_event("Executing", run, EngineEventData({"pid": dg.MetadataValue.text(str(gone.pid))}))
    return run


def status(instance, run) -> WorkerStatus:
    launcher = LocalRunLauncher()
    launcher.register_instance(instance)
    return launcher.check_run_worker_health(instance.get_run_by_id(run.run_id)).status


@pytest.mark.cluster("T6")
def test_the_shipped_instance_keeps_runs_and_logs_for_all_machines(instance):
    run = run_with(instance)
    assert [found.run_id for found in instance.get_runs()] == [run.run_id]
    assert type(instance.run_storage).__module__.startswith("dagster_postgres")
    assert any(name.startswith("dagster-logs/") for name in instance.server.objects)
    assert instance.run_launcher.supports_check_run_worker_health


@pytest.mark.cluster("T6")
def test_only_the_machine_of_a_run_judges_it(instance):
    run = run_with(instance, dead=True)
    assert status(instance, run) is WorkerStatus.RUNNING  # where it runs is not known yet
    instance.add_run_tags(run.run_id, {HOST_TAG: "another-machine"})
    assert status(instance, run) is WorkerStatus.RUNNING
    instance.add_run_tags(run.run_id, {HOST_TAG: platform.node()})
    assert status(instance, run) is WorkerStatus.FAILED


@pytest.mark.cluster("T6")
def test_an_asset_says_where_its_run_runs(instance):
    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> None:
        note_host(context)

    done = dg.materialize([thing], instance=instance)
    assert instance.get_run_by_id(done.run_id).tags[HOST_TAG] == platform.node()
    with dg.DagsterInstance.ephemeral() as alone:
        done = dg.materialize([thing], instance=alone)
        assert HOST_TAG not in alone.get_run_by_id(done.run_id).tags
