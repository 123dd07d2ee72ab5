"""GRPO's update: the same loss and gradients as TRL's own path; what is logged; what its settings switch off."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from datasets import Dataset
from trl.trainer.grpo_trainer import GRPOTrainer

from builders import small_world
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.relations import learn_relations
from sidr_core.decoding.thinking import Thought
from sidr_core.errors import SidrError
from sidr_core.models import checkpoint, parameters
from sidr_core.models.base import build_base
from sidr_core.models.quiet import quiet
from sidr_core.models.vocabulary import own_token_ids
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Grpo, TinyModel
from sidr_core.training import grpo
from sidr_core.training.cards import valid_figures
from sidr_core.training.grouped import GroupedTrainer, micro_batches, score
from sidr_core.training.rewards import Scored
from sidr_core.training.rollouts import Rollout

G = 3


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo") / "checkpoint"
    tiny = TinyModel(
        kind="tiny", hidden_size=16, layers=2, heads=2, kv_heads=1, intermediate_size=32, vocab_size=300, seed=1
    )
    model, tokenizer = build_base(tiny, ["History of toys"], small_world.codebook())
    meta = {"stage": "activation", "base": "tiny", "seed": 1, "seen_until": "2020-01-28", "synthetic": True}
    checkpoint.save(folder, model, tokenizer, small_world.codebook(), meta, "# card")
    return checkpoint.load(folder)


def _settings(**fields):
    base = {"generations": G, "prompts_per_step": 4, "micro_batch": 12, "steps": 1, "max_thought_tokens": 8}
    return Grpo(**{**base, **fields})


def _trainer(kind, loaded, folder, **fields):
    with quiet():
        return kind(
            model=copy.deepcopy(loaded.model),
            reward_funcs=[grpo.earned],
            args=grpo.arguments(_settings(tracking="none", **fields), str(folder), 20),
            train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(4)]}),
            processing_class=loaded.tokenizer,
            rollout_func=lambda *_: {},
        )


def _batch(vocabulary, seed=0):
    """Four groups of G: prompts padded left, completions right, some tokens not chosen, one group without loss."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randint(5, vocabulary, shape, generator=random)

    rows, width, room = 4 * G, 9, 7
    prompt_lengths = torch.tensor([4, 9, 6, 2]).repeat_interleave(G)
    lengths = torch.randint(1, room + 1, (rows,), generator=random)
    lengths[0] = room
    batch = {
        "prompt_ids": draw(4, width).repeat_interleave(G, dim=0),
        "prompt_mask": (torch.arange(width) >= width - prompt_lengths[:, None]).long(),
        "completion_ids": draw(rows, room),
        "completion_mask": (torch.arange(room) < lengths[:, None]).long(),
        "advantages": torch.randn(rows, generator=random),
        "ref_per_token_logps": -3 + 0.1 * torch.randn(rows, room, generator=random),
        "tool_mask": (torch.rand(rows, room, generator=random) < 0.8).long(),
    }
    batch["prompt_ids"] *= batch["prompt_mask"]
    batch["completion_ids"] *= batch["completion_mask"]
    batch["tool_mask"][G : 2 * G] = 0
    batch["num_items_in_batch"] = (batch["completion_mask"] * batch["tool_mask"]).sum()
    return batch


def _gradients(trainer, batches):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = len(batches)
    loss = 0.0
    for batch in batches:
        part = trainer._compute_loss(trainer.model, batch)
        part.backward()
        loss += float(part)
    return loss, {name: weight.grad for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize(("beta", "parts"), [(0.1, 1), (0.0, 4), (0.1, 2)])
def test_loss_and_gradients_are_those_of_trl(loaded, tmp_path, beta, parts):
    batch = _batch(loaded.model.config.vocab_size)
    plain = _trainer(GRPOTrainer, loaded, tmp_path, beta=beta, temperature=0.7)
    ours = _trainer(GroupedTrainer, loaded, tmp_path, beta=beta, temperature=0.7)
    expected, wanted = _gradients(plain, [batch])
    loss, found = _gradients(ours, micro_batches(batch, G, parts))
    assert abs(expected) > 1e-3
    assert loss == pytest.approx(expected, abs=1e-5)
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_scores_are_those_of_trl(loaded, tmp_path):
    batch = _batch(loaded.model.config.vocab_size, seed=1)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    scores = []
    for kind in (GRPOTrainer, GroupedTrainer):
        trainer = _trainer(kind, loaded, tmp_path)
        with torch.no_grad():
            scores.append(
                trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 7, 5, compute_entropy=True)
            )
    for wanted, found in zip(scores[0][:2], scores[1][:2], strict=True):
        assert found.shape == (4 * G, 7)
        kept = batch["completion_mask"].bool()
        torch.testing.assert_close(found[kept], wanted[kept], atol=1e-5, rtol=0)
        assert not found[~kept].any()


