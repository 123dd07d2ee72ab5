"""Training: what an epoch holds, where the loss lies, what the log keeps, and that stages learn."""

import polars as pl
import pytest
import torch

from sidr_core.errors import InputError
from sidr_core.models.base import build_base
from sidr_core.models.prompt import PromptRenderer
from sidr_core.settings import TinyModel
from sidr_core.tables import iso_date
from sidr_core.training.cards import log_table, model_card
from sidr_core.training.examples import IGNORED, history_prompts, subset, tokenise, weighted
from sidr_core.training.select import Selector, with_thoughts
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
        },
        schema_overrides={"thought": pl.String},
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
    from sidr_core.decoding.index import SidIndex

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
    from sidr_core.decoding.thinking import Thought

    _, renderer = world
    prompt = renderer.prompt("x", "thinking")
    thought = renderer.encode("so that")
    (joined,) = with_thoughts([prompt], [Thought(tuple(thought), True)], renderer)
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
    assert iso_date(None) == "unknown"
