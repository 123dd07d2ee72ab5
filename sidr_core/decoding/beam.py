"""Beam search over the SID index: it can return real SIDs only, and each once.

With exact scoring the score of a SID is the sum of the log-probabilities of its L tokens under the full
vocabulary, not renormalised over the legal children; neither a separator nor an end token is in it. That
ranks as the paper's search does (Hugging Face masks after the log-softmax) less its newline and end-of-turn
terms, which its first stage never trained. Sliced scoring normalises over the SID tokens of the level
instead, so only these rows of the head are multiplied.

A prompt may be a group of several contexts (the same question after different thoughts). Its search runs on
the average of their distributions: a prefix is worth the mean of its probabilities after each context.

All beams of a context go through the model as one row: they read its key-value cache where it lies and see
their own ancestors through a tree-shaped attention mask. Nothing is copied or reordered, which on a small
model is most of the time of the usual search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch

from sidr_core.decoding.batching import batches, decoding, distinct, prefill
from sidr_core.decoding.head import Head, head_of
from sidr_core.errors import SidrError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sidr_core.pipeline.stage import Progress
    from sidr_core.sids.index import SidIndex


@dataclass(frozen=True, eq=False)
class Beams:
    """Ranked SIDs per prompt, best first. R prompts of N contexts each, beam width B.

    Attributes:
        leaf: (R, B) int64, row numbers into `SidIndex.sids`, distinct within a row.
        scores: (R, B) float32, natural log-probability of the whole SID after the prompt; with N contexts that
            of the average of the N distributions.
        by_context: (R, N, B) float32, the same after each context alone; None if not asked for.
    """

    leaf: np.ndarray
    scores: np.ndarray
    by_context: np.ndarray | None = None


def constrained_beam(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    index: SidIndex,
    *,
    beam_width: int,
    batch_size: int,
    pad_id: int,
    scoring: Literal["exact", "sliced"] = "exact",
    contexts: int = 1,
    progress: Progress | None = None,
) -> Beams:
    """The `beam_width` best SIDs after each prompt.

    With `beam_width` equal to the number of SIDs the search is exhaustive. Equal scores are ordered by SID.
    Equal prompts are searched once.

    Args:
        model: a causal LM with `sdpa` or `eager` attention.
        prompts: R x N lists of token ids, each not empty; the N contexts of a prompt stand together.
        index: the legal SIDs.
        beam_width: B, beams kept per prompt and length of its list.
        batch_size: contexts per forward pass (each carries `beam_width` beams), rounded to whole prompts.
        pad_id: any token id; padding is masked.
        scoring: `exact`, or `sliced`: each level normalised over its own SID tokens.
        contexts: N, contexts per prompt whose distributions are averaged.
        progress: counts the different prompts that are done.

    Raises:
        SidrError: fewer SIDs than `beam_width` (lists must be full), or the model's scores are not numbers.
    """
    if not 1 <= beam_width <= len(index):
        raise SidrError(
            "the beam cannot be filled",
            expected=f"a beam width of 1 to {len(index)}, the number of distinct SIDs",
            found=f"beam width {beam_width}",
            fix="lower decoding.beam_width, or let more items through the filters",
        )
    rows_ids = [tuple(prompt) for prompt in prompts]
    groups, group_of = distinct([tuple(rows_ids[n : n + contexts]) for n in range(0, len(rows_ids), contexts)])
    leaf = np.zeros((len(groups), beam_width), dtype=np.int64)
    scores = np.zeros((len(groups), contexts, beam_width), dtype=np.float32)
    trie = _trie(index, model.device)
    longest = [max(group, key=len) for group in groups]
    _refuse_unfit(model, max(map(len, longest), default=0) + beam_width * (index.levels - 1))
    done = 0
    with decoding(model):
        head = None
        for rows in batches(longest, max(1, batch_size // contexts)):
            head = head or head_of(model, longest[rows[0]], sliced=scoring == "sliced")
            ranked, values = _search(
                head, [context for row in rows for context in groups[row]], trie, beam_width, pad_id, contexts
            )
            leaf[rows], scores[rows] = ranked.cpu().numpy(), values.cpu().numpy()
            done += len(rows)
            if progress:
                progress.tick(done, len(groups), "prompts ranked")
    pooled = scores[:, 0] if contexts == 1 else np.logaddexp.reduce(scores, axis=1) - np.float32(math.log(contexts))
    return Beams(leaf[group_of], pooled[group_of], scores[group_of] if contexts > 1 else None)


def _refuse_unfit(model: PreTrainedModel, tokens: int) -> None:
    """Beams lie side by side in one cache of at most `tokens` entries: a model must see all of it, by a mask."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    window = getattr(config, "sliding_window", None) or tokens + 1
    attention = config._attn_implementation
    if kinds or tokens >= window or attention not in ("sdpa", "eager"):
        raise SidrError(
            "this model cannot share its cache between beams",
            expected=f"`sdpa` or `eager` attention over at least {tokens + 1} tokens in every layer",
            found=f"{attention} attention, window {window}"
            + (f", layers of {', '.join(sorted(kinds))}" if kinds else ""),
            fix="load it with attn_implementation='sdpa', lower decoding.beam_width, or take another base model",
        )


