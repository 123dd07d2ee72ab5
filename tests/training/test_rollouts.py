"""Rollouts of a tiny untrained model: what is legal, what carries gradient, and when training is refused."""

import numpy as np
import pytest

from builders import small_world
from sidr_core.decoding.beam import constrained_beam
from sidr_core.models import checkpoint
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Grpo
from sidr_core.training import grpo
from sidr_core.training.grpo import Rollouts, preflight
from sidr_core.training.rollouts import Rollout, roll_out

QUIET = Progress(lambda line: None)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts") / "checkpoint"
    small_world.checkpoint_of(folder, "grpo", 3)
    return checkpoint.load(folder)


def _settings(**fields):
    return Grpo(**{"generations": 4, "max_thought_tokens": 8, "prompts_per_step": 4, "steps": 1, **fields})


def _rollouts(loaded, settings):
    return Rollouts(small_world.samples(1, 2), small_world.codebook(), loaded, settings)


USERS = ["History: <a_0><b_1>\nNext item?"] * 12


@pytest.mark.parametrize("mode", ["thinking", "direct"])
def test_constrained_rollouts_name_an_item_and_know_the_place(loaded, mode):
    settings = _settings(rollouts="constrained", mode=mode, max_thought_tokens=60, temperature=3.0)
    renderer, index = loaded.renderer, loaded.index
    written = roll_out(loaded.model, USERS, [3] * len(USERS), renderer, index, settings, seed=1)
    finished = [w for w in written if w.closed]
    assert finished
    prompt = renderer.prompt(USERS[0], mode)
    for w in finished:
        assert len(w.ids) == len(w.chosen)
        assert w.ids[-1] == renderer.eos_id and w.chosen[-1] == 0
        tail = w.ids[-1 - index.levels : -1]
        index.leaf(tail)  # raises where it is no SID
        head = w.ids[: -1 - index.levels]
        beams = constrained_beam(loaded.model, [prompt + head], index, beam_width=15, batch_size=1, pad_id=0)
        assert w.place == beams.leaf[0].tolist().index(3)
    if mode == "thinking":
        before = renderer.close_ids.index(renderer.think_close_id)  # the newline before the tag
        gap = len(renderer.close_ids) - before - 1
        newlines = set()
        for w in finished:
            tag = w.ids.index(renderer.think_close_id)
            assert w.chosen[tag:].count(0) == gap + 1, "the gap and the end of turn were not chosen"
            newlines |= set(w.chosen[tag - before : tag])
            assert all(w.chosen[: tag - before]) and w.chosen[tag]
        assert 0 in newlines, "a model without training closes its thoughts without a newline, which then is ours"
        assert all(w.place is None and all(w.chosen) for w in written if not w.closed)


def test_draws_follow_the_probabilities(loaded):
    settings = _settings(rollouts="constrained", mode="direct")
    users = USERS[:1] * 3000
    written = roll_out(loaded.model, users, [0] * len(users), loaded.renderer, loaded.index, settings, seed=5)
    prompt = loaded.renderer.prompt(USERS[0], "direct")
    beams = constrained_beam(loaded.model, [prompt], loaded.index, beam_width=15, batch_size=1, pad_id=0)
    share = (np.exp(beams.scores[0]) / np.exp(beams.scores[0]).sum()).tolist()
    drawn = np.array([loaded.index.leaf(w.ids[:2]) for w in written])
    for leaf, wanted in zip(beams.leaf[0], share, strict=True):
        assert (drawn == leaf).mean() == pytest.approx(wanted, abs=4 * (wanted / 3000) ** 0.5 + 1e-3)


@pytest.mark.parametrize("rollouts", ["free", "constrained"])
def test_the_same_seed_gives_the_same_rollouts(loaded, rollouts):
    settings = _settings(rollouts=rollouts)
    first, again, other = (
        roll_out(loaded.model, USERS, [0] * 12, loaded.renderer, loaded.index, settings, seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_each_row_is_scored_by_its_own_target(loaded, monkeypatch):
    """Rows 0 and 1 have the targets A01 = (0, 1) and A02 = (0, 2)."""
    renderer = loaded.renderer
    right = renderer.encode("x") + list(renderer.close_ids) + renderer.encode("<a_0><b_1>") + [renderer.eos_id]
    never = renderer.encode("x")
    texts = [right, right, never]
    written = [Rollout(ids, [1] * len(ids), None, ids is right, 1) for ids in texts]
    monkeypatch.setattr(grpo, "roll_out", lambda *_: written)
    rollouts = _rollouts(loaded, _settings(generations=3))
    rollouts.take(loaded.model, [0, 1, 0], 0)
    assert [scored.reward for scored in rollouts.scored] == pytest.approx([1.1, 0.6, 0.0])
    parts = rollouts.statistics()
    assert {
        name: parts[name] for name in ("parsed", "valid", "matched_1", "matched_2", "zero_variance")
    } == pytest.approx({"parsed": 2 / 3, "valid": 2 / 3, "matched_1": 2 / 3, "matched_2": 1 / 3, "zero_variance": 0.0})


def test_groups_without_variance_leave_the_loss(loaded):
    settings = _settings(rollouts="free", drop_zero_variance=True)
    rollouts = _rollouts(loaded, settings)

    class Trainer:
        model = loaded.model

        class accelerator:
            num_processes, process_index = 1, 0

            @staticmethod
            def unwrap_model(model):
                return model

        class state:
            global_step = 0

    fields = rollouts(["0"] * 4 + ["1"] * 4, Trainer)
    assert all(rollouts.same), "an untrained model earns nothing anywhere"
    assert all(all(mask) for mask in fields["env_mask"]), "a batch without any variance is left whole"
    rollouts.take = lambda *_: None
    rollouts.same = [True, False]
    fields = rollouts(["0"] * 4 + ["1"] * 4, Trainer)
    assert not any(map(any, fields["env_mask"][:4])) and all(map(all, fields["env_mask"][4:]))


@pytest.mark.parametrize(("fields", "what"), [({}, "learn next to nothing"), ({"preflight_same": 1.0}, "cut off")])
def test_a_start_that_teaches_nothing_is_told(loaded, fields, what):
    settings = _settings(rollouts="free", preflight=4, **fields)
    trial = preflight(loaded.model, _rollouts(loaded, settings), settings, QUIET)
    assert trial is not None and what in trial.what
    settings = _settings(rollouts="free", preflight=4, preflight_same=1.0, preflight_cut=1.0)
    assert preflight(loaded.model, _rollouts(loaded, settings), settings, QUIET) is None


def test_rank_reward_needs_a_beam_after_a_thought():
    with pytest.raises(ValueError, match="rank needs"):
        Grpo(reward="rank")
    assert Grpo(reward="rank", rollouts="constrained").mode == "thinking"


@pytest.mark.parametrize("fields", [{"rollouts": "free"}, {"rollouts": "constrained", "max_thought_tokens": 40}])
def test_processes_write_together_what_one_writes_alone(loaded, fields):
    settings = _settings(temperature=2.0, **fields)
    renderer, index = loaded.renderer, loaded.index
    alone = roll_out(loaded.model, USERS, [3] * 12, renderer, index, settings, 1)
    halves = [roll_out(loaded.model, USERS[:6], [3] * 6, renderer, index, settings, 1, (n, 2)) for n in (0, 1)]
    assert [w.ids for half in halves for w in half] == [w.ids for w in alone]
    assert halves[0] != halves[1]
