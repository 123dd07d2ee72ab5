"""One way from user turns to ranked SIDs: think where the mode asks for it, then rank.

Every list of a checkpoint is made by a :class:`Decoder`: those of `recommendations`, of the command line, of the
choice among checkpoints, and the beams that rollouts draw from.

A list may rest on several contexts of its row: the direct prompt, and the prompt after each of N thoughts. It ranks by
the weighted mean over the contexts of the SID's probability after each. The beam runs on that mean itself, not once
per context: a prefix is kept by its mean probability, so every SID of the list has its exact mean, and none has to be
scored again because another context's beam lost it.

Deviation from the paper: its Best-of-N lets the true item choose the thought, an upper bound that no service can
reach. :meth:`Decoder.best_of_traces` is that bound, and no list of a model comes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sidr_core.corpus.prompts import next_item
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
        beams: the lists; `by_context` has the contexts in the order asked for, the thoughts in the order written.
        thoughts: R times N thoughts; the first gives the list's first SID the most probability.
    """

    beams: Beams
    thoughts: list[list[Thought]]


#: The contexts that a list can rest on: the prompt without a thought; the prompt and a thought; the thought after an
#: empty history, which says what it suggests by itself (with a weight below 0 that is taken away).
PRIOR = "prior"
CONTEXTS = (DIRECT, THINKING, PRIOR)


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
        """The decoder of a checkpoint as the profile's `decoding` asks for it.

        Where the catalogue has fewer SIDs than `decoding.beam_width`, lists hold all of them.
        """
        return cls(
            loaded.model,
            loaded.renderer,
            loaded.index,
            min(settings.beam_width, len(loaded.index)),
            settings.batch_size,
            settings.scoring,
            settings.max_thought_tokens,
            settings.traces,
            settings.trace_temperature,
            loaded.meta["seed"],
        )

    def rank(
        self,
        prompts: Sequence[Sequence[int]],
        contexts: int = 1,
        weights: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Beams:
        """The best SIDs of R rows of `contexts` prompts each, by :func:`~sidr_core.decoding.beam.constrained_beam`."""
        return constrained_beam(
            self.model,
            prompts,
            self.index,
            beam_width=self.beam_width,
            batch_size=self.batch_size,
            pad_id=self.renderer.pad_id,
            scoring=self.scoring,
            contexts=contexts,
            weights=weights,
            allowed=allowed,
            progress=progress,
        )

    def rank_directly(
        self, turns: Sequence[str], allowed: np.ndarray | None = None, progress: Progress | None = None
    ) -> Beams:
        """The best SIDs after R user turns, without a thought."""
        return self.rank([self.renderer.prompt(turn, DIRECT) for turn in turns], allowed=allowed, progress=progress)

    def think_and_rank(
        self,
        turns: Sequence[str],
        contexts: Sequence[str] = (THINKING,),
        weights: Sequence[float] | None = None,
        allowed: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Ranked:
        """Think after each of R user turns, then rank. Progress counts the thoughts written, then the rows ranked.

        The arguments are those of :meth:`rank_after`.
        """
        thoughts = self.think(turns, progress)
        return self.rank_after(turns, thoughts, contexts, weights, allowed=allowed, progress=progress)

    def think(self, turns: Sequence[str], progress: Progress | None = None) -> list[list[Thought]]:
        """N thoughts after each of R user turns; one that is cut at the cap is marked as not closed."""
        written = generate_thoughts(
            self.model,
            [prompt for turn in turns for prompt in [self.renderer.prompt(turn, THINKING)] * self.traces],
            max_tokens=self.max_thought_tokens,
            batch_size=self.batch_size,
            renderer=self.renderer,
            temperature=self.trace_temperature if self.traces > 1 else 0.0,
            seed=self.seed,
            progress=progress,
        )
        return [written[first : first + self.traces] for first in range(0, len(written), self.traces)]

    def rank_after(
        self,
        turns: Sequence[str],
        thoughts: Sequence[Sequence[Thought]],
        contexts: Sequence[str] = (THINKING,),
        weights: Sequence[float] | None = None,
        shares: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Ranked:
        """Rank by the mixture of several contexts of each row, given its thoughts.

        `contexts=("direct", "thinking")` merges the direct answer with the one after thinking. The thoughts may be any,
        such as one per candidate that a thought names, or another user's.

        Args:
            turns: R user turns.
            thoughts: R times N thoughts.
            contexts: of `CONTEXTS`, each once, `thinking` among them; M prompts of a row in this order.
            weights: one per context, some above 0, shared by the N thoughts of `thinking` and `prior`; default: equal.
            shares: (R, N) of each thought in its row, not below 0, each row with the sum 1; default: equal.
            allowed: (S,) or (R, S) bool, the SIDs that may be listed; default: all.
            progress: counts the rows ranked.
        """
        if THINKING not in contexts or not set(contexts) <= set(CONTEXTS):
            raise ValueError(f"a list after thoughts rests on {THINKING} and others of {CONTEXTS}, not on {contexts}")
        traces = len(thoughts[0]) if thoughts else self.traces
        of_thoughts = np.full((1, traces), 1 / traces) if shares is None else np.asarray(shares)  # (R, N) or (1, N)
        by_kind = [1 / len(contexts)] * len(contexts) if weights is None else weights
        columns = [
            np.full((len(of_thoughts), 1), weight) if kind == DIRECT else weight * of_thoughts
            for kind, weight in zip(contexts, by_kind, strict=True)
        ]
        mixture = np.concatenate(columns, axis=1)  # (R, M) or (1, M)
        blocks = [self._prompts(kind, turns, thoughts) for kind in contexts]
        beams = self.rank(
            [prompt for row in zip(*blocks, strict=True) for prompts in row for prompt in prompts],
            mixture.shape[1],
            None if weights is None and shares is None and len(contexts) == 1 else mixture,
            allowed,
            progress,
        )
        ordered = [list(row) for row in thoughts]
        if beams.by_context is not None:
            first = sum(column.shape[1] for column in columns[: contexts.index(THINKING)])
            support = np.argsort(-beams.by_context[:, first : first + traces, 0], axis=1, kind="stable")  # (R, N)
            ordered = [[row[n] for n in order] for row, order in zip(ordered, support.tolist(), strict=True)]
        return Ranked(beams, ordered)

    def best_of_traces(self, turns: Sequence[str], ranked: Ranked, targets: Sequence[int]) -> np.ndarray:
        """Oracle: the best position of the target among the lists after each thought alone. Not a method.

        Args:
            turns: R user turns.
            ranked: what :meth:`think_and_rank` gave for them.
            targets: (R,) row numbers of the true SIDs in the index.

        Returns:
            (R,) positions from 0; `beam_width` where the target is in none of the N lists.
        """
        prompts = [prompt for row in self.prompts_after(turns, ranked.thoughts) for prompt in row]
        return best_positions(self.rank(prompts).leaf.reshape(len(turns), -1, self.beam_width), targets)

    def _prompts(self, kind: str, turns: Sequence[str], thoughts: Sequence[Sequence[Thought]]) -> list[list[list[int]]]:
        """R rows of the prompts of one kind of context."""
        if kind == DIRECT:
            return [[self.renderer.prompt(turn, DIRECT)] for turn in turns]
        return self.prompts_after(turns if kind == THINKING else [next_item(())] * len(turns), thoughts)

    def prompts_after(self, turns: Sequence[str], thoughts: Sequence[Sequence[Thought]]) -> list[list[list[int]]]:
        """R times N prompts that end where the answer begins: the turn, one of its thoughts, the closing tag."""
        return [
            [[*self.renderer.prompt(turn, THINKING), *thought.ids, *self.renderer.close_ids] for thought in row]
            for turn, row in zip(turns, thoughts, strict=True)
        ]


def best_positions(lists: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """The first position (R,) of each target in any of its N lists (R, N, B); B where it is in none."""
    hit = (lists == np.asarray(targets)[:, None, None]).any(axis=1)
    return np.where(hit.any(axis=1), hit.argmax(axis=1), lists.shape[2])
