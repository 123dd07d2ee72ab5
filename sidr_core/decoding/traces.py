"""Several thoughts per prompt: their SID distributions are averaged, and one list comes out.

The list ranks by the mean over N sampled thoughts of the SID's probability after each. The beam runs on that mean
itself (`constrained_beam(contexts=N)`), not once per thought: a prefix is kept by its mean probability, so every
SID of the list has its exact mean, and none has to be scored again because another thought's beam lost it.

Deviation from the paper: its Best-of-N lets the true item choose the thought, an upper bound that no service can
reach. :func:`best_of_traces` is that bound, and no list of a model comes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sidr_core.decoding.beam import Beams, constrained_beam
from sidr_core.decoding.thinking import Thought, generate_thoughts

if TYPE_CHECKING:
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Decoding


@dataclass(frozen=True, eq=False)
class Traced:
    """Lists after thoughts. R prompts, N thoughts each.

    Attributes:
        beams: the lists.
        thoughts: R times N thoughts; first the one that gives the list's first SID the most probability.
    """

    beams: Beams
    thoughts: list[list[Thought]]


def think_and_rank(
    loaded: Loaded, prompts: Sequence[list[int]], decoding: Decoding, progress: Progress | None = None
) -> Traced:
    """Think after each prompt, then rank by the mean over the thoughts.

    One thought is greedy; more (`decoding.traces`) are sampled at `decoding.trace_temperature` with the seed of
    the checkpoint. A thought cut at `max_thought_tokens` is closed by force and told apart.

    Args:
        loaded: the checkpoint.
        prompts: R lists of token ids that end in an opened think block.
        decoding: widths, caps, batch size, traces and scoring.
        progress: told how many thoughts are written, then how many prompts are ranked.
    """
    traces = decoding.traces
    flat = generate_thoughts(
        loaded.model,
        [prompt for prompt in prompts for _ in range(traces)],
        max_tokens=decoding.max_thought_tokens,
        batch_size=decoding.batch_size,
        renderer=loaded.renderer,
        temperature=decoding.trace_temperature if traces > 1 else 0.0,
        seed=loaded.meta["seed"],
        progress=progress,
    )
    thoughts = [flat[first : first + traces] for first in range(0, len(flat), traces)]
    beams = constrained_beam(
        loaded.model,
        _contexts(loaded, prompts, thoughts),
        loaded.index,
        beam_width=decoding.beam_width,
        batch_size=decoding.batch_size,
        pad_id=loaded.renderer.pad_id,
        scoring=decoding.scoring,
        contexts=traces,
        progress=progress,
    )
    if beams.by_context is not None:
        support = np.argsort(-beams.by_context[:, :, 0], axis=1, kind="stable")
        thoughts = [[row[n] for n in order] for row, order in zip(thoughts, support.tolist(), strict=True)]
    return Traced(beams, thoughts)


def best_of_traces(
    loaded: Loaded, prompts: Sequence[list[int]], traced: Traced, targets: Sequence[int], decoding: Decoding
) -> np.ndarray:
    """Oracle: the best place of the target among the lists after each thought alone. A diagnostic, not a method.

    Args:
        traced: of :func:`think_and_rank` on the same prompts.
        targets: (R,) row numbers of the true SIDs in `loaded.index`.

    Returns:
        (R,) places from 0; `beam_width` where the target is in none of the N lists.
    """
    beams = constrained_beam(
        loaded.model,
        _contexts(loaded, prompts, traced.thoughts),
        loaded.index,
        beam_width=decoding.beam_width,
        batch_size=decoding.batch_size,
        pad_id=loaded.renderer.pad_id,
        scoring=decoding.scoring,
    )
    return best_places(beams.leaf.reshape(len(prompts), -1, decoding.beam_width), targets)


def best_places(lists: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """The first place (R,) of each target in any of its N lists (R, N, B); B where it is in none."""
    hit = (lists == np.asarray(targets)[:, None, None]).any(axis=1)
    return np.where(hit.any(axis=1), hit.argmax(axis=1), lists.shape[2])


def _contexts(loaded: Loaded, prompts: Sequence[list[int]], thoughts: list[list[Thought]]) -> list[list[int]]:
    """Each prompt with each of its thoughts and the closing tag: where the answer begins."""
    close = loaded.renderer.close_ids
    return [[*prompt, *thought.ids, *close] for prompt, row in zip(prompts, thoughts, strict=True) for thought in row]
