"""Training: what an epoch holds, where the loss lies, what each option does, what log and card keep."""

import copy
import importlib.util
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from sidr_core.errors import InputError, SidrError
from sidr_core.models.base import build_base
from sidr_core.models.prompt import PromptRenderer
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Grpo, Sft, TinyModel
from sidr_core.tables.files import iso_date
from sidr_core.tables.samples import subset
from sidr_core.training import cards, sft, tracking
from sidr_core.training.cards import log_table, model_card, valid_figures
from sidr_core.training.examples import IGNORED, history_prompts, tokenise, weighted
from sidr_core.training.select import Selector
from sidr_core.training.sft import answer_loss

CODES = [[a, b] for a in range(3) for b in range(4)]
SIDS = [f"<a_{a}><b_{b}>" for a, b in CODES]
CODEBOOK = pl.DataFrame(
    {"item_id": [f"i{n:02d}" for n in range(12)], "sid": SIDS, "codes": CODES},
    schema_overrides={"codes": pl.List(pl.Int32)},
)


def corpus(n=10, task="sids_to_sid", kind="chat", thought=None):
    return pl.DataFrame(
        {
            "example_id": [f"{task}:{i}" for i in range(n)],
            "task": task,
            "kind": kind,
            "prompt": "" if kind == "text" else f"History: {SIDS[0]}\nNext item?",
            "thought": thought,
            "completion": "plain words" if kind == "text" else SIDS[1],
            "user_id": None,
        },
        schema_overrides={"thought": pl.String, "user_id": pl.String},
    )


@pytest.fixture(scope="module")
def world():
    texts = ["History: Next item? plain words so that"] * 20
    config = TinyModel(kind="tiny", hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=32, vocab_size=400)
    model, tokenizer = build_base(config, texts, CODEBOOK)
    return model, PromptRenderer(tokenizer)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 10), (0.3, 3), (2.0, 20), (1.5, 15), (0.0, 0)])
