"""Stages as jobs of a Ray cluster whose node shares nothing with the launcher but a bucket: same outputs, told once."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

pytest.importorskip("obstore", reason="the extra `bucket` is not installed: pip install -c constraints.txt obstore")
pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install -c constraints.txt 'sidr[ray]'")

import ray

from builders import bucket, small_world
from builders.s3_server import S3Server
from builders.small_world import SNAPSHOT
from builders.stage import QUIET
from sidr_assets import launchers, ray_jobs
from sidr_assets.definitions import build_definitions
from sidr_core.errors import SidrError
from sidr_core.pipeline import launch, on_ray
from sidr_core.pipeline.bucket import Bucket
from sidr_core.pipeline.bucket_store import BucketStore
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import Profile, parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.store import Store
from sidr_core.settings import Launch

ROOT = Path(__file__).resolve().parents[2]
URL = "s3://shared/ray"
UPSTREAM = ("raw_reviews", "raw_items", "interactions", "item_embeddings", "sid_codebook", "synthetic_corpus")
TINY = {"kind": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
SFT = {"epochs": 1, "batch_size": 16, "micro_batch": 8, "select_rows": 6, "save_every": 3, "warmup_steps": 1}
SFT |= {"tasks": {"practice": 0.0, "sid_to_fact": 0.0}, "tracking": "none"}


def profile(sft: dict | None = None, **launched) -> Profile:
    fields = dict(small_world.profile().raw["datasets"]["toys"])
    fields["decoding"] = fields["decoding"] | {"models": list(small_world.MODELS)}
    fields |= {"base_model": TINY | {"vocab_size": 600}, "sft": SFT | (sft or {}), "launch": launched}
    return parse_profile("test", {"datasets": {"toys": fields}})


def materialize(profile: Profile, stage: str) -> dg.ExecuteInProcessResult:
    job = build_definitions(profile, (stage_named(stage),)).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        return job.execute_in_process(partition_key=SNAPSHOT, instance=instance, raise_on_error=False)


def failure(result: dg.ExecuteInProcessResult):
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    error = failed.step_failure_data.error
    assert error is not None
    return error


@pytest.mark.cluster("T2")
def test_a_cluster_that_does_not_answer_is_one_error(world) -> None:
    shutil.rmtree(world.store.root / "baseline_popularity")
    nobody = profile(kind="ray", stages=["baseline_popularity"], address="http://127.0.0.1:9")
    error = failure(materialize(nobody, "baseline_popularity"))
    assert error.cls_name == "SidrError"
    assert error.message.count("the Ray cluster at http://127.0.0.1:9 does not answer") == 1


@pytest.mark.cluster("T2")
def test_a_job_has_its_spec_by_value_and_no_key(monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("SIDR_STORE", URL)
    takes = {"GPU": 1, "memory": 2e9, "fast_disk": 1}
    spread = profile(kind="ray", processes=4, stages=["sft_checkpoint", "raw_items"], resources=takes)
    job = launch.ray_job(spread, "toys", SNAPSHOT, "raw_items", "f" * 32, Path("/home"))
    spec = json.loads(job["runtime_env"]["env_vars"][launch.SPEC_VARIABLE])
    assert (spec["stage"], spec["fingerprint"], spec["store"]) == ("raw_items", "f" * 32, URL)
    assert "home" not in spec and "workers" not in spec and "s3cr3t" not in json.dumps(job)
    amounts = job["entrypoint_num_gpus"], job["entrypoint_memory"], job["entrypoint_resources"]
    assert amounts == (1, 2_000_000_000, {"fast_disk": 1})
    training = launch.ray_job(spread, "toys", SNAPSHOT, "sft_checkpoint", "f" * 32, Path("/home"))
    assert json.loads(training["runtime_env"]["env_vars"][launch.SPEC_VARIABLE])["workers"] == 4
    assert training["entrypoint_num_cpus"] == 0 and "entrypoint_num_gpus" not in training, "the workers take them"


class _Cluster:
    """A job server that answers with these errors, then takes the job."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def submit_job(self, **_: object) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "job-1"


@pytest.mark.cluster("T2")
def test_a_job_waits_for_a_node_and_what_refuses_it_is_one_error(monkeypatch) -> None:
    monkeypatch.setattr(ray_jobs, "_POLL_SECONDS", 0.0)
    early = RuntimeError(
        "Request failed with status code 500: No available agent to submit job, please try again later.."
    )
    assert ray_jobs._submitted(_Cluster(early, early), {}, "http://a", "toys/raw_items") == "job-1"
    with pytest.raises(SidrError, match="does not take toys/raw_items") as refused:
        ray_jobs._submitted(
            _Cluster(RuntimeError("status code 400: no such resource.")), {}, "http://a", "toys/raw_items"
        )
    assert refused.value.found == "status code 400: no such resource"
    with pytest.raises(SidrError, match="does not answer"):
        ray_jobs._submitted(_Cluster(ConnectionError("refused")), {}, "http://a", "toys/raw_items")


