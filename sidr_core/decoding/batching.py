"""What both decoders share: batches of similar length, left padding, and a model set to decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode is put back at the end."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Row numbers of `prompts` in batches of at most `batch_size`, longest prompts first.

    Rows of similar length share a batch, so little is padded; the first batch is the one that needs most memory.
    """
    if empty := [row for row, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} has no token")
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad R prompts on the left to the longest, T. Returns ids, mask and position ids, each (R, T)."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(longest, device=device) >= (longest - lengths)[:, None]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return ids, mask.long(), positions