class Trie:
    """The index as tensors on a device; `levels[l]` are the distinct tokens of a level, `slot` the position in them."""

    def __init__(self, index: SidIndex, device: torch.device) -> None:
        self.starts = [torch.tensor(array, dtype=torch.long, device=device) for array in index.starts]
        self.tokens = [torch.tensor(array, dtype=torch.long, device=device) for array in index.token_ids]
        unique = [ids.unique(return_inverse=True) for ids in self.tokens]
        self.levels, self.slot = [ids for ids, _ in unique], [slot for _, slot in unique]


_TRIES: WeakKeyDictionary[SidIndex, Trie] = WeakKeyDictionary()


def _trie(index: SidIndex, device: torch.device) -> Trie:
    """The tensors of an index; those made last are cached, for training asks again after every step."""
    trie = _TRIES.get(index)
    if trie is None or trie.starts[0].device != device:
        trie = _TRIES[index] = Trie(index, device)
    return trie


def _search(
    head: Head, prompts: list[tuple[int, ...]], trie: Trie, width: int, pad_id: int, contexts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search R prompts of N contexts. Returns leaves (R, B), best first, and scores per context (R, N, B)."""
    model = head.model
    output, mask, last = prefill(head.read_prompts, prompts, pad_id, model.device)
    nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=mask.device)  # (R N, W), the root: W = 1
    scores = torch.zeros(len(prompts), 1, device=mask.device)  # (R N, W)
    # (R N, W, P): which of the P beam slots in the cache each beam descends from.
    lineage = torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=mask.device)
    states = head.states(output)[:, -1:]  # (R N, W, H)
    for level in range(len(trie.starts)):
        if level:
            itself = torch.eye(nodes.shape[1], dtype=torch.bool, device=mask.device).expand(len(prompts), -1, -1)
            lineage = torch.cat([lineage, itself], dim=2)
            output = head.read(
                input_ids=trie.tokens[level - 1][nodes],
                attention_mask=_tree_mask(model, mask, lineage),
                position_ids=last.expand_as(nodes) + level,
                past_key_values=output.past_key_values,
            )
            states = head.states(output)
        log_probs = head.log_probs(states, trie.levels[level])  # (R N, W, K)
        nodes, scores, parents = extend(log_probs, nodes, scores, trie, level, width, contexts)
        lineage = lineage.take_along_dim(parents[..., None], dim=1)
    order = torch.argsort(_pooled(scores, contexts), dim=1, descending=True, stable=True)  # (R, B)
    ranked = scores.unflatten(0, (-1, contexts)).take_along_dim(order[:, None], dim=2)
    return nodes[::contexts].gather(1, order), ranked


def extend(
    log_probs: torch.Tensor,
    nodes: torch.Tensor,
    scores: torch.Tensor,
    trie: Trie,
    level: int,
    width: int,
    contexts: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Go one level down from W beams per row; log_probs (R N, W, K) of the level's K tokens, nodes, scores (R N, W).

    Returns the kept nodes, their scores and the beams they descend from, each (R N, W'). Every node of a
    level has a child, so W' = min(B, nodes of the level) can always be filled. Nodes stay in ascending
    order, and of equal scores the first are kept, so ties are settled by SID.
    """
    # R rows of N contexts, W beams, F children of the node that has most
    first, last = trie.starts[level][nodes], trie.starts[level][nodes + 1]  # (R N, W)
    offset = torch.arange(int((last - first).max()), device=nodes.device)  # (F,)
    child = first[..., None] + offset  # (R N, W, F)
    legal = child < last[..., None]
    child = torch.where(legal, child, 0)
    total = scores[..., None] + log_probs.gather(2, trie.slot[level][child])
    total = torch.where(legal, total, -torch.inf).flatten(1)  # (R N, W F)
    keep = min(width, len(trie.tokens[level]))
    best = _best(_pooled(total, contexts), legal[::contexts].flatten(1), keep).repeat_interleave(contexts, dim=0)
    return child.flatten(1).gather(1, best), total.gather(1, best), best // len(offset)


def _best(total: torch.Tensor, legal: torch.Tensor, keep: int) -> torch.Tensor:
    """Positions (R, keep) of the best of `total` (R, C), ascending; the first of equal ones."""
    least = total.topk(keep, dim=1).values[:, -1:]
    if bool((total.isnan() | total.isposinf()).any() | least.isneginf().any()):
        raise SidrError(
            "the model gave scores that are not numbers",
            expected="finite log-probabilities",
            found="nan or infinity",
            fix="check the checkpoint's training (its loss, its learning rate) and train it again",
        )
    above, equal = total > least, (total == least) & legal
    chosen = above | (equal & (equal.cumsum(dim=1) <= keep - above.sum(dim=1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(-1, keep)


def _pooled(scores: torch.Tensor, contexts: int) -> torch.Tensor:
    """Log of the mean probability over the N contexts: (R N, C) to (R, C)."""
    if contexts == 1:
        return scores
    return scores.unflatten(0, (-1, contexts)).logsumexp(dim=1) - math.log(contexts)


def _tree_mask(model: PreTrainedModel, prompt: torch.Tensor, lineage: torch.Tensor) -> torch.Tensor:
    """Who sees whom: prompt mask (R, T) and lineage (R, W, P) give (R, 1, W, T + P), as `model` wants it."""
    rows, width, _ = lineage.shape
    visible = torch.cat([prompt.bool()[:, None].expand(rows, width, -1), lineage], dim=2)[:, None]
    if model.config._attn_implementation == "sdpa":
        return visible
    # Eager attention adds its mask to the scores.
    blocked = torch.full_like(visible, torch.finfo(model.dtype).min, dtype=model.dtype)
    return blocked.masked_fill(visible, 0)
