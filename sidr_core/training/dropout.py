"""Dropout: more of it for fine-tuning, none of it for RL.

Fine-tuning: on the embedded prompt and on the output of each block, where pretrained architectures have none. The
families trained here (Qwen3, Llama, Gemma and the like) drop attention weights at most, which regularises a small
model on a few thousand rows very little. Transformers of sequential recommendation (SASRec) drop up to half of the
embeddings and of every block's output. A checkpoint holds nothing of it.

RL compares the log-probabilities of one text under the model and its reference; dropout would draw another network
for each, and the KL would measure that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sidr_core.errors import SidrError


@contextmanager
def added(model: Any, rate: float) -> Iterator[None]:
    """Inside the block, `model` in training mode drops a share `rate` of the first layer's input and of each block's
    output.

    Args:
        model: a causal LM whose decoder has `layers` with `self_attn` and `mlp`.

    Raises:
        SidrError: its decoder is built in another way.
    """
    handles: list[Any] = []
    try:
        if rate:
            layers: Any = getattr(model.get_decoder(), "layers", ())
            if not len(layers) or not all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in layers):
                raise SidrError(
                    "dropout cannot be added to this model",
                    expected="a decoder of layers with `self_attn` and `mlp`, as in Qwen3 or Llama",
                    found=type(model).__name__,
                    fix="set dropout: 0 for this stage, or take another base model",
                )
            handles.append(layers[0].register_forward_pre_hook(_before(rate), with_kwargs=True))
            handles += [
                block.register_forward_hook(_after(rate)) for layer in layers for block in (layer.self_attn, layer.mlp)
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def removed(model: Any) -> Iterator[None]:
    """Inside the block, `model` drops nothing in training mode either: no attention weights, and nothing else."""
    rates = [
        (module, name, rate)
        for module in model.modules()
        for name in ("attention_dropout", "p")
        if isinstance(rate := getattr(module, name, None), float)
        and (name == "attention_dropout" or isinstance(module, torch.nn.Dropout))
    ]
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


def _before(rate: float) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not module.training:
            return None
        if args:
            return (_dropped(args[0], rate), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _dropped(kwargs["hidden_states"], rate)}

    return hook


def _after(rate: float) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not module.training:
            return None
        return (_dropped(output[0], rate), *output[1:]) if isinstance(output, tuple) else _dropped(output, rate)

    return hook


def _dropped(states: torch.Tensor, rate: float) -> torch.Tensor:
    return torch.nn.functional.dropout(states, rate, training=True)
