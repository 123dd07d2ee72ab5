"""Processes that share the weights train as one that has them all, and save the same plain folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from builders import small_world
from builders.small_world import SNAPSHOT
from builders.stage import QUIET
from sidr_core.errors import SidrError
from sidr_core.models import checkpoint
from sidr_core.pipeline import launch
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import Profile, parse_profile
from sidr_core.pipeline.run import reuse_stage, run_stage
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.settings import Grpo, Sft
from sidr_core.tables import files as tables
from sidr_core.training import sharding

#: Most that losses and weights may differ: sums of another order.
TOLERANCE = 2e-6
TINY = {"kind": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
SFT = {"epochs": 2, "batch_size": 16, "micro_batch": 8, "select_rows": 6, "save_every": 3, "warmup_steps": 1}
SFT |= {"tasks": {"practice": 0.0, "sid_to_fact": 0.0}, "tracking": "none"}
GRPO = {"steps": 3, "prompts_per_step": 2, "generations": 4, "micro_batch": 4, "learning_rate": 1e-3}
GRPO |= {"max_thought_tokens": 6, "select_rows": 4, "select_every": 1, "preflight": 0, "tracking": "none"}
GRPO |= {"reward": "rank", "rollouts": "constrained", "save_every": 1}


def profile(**changed) -> Profile:
    """The small world's, with a tiny model and two processes; sections of `changed` are merged into its own."""
    fields = dict(small_world.profile().raw["datasets"]["toys"])
    fields |= {"base_model": TINY | {"vocab_size": 600}, "sft": SFT, "grpo": GRPO}
    fields["launch"] = {"kind": "accelerate", "processes": 2, "patience_minutes": 2}
    fields |= {name: fields[name] | section for name, section in changed.items()}
    return parse_profile("test", {"datasets": {"toys": fields}})


def start(profile: Profile, stage: str, store: Store, folder: Path) -> subprocess.Popen[str]:
    """Two processes at work on a stage, in a process group of their own."""
    spec = launch.write_spec(folder, profile, "toys", SNAPSHOT, stage, store.root.parent)
    command = launch.command(profile.dataset("toys").launch, "accelerate", spec)
    pipe, threads = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=threads, start_new_session=True)


def in_two(profile: Profile, stage: str, store: Store, folder: Path) -> Artifact:
    """The output of a stage that two processes made."""
    children = start(profile, stage, store, folder)
    _, errors = children.communicate()
    assert children.returncode == 0, errors[-3000:]
    outcome = reuse_stage(profile, "toys", SNAPSHOT, stage_named(stage), store)
    assert outcome is not None
    return outcome.artifact


def same(one: Artifact, other: Artifact) -> None:
    """Equal logs and weights, and the same files in the folder."""
    logs = [tables.read(artifact.path("training_log.parquet")) for artifact in (one, other)]
    assert logs[0].columns == logs[1].columns
    for name in logs[0].columns:
        # The trainer's own evaluation fills the last batch of each process with rows that it repeats.
        allowed = 1e-3 if name == "eval_loss" else TOLERANCE
        for a, b in zip(logs[0][name].to_list(), logs[1][name].to_list(), strict=True):
            assert a == b if a is None or b is None else abs(a - b) <= allowed * max(1, abs(a)), name
    weights = [load_file(artifact.path(checkpoint.WEIGHTS)) for artifact in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) <= TOLERANCE
    assert one.files == other.files
    assert one.path("config.json").read_bytes() == other.path("config.json").read_bytes()
    assert all(check["passed"] for check in other.manifest["checks"]), "it loads plain"


@pytest.fixture(scope="module")
def corpus_home(small_world_home, tmp_path_factory) -> Path:
    """The small world with a real corpus."""
    home = tmp_path_factory.mktemp("sharding") / "home"
    shutil.copytree(small_world_home, home)
    store = Store(home / "store")
    shutil.rmtree(store.root / "synthetic_corpus")
    run_stage(profile(), "toys", SNAPSHOT, stage_named("synthetic_corpus"), store, QUIET)
    return home