def test_weights_count_examples(weight, expected):
    rows = weighted(pl.concat([corpus(), corpus(4, "sid_to_title")]), {"sids_to_sid": weight}, seed=1)
    counts = dict(rows.group_by("task").len().iter_rows())
    assert counts.get("sids_to_sid", 0) == expected
    assert counts["sid_to_title"] == 4
    assert max(rows.group_by("example_id").len()["len"]) <= max(1, -(-expected // 10))


def test_weights_are_seeded():
    first, again, other = (weighted(corpus(100), {"sids_to_sid": 0.5}, seed=s) for s in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_loss_lies_on_the_answer_alone(world):
    _, renderer = world
    (direct,) = tokenise(corpus(1), renderer, 100)
    learned = [token for token in direct["labels"] if token != IGNORED]
    assert learned == renderer.completion(SIDS[1], None)
    assert learned[-1] == renderer.eos_id
    assert direct["input_ids"] == renderer.prompt(f"History: {SIDS[0]}\nNext item?", "direct") + learned


def test_a_thought_is_learned_with_its_closing_tag(world):
    _, renderer = world
    (example,) = tokenise(corpus(1, "reasoning", thought="so that"), renderer, 100)
    learned = [token for token in example["labels"] if token != IGNORED]
    assert learned == renderer.completion(SIDS[1], "so that")
    assert renderer.think_close_id in learned
    assert example["input_ids"][: -len(learned)] == renderer.prompt(f"History: {SIDS[0]}\nNext item?", "thinking")


def test_plain_text_is_learned_whole_and_cut_at_the_end(world):
    _, renderer = world
    (example,) = tokenise(corpus(1, "item_narrative", kind="text"), renderer, 3)
    assert example["input_ids"] == example["labels"] == renderer.text("plain words")[:3]


def test_a_chat_example_is_never_cut(world):
    _, renderer = world
    with pytest.raises(InputError, match="sids_to_sid:0 is too long"):
        tokenise(corpus(1), renderer, 5)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_loss_equals_the_loss_over_all_positions(world, first):
    model, _ = world
    torch.manual_seed(first)
    ids = torch.randint(0, 100, (3, 8))
    labels = ids.clone()
    labels[:, :first] = IGNORED
    labels[0, :6] = IGNORED
    mask = torch.ones_like(ids)
    mask[2, 6:] = 0
    labels[2, 6:] = IGNORED
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    assert answer_loss(model, inputs).item() == pytest.approx(expected.item(), abs=1e-5)
    n = int((labels[:, 1:] != IGNORED).sum())
    assert answer_loss(model, inputs, 2 * n).item() == pytest.approx(expected.item() / 2, abs=1e-5)


def test_selection_equals_a_hand_count(world):
    model, renderer = world
    samples = pl.DataFrame(
        {
            "row_id": ["u:1", "v:1"],
            "history_item_ids": [["i00"], ["i01", "i02"]],
            "target_item_id": ["i03", "i04"],
        }
    )
    found = Selector(samples, CODEBOOK, renderer, rows=10, mode="direct")(model)
    import math

    from sidr_core.decoding.beam import constrained_beam
    from sidr_core.sids.index import SidIndex

    index = SidIndex.build(CODEBOOK, renderer.tokenizer.get_vocab().__getitem__)
    prompts = [renderer.prompt(user, "direct") for user in history_prompts(samples, CODEBOOK)]
    beams = constrained_beam(model, prompts, index, beam_width=10, batch_size=2, pad_id=renderer.pad_id)
    gains = []
    for leaves, target in zip(beams.leaf, (SIDS[3], SIDS[4]), strict=True):
        ranks = [rank for rank, leaf in enumerate(leaves, 1) if index.sids[leaf] == target]
        gains.append(1 / math.log2(ranks[0] + 1) if ranks else 0.0)
    assert found["ndcg@10"] == pytest.approx(sum(gains) / 2)
    thinking = Selector(samples, CODEBOOK, renderer, rows=10, mode="thinking", max_thought_tokens=4)(model)
    assert set(thinking) == {"ndcg@10", "hr@10", "close_rate", "thought_tokens"}


def test_thoughts_join_where_training_put_them(world):
    from sidr_core.decoding.decoder import Decoder
    from sidr_core.decoding.thinking import Thought
    from sidr_core.sids.index import SidIndex

    model, renderer = world
    index = SidIndex.build(CODEBOOK, renderer.tokenizer.get_vocab().__getitem__)
    prompt = renderer.prompt("x", "thinking")
    thought = renderer.encode("so that")
    decoder = Decoder(model, renderer, index, beam_width=1, batch_size=1)
    ((joined,),) = decoder.prompts_after(["x"], [[Thought(tuple(thought), True)]])
    assert joined + renderer.completion(SIDS[1], None) == prompt + renderer.completion(SIDS[1], "so that")


def test_subset_is_seeded_and_ordered():
    frame = pl.DataFrame({"n": range(100)})
    picked = subset(frame, 10, 3)["n"].to_list()
    assert picked == sorted(picked)
    assert picked == subset(frame, 10, 3)["n"].to_list()
    assert subset(frame, 500, 3).equals(frame)


def test_log_table_joins_records_of_a_step_and_drops_the_clock():
    log = log_table(
        [
            {"step": 2, "loss": 1.0, "train_runtime": 9.0, "eval_model_preparation_time": 1.0},
            {"step": 1, "loss": 2.0},
            {"step": 2, "kl": 3},
        ]
    )
    assert log.to_dicts() == [{"step": 1, "kl": None, "loss": 2.0}, {"step": 2, "kl": 3.0, "loss": 1.0}]


def test_card_says_synthetic_and_dates():
    meta = {"stage": "grpo", "synthetic": True, "seen_until": iso_date(1541030399), "base": {}, "seed": 1, "recipe": {}}
    card = model_card(meta, pl.DataFrame({"step": [1], "loss": [0.5]}))
    assert "synthetic sample data" in card
    assert "2018-10-31" in card
    assert "Metrics on valid rows" not in card
    assert iso_date(None) == "unknown"


def test_card_has_metrics_with_intervals_over_users():
    """Four users who are met, once each but one: 0.5 of the rows are hits."""

    class Fixed:
        mode = "thinking"
        samples = pl.DataFrame({"user_id": ["u", "v", "w", "x", "x"]})

        def rows(self, model):
            return np.array([[1.0, 0.5], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]), {}

    hr, ndcg = valid_figures([Fixed()], torch.nn.Identity(), seed=3)
    assert (hr.metric, hr.value, hr.rows, hr.users) == ("hr@10", 0.5, 5, 4)
    assert (ndcg.metric, ndcg.value) == ("ndcg@10", pytest.approx(0.3))
    assert hr.low < hr.value < hr.high
    assert str(cards.Figure("direct", "hr@10", 0.5, 0.25, 0.75, 5, 4)) == "0.5000 [0.2500, 0.7500]"
    meta = {"stage": "x", "synthetic": False, "seen_until": "", "base": {}, "seed": 1, "recipe": {}}
    card = model_card(meta, pl.DataFrame({"step": [1]}), [hr, ndcg])
    assert f"| thinking | {hr} | {ndcg} |" in card
    assert "5 rows of 4 users" in card
    Fixed.samples = pl.DataFrame({"user_id": ["u"] * 5})
    assert valid_figures([Fixed()], torch.nn.Identity(), seed=3)[0].low is None


@pytest.fixture
def fit(world, tmp_path, monkeypatch):
    """Train a copy of the small model on twelve examples; gives the trainer and what came of the training."""
    model, renderer = world
    real, seen = sft.train, []
    monkeypatch.setattr(sft, "train", lambda trainer, *a, **k: seen.append(trainer) or real(trainer, *a, **k))

    def run(resume=None, watch=None, **changed):
        usual = {"epochs": 1, "batch_size": 4, "micro_batch": 4, "select_rows": 0, "warmup_steps": 0}
        settings = Sft(**(usual | {"learning_rate": 1e-2, "tracking": "none"} | changed))
        net = copy.deepcopy(model)
        if watch is not None:
            net.model.layers[0].mlp.register_forward_pre_hook(lambda *_: watch.append(1))
        quiet = Progress(lambda line: None)
        inputs = SimpleNamespace(resume=resume)
        trained = sft._train(inputs, net, renderer, corpus(12), settings, [], quiet, tmp_path / "out")
        return seen[-1], trained

    return run


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", "AdamW"), ("adafactor", "Adafactor"), ("sgd", "SGD"), ("rmsprop", "RMSprop"), ("adagrad", "Adagrad")],
)
def test_each_optimizer_is_the_one_that_trains(fit, name, kind):
    trainer, trained = fit(optimizer=name)
    assert type(trainer.optimizer.optimizer).__name__ == kind
    assert trainer.state.global_step == 3
    assert trained.log["grad_norm"].drop_nulls()[0] > 0


def test_gradient_checkpointing_computes_a_layer_twice(fit):
    once, twice = [], []
    _, plain = fit(watch=once)
    _, saved = fit(watch=twice, gradient_checkpointing=True)
    assert (len(once), len(twice)) == (3, 6)
    assert saved.log["loss"].to_list() == pytest.approx(plain.log["loss"].to_list(), abs=1e-6)


def test_bf16_rounds(fit):
    _, full = fit()
    trainer, rounded = fit(bf16=True)
    gap = abs(full.log["loss"][-1] - rounded.log["loss"][-1])
    assert 1e-5 < gap < 0.1
    assert trainer.model.dtype == torch.float32, "the weights stay whole"


def test_compile_compiles(fit, monkeypatch):
    """With a backend that runs the captured graphs as they are, which no compiler is needed for."""
    import torch._dynamo

    real = sft._arguments

    def arguments(*args):
        made = real(*args)
        assert made.torch_compile and made.torch_compile_backend == "inductor"
        made.torch_compile_backend = "eager"
        return made

    _, plain = fit()
    monkeypatch.setattr(sft, "_arguments", arguments)
    torch._dynamo.reset()
    trainer, compiled = fit(compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
    assert compiled.log["loss"].to_list() == pytest.approx(plain.log["loss"].to_list(), abs=1e-5)
    assert type(compiled.model) is type(plain.model)


def test_tensorboard_is_sent_every_record_and_outlives_the_resume_points(fit, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "home" / "store" / "sft_checkpoint" / ".resume-abc"
    _, trained = fit(tracking="tensorboard", resume=folder, save_every=1)
    events = EventAccumulator(str(tmp_path / "home" / "tensorboard" / "sft_checkpoint-abc")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    wanted = trained.log.select("step", "loss").rows()
    assert [step for step, _ in found] == [step for step, _ in wanted] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted])
    fit(tracking="none", resume=tmp_path / "home" / "store" / "sft_checkpoint" / ".resume-def")
    assert not (tmp_path / "home" / "tensorboard" / "sft_checkpoint-def").exists()


def test_what_callbacks_add_to_the_log_is_passed_on_once():
    """Records: 1 of the start, 2 of a step by a callback, 3 of the trainer's own, 4 of an epoch."""
    sent = []
    tracker = SimpleNamespace(on_log=lambda args, state, control, logs: sent.append(logs))
    state = SimpleNamespace(log_history=[{"step": 0, "n": 1}], global_step=0)
    also = tracking._Additions([tracker])
    also.on_train_begin(None, state, None)
    state.log_history.append({"step": 1, "n": 2})
    state.log_history.append({"step": 1, "n": 3})
    also.on_log(None, state, None)  # the trainer has sent the last one
    also.on_step_end(None, state, None)
    state.log_history.append({"step": 1, "n": 4})
    also.on_epoch_end(None, state, None)
    assert sent == [{"n": 1}, {"n": 2}, {"n": 4}]
    resumed = tracking._Additions([tracker])
    state.global_step = 1
    resumed.on_train_begin(None, state, None)
    assert len(sent) == 3, "what was sent before the crash is not sent again"


@pytest.mark.parametrize("tool", ["wandb", "mlflow"])
def test_a_tool_that_is_not_installed_is_named(tool, monkeypatch):
    for settings in (Sft(tracking=tool), Grpo(tracking=tool)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SidrError, match=f"pip install {tool}"):
            tracking.arguments(settings, "x")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        told = tracking.arguments(settings, "home/store/sft_checkpoint/.resume-abc")
        assert told == {"report_to": [tool], "run_name": "sft_checkpoint-abc"}


def test_tracking_is_no_part_of_a_fingerprint():
    assert Sft(tracking="none").model_dump() == Sft(tracking="tensorboard").model_dump()
    assert Grpo(tracking="none").model_dump() == Grpo(tracking="mlflow").model_dump()
