"""Dropout on the residual stream: where it acts, and that it leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sidr_core.errors import SidrError
from sidr_core.training import dropout

IDS = torch.arange(12).view(1, -1)
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def models():
    torch.manual_seed(0)
    return [Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)), LlamaForCausalLM(LlamaConfig(**SHAPE))]


@pytest.mark.parametrize("model", models(), ids=["qwen3", "llama"])
def test_it_acts_in_training_alone_and_leaves_nothing_behind(model):
    model.train()
    before = model(IDS).logits
    with dropout.added(model, 0.5):
        assert not torch.equal(model(IDS).logits, model(IDS).logits)
        model.eval()
        assert torch.equal(model(IDS).logits, before)  # these models drop nothing of their own
        model.train()
    assert torch.equal(model(IDS).logits, before)


def test_it_drops_so_many_numbers_and_scales_the_rest():
    model = models()[0].train()
    seen = {}
    attention = model.model.layers[0].self_attn
    with torch.no_grad(), dropout.added(model, 0.25):
        # Hooks run in the order in which they were added: this one sees what the first layer really gets.
        handle = model.model.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(states=args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        model(torch.randint(40, (64, 64)))
        handle.remove()
    share = (seen["states"] == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.01)
    assert len(attention._forward_hooks) == 0


def test_a_rate_of_zero_touches_nothing():
    model = models()[0].train()
    with dropout.added(model, 0.0):
        assert not model.model.layers[0]._forward_pre_hooks


def test_a_model_built_in_another_way_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(SidrError, match="dropout cannot be added"), dropout.added(model, 0.1):
        pass


def test_rl_can_do_without_all_dropout():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, attention_dropout=0.4)).train()
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(model.model.layers[0].mlp.act_fn, torch.nn.Dropout(0.3))
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    with dropout.removed(model):
        assert torch.equal(model(IDS).logits, model(IDS).logits)
    assert model.model.layers[0].self_attn.attention_dropout == 0.4
    assert model.model.layers[0].mlp.act_fn[1].p == 0.3