@pytest.fixture
def store(corpus_home, tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("SIDR_HOME", str(corpus_home))
    return Store(corpus_home / "store")


FULL = {"sharding": "full"}


@pytest.mark.cluster("T5")
def test_two_processes_that_share_the_weights_train_as_one(store, tmp_path) -> None:
    """Each holds a share of every tensor: otherwise the stage stops."""
    short = {"epochs": 1, "save_every": 100}
    alone = run_stage(
        profile(sft=short | {"micro_batch": 16}), "toys", SNAPSHOT, stage_named("sft_checkpoint"), store, QUIET
    )
    shared = in_two(profile(sft=short | FULL), "sft_checkpoint", store, tmp_path)
    same(alone.artifact, shared)


@pytest.mark.cluster("T5")
@pytest.mark.long
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_grpo_that_shares_the_weights_rolls_out_and_learns_as_two_that_do_not(store, tmp_path, beta) -> None:
    """Each process writes rollouts of another length, so one runs more passes than the other."""
    (tmp_path / "whole").mkdir()
    whole = in_two(profile(grpo={"beta": beta}), "grpo_checkpoint", store, tmp_path / "whole")
    shared = in_two(profile(grpo={"beta": beta} | FULL), "grpo_checkpoint", store, tmp_path)
    same(whole, shared)


@pytest.mark.cluster("T5")
@pytest.mark.long
@pytest.mark.parametrize(("stage", "section"), [("sft_checkpoint", "sft"), ("grpo_checkpoint", "grpo")])
def test_killed_in_a_step_it_goes_on_to_the_same_bytes(corpus_home, store, tmp_path, monkeypatch, stage, section):
    shared = profile(**{section: FULL | {"seed": 5}})
    at_once = in_two(shared, stage, store, tmp_path)
    shutil.copytree(corpus_home, tmp_path / "home")
    shutil.rmtree(tmp_path / "home" / "store" / stage / at_once.fingerprint)
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    other = Store(tmp_path / "home" / "store")
    children = start(shared, stage, other, tmp_path)
    points = other.resume_folder(stage, at_once.fingerprint)
    end = time.monotonic() + 120
    while not list(points.glob("checkpoint-*/COMPLETE")):
        assert children.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(children.pid, signal.SIGKILL)
    children.wait()
    point = next(points.glob("checkpoint-*/COMPLETE")).parent.name
    resumed = in_two(shared, stage, other, tmp_path)
    assert int(point.rpartition("-")[2]) < resumed.manifest["metrics"]["steps"]
    assert (resumed.fingerprint, resumed.digest) == (at_once.fingerprint, at_once.digest)


MACHINE = """
import os, sys
from pathlib import Path
from accelerate import PartialState
from sidr_core.pipeline.stage import Progress
from sidr_core.training import resume
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
folder.mkdir(exist_ok=True)
PartialState(cpu=True)
PartialState._shared_state["local_process_index"] = 0  # each is the first process of its machine
point = folder / "checkpoint-3"
if sys.argv[2] == "save":
    point.mkdir(exist_ok=True)
    (point / f"rng_state_{rank}.pth").write_text(f"random {rank}")
    if rank == 0:
        (point / "weights").write_bytes(os.urandom(3000))
        (folder / "best-3.safetensors").write_bytes(os.urandom(50))
    resume._gather_random_states(point)
    if rank == 0:
        resume.mark(point, [folder / "best-3.safetensors"])
resume._SENT_BYTES = 1000
found = resume.newest_point(folder, "f", Progress(lambda line: None))
assert found == str(point), found
"""


@pytest.mark.cluster("T4")
@pytest.mark.long
def test_a_point_of_two_machines_is_whole_on_both(tmp_path) -> None:
    """Each has a folder of its own. The second one's is lost afterwards, and the next run sends it the point again."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for how in ("save", "resume"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        machines = [
            subprocess.Popen(
                [sys.executable, "-c", MACHINE, str(folder), how],
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_PORT": port,
                     "MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            )
            for rank, folder in enumerate(folders)
        ]  # fmt: skip
        assert [machine.wait(120) for machine in machines] == [0, 0]
        files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
        del files[0][Path("owner.json")]
        assert files[0] == files[1] and files[0][Path("checkpoint-3/rng_state_1.pth")] == b"random 1"
        shutil.rmtree(folders[1])


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (Sft, {"parameters": "lora"}, "needs parameters: all"),
        (Grpo, {"parameters": "lora", "preflight": 0}, "needs parameters: all"),
        (Grpo, {}, "preflight: 0"),
    ],
)
def test_what_cannot_be_sharded_is_refused(section, fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        section(sharding="full", **fields)


def test_a_training_that_was_to_share_and_does_not_is_refused() -> None:
    """As accelerate would do it on a CPU, without a word."""
    whole = torch.nn.Linear(2, 2)
    sharding.refuse_unsharded(SimpleNamespace(fsdp=False), whole)
    with pytest.raises(SidrError, match="were to be sharded and were not"):
        sharding.refuse_unsharded(SimpleNamespace(fsdp=True), whole)


def test_one_process_cannot_share(store) -> None:
    with pytest.raises(SidrError, match="cannot be sharded"):
        run_stage(profile(sft=FULL | {"seed": 1}), "toys", SNAPSHOT, stage_named("sft_checkpoint"), store, QUIET)


def test_profiles_without_sharding_keep_their_fingerprints() -> None:
    assert "sharding" not in Sft().model_dump(mode="json") and "sharding" not in Grpo().model_dump(mode="json")
    assert Sft(sharding="full").model_dump(mode="json")["sharding"] == "full"
