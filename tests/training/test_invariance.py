"""How a step's examples are split, and whether they are packed, changes its speed alone."""

from types import SimpleNamespace

import polars as pl
import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from sidr_core.errors import SidrError
from sidr_core.models.base import build_base
from sidr_core.models.prompt import PromptRenderer
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Sft, TinyModel
from sidr_core.training import sft
from sidr_core.training.examples import tokenise
from sidr_core.training.packing import PackedCollator, PrefixGrouped, groups

CODES = [[a, b] for a in range(3) for b in range(4)]
SIDS = [f"<a_{a}><b_{b}>" for a, b in CODES]
CODEBOOK = pl.DataFrame({"item_id": [f"i{n:02d}" for n in range(12)], "sid": SIDS, "codes": CODES})
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
#: Sums over other groupings of the same numbers differ by rounding. Adam divides a gradient by its size, so where
#: this is next to nothing its rounding moves the weights (by 1e-5 here, with SGD by 1e-7).
TOLERANCE, WEIGHTS = 1e-5, 1e-4


def corpus(n):
    """Conversations and plain texts of 1 to 12 words."""
    plain = [i % 4 == 3 for i in range(n)]
    text = [" ".join(WORDS[: 1 + i * 7 % 12]) for i in range(n)]
    return pl.DataFrame(
        {
            "example_id": [f"e{i}" for i in range(n)],
            "task": ["item_narrative" if p else "sids_to_sid" for p in plain],
            "kind": ["text" if p else "chat" for p in plain],
            "prompt": ["" if p else f"History: {t}" for p, t in zip(plain, text, strict=True)],
            "thought": None,
            "user_id": [f"u{i % 5}" for i in range(n)],
            "completion": [t if p else SIDS[i % 12] for i, (p, t) in enumerate(zip(plain, text, strict=True))],
        },
        schema_overrides={"thought": pl.String},
    )


def start():
    small = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 32, "vocab_size": 400}
    model, tokenizer = build_base(TinyModel(kind="tiny", **small), [" ".join(WORDS)] * 20, CODEBOOK)
    return model, PromptRenderer(tokenizer)


def settings(**changed):
    usual = {"epochs": 2, "batch_size": 8, "micro_batch": 8, "learning_rate": 3e-3, "warmup_steps": 0}
    return Sft(**(usual | {"select_rows": 0, "save_every": 1, "weight_decay": 0.1} | changed))


def fit(folder, rows, **changed):
    """The log and the weights of a training without a store; `save_every` 1 has every step logged."""
    model, renderer = start()
    inputs = SimpleNamespace(resume=None)
    quiet = Progress(lambda line: None)
    trained = sft._train(inputs, model, renderer, rows, settings(**changed), [], quiet, folder)
    return trained.log, {name: value.clone() for name, value in trained.model.state_dict().items()}


def assert_same(one, other):
    (log, weights), (log_2, weights_2) = one, other
    assert log["step"].to_list() == log_2["step"].to_list()
    for name in ("loss", "grad_norm", "learning_rate"):
        assert log[name].to_list() == pytest.approx(log_2[name].to_list(), abs=TOLERANCE, rel=TOLERANCE), name
    for name, value in weights.items():
        assert torch.allclose(value, weights_2[name], rtol=0, atol=WEIGHTS), name


@pytest.mark.parametrize("packing", [False, True])
def test_one_example_at_a_time_gives_the_path_of_eight(tmp_path, packing):
    rows = corpus(43)
    at_once = fit(tmp_path / "a", rows, micro_batch=8, packing=packing)
    one_by_one = fit(tmp_path / "b", rows, micro_batch=1, packing=packing)
    assert at_once[0]["step"].max() == 12
    assert_same(at_once, one_by_one)
    begun = start()[0].state_dict()
    assert max((begun[name] - value).abs().max() for name, value in at_once[1].items()) > 100 * WEIGHTS


def test_packing_alone_changes_nothing(tmp_path, monkeypatch):
    """Told the order of packing, the padded training takes the packed one's path."""
    rows = corpus(43)
    packed = fit(tmp_path / "a", rows, packing=True)
    members = groups(tokenise(rows, start()[1], 100))
    assert len(members) < len(rows)
    monkeypatch.setattr(sft, "LengthGrouped", lambda _, *rest: PrefixGrouped(members, *rest))
    assert_same(packed, fit(tmp_path / "b", rows, packing=False))


@pytest.mark.parametrize("micro", [1, 3, 6])
def test_the_loss_is_the_mean_over_the_tokens_of_the_step(tmp_path, micro):
    """Also of a step that is not full: what it is filled up with does not count."""
    rows = corpus(5)
    log, _ = fit(tmp_path, rows, batch_size=6, micro_batch=micro, epochs=1)
    model, renderer = start()
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(tokenise(rows, renderer, 100))
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    total = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="sum")
    assert log["loss"].to_list() == pytest.approx([total.item() / labelled], abs=TOLERANCE)


def test_two_processes_take_the_micro_batches_of_one(monkeypatch):
    monkeypatch.setattr(sft, "PartialState", lambda: SimpleNamespace(num_processes=2))
    assert sft.micro_batches(64, 64) == (32, 1)
    assert sft.micro_batches(64, 8) == (8, 4)
    with pytest.raises(SidrError, match="does not divide evenly"):
        sft.micro_batches(9, 3)


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_of_a_gpu_is_the_same(tmp_path, monkeypatch, packing):
    """On a GPU TRL's own loss is used, on packed rows too; it runs on a CPU as well."""
    seen = []
    monkeypatch.setattr(sft, "train", lambda trainer, *_, **__: seen.append(trainer) or [{"step": 1, "loss": 1.0}])
    fit(tmp_path, corpus(9), packing=packing)
    (trainer,) = seen
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["attention_mask"].ndim == (4 if packing else 2)
    trainer.model.eval()
    for items in (None, torch.tensor(100)):
        ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
        theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=items)
        assert ours.item() == pytest.approx(theirs.item(), abs=TOLERANCE)


def test_packed_rows_are_for_training_alone(tmp_path, monkeypatch):
    """Valid rows are weighed one by one in the evaluation loss, so they are not packed."""
    seen = []
    monkeypatch.setattr(sft, "train", lambda trainer, *_, **__: seen.append(trainer) or [{"step": 1, "loss": 1.0}])
    fit(tmp_path, corpus(9), packing=True)
    assert not isinstance(seen[0].data_collator, PackedCollator)
