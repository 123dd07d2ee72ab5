"""Rollouts of GRPO: what the model writes, and where the target then stands in its list.

`free`: the model may write anything up to the end of its turn, as in the paper; what is no SID earns
nothing. `constrained`: the thought is free, then one SID is drawn from the constrained beam that
follows it, in proportion to the probabilities; so every finished rollout names an item, and the
target's place in that beam is known. Tokens that the model did not choose (the gap after the closing
tag, the end of the turn) carry no gradient.
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

#: (n, N): which of N equal parts of a batch.
Share = tuple[int, int]


@dataclass(frozen=True)
class Written:
    """One rollout. `chosen` marks the tokens that the model chose itself; `place`: see `rewards.Rollout`."""

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
    share: Share = (0, 1),
) -> list[Written]:
    """One rollout per user turn.

    Args:
        users: user turns; a group is one turn repeated.
        targets: row number of the target's SID in `index`, per turn.
        seed: of the sampling; the same seed gives the same rollouts.
        share: of this process, as in :func:`generate_tokens`: a batch that several processes share is written as
            by one.
    """
    prompts = [renderer.prompt(user, settings.mode) for user in users]
    if settings.rollouts == "free":
        return _free(model, prompts, renderer, index, settings, seed, share)
    return _constrained(model, prompts, targets, renderer, index, settings, seed, share)


def _free(
    model: Any,
    prompts: list[list[int]],
    renderer: Any,
    index: SidIndex,
    settings: Grpo,
    seed: int,
    share: Share,
) -> list[Written]:
    written = generate_tokens(
        model,
        prompts,
        stops=(renderer.eos_id, renderer.pad_id),
        pad_id=renderer.pad_id,
        max_tokens=longest(renderer, index, settings),
        batch_size=_BATCH,
        temperature=settings.temperature,
        seed=seed,
        share=share,
    )
    return as_written(written, renderer, settings)


def longest(renderer: Any, index: SidIndex, settings: Grpo) -> int:
    """Tokens of the longest rollout: thought, closing tag, answer, end of turn, and room to go wrong."""
    return settings.max_thought_tokens * (settings.mode == c.THINKING) + len(renderer.close_ids) + index.levels + 5


def as_written(written: Sequence[list[int]], renderer: Any, settings: Grpo) -> list[Written]:
    """Free continuations of the prompts as rollouts."""
    thinking, close = settings.mode == c.THINKING, renderer.think_close_id
    found = []
    for ids in written:
        closed = not thinking or close in ids
        length = (ids.index(close) if close in ids else len(ids)) if thinking else 0
        found.append(Written(ids, [1] * len(ids), None, closed, length))
    return found


def _constrained(
    model: Any,
    prompts: list[list[int]],
    targets: Sequence[int],
    renderer: Any,
    index: SidIndex,
    settings: Grpo,
    seed: int,
    share: Share,
) -> list[Written]:
    heads: list[tuple[list[int], list[int], bool]] = []  # ids and marks up to the answer, and whether it may follow
    lengths = [0] * len(prompts)
    if settings.mode == c.THINKING:
        written = generate_tokens(
            model,
            prompts,
            stops=(renderer.think_close_id, renderer.eos_id, renderer.pad_id),
            pad_id=renderer.pad_id,
            max_tokens=settings.max_thought_tokens,
            batch_size=_BATCH,
            temperature=settings.temperature,
            seed=seed,
            share=share,
        )
        tag = renderer.close_ids.index(renderer.think_close_id) + 1
        newline = renderer.close_ids[: tag - 1]
        for n, ids in enumerate(written):
            thought = thought_of(ids, renderer)
            lengths[n] = len(thought.ids)
            if thought.closed:  # the tag is rendered as it is when a user is served
                wrote = list(ids[-tag:-1]) == list(newline)  # else the newline is ours
                marks = [int(wrote)] * (tag - 1) + [1] + [0] * (len(renderer.close_ids) - tag)
                heads.append(([*thought.ids, *renderer.close_ids], [1] * len(thought.ids) + marks, True))
            else:
                heads.append((ids, [1] * len(ids), False))
    else:
        heads = [([], [], True) for _ in prompts]
    open_rows = [n for n, head in enumerate(heads) if head[2]]
    # Gumbel noise and the highest: a draw in proportion to exp(score / temperature).
    part, parts = share
    noise = np.random.default_rng([seed, 1]).gumbel(size=(parts, len(prompts), min(BEAM, len(index))))
    open_prompts = [prompts[n] + heads[n][0] for n in open_rows]
    answers = _drawn(model, open_prompts, noise[part, open_rows], renderer, index, settings)
    found = [
        Written(ids, chosen, None, closed, length) for (ids, chosen, closed), length in zip(heads, lengths, strict=True)
    ]
    for n, (leaf, places) in zip(open_rows, answers, strict=True):
        ids, chosen, _ = heads[n]
        at = np.flatnonzero(places == targets[n])
        found[n] = Written(
            ids + index.path(leaf) + [renderer.eos_id],
            chosen + [1] * index.levels + [0],
            int(at[0]) if len(at) else None,
            True,
            lengths[n],
        )
    return found


def _drawn(
    model: Any, prompts: list[list[int]], noise: np.ndarray, renderer: Any, index: SidIndex, settings: Grpo
) -> list[tuple[int, np.ndarray]]:
    """A leaf drawn from the beam of each of R prompts by `noise` (R, B), and the beam's leaves (B,), best first."""
    if not prompts:
        return []
    beams = Decoder(model, renderer, index, beam_width=noise.shape[1], batch_size=_BATCH).rank(prompts)
    drawn = (beams.scores / settings.temperature + noise).argmax(axis=1)
    return [(int(row[place]), row) for row, place in zip(beams.leaf, drawn, strict=True)]