def test_micro_batches_hold_whole_groups_the_longest_first_and_those_without_loss_last():
    batch = _batch(50)
    batch["completion_mask"][:, :] = 0
    for row, length in zip(range(0, 4 * G, G), (2, 7, 3, 5), strict=True):
        batch["completion_mask"][row, :length] = 1
    batch["tool_mask"][:] = 1
    batch["tool_mask"][G : 2 * G] = 0
    batch["row"] = torch.arange(4 * G)
    parts = micro_batches(batch, G, 2)
    assert torch.cat([part["row"] for part in parts]).view(4, G)[:, 0].tolist() == [9, 6, 0, 3]
    assert [len(part["advantages"]) for part in parts] == [6, 6]
    assert all(part["num_items_in_batch"] == batch["num_items_in_batch"] for part in parts)


def test_a_micro_batch_without_loss_is_not_computed(loaded, tmp_path, monkeypatch):
    batch = _batch(loaded.model.config.vocab_size)
    batch["tool_mask"][:] = 0
    trainer = _trainer(GroupedTrainer, loaded, tmp_path)
    monkeypatch.setattr(trainer.model, "forward", None)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert float(loss) == 0 and not any(w.grad.any() for w in trainer.model.parameters() if w.grad is not None)


@pytest.mark.parametrize("beta", [0.0, 0.001])
def test_a_reference_model_is_in_memory_only_for_the_kl(loaded, tmp_path, beta):
    assert (_trainer(GroupedTrainer, loaded, tmp_path, beta=beta).ref_model is None) == (beta == 0)


def _copied(loaded):
    return replace(loaded, model=copy.deepcopy(loaded.model))


def _trained(loaded, folder, **fields):
    """Three steps, measured before the first, after the second and at the end; the model and the log."""
    settings = _settings(tracking="none", steps=3, select_every=2, learning_rate=0.01, preflight=0, **fields)
    mine = _copied(loaded)
    model = parameters.prepare(mine.model, settings, own_token_ids(mine.tokenizer))
    config = small_world.profile().datasets["toys"].model_copy(update={"grpo": settings})
    rollouts = grpo.Rollouts(small_world.samples(1, 2), small_world.codebook(), mine, settings)
    measure = grpo._measure(grpo._selectors(small_world.samples(3, 1), small_world.codebook(), mine, config))
    log = grpo._train(model, mine, rollouts, settings, measure, Progress(lambda line: None), folder, None)
    return model, log


def test_the_log_holds_what_a_step_was_like_and_both_modes_at_each_measurement(loaded, tmp_path):
    _, log = _trained(loaded, tmp_path, rollouts="constrained", mode="direct", drop_zero_variance=True)
    steps = log.filter(pl.col("step") > 0)
    kept = ["reward", "parsed", "valid", "matched_1", "matched_2", "zero_variance", "zero_variance_trained", "in_beam"]
    kept += ["kl", "entropy", "thought_tokens", "thought_tokens_p95", "close_rate"]
    assert steps["step"].to_list() == [1, 2, 3]
    assert sum(steps.select(kept).null_count().row(0)) == 0
    assert (steps["zero_variance_trained"] <= steps["zero_variance"]).all()
    assert (steps["matched_1"] >= steps["matched_2"]).all() and steps["parsed"].to_list() == [1.0] * 3
    assert (steps["entropy"] > 1).all(), "an untrained model is undecided among hundreds of tokens"
    measured = log.drop_nulls("eval_ndcg@10")
    assert measured["step"].to_list() == [0, 2, 3]
    for name in ("ndcg@10", "hr@10"):
        assert measured[f"eval_{name}"].is_between(0, 1).all()
        assert measured[f"eval_thinking_{name}"].is_between(0, 1).all()


