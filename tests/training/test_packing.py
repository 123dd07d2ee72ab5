"""Packing: rows are filled well, and change neither loss nor gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sidr_core.training.examples import IGNORED
from sidr_core.training.packing import PackedCollator, pack
from sidr_core.training.sft import answer_loss

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}


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
        found.append({"input_ids": ids, "labels": [IGNORED] * head + ids[head:]})
    return found


def gradients(net, batch):
    net.zero_grad()
    loss = answer_loss(net, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("lengths", [[9, 4, 5, 3, 8, 2, 6], [7], [5, 5, 5], [12, 1, 2, 9]])
def test_a_packed_batch_has_the_loss_and_gradients_of_the_padded_one(kind, lengths):
    net, rows = model(kind), examples(lengths)
    loss, grads = gradients(net, DataCollatorForLanguageModeling(pad_token_id=0)(rows))
    packed = PackedCollator(0)(rows)
    found, others = gradients(net, packed)
    assert found == pytest.approx(loss, abs=1e-5)
    for name, wanted in grads.items():
        assert torch.allclose(others[name], wanted, atol=1e-5), name
    if len(set(lengths)) > 1:
        assert len(packed["input_ids"]) < len(lengths)


def test_without_restarting_positions_the_examples_would_see_each_other():
    net, rows = model("qwen3"), examples([9, 4, 5])
    packed = PackedCollator(0)(rows)
    right = answer_loss(net, packed).item()
    packed["position_ids"] = torch.arange(packed["input_ids"].shape[1]).expand(packed["input_ids"].shape)
    assert abs(answer_loss(net, packed).item() - right) > 1e-4


def test_a_row_by_hand():
    batch = PackedCollator(0)(
        [
            {"input_ids": [7, 8], "labels": [7, 8]},
            {"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORED, IGNORED, 3, 4, 5]},
            {"input_ids": [6, 9], "labels": [IGNORED, 9]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 6, 9, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, 5], [-100, 8, -100, 9, -100]]
    assert "attention_mask" not in batch


def test_a_batch_without_labels_has_no_loss_and_zero_gradients():
    net = model("qwen3")
    loss, grads = gradients(net, PackedCollator(0)([{"input_ids": [0], "labels": [IGNORED]}]))
    assert loss == 0.0
    assert all((grad == 0).all() for grad in grads.values())


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_every_example_lies_in_one_row_that_holds_it(lengths):
    rows = pack(lengths)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in row) for row in rows]
    assert max(loads) == max(lengths)
    # No two rows could be joined, so the rows are more than half full on average.
    assert len(rows) == 1 or all(a + b > max(lengths) for n, a in enumerate(loads) for b in loads[:n])
