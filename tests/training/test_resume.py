"""A training that is killed and started again takes the very path of one that was not."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
import yaml

from sidr_core.errors import StoreError
from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Store
from sidr_core.training import cards
from sidr_core.training.resume import BestCheckpoint, LengthGrouped, mark, newest_point

QUIET = Progress(lambda line: None)
BELOW = ("sft_checkpoint", "activation_checkpoint", "grpo_checkpoint")


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder with the tiny profile's outputs down to the GRPO checkpoint."""
    folder = tmp_path_factory.mktemp("resume") / "home"
    store = Store(folder / "store")
    for stage in STAGES[: [s.name for s in STAGES].index("grpo_checkpoint") + 1]:
        if stage.name.startswith("baseline_"):
            continue  # no training reads one
        run_stage(_profile(), "games", "2018-09", stage, store, QUIET)
    return folder


def _profile():
    """The tiny profile, with points close to each other."""
    games = yaml.safe_load(Path("tests/profiles/tiny.yaml").read_text())["datasets"]["games"]
    games["sft"] |= {"epochs": 2, "save_every": 10, "dropout": 0.1}
    games["activation"] |= {"save_every": 4}
    games["grpo"] |= {"steps": 4, "save_every": 1, "rollouts": "constrained", "reward": "rank", "preflight": 0}
    games["base_model"] |= {"dropout": 0.1}
    return parse_profile("tiny", {"datasets": {"games": games}})


@pytest.fixture
def copy(home, tmp_path):
    """A copy in which no training was ever run."""
    shutil.copytree(home, tmp_path / "home")
    for name in BELOW:
        shutil.rmtree(tmp_path / "home" / "store" / name)
    return Store(tmp_path / "home" / "store")


def _run(store, stage):
    return run_stage(_profile(), "games", "2018-09", stage_named(stage), store, QUIET).artifact


def _kill_after(monkeypatch, step):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(cards.ProgressCallback, "on_step_end", on_step_end, raising=False)


def _undisturbed(home, stage):
    return Store(home / "store").current("games", "2018-09", stage)


def _needed(store, home, stage):
    """Take the checkpoints above a stage over from the undisturbed run."""
    for name in BELOW[: BELOW.index(stage)]:
        shutil.copytree(home / "store" / name, store.root / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "steps"),
    [("sft_checkpoint", (3, 27, 44, 71)), ("activation_checkpoint", (2, 7)), ("grpo_checkpoint", (1, 2, 3))],
)
def test_resumed_training_is_the_undisturbed_one(home, copy, monkeypatch, stage, steps):
    whole = _undisturbed(home, stage)
    expected = pl.read_parquet(whole.path("training_log.parquet"))
    assert expected["step"].max() > max(steps)
    _needed(copy, home, stage)
    for step in steps:
        with monkeypatch.context() as patch:
            _kill_after(patch, step)
            with pytest.raises(Killed):
                _run(copy, stage)
    resumed = _run(copy, stage)
    log = pl.read_parquet(resumed.path("training_log.parquet"))
    assert log["step"].to_list() == expected["step"].to_list()
    for name in expected.columns:
        for found, wanted in zip(log[name].to_list(), expected[name].to_list(), strict=True):
            assert (found is None) == (wanted is None), name
            assert found is None or abs(found - wanted) <= 1e-6, name
    assert resumed.digest == whole.digest
    assert not list((copy.root / stage).glob(".resume-*")), "the resume points go with the publication"


def test_a_point_without_its_mark_does_not_count(tmp_path):
    folder = tmp_path / "points"
    assert newest_point(folder, "me", QUIET) is None
    for step, marked in ((5, True), (20, True), (30, False)):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        if marked:
            mark(folder / f"checkpoint-{step}")
    assert newest_point(folder, "me", QUIET) == str(folder / "checkpoint-20")
    assert not (folder / "checkpoint-30").exists()


def test_points_of_another_training_are_refused(tmp_path):
    newest_point(tmp_path, "fingerprint-a", QUIET)
    with pytest.raises(StoreError, match="another training"):
        newest_point(tmp_path, "fingerprint-b", QUIET)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = torch.randint(1, 60, (1001,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthGrouped(lengths, 8, seed=3)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    assert sorted(first) == [*range(1001), *[1001] * 7], "each once; the last batch is filled up with the filler"
    assert first[-7:] == [1001] * 7
    assert len(sampler) == 1008
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthGrouped(lengths, 8, seed=4)) != first


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_out_the_micro_batches_of_a_step(processes):
    """Accelerate's own division: whatever the number of processes, a step holds the same examples."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = LengthGrouped([1] * 21, 8, seed=0)
    shares = [list(BatchSamplerShard(BatchSampler(sampler, 2, False), processes, rank)) for rank in range(processes)]
    order = list(sampler)
    for step in range(3):
        each = 4 // processes
        held = sorted(i for share in shares for batch in share[step * each : (step + 1) * each] for i in batch)
        assert held == sorted(order[step * 8 : step * 8 + 8])


def test_batches_hold_examples_of_like_length():
    lengths = torch.randint(1, 100, (4000,), generator=torch.Generator().manual_seed(1)).tolist()
    order = list(LengthGrouped(lengths, 16, seed=0))

    def padded(order):
        return sum(16 * max(lengths[i] for i in order[n : n + 16]) for n in range(0, len(order), 16))

    assert padded(order) < 1.05 * sum(lengths) < 0.7 * padded(range(4000))


@pytest.mark.parametrize(("at_epochs", "kept"), [(True, 5), (False, 0)])
def test_the_start_may_be_kept_by_rl_and_never_by_fine_tuning(tmp_path, at_epochs, kept):
    """Measured before the first step at 0.9, then at 0.3 and 0.5 and 0.4: the start ranks best."""
    model = torch.nn.Linear(1, 1)
    values = iter([0.9, 0.3, 0.5, 0.4])
    log: list[dict[str, float]] = []

    class Trainer:
        state = SimpleNamespace(log_history=log, global_step=0, max_steps=7)
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

    Trainer.model = model
    keeper = BestCheckpoint(Trainer, lambda _: {"ndcg@10": next(values)}, tmp_path, QUIET, every=2, at_epochs=at_epochs)
    for step in (0, 3, 5, 7):
        Trainer.state.global_step = step
        model.weight.data.fill_(float(step))
        keeper._take(Trainer.state, SimpleNamespace())
    keeper.load()
    assert model.weight.item() == kept