def test_shares_of_groups_before_and_after_filtering(loaded):
    settings = _settings(drop_zero_variance=True)
    rollouts = grpo.Rollouts(small_world.samples(1, 2), small_world.codebook(), loaded, settings)
    rollouts.rollouts = [Rollout([5] * n, [1] * n, None, True, n) for n in (1, 2, 3, 4, 5, 6)]
    rollouts.scored = [Scored(0.0, 0, False, False)] * 6
    rollouts.same = [True, False]
    parts = rollouts.statistics()
    assert (parts["zero_variance"], parts["zero_variance_trained"]) == (0.5, 0.0)
    assert parts["thought_tokens"] == 3.5 and parts["thought_tokens_p95"] == pytest.approx(5.75)
    doubled = rollouts.statistics(lambda rows: [*rows, False] if rows and isinstance(rows[0], bool) else rows)
    assert doubled["zero_variance"] == pytest.approx(1 / 3), "counted over all processes"
    rollouts.same = [True, True]
    assert rollouts.statistics()["zero_variance_trained"] == 1.0, "where all groups are alike none is left out"


@pytest.mark.parametrize("which", ["lora", "new_rows"])
def test_cheaper_parameters_train_and_are_scored_as_they_will_be_served(loaded, tmp_path, which):
    model, log = _trained(loaded, tmp_path, parameters=which, rollouts="constrained", mode="direct", beta=0.1)
    assert log["kl"].drop_nulls()[0] == pytest.approx(0, abs=1e-6) and log["kl"].drop_nulls()[-1] > 1e-6
    batch = _batch(loaded.model.config.vocab_size)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        scored = score(model.eval(), ids, mask, 7).log_probs
        logits = parameters.finish(model)(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(dim=2)
    expected = logits.gather(2, ids[:, 1:, None]).squeeze(2)[:, -7:]
    kept = batch["completion_mask"].bool()
    torch.testing.assert_close(scored[kept], expected[kept], atol=1e-4, rtol=0)


def test_vllm_is_refused_where_it_cannot_work(monkeypatch):
    with pytest.raises(ValueError, match="constrained needs the own decoder"):
        Grpo(vllm={"mode": "colocate"}, rollouts="constrained")
    monkeypatch.setattr(grpo, "find_spec", lambda name: None)
    with pytest.raises(SidrError, match="vLLM cannot write the rollouts"):
        grpo._refuse_missing_engine(Grpo(vllm={"mode": "server"}))
    grpo._refuse_missing_engine(Grpo())


def test_vllm_is_told_to_trl(tmp_path):
    server = _settings(tracking="none", vllm={"mode": "server", "url": "http://gpu:1"})
    told = grpo.arguments(server, str(tmp_path), 20)
    assert (told.use_vllm, told.vllm_mode, told.vllm_server_base_url) == (True, "server", "http://gpu:1")
    told = grpo.arguments(_settings(tracking="none", vllm={"memory": 0.4}), str(tmp_path), 20)
    assert (told.use_vllm, told.vllm_mode, told.vllm_gpu_memory_utilization) == (True, "colocate", 0.4)
    assert not grpo.arguments(_settings(tracking="none"), str(tmp_path), 20).use_vllm


def test_what_vllm_writes_is_scored_by_its_row(loaded):
    """The engine's part is played here: it needs a GPU. What it is asked and answers follows TRL's signature."""
    renderer = loaded.renderer
    right = [*renderer.encode("x"), *renderer.close_ids, *renderer.encode("<a_0><b_1>"), renderer.eos_id]
    never = renderer.encode("x")
    asked = {}

    def generate(prompts, images, num_generations):
        asked.update(prompts=prompts, images=images, num_generations=num_generations)
        written = [right, never] * 2
        return prompts, written, [[[-0.5]] * len(ids) for ids in written], None

    settings = _settings(generations=2, vllm={})
    rollouts = grpo.Rollouts(small_world.samples(1, 2), small_world.codebook(), loaded, settings)
    found = rollouts(["0", "0", "1", "1"], SimpleNamespace(vllm_generation=SimpleNamespace(generate=generate)))
    assert asked["prompts"] == found["prompt_ids"] and asked["num_generations"] == 2
    assert found["earned"] == pytest.approx([1.1, 0.0, 0.6, 0.0]), "targets (0, 1) and (0, 2)"
    assert found["logprobs"] == [[-0.5] * len(ids) for ids in found["completion_ids"]]
    assert rollouts.statistics()["close_rate"] == 0.5


def test_prompts_of_a_step_are_shared_out_evenly(tmp_path, monkeypatch):
    settings = _settings(tracking="none", prompts_per_step=6, generations=4, micro_batch=10)
    alone = grpo.arguments(settings, str(tmp_path), 20)
    assert (alone.per_device_train_batch_size, alone.gradient_accumulation_steps) == (8, 3)
    monkeypatch.setattr(grpo, "PartialState", lambda: SimpleNamespace(num_processes=4))
    with pytest.raises(SidrError, match="multiple of the 4 processes"):
        grpo.arguments(settings, str(tmp_path), 20)


def _catalogue():
    book = small_world.codebook()
    titles = pl.DataFrame({"item_id": book["item_id"], "title": [f"Toy {item}" for item in book["item_id"]]})
    return Catalogue.read(titles.with_columns(brand=pl.lit(""), category=pl.lit(""), description=pl.lit("")), book)


def _thought(*items):
    """A thought that names these items; a made-up title under their SIDs where the id ends in `?`."""
    sids = dict(small_world.codebook().select("item_id", "sid").iter_rows())
    named = "; ".join(f"Toy {item} {sids[item.removesuffix('?')]}" for item in items)
    return f"Next: {named}."


def test_a_thought_is_read_for_the_place_of_its_target_and_its_truth(loaded):
    relations = learn_relations(_catalogue(), [])
    rows = small_world.samples(1, 1)
    rollouts = grpo.Rollouts(rows, small_world.codebook(), loaded, _settings(reward="named"), relations)
    target, other = rows["target_item_id"][0], rows["target_item_id"][1]
    assert rollouts._read(f"{_thought(other, target)}</think>\n\n<a_0><b_0>", 0) == (1, 1.0)
    assert rollouts._read(f"{_thought(other + '?', target)}</think>\n\n<a_0><b_0>", 0) == (0, 0.5)
    assert rollouts._read(f"{_thought(other)}</think>\n\n<a_0><b_0>", 0) == (None, 1.0)
    assert rollouts._read(_thought(target), 0) == (None, 0.0), "a thought that was not closed says nothing"


def test_with_reward_named_the_merged_lists_choose_the_checkpoint(loaded, monkeypatch):
    valid, book = small_world.samples(3, 1), small_world.codebook()
    config = small_world.profile().datasets["toys"].model_copy(update={"grpo": _settings(reward="named")})
    selectors = grpo._selectors(valid, book, loaded, config, learn_relations(_catalogue(), []))
    _, thinking, direct = selectors
    assert [selector.mode for selector in selectors] == ["merged", "thinking", "direct"]
    plain = grpo._measure(selectors)(loaded.model)
    assert plain["direct_ndcg@10"] == pytest.approx(direct(loaded.model)["ndcg@10"])
    assert plain["thinking_ndcg@10"] == pytest.approx(thinking(loaded.model)["ndcg@10"])
    encode = loaded.renderer.tokenizer.encode
    thoughts = [
        Thought(tuple(encode(_thought(item), add_special_tokens=False)), True)
        for item in thinking.samples["target_item_id"]
    ]
    beams, _ = thinking.decode(loaded.model)
    monkeypatch.setattr(thinking, "decode", lambda model: (beams, thoughts))
    told = grpo._measure(selectors)(loaded.model)
    assert told["hr@10"] == told["ndcg@10"] == 1 and told["direct_ndcg@10"] == plain["direct_ndcg@10"]
    assert valid_figures(selectors[:1], loaded.model, 1)[1].mode == "merged"
