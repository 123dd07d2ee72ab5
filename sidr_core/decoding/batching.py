"""What both decoders share: batches of similar length, left padding, one prefill, and a model set to decode."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_T = TypeVar("_T", bound=Hashable)

#: A shared beginning of fewer tokens is not worth a forward pass of its own.
_LEAST_SHARED = 8


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode is put back at the end."""
    was_training = model.training
    model.eval()
    # Blocks of sharded weights that were gathered in inference mode cannot be gathered into again outside of it.
    sharded = isinstance(model, FSDPModule)
    try:
        with torch.no_grad() if sharded else torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Row numbers of `prompts` in batches of at most `batch_size`, longest prompts first.

    Rows of similar length share a batch, so little is padded; the first batch is the one that needs most memory.
    Equal prompts lie side by side, so that a batch holds as many of them as it can.
    """
    if empty := [row for row, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} has no token")
    first: dict[tuple[int, ...], int] = {}
    firsts = [first.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), firsts[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def distinct(values: Sequence[_T]) -> tuple[list[_T], list[int]]:
    """The distinct values in order of first occurrence, and for each value its position among them."""
    position: dict[_T, int] = {}
    positions = [position.setdefault(value, len(position)) for value in values]
    return list(position), positions


def left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad R prompts on the left to the longest, T. Returns ids, mask and position ids, each (R, T)."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(longest, device=device) >= (longest - lengths)[:, None]  # (R, T)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return ids, mask.long(), positions


def prefill(
    forward: Callable[..., Any], prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Read R prompts into a key-value cache; what all of them begin with is read once.

    Args:
        forward: the model, or its body: takes `input_ids`, `attention_mask`, `position_ids`, `past_key_values`.
        prompts: R lists of token ids, not empty; distinct ones, or work is done twice.
        pad_id: any token id; padding is masked.
        device: of the model.

    Returns:
        The model's output on the last part of the prompts (its cache holds all), the mask (R, T) of the cache,
        and the position (R, 1) of each prompt's last token.
    """
    shared = _shared(prompts)
    cache = None
    if shared:
        head = torch.tensor([list(prompts[0][:shared])], device=device)  # (1, shared)
        positions = torch.arange(shared, device=device)[None]
        cache = forward(input_ids=head, attention_mask=torch.ones_like(head), position_ids=positions).past_key_values
        cache.batch_repeat_interleave(len(prompts))
    ids, mask, positions = left_pad([prompt[shared:] for prompt in prompts], pad_id, device)  # (R, T - shared)
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)  # (R, T)
    output = forward(input_ids=ids, attention_mask=mask, position_ids=positions + shared, past_key_values=cache)
    return output, mask, positions[:, -1:] + shared


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, less those that would leave one of them empty; 0 if hardly any."""
    if len(prompts) < 2:
        return 0
    # What the first and the last of sorted lists begin with, all begin with.
    each = [tuple(prompt) for prompt in prompts]
    low, high = min(each), max(each)
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    shared = min(sum(1 for _ in alike), min(map(len, prompts)) - 1)
    return shared if shared >= _LEAST_SHARED else 0
