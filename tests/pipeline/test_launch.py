"""Processes of their own for a stage: same outputs, one store owner, no orphan, errors told once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
from safetensors.torch import load_file

from builders import small_world
from builders.small_world import SNAPSHOT
from builders.stage import QUIET
from sidr_core.errors import InputError, ProfileError
from sidr_core.pipeline import launch
from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.profile import Profile, parse_profile
from sidr_core.pipeline.run import plan, reuse_stage, run_stage
from sidr_core.pipeline.store import Store, fingerprint
from sidr_core.settings import Launch

#: Most that weights and losses may differ between one process and two, in fp32: sums of another order.
TOLERANCE = 2e-6
TINY = {"kind": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
#: Two whole batches and a part per epoch.
SFT = {"epochs": 2, "batch_size": 32, "micro_batch": 16, "warmup_steps": 2, "select_rows": 6, "learning_rate": 1e-3}


def profile(sft: dict | None = None, **launched) -> Profile:
    """The small world's, with a tiny model and a launch section."""
    fields = dict(small_world.profile().raw["datasets"]["toys"])
    fields |= {"base_model": TINY | {"vocab_size": 600}, "sft": SFT | (sft or {}), "launch": launched}
    return parse_profile("test", {"datasets": {"toys": fields}})


@pytest.fixture(scope="module")
def corpus_home(small_world_home, tmp_path_factory) -> Path:
    """The small world with a real corpus."""
    home = tmp_path_factory.mktemp("launch") / "home"
    shutil.copytree(small_world_home, home)
    drop(home, "synthetic_corpus")
    run_stage(profile(), "toys", SNAPSHOT, stage_named("synthetic_corpus"), Store(home / "store"), QUIET)
    return home


@pytest.fixture
def home(corpus_home, tmp_path, monkeypatch) -> Path:
    shutil.copytree(corpus_home, tmp_path / "home")
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SIDR_PROFILE", "of another process")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "home"


def start(home: Path, profile: Profile, stage: str, parent: int | None = None) -> tuple[list[str], Path]:
    """The command for a stage as a child of this process, or of another."""
    folder = home.parent / f"spec-{len(list(home.parent.glob('spec-*')))}"
    folder.mkdir()
    spec = launch.write_spec(folder, profile, "toys", SNAPSHOT, stage, home)
    if parent is not None:
        spec.write_text(json.dumps(json.loads(spec.read_text()) | {"launcher": parent}))
    settings = profile.dataset("toys").launch
    return launch.command(settings, settings.of(stage), spec), folder / launch.FAILURE


