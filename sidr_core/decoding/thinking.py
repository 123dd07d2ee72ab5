"""Free generation of thoughts: from an opened think block to its closing tag, an end token or the cap.

Nothing of a model's generation_config is read: greedy at temperature 0, else plain sampling at that
temperature, without top-k, top-p or penalties. The randomness of a row is drawn from (seed, row number)
before any batch is made, so a sampled thought does not depend on the batch it was computed in.
Deviation from the paper's code: a thought that was not closed is marked, not scored as finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from sidr_core.decoding.batching import batches, decoding, distinct, prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sidr_core.models.prompt import PromptRenderer
    from sidr_core.pipeline.stage import Progress

#: Finished rows are dropped from the batch when this share of its rows is done.
_COMPACT_AT = 0.25


@dataclass(frozen=True)
class Thought:
    """One thought: `prompt + ids + renderer.close_ids` is where the answer begins.

    Attributes:
        ids: token ids after the opened think block, less the newline before the closing tag and the tag.
        closed: the model wrote the closing tag itself, within the cap.
    """

    ids: tuple[int, ...]
    closed: bool


def generate_thoughts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    batch_size: int,
    renderer: PromptRenderer,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Thought]:
    """One thought per prompt; repeat a prompt for several.

    Args:
        model: a causal LM.
        prompts: R lists of token ids that end in an opened think block.
        max_tokens: cap on generated tokens, the closing tag included.
        batch_size: prompts per forward pass.
        renderer: of the model's tokenizer; names the closing tag and the end tokens.
        temperature: 0 = greedy.
        seed: of the sampling; R and `max_tokens` being equal, equal seeds give equal thoughts.
        progress: counts the thoughts written.
    """
    written = generate_tokens(
        model,
        prompts,
        stops=(renderer.think_close_id, renderer.eos_id, renderer.pad_id),
        pad_id=renderer.pad_id,
        max_tokens=max_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        progress=progress,
    )
    return [thought_of(ids, renderer) for ids in written]


def generate_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int],
    pad_id: int,
    max_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> list[list[int]]:
    """Free continuation of each prompt, up to one of `stops` (included) or `max_tokens`.

    The other arguments are those of :func:`generate_thoughts`.

    Args:
        shard: (n, S): the prompts are the n-th of S equal parts of a batch, and draw what they would draw in it.
    """
    draws = None
    if temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        number, shards = shard
        draws = torch.rand(shards, len(prompts), max_tokens, dtype=torch.float64, generator=generator)[number]
    texts: list[list[int]] = [[] for _ in prompts]
    done = 0
    with decoding(model):
        for rows in batches(prompts, batch_size):
            uniform = None if draws is None else draws[rows].to(model.device)
            sampler = _Sampler(temperature, uniform)
            written = _generate(model, [prompts[row] for row in rows], max_tokens, stops, pad_id, sampler)
            for row, ids in zip(rows, written, strict=True):
                texts[row] = ids
            done += len(rows)
            if progress:
                progress.tick(done, len(prompts), "texts written")
    return texts


@dataclass(frozen=True, eq=False)
class _Sampler:
    """Picks the next token; `uniform` (R, max_tokens) holds each row's draws, None = greedy."""

    temperature: float
    uniform: torch.Tensor | None

    def pick(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Next tokens (W,) for the batch rows `rows` (W,) from logits (W, V)."""
        if self.uniform is None:
            return logits.argmax(dim=1)
        # Inverse transform: in double precision, for the sum over a large vocabulary to stay exact enough.
        cumulative = (logits.double() / self.temperature).softmax(dim=1).cumsum(dim=1)  # (W, V)
        point = self.uniform[rows, step, None] * cumulative[:, -1:]  # (W, 1)
        return torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _generate(
    model: PreTrainedModel,
    prompts: list[Sequence[int]],
    max_tokens: int,
    stops: Sequence[int],
    pad_id: int,
    sampler: _Sampler,
) -> list[list[int]]:
    """Generated ids per prompt, a stopping token included. Finished rows leave the batch."""
    forward = partial(model, use_cache=True, logits_to_keep=1)
    different, copy_of = distinct([tuple(prompt) for prompt in prompts])
    output, mask, last = prefill(forward, different, pad_id, model.device)  # mask (R, T), last (R, 1)
    cache, logits = output.past_key_values, output.logits[:, -1]  # (R, V)
    if len(different) < len(prompts):
        copies = torch.tensor(copy_of, device=mask.device)
        cache.batch_select_indices(copies)
        mask, last, logits = mask[copies], last[copies], logits[copies]
    # R rows that are still written, V vocabulary entries, T tokens read so far
    ends = torch.tensor(list(stops), device=mask.device)  # (stops,)
    rows = torch.arange(len(prompts), device=mask.device)  # (R,) rows of the batch, fewer as they finish
    alive = torch.ones_like(rows, dtype=torch.bool)
    written: list[list[int]] = [[] for _ in prompts]
    for step in range(max_tokens):
        token = sampler.pick(logits.float(), rows, step)  # (R,)
        for row, value, live in zip(rows.tolist(), token.tolist(), alive.tolist(), strict=True):
            if live:
                written[row].append(value)
        alive = alive & ~torch.isin(token, ends)
        if step + 1 == max_tokens or not bool(alive.any()):
            break
        if alive.float().mean() <= 1 - _COMPACT_AT:
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, token, mask, last, alive = (tensor[keep] for tensor in (rows, token, mask, last, alive))
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)  # (R, T + 1)
        output = forward(
            input_ids=token[:, None], attention_mask=mask, position_ids=last + 1 + step, past_key_values=cache
        )
        cache, logits = output.past_key_values, output.logits[:, -1]
    return written


def thought_of(ids: list[int], renderer: PromptRenderer) -> Thought:
    """What was written after an opened think block, as a thought."""
    closed = ids[-1:] == [renderer.think_close_id]
    if ids and ids[-1] in (renderer.think_close_id, renderer.eos_id, renderer.pad_id):
        ids = ids[:-1]
    newline = renderer.close_ids[: renderer.close_ids.index(renderer.think_close_id)]
    if closed and ids[-len(newline) :] == newline:
        ids = ids[: -len(newline)]
    return Thought(tuple(ids), closed)
