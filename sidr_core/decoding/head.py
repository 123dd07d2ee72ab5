"""A causal LM as a body and a head, so that only the log-probabilities that are needed are computed.

Most models' logits are one linear map of the body's last hidden states; then the (rows, vocabulary) table is
never kept: exact scoring goes through it in blocks for the normaliser, sliced scoring multiplies the rows of
the level's tokens alone. A model whose logits are not that map (they are scaled or capped, or the head is
wrapped by an adapter) is found out on a few tokens, and then its own logits are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Logits of one block of exact scoring: what stays near a CPU's cache is fastest there (16 MiB as float32).
_BLOCK = {"cpu": 1 << 22}
_BLOCK_ELSEWHERE = 1 << 26
_PROBE_TOKENS = 8
_TOLERANCE = 1e-3
#: model -> the layer of its head that was tried, and whether its logits are that layer's map of the body's states.
_TRIED: WeakKeyDictionary[torch.nn.Module, tuple[torch.nn.Module, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Head:
    """How states become log-probabilities. Make it with :func:`head_of`.

    Attributes:
        model: the whole model.
        body: gives the hidden states; None where only the model's own logits are right.
        weight, bias: the linear map (V, H) and (V,); None without a body, or where there is no bias.
        sliced: normalise over the tokens asked for instead of the vocabulary.
    """

    model: PreTrainedModel
    body: torch.nn.Module | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    sliced: bool

    def read(self, **fields: Any) -> Any:
        """The output of the body (or the model) on tokens, with its key-value cache."""
        return (self.body or self.model)(**fields, use_cache=True)

    def read_prompts(self, **fields: Any) -> Any:
        """As :meth:`read`, where only the last position of a row is asked for."""
        return self.read(**fields) if self.body is not None else self.read(**fields, logits_to_keep=1)

    def states(self, output: Any) -> torch.Tensor:
        """What :meth:`log_probs` needs of an output, (R, W, H or V)."""
        return output.logits if self.body is None else output.last_hidden_state

    def log_probs(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probability (R, W, K), float32, of the tokens (K,) at each state (R, W, H or V)."""
        flat = states.flatten(0, 1)
        if self.sliced:
            return self._logits(flat, tokens).log_softmax(dim=1).unflatten(0, states.shape[:2])
        vocabulary = flat.shape[1] if self.weight is None else len(self.weight)
        blocks = flat.split(max(1, _BLOCK.get(flat.device.type, _BLOCK_ELSEWHERE) // vocabulary))
        # On a CPU this is a third faster than a logsumexp.
        parts = [self._logits(block, None).log_softmax(dim=1)[:, tokens] for block in blocks]
        return torch.cat(parts).unflatten(0, states.shape[:2])

    def _logits(self, states: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        """Logits of `tokens`, or of the whole vocabulary, for states (P, H or V)."""
        if self.weight is None:
            return (states if tokens is None else states[:, tokens]).float()
        weight, bias = self.weight, self.bias
        if tokens is not None:
            weight, bias = weight[tokens], None if bias is None else bias[tokens]
        return torch.nn.functional.linear(states, weight, bias).float()


def head_of(model: PreTrainedModel, prompt: Sequence[int], *, sliced: bool) -> Head:
    """Take `model` apart if its logits are a linear map of its body's states on the first tokens of `prompt`.

    A model is tried once for each head that it is given.
    """
    whole = Head(model, None, None, None, sliced)
    if not hasattr(model, "get_output_embeddings"):
        return whole
    layer, body = model.get_output_embeddings(), model.get_decoder()
    weight = getattr(layer, "weight", None)
    # Of sharded weights a process has its part, and the model alone knows when to gather them.
    if layer is None or body is model or not isinstance(weight, torch.Tensor) or isinstance(model, FSDPModule):
        return whole
    bias = getattr(layer, "bias", None)
    apart = Head(model, body, weight, bias if isinstance(bias, torch.Tensor) else None, sliced)
    tried, linear = _TRIED.get(model, (None, False))
    if tried is not layer:
        linear = _is_linear(apart, torch.tensor([list(prompt[:_PROBE_TOKENS])], device=model.device))
        _TRIED[model] = layer, linear
    return apart if linear else whole


def _is_linear(apart: Head, ids: torch.Tensor) -> bool:
    """Whether a model taken apart gives the logits of the whole on tokens (1, P)."""
    assert apart.body is not None and apart.weight is not None
    states = getattr(apart.body(input_ids=ids), "last_hidden_state", None)
    logits = apart.model(input_ids=ids).logits.float()
    if states is None or states.shape[-1] != apart.weight.shape[1]:
        return False
    mapped = apart._logits(states[0], None)
    return mapped.shape == logits[0].shape and bool((mapped - logits[0]).abs().max() <= _TOLERANCE * logits.abs().max())