def drop(home: Path, *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(home / "store" / stage, ignore_errors=True)


# -- settings --------------------------------------------------------------------------------


def test_only_named_stages_leave_the_process() -> None:
    assert Launch().of("sft_checkpoint") == "process"
    settings = Launch(kind="subprocess", stages=("raw_items",))
    assert (settings.of("raw_items"), settings.of("sft_checkpoint")) == ("subprocess", "process")


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"stages": ["sft_chekpoint"]}, "did you mean 'sft_checkpoint'"),
        ({"kind": "accelerate", "stages": ["interactions"]}, "cannot be spread"),
        ({"kind": "torchrun"}, "'accelerate'"),
        ({"processes": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(fields: dict, hint: str) -> None:
    with pytest.raises(ProfileError, match=hint):
        profile(**fields)


def test_no_stage_reads_where_it_runs(home) -> None:
    """So the launcher is part of no fingerprint, and what one made another reuses."""
    assert all("launch" not in stage.sections for stage in STAGES)
    stage, store = stage_named("sft_checkpoint"), Store(home / "store")
    keys = {
        fingerprint(stage.name, stage.code_version, plan(profile(**launched), "toys", SNAPSHOT, stage, store).key)
        for launched in ({}, {"kind": "subprocess"}, {"kind": "accelerate", "processes": 7})
    }
    assert len(keys) == 1


# -- failures --------------------------------------------------------------------------------


def test_a_mistake_comes_back_whole(tmp_path) -> None:
    error = InputError("no file", expected="a file", found="none", fix="make one")
    launch.Failure.of(error).write(tmp_path / "failure.json")
    read = launch.Failure.read(tmp_path / "failure.json")
    assert read is not None
    user_error = read.as_user_error()
    assert type(user_error) is InputError
    assert str(user_error) == str(error)


def test_the_first_failure_stays(tmp_path) -> None:
    for text in ("cause", "what follows"):
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            launch.Failure.of(error).write(tmp_path / "failure.json")
    read = launch.Failure.read(tmp_path / "failure.json")
    assert read is not None
    assert (read.kind, read.message, read.as_user_error()) == ("RuntimeError", "cause", None)
    assert "raise RuntimeError(text)" in read.stack[-1]
    assert launch.Failure.read(tmp_path / "none.json") is None


# -- one child -------------------------------------------------------------------------------


def test_a_child_gives_the_same_output_with_the_parents_profile(home) -> None:
    here = Store(home / "store").require("toys", SNAPSHOT, "baseline_popularity")
    drop(home, "baseline_popularity")
    there = profile(kind="subprocess", stages=["baseline_popularity"])
    stage = stage_named("baseline_popularity")
    assert reuse_stage(there, "toys", SNAPSHOT, stage, Store(home / "store")) is None
    command, failure = start(home, there, stage.name)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not failure.exists()
    reused = reuse_stage(profile(), "toys", SNAPSHOT, stage, Store(home / "store"))
    assert reused is not None
    assert (reused.artifact.fingerprint, reused.artifact.digest) == (here.fingerprint, here.digest)
    assert json.loads(done.stdout)["folder"] == str(reused.artifact.folder)


def test_a_child_says_once_why_it_failed(home) -> None:
    (home / "store" / "refs" / "toys" / SNAPSHOT / "interactions.json").unlink()
    command, failure = start(home, profile(kind="subprocess", stages=["baseline_popularity"]), "baseline_popularity")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("has no published output") == 1
    read = launch.Failure.read(failure)
    assert read is not None
    assert read.kind == "NotMaterialized"


# -- the end ---------------------------------------------------------------------------------

#: A launcher that starts a child which watches it and is stuck in a call that never returns.
LAUNCHER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
print(child.pid, flush=True)
time.sleep(600)
"""
STUCK = """
import hashlib, sys
from sidr_core.pipeline import launch
launch.leave_with(int(sys.argv[1]))
print("watching", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # over ten minutes
"""


def gone(pids: list[int], seconds: float) -> bool:
    """Whether all processes end within a time; zombies have ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_running(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("how", ["launcher killed", "child interrupted", "child terminated"])
def test_a_stuck_child_does_not_live_on(how: str) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, STUCK], stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline())
        assert launcher.stdout.readline() == "watching\n"
        assert not gone([child], 0.5)
        number = {"launcher killed": signal.SIGKILL, "child interrupted": signal.SIGINT}.get(how, signal.SIGTERM)
        os.kill(launcher.pid if how == "launcher killed" else child, number)
        assert gone([child], 8)
    finally:
        launcher.kill()
        launcher.wait()


# -- several processes -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def gloo() -> None:
    """Skips where processes cannot meet on loopback."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            socket.gethostbyname(socket.gethostname())
    except OSError as error:
        pytest.skip(f"gloo cannot bind here: {error}")


@pytest.mark.slow
def test_two_processes_train_as_one_does(home, gloo) -> None:
    """2 processes with micro batches of 16 make the same steps as 1 process with 32: loss path and weights.

    What the first of the two published is then reused by a single process, and the other wrote nothing.
    """
    stage, store = stage_named("sft_checkpoint"), Store(home / "store")
    drop(home, stage.name)
    one = run_stage(profile({"micro_batch": 32}), "toys", SNAPSHOT, stage, store, QUIET).artifact
    two = profile(kind="accelerate", processes=2)
    command, failure = start(home, two, stage.name)
    subprocess.run(command, check=True)
    assert not failure.exists()
    made = reuse_stage(profile(), "toys", SNAPSHOT, stage, store)
    assert made is not None
    folders = [path.name for path in (home / "store" / stage.name).iterdir() if path.is_dir()]
    assert sorted(folders) == sorted([one.fingerprint, made.artifact.fingerprint])
    logs = [pl.read_parquet(artifact.path("training_log.parquet")) for artifact in (one, made.artifact)]
    assert logs[0]["step"].max() >= 4
    assert logs[0].columns == logs[1].columns
    for name in logs[0].columns:
        for a, b in zip(logs[0][name].to_list(), logs[1][name].to_list(), strict=True):
            # The trainer's own evaluation fills the last batch of each process with rows that it repeats.
            allowed = 1e-3 if name == "eval_loss" else TOLERANCE
            assert a == b if a is None or b is None else abs(a - b) <= allowed * max(1, abs(a)), name
    weights = [load_file(artifact.path("model.safetensors")) for artifact in (one, made.artifact)]
    assert weights[0].keys() == weights[1].keys()
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) <= TOLERANCE
