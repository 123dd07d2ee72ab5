"""Beam search over the SID index: it can return real SIDs only, and each once.

With exact scoring the score of a SID is the sum of the log-probabilities of its L tokens under the full
vocabulary, not renormalised over the legal children; neither a separator nor an end token is in it. That
ranks as the paper's search does (Hugging Face masks after the log-softmax) less its newline and end-of-turn
terms, which its first stage never trained. Sliced scoring normalises over the SID tokens of the level
instead, so only these rows of the head are multiplied.

A row may have several contexts (the same question without and after thoughts). Its search runs on their mixture: a
prefix is worth log Σ w_n p_n over the contexts with a weight w_n above 0, plus w_n log p_n for each with one below 0,
which takes away what that context alone suggests. Without weights it is worth the log of its mean probability.

A filter marks the SIDs that may be listed. The search walks only nodes above an allowed one, so a list is as long as
the filter lets it be, and a full beam is the unfiltered ranking without the others.

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
    """Ranked SIDs per row, best first. R rows of N contexts each, beam width B.

    Attributes:
        leaf: (R, B) int64, row numbers into `SidIndex.sids`, distinct within a row; -1 behind the last allowed SID.
        scores: (R, B) float32, natural log-probability of the whole SID, with N contexts that of their mixture; -inf
            where `leaf` is -1.
        by_context: (R, N, B) float32, the log-probability after each context alone; None where N = 1.
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
    weights: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Beams:
    """The `beam_width` best SIDs of each row.

    With `beam_width` equal to the number of SIDs the search is exhaustive. Equal scores are ordered by SID.
    Equal rows are searched once.

    Args:
        model: a causal LM with `sdpa` or `eager` attention.
        prompts: R x N lists of token ids, each not empty; the N contexts of a row stand together.
        index: the legal SIDs.
        beam_width: B, beams kept per prompt and length of its list.
        batch_size: contexts per forward pass (each carries `beam_width` beams), rounded to whole rows.
        pad_id: any token id; padding is masked.
        scoring: `exact`, or `sliced`: each level normalised over its own SID tokens.
        contexts: N, contexts per row.
        weights: (N,) or (R, N) of the contexts, some above 0 in each row; 0 leaves a context out. None: their mean.
        allowed: (S,) or (R, S) bool, the SIDs that may be listed; a row with fewer than B lists them all.
        progress: counts the different rows that are done.

    Raises:
        SidrError: fewer SIDs than `beam_width`, a row in which no SID is allowed, or scores that are not numbers.
    """
    if not 1 <= beam_width <= len(index):
        raise SidrError(
            "the beam cannot be filled",
            expected=f"a beam width of 1 to {len(index)}, the number of distinct SIDs",
            found=f"beam width {beam_width}",
            fix="lower decoding.beam_width, or let more items through the filters",
        )
    token_ids = [tuple(prompt) for prompt in prompts]
    groups = [tuple(token_ids[n : n + contexts]) for n in range(0, len(token_ids), contexts)]
    weights, allowed = _weights(weights, len(groups), contexts), _filter(allowed, len(groups), len(index))
    options = [option for option in (weights, allowed) if option is not None and len(option) > 1]
    group_of = distinct([(group, *(option[n].tobytes() for option in options)) for n, group in enumerate(groups)])[1]
    first = np.unique(group_of, return_index=True)[1]  # (G,) rows that differ
    groups = [groups[row] for row in first]
    weights, allowed = (
        option[first] if option is not None and len(option) > 1 else option for option in (weights, allowed)
    )
    leaf = np.full((len(groups), beam_width), -1, dtype=np.int64)
    scores = np.full((len(groups), beam_width), -np.inf, dtype=np.float32)
    apart = np.full((len(groups), contexts, beam_width), -np.inf, dtype=np.float32)
    trie = _trie(index, model.device)
    longest = [max(group, key=len) for group in groups]
    _refuse_unfit(model, max(map(len, longest), default=0) + beam_width * (index.levels - 1))
    done = 0
    with decoding(model):
        head = None
        for rows in batches(longest, max(1, batch_size // contexts)):
            head = head or head_of(model, longest[rows[0]], sliced=scoring == "sliced")
            search = Search(
                trie,
                beam_width,
                contexts,
                None if weights is None else torch.from_numpy(_of_rows(weights, rows)).to(model.device),
                None if allowed is None else allowed_nodes(index, _of_rows(allowed, rows), model.device),
            )
            tensors = _search(head, [context for row in rows for context in groups[row]], search, pad_id)
            ranked, pooled, each = (tensor.cpu().numpy() for tensor in tensors)
            width = ranked.shape[1]
            leaf[rows, :width], scores[rows, :width], apart[rows, :, :width] = ranked, pooled, each
            done += len(rows)
            if progress:
                progress.tick(done, len(groups), "prompts ranked")
    apart[np.broadcast_to(leaf[:, None] < 0, apart.shape)] = -np.inf
    return Beams(leaf[group_of], scores[group_of], apart[group_of] if contexts > 1 else None)


def _weights(weights: np.ndarray | None, rows: int, contexts: int) -> np.ndarray | None:
    """Weights as (R, N), or (1, N) for all rows alike."""
    if weights is None:
        return None
    each = np.atleast_2d(np.asarray(weights, dtype=np.float32))
    if each.shape not in ((1, contexts), (rows, contexts)):
        raise ValueError(f"weights of shape {each.shape} do not fit {rows} rows of {contexts} contexts")
    if not np.isfinite(each).all() or not (each > 0).any(axis=1).all():
        raise ValueError(f"weights are finite, and one of a row is above 0, unlike {each.tolist()}")
    return each


def _filter(allowed: np.ndarray | None, rows: int, leaves: int) -> np.ndarray | None:
    """A filter as (R, S), or (1, S) for all rows alike."""
    if allowed is None:
        return None
    each = np.atleast_2d(np.asarray(allowed, dtype=bool))
    if each.shape not in ((1, leaves), (rows, leaves)):
        raise ValueError(f"a filter of shape {each.shape} does not fit {rows} rows of {leaves} SIDs")
    if not each.any(axis=1).all():
        raise SidrError(
            "the filter leaves nothing to list",
            expected="at least one allowed SID per row",
            found=f"none in row {int(np.flatnonzero(~each.any(axis=1))[0])}",
            fix="let more items through the filter",
        )
    return each


def _of_rows(options: np.ndarray, rows: list[int]) -> np.ndarray:
    return options[rows] if len(options) > 1 else options


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


@dataclass(frozen=True, eq=False)
class Search:
    """What a step of the search needs besides the model. R rows of N contexts.

    Attributes:
        trie: the index.
        width: B, beams per row.
        contexts: N.
        weights: (R, N) or (1, N) of the contexts; None: their mean.
        allowed: per level, (R, nodes) or (1, nodes) bool: nodes above an allowed SID; None: all.
    """

    trie: Trie
    width: int
    contexts: int = 1
    weights: torch.Tensor | None = None
    allowed: list[torch.Tensor] | None = None


def allowed_nodes(index: SidIndex, leaves: np.ndarray, device: torch.device) -> list[torch.Tensor]:
    """The nodes of each level, without the root, that lie above an allowed leaf of (R, S)."""
    masks = [leaves]
    for level in range(index.levels - 1, 0, -1):
        masks.append(np.logical_or.reduceat(masks[-1], index.starts[level][:-1], axis=1))
    return [torch.from_numpy(mask).to(device) for mask in masks[::-1]]


def _search(
    head: Head, prompts: list[tuple[int, ...]], search: Search, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Search R rows of N contexts: leaves, best first, and scores (R, B'), and scores per context (R, N, B')."""
    model, trie, contexts = head.model, search.trie, search.contexts
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
                input_ids=trie.tokens[level - 1][nodes.clamp(min=0)],
                attention_mask=_tree_mask(model, mask, lineage),
                position_ids=last.expand_as(nodes) + level,
                past_key_values=output.past_key_values,
            )
            states = head.states(output)
        log_probs = head.log_probs(states, trie.levels[level])  # (R N, W, K)
        nodes, scores, parents = extend(log_probs, nodes, scores, search, level)
        lineage = lineage.take_along_dim(parents[..., None], dim=1)
    leaves = nodes[::contexts]
    pooled = torch.where(leaves < 0, -torch.inf, _pooled(scores, search))
    order = torch.argsort(pooled, dim=1, descending=True, stable=True)  # (R, B')
    ranked = scores.unflatten(0, (-1, contexts)).take_along_dim(order[:, None], dim=2)
    return leaves.gather(1, order), pooled.gather(1, order), ranked


def extend(
    log_probs: torch.Tensor, nodes: torch.Tensor, scores: torch.Tensor, search: Search, level: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Go one level down from W beams per row; log_probs (R N, W, K) of the level's K tokens, nodes, scores (R N, W).

    Returns the kept nodes, their scores and the beams they descend from, each (R N, W'). Every node of a level has a
    child, so W' = min(B, nodes of the level) can always be filled. With a filter W' is what the row with most allowed
    nodes can fill; the others' dead beams have the node -1. Nodes stay in ascending order, and of equal scores the
    first are kept, so ties are settled by SID.
    """
    trie, contexts = search.trie, search.contexts
    # R rows of N contexts, W beams, F children of the node that has most
    parent = nodes.clamp(min=0)
    first, last = trie.starts[level][parent], trie.starts[level][parent + 1]  # (R N, W)
    offset = torch.arange(int((last - first).max()), device=nodes.device)  # (F,)
    child = first[..., None] + offset  # (R N, W, F)
    legal = child < last[..., None]
    child = torch.where(legal, child, 0)
    keep = min(search.width, len(trie.tokens[level]))
    if search.allowed is not None:
        allowed = search.allowed[level]
        row = torch.arange(len(nodes), device=nodes.device) // contexts % len(allowed)  # (R N,)
        legal = legal & (nodes >= 0)[..., None] & allowed[row[:, None, None], child]
        keep = min(search.width, int(allowed.sum(dim=1).max()))
    total = (scores[..., None] + log_probs.gather(2, trie.slot[level][child])).flatten(1)  # (R N, W F)
    legal = legal.flatten(1)
    pooled = torch.where(legal[::contexts], _pooled(total, search), -torch.inf)  # (R, W F)
    best = _best(pooled, legal[::contexts], keep).repeat_interleave(contexts, dim=0)  # (R N, W')
    children = torch.where(legal.gather(1, best), child.flatten(1).gather(1, best), -1)
    return children, total.gather(1, best), best // len(offset)


def _best(total: torch.Tensor, legal: torch.Tensor, keep: int) -> torch.Tensor:
    """Positions (R, keep) of the best of `total` (R, C), ascending; the first of equal ones.

    A row with fewer legal positions is filled up with others.
    """
    least = total.topk(keep, dim=1).values[:, -1:]
    legal_count = legal.sum(dim=1, keepdim=True)
    missing = (total > -torch.inf).sum(dim=1, keepdim=True) < legal_count.clamp(max=keep)
    if bool((total.isnan() | total.isposinf()).any() | missing.any()):
        raise SidrError(
            "the model gave scores that are not numbers",
            expected="finite log-probabilities",
            found="nan or infinity",
            fix="check the checkpoint's training (its loss, its learning rate) and train it again",
        )
    above, equal = total > least, (total == least) & (legal | (legal_count < keep))
    chosen = above | (equal & (equal.cumsum(dim=1) <= keep - above.sum(dim=1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(-1, keep)


def _pooled(scores: torch.Tensor, search: Search) -> torch.Tensor:
    """What scores (R N, C) per context are worth together, (R, C): see the head of this module."""
    if search.weights is None and search.contexts == 1:
        return scores
    apart = scores.unflatten(0, (-1, search.contexts))  # (R, N, C)
    if search.weights is None:
        return apart.logsumexp(dim=1) - math.log(search.contexts)
    weights = search.weights[..., None]  # (R | 1, N, 1)
    against = torch.where(weights < 0, weights * apart, 0).sum(dim=1)
    return (apart + weights.clamp(min=0).log()).logsumexp(dim=1) + against


def _tree_mask(model: PreTrainedModel, prompt: torch.Tensor, lineage: torch.Tensor) -> torch.Tensor:
    """Who sees whom: prompt mask (R, T) and lineage (R, W, P) give (R, 1, W, T + P), as `model` wants it."""
    rows, width, _ = lineage.shape
    visible = torch.cat([prompt.bool()[:, None].expand(rows, width, -1), lineage], dim=2)[:, None]
    if model.config._attn_implementation == "sdpa":
        return visible
    # Eager attention adds its mask to the scores.
    blocked = torch.full_like(visible, torch.finfo(model.dtype).min, dtype=model.dtype)
    return blocked.masked_fill(visible, 0)
