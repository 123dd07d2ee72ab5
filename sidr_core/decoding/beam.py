"""Beam search over the SID index: it can return real SIDs only, and each once.

The score of a SID is the sum of the log-probabilities of its L tokens under the full vocabulary, not
renormalised over the legal children; neither a separator nor an end token is in it. That ranks as the
paper's search does (Hugging Face masks after the log-softmax) less its newline and end-of-turn terms,
which its first stage never trained.

All beams of a prompt go through the model as one row: they read the prompt's key-value cache where it
lies and see their own ancestors through a tree-shaped attention mask. Nothing is copied or reordered,
which on a small model is most of the time of the usual search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sidr_core.decoding.batching import batches, decoding, left_pad
from sidr_core.errors import SidrError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sidr_core.decoding.index import SidIndex
    from sidr_core.stage import Progress


@dataclass(frozen=True, eq=False)
class Beams:
    """Ranked SIDs per prompt, best first. R prompts, beam width B.

    Attributes:
        leaf: (R, B) int64, row numbers into `SidIndex.sids`, distinct within a row.
        scores: (R, B) float32, natural log-probability of the whole SID after the prompt.
    """

    leaf: np.ndarray
    scores: np.ndarray


def constrained_beam(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    index: SidIndex,
    *,
    beam_width: int,
    batch_size: int,
    pad_id: int,
    progress: Progress | None = None,
) -> Beams:
    """The `beam_width` best SIDs after each prompt.

    With `beam_width` equal to the number of SIDs the search is exhaustive. Equal scores are ordered by SID.

    Args:
        model: a causal LM with `sdpa` or `eager` attention.
        prompts: R lists of token ids, each not empty.
        index: the legal SIDs.
        beam_width: B, beams kept per prompt and length of its list.
        batch_size: prompts per forward pass (each carries `beam_width` beams).
        pad_id: any token id; padding is masked.
        progress: told how many prompts are done.

    Raises:
        SidrError: fewer SIDs than `beam_width` (lists must be full), or the model's scores are not numbers.
    """
    if not 1 <= beam_width <= len(index):
        raise SidrError(
            "the beam cannot be filled",
            expected=f"a beam width of 1 to {len(index)}, the number of distinct SIDs",
            found=f"beam width {beam_width}",
            do="lower decoding.beam_width, or let more items through the filters",
        )
    leaf = np.zeros((len(prompts), beam_width), dtype=np.int64)
    scores = np.zeros((len(prompts), beam_width), dtype=np.float32)
    trie = _Trie(index, model.device)
    done = 0
    with decoding(model):
        for rows in batches(prompts, batch_size):
            nodes, values = _search(model, [prompts[row] for row in rows], trie, beam_width, pad_id)
            leaf[rows], scores[rows] = nodes.cpu().numpy(), values.cpu().numpy()
            done += len(rows)
            if progress:
                progress.tick(done, len(prompts), "prompts ranked")
    return Beams(leaf, scores)


class _Trie:
    """The index as tensors on the model's device."""

    def __init__(self, index: SidIndex, device: torch.device) -> None:
        self.starts = [torch.from_numpy(array).to(device) for array in index.starts]
        self.tokens = [torch.from_numpy(array).to(device) for array in index.token_ids]


def _search(
    model: PreTrainedModel, prompts: list[Sequence[int]], trie: _Trie, width: int, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search one batch of R prompts. Returns leaves and scores, (R, B), best first."""
    ids, mask, positions = left_pad(prompts, pad_id, model.device)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=ids.device)
    scores = torch.zeros(len(prompts), 1, device=ids.device)
    # (R, W, P): which of the P beam slots in the cache each beam descends from.
    lineage = torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=ids.device)
    for level in range(len(trie.starts)):
        if level:
            own = torch.eye(nodes.shape[1], dtype=torch.bool, device=ids.device).expand(len(prompts), -1, -1)
            lineage = torch.cat([lineage, own], dim=2)
            output = model(
                input_ids=trie.tokens[level - 1][nodes],
                attention_mask=_tree_mask(model, mask, lineage),
                position_ids=positions[:, -1:].expand_as(nodes) + level,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        nodes, scores, parents = _extend(output.logits, nodes, scores, trie, level, width)
        lineage = lineage.take_along_dim(parents[..., None], dim=1)
    if not bool(torch.isfinite(scores).all()):
        raise SidrError(
            "the model gave scores that are not numbers",
            expected="finite log-probabilities",
            found="nan or infinity",
            do="check the checkpoint's training (its loss, its learning rate) and train it again",
        )
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    return nodes.gather(1, order), scores.gather(1, order)


def _extend(
    logits: torch.Tensor, nodes: torch.Tensor, scores: torch.Tensor, trie: _Trie, level: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Go one level down from W beams per row; logits (R, W, V), nodes and scores (R, W).

    Returns the kept nodes, their scores and the beams they descend from, each (R, W'). Every node of a
    level has a child, so W' = min(B, nodes of the level) can always be filled. Nodes stay in ascending
    order and the sort is stable, so equal scores are settled by SID.
    """
    first, last = trie.starts[level][nodes], trie.starts[level][nodes + 1]
    offset = torch.arange(int((last - first).max()), device=nodes.device)
    child = first[..., None] + offset
    legal = child < last[..., None]
    child = torch.where(legal, child, 0)
    logits = logits.float()
    log_prob = logits.gather(2, trie.tokens[level][child]) - logits.logsumexp(dim=2, keepdim=True)
    total = torch.where(legal, scores[..., None] + log_prob, -torch.inf).flatten(1)
    keep = min(width, len(trie.tokens[level]))
    best = torch.argsort(total, dim=1, descending=True, stable=True)[:, :keep].sort(dim=1).values
    return child.flatten(1).gather(1, best), total.gather(1, best), best // len(offset)


def _tree_mask(model: PreTrainedModel, prompt: torch.Tensor, lineage: torch.Tensor) -> torch.Tensor:
    """Who sees whom: prompt mask (R, T) and lineage (R, W, P) give (R, 1, W, T + P), as `model` wants it."""
    rows, width, _ = lineage.shape
    seen = torch.cat([prompt.bool()[:, None].expand(rows, width, -1), lineage], dim=2)[:, None]
    if model.config._attn_implementation == "sdpa":
        return seen
    # Eager attention adds its mask to the scores.
    blocked = torch.full_like(seen, torch.finfo(model.dtype).min, dtype=model.dtype)
    return blocked.masked_fill(seen, 0)
