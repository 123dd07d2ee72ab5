"""One way from user turns to ranked SIDs: think where the mode asks for it, then rank.

Every list of a checkpoint is made by a :class:`Decoder`: those of `recommendations`, of the command line, of the
choice among checkpoints, and the beams that rollouts draw from.

With N thoughts per row the list ranks by the mean over the thoughts of the SID's probability after each. The beam
runs on that mean itself (`contexts=N`), not once per thought: a prefix is kept by its mean probability, so every SID
of the list has its exact mean, and none has to be scored again because another thought's beam lost it.

Deviation from the paper: its Best-of-N lets the true item choose the thought, an upper bound that no service can
reach. :meth:`Decoder.best_of_traces` is that bound, and no list of a model comes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sidr_core.decoding.beam import Beams, constrained_beam
from sidr_core.decoding.thinking import Thought, generate_thoughts
from sidr_core.tables.columns import DIRECT, THINKING

if TYPE_CHECKING:
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.models.prompt import PromptRenderer
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Decoding
    from sidr_core.sids.index import SidIndex


@dataclass(frozen=True, eq=False)
class Ranked:
    """Lists after thoughts. R rows, N thoughts each.

    Attributes:
        beams: the lists.
        thoughts: R times N thoughts; the first gives the list's first SID the most probability.
    """

    beams: Beams
    thoughts: list[list[Thought]]


@dataclass(frozen=True, eq=False)
class Decoder:
    """A model with all that decides its lists.

    Attributes:
        model: a causal LM, plain or wrapped by an adapter.
        renderer: of the model's tokenizer.
        index: the SIDs that can be recommended.
        beam_width: B, distinct SIDs per list.
        batch_size: prompts per forward pass.
        scoring: `exact` or `sliced`, see :func:`~sidr_core.decoding.beam.constrained_beam`.
        max_thought_tokens: cap on a thought, its closing tag included; a longer one is closed by force.
        traces: N, thoughts per row. One is greedy; more are sampled at `trace_temperature` by `seed`.
    """

    model: Any
    renderer: PromptRenderer
    index: SidIndex
    beam_width: int
    batch_size: int
    scoring: Literal["exact", "sliced"] = "exact"
    max_thought_tokens: int = 0
    traces: int = 1
    trace_temperature: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, loaded: Loaded, settings: Decoding) -> Decoder:
        """The decoder of a checkpoint as the profile's `decoding` asks for it."""
        return cls(
            loaded.model,
            loaded.renderer,
            loaded.index,
            settings.beam_width,
            settings.batch_size,
            settings.scoring,
            settings.max_thought_tokens,
            settings.traces,
            settings.trace_temperature,
            loaded.meta["seed"],
        )

    def rank(self, prompts: Sequence[Sequence[int]], contexts: int = 1, progress: Progress | None = None) -> Beams:
        """The best SIDs after R prompts of `contexts` lists of token ids each."""
        return constrained_beam(
            self.model,
            prompts,
            self.index,
            beam_width=self.beam_width,
            batch_size=self.batch_size,
            pad_id=self.renderer.pad_id,
            scoring=self.scoring,
            contexts=contexts,
            progress=progress,
        )

    def rank_directly(self, turns: Sequence[str], progress: Progress | None = None) -> Beams:
        """The best SIDs after R user turns, without a thought."""
        return self.rank([self.renderer.prompt(turn, DIRECT) for turn in turns], progress=progress)

    def think_and_rank(self, turns: Sequence[str], progress: Progress | None = None) -> Ranked:
        """Think after each of R user turns, then rank by the mean over the thoughts.

        Progress counts the thoughts written, then the prompts ranked.
        """
        prompts = [self.renderer.prompt(turn, THINKING) for turn in turns]
        written = generate_thoughts(
            self.model,
            [prompt for prompt in prompts for _ in range(self.traces)],
            max_tokens=self.max_thought_tokens,
            batch_size=self.batch_size,
            renderer=self.renderer,
            temperature=self.trace_temperature if self.traces > 1 else 0.0,
            seed=self.seed,
            progress=progress,
        )
        thoughts = [written[first : first + self.traces] for first in range(0, len(written), self.traces)]
        beams = self.rank(self.prompts_after(turns, thoughts), self.traces, progress)
        if beams.by_context is not None:
            support = np.argsort(-beams.by_context[:, :, 0], axis=1, kind="stable")
            thoughts = [[row[n] for n in order] for row, order in zip(thoughts, support.tolist(), strict=True)]
        return Ranked(beams, thoughts)

    def best_of_traces(self, turns: Sequence[str], ranked: Ranked, targets: Sequence[int]) -> np.ndarray:
        """Oracle: the best position of the target among the lists after each thought alone. Not a method.

        Args:
            turns: R user turns.
            ranked: what :meth:`think_and_rank` gave for them.
            targets: (R,) row numbers of the true SIDs in the index.

        Returns:
            (R,) positions from 0; `beam_width` where the target is in none of the N lists.
        """
        beams = self.rank(self.prompts_after(turns, ranked.thoughts))
        return best_positions(beams.leaf.reshape(len(turns), -1, self.beam_width), targets)

    def prompts_after(self, turns: Sequence[str], thoughts: Sequence[Sequence[Thought]]) -> list[list[int]]:
        """R N prompts that end where the answer begins: the turn, one of its N thoughts, the closing tag."""
        return [
            [*self.renderer.prompt(turn, THINKING), *thought.ids, *self.renderer.close_ids]
            for turn, row in zip(turns, thoughts, strict=True)
            for thought in row
        ]


def best_positions(lists: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """The first position (R,) of each target in any of its N lists (R, N, B); B where it is in none."""
    hit = (lists == np.asarray(targets)[:, None, None]).any(axis=1)
    return np.where(hit.any(axis=1), hit.argmax(axis=1), lists.shape[2])
