"""Rollouts of GRPO: what the model writes, and the place of the target in the list that follows.

`free`: the model may write anything up to the end of its turn, as in the paper; what is no SID earns nothing.
`constrained`: the thought is free, then one SID is drawn from the constrained beam that follows it, in proportion to
the probabilities; so every rollout with a closed thought names an item, and the place of the target in that beam is
known. Tokens that the model did not choose (the gap after the closing tag, the end of the turn) carry no gradient.

Shapes: R prompts, S shards, B the width of the beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sidr_core.decoding.decoder import Decoder
from sidr_core.decoding.thinking import generate_tokens, thought_of
from sidr_core.tables import columns as c

if TYPE_CHECKING:
    from sidr_core.settings import Grpo
    from sidr_core.sids.index import SidIndex

#: Width of the beam that a constrained rollout draws from.
BEAM = 20
_BATCH = 256

#: (n, S): the n-th of S equal parts of a batch.
Shard = tuple[int, int]


@dataclass(frozen=True)
class Rollout:
    """One completion of a prompt.

    Args:
        ids: its tokens.
        chosen: 1 for each token that the model chose itself, else 0.
        place: see `rewards.Completion`.
        closed: whether the model closed its thought.
        thought_tokens: length of the thought.
    """

    ids: list[int]
    chosen: list[int]
    place: int | None
    closed: bool
    thought_tokens: int


def roll_out(
    model: Any,
    users: Sequence[str],
    targets: Sequence[int],
    renderer: Any,
    index: SidIndex,
    settings: Grpo,
    seed: int,
    shard: Shard = (0, 1),
) -> list[Rollout]:
    """One rollout per user turn.

    Args:
        users: R user turns; a group is one turn repeated.
        targets: row number of the target's SID in `index`, per turn.
        seed: of the sampling; the same seed gives the same rollouts.
        shard: the shard of this process, as in :func:`generate_tokens`: the shards of all processes together hold
            the rollouts that a single process would write.
    """
    prompts = [renderer.prompt(user, settings.mode) for user in users]
    ends = (renderer.eos_id, renderer.pad_id)
    sampling: dict[str, Any] = {"temperature": settings.temperature, "seed": seed, "shard": shard}
    sampling |= {"pad_id": renderer.pad_id, "batch_size": _BATCH}
    if settings.rollouts != "constrained":
        written = generate_tokens(model, prompts, stops=ends, max_tokens=longest(renderer, index, settings), **sampling)
        return rollouts_of(written, renderer, settings)
    heads = [Rollout([], [], None, True, 0) for _ in prompts]  # what precedes the answer
    if settings.mode == c.THINKING:
        stops = (renderer.think_close_id, *ends)
        written = generate_tokens(model, prompts, stops=stops, max_tokens=settings.max_thought_tokens, **sampling)
        heads = [_thought(ids, renderer) for ids in written]
    closed = [n for n, head in enumerate(heads) if head.closed]
    # Gumbel noise (S, R, B) and the maximum: a draw in proportion to exp(score / temperature).
    number, shards = shard
    noise = np.random.default_rng([seed, 1]).gumbel(size=(shards, len(prompts), min(BEAM, len(index))))
    answered = [prompts[n] + heads[n].ids for n in closed]
    rollouts = list(heads)
    for n, (leaf, beam) in zip(
        closed, _drawn(model, answered, noise[number, closed], renderer, index, settings), strict=True
    ):
        at = np.flatnonzero(beam == targets[n])
        rollouts[n] = Rollout(
            heads[n].ids + index.path(leaf) + [renderer.eos_id],
            heads[n].chosen + [1] * index.levels + [0],
            int(at[0]) if len(at) else None,
            True,
            heads[n].thought_tokens,
        )
    return rollouts


def longest(renderer: Any, index: SidIndex, settings: Grpo) -> int:
    """Tokens of the longest rollout: thought, closing tag, answer, end of turn, and a few for what is no answer."""
    return settings.max_thought_tokens * (settings.mode == c.THINKING) + len(renderer.close_ids) + index.levels + 5


def rollouts_of(completions: Sequence[list[int]], renderer: Any, settings: Grpo) -> list[Rollout]:
    """Free completions of the prompts as rollouts."""
    thinking, close = settings.mode == c.THINKING, renderer.think_close_id
    rollouts = []
    for ids in completions:
        closed = not thinking or close in ids
        length = (ids.index(close) if close in ids else len(ids)) if thinking else 0
        rollouts.append(Rollout(ids, [1] * len(ids), None, closed, length))
    return rollouts


def _thought(ids: list[int], renderer: Any) -> Rollout:
    """A written thought with its closing tag, rendered as it is when a user is served."""
    thought = thought_of(ids, renderer)
    if not thought.closed:
        return Rollout(ids, [1] * len(ids), None, False, len(thought.ids))
    tag = renderer.close_ids.index(renderer.think_close_id) + 1
    newline = renderer.close_ids[: tag - 1]
    wrote_newline = list(ids[-tag:-1]) == list(newline)  # else it is added, and carries no gradient
    marks = [int(wrote_newline)] * (tag - 1) + [1] + [0] * (len(renderer.close_ids) - tag)
    chosen = [1] * len(thought.ids) + marks
    return Rollout([*thought.ids, *renderer.close_ids], chosen, None, True, len(thought.ids))


def _drawn(
    model: Any, prompts: list[list[int]], noise: np.ndarray, renderer: Any, index: SidIndex, settings: Grpo
) -> list[tuple[int, np.ndarray]]:
    """A leaf drawn by `noise` (R, B) from the beam of each of R prompts, and the beam's leaves (B,), best first."""
    if not prompts:
        return []
    beams = Decoder(model, renderer, index, beam_width=noise.shape[1], batch_size=_BATCH).rank(prompts)
    drawn = (beams.scores / settings.temperature + noise).argmax(axis=1)  # (R,)
    return [(int(beam[place]), beam) for beam, place in zip(beams.leaf, drawn, strict=True)]