# -- a cluster of one node -------------------------------------------------------------------


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[str]:
    """Address of a cluster; its node has the bucket's keys and a working folder of its own."""
    folder = tmp_path_factory.mktemp("ray")
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment, "SIDR_STORE": URL, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        node = {"SIDR_HOME": str(folder / "node"), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        node["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        gcs, dashboard, agent, runtime, metrics, client = free_ports(6)
        ray = [str(Path(sys.executable).with_name("ray"))]
        short = tempfile.mkdtemp(prefix="sidr-ray-", dir="/tmp")  # the paths of its sockets have to be short
        options = f"--head --num-cpus=4 --port={gcs} --dashboard-host=127.0.0.1 --dashboard-port={dashboard} "
        options += f"--dashboard-agent-listen-port={agent} --runtime-env-agent-port={runtime} --temp-dir={short} "
        options += f"--metrics-export-port={metrics} --ray-client-server-port={client} --object-store-memory=100000000"
        started = subprocess.Popen(
            [*ray, "start", *options.split(), "--block"], env=os.environ | node, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for_port(dashboard, started)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            started.terminate()  # `--block` ends what it started
            try:
                started.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, 9)
            shutil.rmtree(short, ignore_errors=True)


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"ray does not start here (exit code {process.returncode})")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.skip("ray does not start here within two minutes")


@pytest.fixture(scope="module")
def launcher(cluster, small_world_home, tmp_path_factory) -> Path:
    """The launcher's working folder; what lies above the trainings is in the bucket, with a real corpus."""
    home = tmp_path_factory.mktemp("launcher") / "home"
    shutil.copytree(small_world_home, home)
    local = Store(home / "store")
    shutil.rmtree(local.root / "synthetic_corpus")
    run_stage(profile(), "toys", SNAPSHOT, stage_named("synthetic_corpus"), local, QUIET)
    for where in local.refs():
        if where[2] not in UPSTREAM:
            (local.root / "refs" / where[0] / where[1] / f"{where[2]}.json").unlink()
    bucket.publish(local, BucketStore(home, Bucket.at(URL)))
    return home


@pytest.fixture
def here(launcher, monkeypatch) -> BucketStore:
    monkeypatch.setenv("SIDR_HOME", str(launcher))
    return BucketStore(launcher, Bucket.at(URL))


@pytest.mark.cluster("T2")
@pytest.mark.long
def test_a_job_on_another_machine_publishes_what_this_one_would(cluster, here, small_world_home) -> None:
    stage = "baseline_popularity"
    result = materialize(profile(kind="ray", stages=[stage], address=cluster), stage)
    assert result.success
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["reused"].value is False
    made, local = (store.require("toys", SNAPSHOT, stage) for store in (here, Store(small_world_home / "store")))
    assert (made.fingerprint, made.digest) == (local.fingerprint, local.digest)


@pytest.mark.cluster("T2")
@pytest.mark.long
def test_a_node_of_another_code_version_says_so_once(cluster, here, monkeypatch) -> None:
    monkeypatch.setattr(launchers, "planned_fingerprint", lambda *_: "0" * 32)
    stage = "baseline_item_item"
    error = failure(materialize(profile(kind="ray", stages=[stage], address=cluster), stage))
    assert error.cls_name == "SidrError"
    assert error.message.count(f"toys/{stage} would be another output on") == 1
    assert here.find("toys", SNAPSHOT, stage) is None


@pytest.mark.cluster("T2")
@pytest.mark.long
def test_a_training_over_workers_is_that_of_processes_here(cluster, here, launcher, tmp_path, monkeypatch) -> None:
    """With shared weights, so that a worker that did not take part would show."""
    stage, sharded = "sft_checkpoint", {"sharding": "full"}
    result = materialize(profile(sharded, kind="ray", processes=2, stages=[stage], address=cluster), stage)
    assert result.success
    made = here.require("toys", SNAPSHOT, stage)
    monkeypatch.setenv("SIDR_STORE", "")
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    shutil.copytree(launcher / "store", tmp_path / "home" / "store")
    two = profile(sharded, kind="accelerate", processes=2)
    spec = launch.write_spec(tmp_path, two, "toys", SNAPSHOT, stage, tmp_path / "home")
    subprocess.run(launch.command(two.dataset("toys").launch, "accelerate", spec), check=True, capture_output=True)
    local = Store(tmp_path / "home" / "store").require("toys", SNAPSHOT, stage)
    assert (made.fingerprint, made.digest) == (local.fingerprint, local.digest)


@pytest.mark.cluster("T2")
@pytest.mark.long
def test_a_mistake_met_by_all_workers_is_told_once(cluster, here) -> None:
    stage = "sft_checkpoint"
    wrong = profile({"max_length": 16}, kind="ray", processes=2, stages=[stage], address=cluster)
    error = failure(materialize(wrong, stage))
    assert error.cls_name == "InputError"
    assert error.message.count("is too long to train on") == 1


@pytest.mark.cluster("T2")
@pytest.mark.long
def test_a_run_that_is_ended_stops_its_job(cluster, here, monkeypatch) -> None:
    jobs = []

    def interrupted(client, number, name):
        while client.get_job_status(number).value == "PENDING":
            time.sleep(0.2)
        jobs.append((client, number))
        raise DagsterExecutionInterruptedError

    monkeypatch.setattr(ray_jobs, "_end", interrupted)
    stage = "baseline_item_item"
    with contextlib.suppress(DagsterExecutionInterruptedError):
        materialize(profile(kind="ray", stages=[stage], address=cluster), stage)
    ((client, number),) = jobs
    end = time.monotonic() + 60
    while not client.get_job_status(number).is_terminal() and time.monotonic() < end:
        time.sleep(0.2)
    assert client.get_job_status(number).value == "STOPPED"
    assert here.find("toys", SNAPSHOT, stage) is None


@pytest.mark.cluster("T2")
@pytest.mark.long
def test_the_doctor_asks_the_cluster(cluster, monkeypatch) -> None:
    asked = Launch(kind="ray", address=cluster)
    assert on_ray.answer(asked) == f"{cluster} answers: Ray {ray.__version__}"
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(SidrError, match="has another version") as other:
        on_ray.answer(asked)
    assert other.value.expected == "2.0.0"
