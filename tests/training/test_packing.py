"""Packing: examples that begin alike share these tokens, and have the loss and gradients that they have alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sidr_core.training import packing
from sidr_core.training.examples import IGNORED
from sidr_core.training.packing import PackedCollator, PrefixGrouped, balanced, groups
from sidr_core.training.sft import answer_loss

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}
HEAD, QUESTION, END = [50, 51], [52, 53, 54], 55


def model(kind):
    torch.manual_seed(0)
    made = Qwen3ForCausalLM(Qwen3Config(**SIZES)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**SIZES))
    assert made.config._attn_implementation == "sdpa"
    return made.train()


def examples(lengths, seed=0):
    """The last third of each carries loss, as an answer does; the first one does so whole, as a plain text does."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for n, length in enumerate(lengths):
        ids = torch.randint(1, 50, (length,), generator=random).tolist()
        head = 0 if n == 0 else length - max(1, length // 3)
        found.append({"input_ids": ids, "labels": [IGNORED] * head + ids[head:], "user": None})
    return found


def targets(items, cap, user="u"):
    """Every item but the first as the target of the `cap` items before it, each a pair of tokens."""
    found = []
    for n in range(1, len(items)):
        prompt = HEAD + [t for item in items[max(0, n - cap) : n] for t in (item, item + 20)] + QUESTION
        answer = [items[n], items[n] + 20, END]
        found.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer, "user": user})
    return found


def gradients(net, batch):
    net.zero_grad()
    loss = answer_loss(net, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in net.named_parameters()}


CASES = {
    "nothing shared": examples([9, 4, 5, 3, 8, 2, 6]),
    "one": examples([7]),
    "tiny ones": examples([12, 1, 2, 9]),
    "one history": targets([3, 1, 4, 5, 9, 2, 6], cap=20),
    "a history cut at the left": targets([3, 1, 4, 5, 9, 2, 6, 8, 7, 10], cap=3),
    "repeated items": targets([3, 3, 3, 3, 3, 1, 3], cap=2),
    "the same example three times": targets([3, 1], cap=9) * 3,
    "several users": targets([3, 1, 4, 1], 9, "a") + targets([3, 1, 5], 9, "b") + targets([8, 2], 9, "c"),
    "other answers of one prompt": targets([3, 1], 9) + targets([3, 2], 9) + targets([3, 1, 4], 9),
    "users, texts and a filler": targets([3, 1, 4, 7, 5], 3)
    + examples([11, 6])
    + [{"input_ids": [0], "labels": [IGNORED], "user": None}],
}


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("room", [16, 256])
@pytest.mark.parametrize("case", CASES)
def test_a_packed_batch_has_the_loss_and_gradients_of_separate_examples(kind, room, case, monkeypatch):
    monkeypatch.setattr(packing, "ROW_TOKENS", room)
    net, rows = model(kind), CASES[case]
    loss, grads = gradients(net, DataCollatorForLanguageModeling(pad_token_id=0)(rows))
    packed = PackedCollator(0)(rows)
    found, others = gradients(net, packed)
    assert found == pytest.approx(loss, abs=1e-5)
    for name, wanted in grads.items():
        assert torch.allclose(others[name], wanted, atol=1e-5), name
    assert (packed["labels"][:, 1:] != IGNORED).sum() == sum(y != IGNORED for row in rows for y in row["labels"][1:])


def test_without_the_mask_the_branches_would_see_each_other():
    net, rows = model("qwen3"), CASES["one history"]
    packed = PackedCollator(0)(rows)
    right = answer_loss(net, packed).item()
    packed["attention_mask"] = torch.ones_like(packed["attention_mask"]).tril()
    assert abs(answer_loss(net, packed).item() - right) > 1e-4


def test_a_row_by_hand():
    """A text, and two targets of a history [1, 2, 3] that is asked for with 9 after [1] and after [1, 2]."""
    first = {"input_ids": [1, 9, 2, 3], "labels": [IGNORED, IGNORED, 2, 3]}
    second = {"input_ids": [1, 2, 9, 3, 4], "labels": [IGNORED, IGNORED, IGNORED, 3, 4]}
    text = {"input_ids": [7, 8], "labels": [7, 8]}
    batch = PackedCollator(0)([second, text, first])
    #                                     text  first     second     end
    assert batch["input_ids"].tolist() == [[7, 1, 9, 2, 2, 9, 3, 0]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2, 1, 2, 3, 0]]
    assert batch["labels"].tolist() == [[-100, 8, -100, 2, 3, -100, 3, 4]]
    seen = [{place for place, sees in enumerate(row) if sees} for row in batch["attention_mask"][0, 0].tolist()]
    assert seen == [{0}, {1}, {1, 2}, {1, 2, 3}, {1, 4}, {1, 4, 5}, {1, 4, 5, 6}, {7}]


def test_a_history_is_laid_once():
    """12 targets of a history of pairs: the fixed start, a pair each, and question and answer of each (5 laid)."""
    rows = targets(list(range(1, 14)), cap=20)
    assert sum(len(row["input_ids"]) for row in rows) == 252
    batch = PackedCollator(0)(rows)
    assert (batch["input_ids"] != 0).sum() == 2 + 12 * 2 + 12 * 5


def test_a_batch_without_labels_has_no_loss_and_zero_gradients():
    net = model("qwen3")
    loss, grads = gradients(net, PackedCollator(0)([{"input_ids": [0], "labels": [IGNORED]}] * 2))
    assert loss == 0.0
    assert all((grad == 0).all() for grad in grads.values())


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60))
def test_every_piece_lies_in_one_of_few_balanced_rows(sizes):
    rows = balanced(sizes, 100)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in row) for row in rows]
    assert len(rows) <= max(1, -(-sum(sizes) // 100))
    assert max(loads) - min(loads) <= max(sizes)


def test_groups_hold_the_targets_of_a_user_and_each_copy_apart():
    whole, cut = targets([3, 1, 4, 5], 9, "a"), targets([3, 1, 4, 5, 9, 2, 6, 8], 3, "b")
    same = [{**example, "user": None} for example in whole]
    # Three histories of "b" begin with 3, the others anew.
    assert sorted(map(sorted, groups(cut))) == [[0, 1, 2], [3], [4], [5], [6]]
    assert sorted(map(sorted, groups(whole + same))) == [[0, 1, 2], [3], [4], [5]]
    assert sorted(map(sorted, groups(whole + whole))) == [[0, 1, 2], [3, 4, 5]]


def test_the_order_of_groups_depends_on_seed_and_epoch_alone():
    members = [[3, 4, 5], [0], [2, 1], [7, 6]]
    sampler = PrefixGrouped(members, 3, seed=1)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    assert len(first) == len(sampler) == 9
    assert first[8:] == [8], "the last batch is filled up with the filler"
    order = sorted(members, key=lambda group: first.index(group[0]))
    assert [index for group in order for index in group] == first[:8]
    others = set()
    for epoch in range(1, 9):
        sampler.set_epoch(epoch)
        others.add(tuple(sampler))
    assert len(others) > 1
    assert len({tuple(PrefixGrouped(members, 3, seed)) for seed in range(9)}) > 1
