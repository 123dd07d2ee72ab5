"""A release, loaded: it understands a question, decodes many at once, and answers each.

The lists are made by the functions that make `recommendations`, with the settings and the weights of the release, so
for a test row they are the published ones. A filter goes into the beam as a mask over the SIDs; of the items of a
shared SID those that are not allowed are left out at the end, so that the worth of the others is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.corpus.relations import Relations
from sidr_core.decoding.lists import CLOSED, N_TOKENS, Lists
from sidr_core.errors import SidrError
from sidr_core.recommending import merged as merging
from sidr_core.recommending import truth
from sidr_core.recommending.lists import checkpoint_lists
from sidr_core.serving.messages import Answer, Filters, Listed, Mode, Named, Question
from sidr_core.serving.mixer import Mixer, Reach
from sidr_core.serving.reading import read, shared_facts
from sidr_core.serving.release import Release
from sidr_core.serving.shelf import Shelf, refuse_empty
from sidr_core.settings import Decoding
from sidr_core.tables import files as tables
from sidr_core.tables.columns import (
    DIRECT,
    HISTORY,
    ITEM_ID,
    MERGED,
    MIXED,
    RANK,
    REASONING,
    ROW_ID,
    SCORE,
    SID,
    THINKING,
    TRACE,
)  # fmt: skip

if TYPE_CHECKING:
    from sidr_core.models.checkpoint import Loaded


@dataclass(frozen=True, eq=False)
class Ask:
    """A question that was understood by one release, and will be answered by it.

    Attributes:
        history: item ids, oldest first. seen: all that the user had. allowed: (I,) bool, the items that filters let
            through and, where lists do not repeat, the history does not hold; None: all.
        width: distinct SIDs of the beam.
    """

    served: Served
    mode: Mode
    k: int
    width: int
    history: tuple[str, ...]
    seen: frozenset[str]
    allowed: np.ndarray | None

    @property
    def group(self) -> tuple[Any, ...]:
        """What may be decoded together."""
        return self.served, self.mode, self.width


@dataclass(frozen=True)
class Found:
    """What was decoded for one question: (item id, SID, score) in order, and the thought's text, end and length."""

    places: list[tuple[str, str, float]]
    thought: tuple[str, bool, int] | None


@dataclass(frozen=True, eq=False)
class Served:
    """A release with its checkpoint in memory. Make it with :meth:`load`.

    Attributes:
        mixer: makes the mixed lists; None where the release has none.
        decoding: the settings with which the release's lists were made.
        repeats: whether its lists may hold items of the history.
    """

    release: Release
    loaded: Loaded
    shelf: Shelf
    relations: Relations
    mixer: Mixer | None
    decoding: Decoding
    repeats: bool

    @classmethod
    def load(cls, release: Release) -> Served:
        """Read everything that questions need.

        Raises:
            SidrError: a file is damaged.
        """
        from sidr_core.models import checkpoint

        loaded = checkpoint.load(release.checkpoint.verified_folder())
        shelf = Shelf(release, loaded.index)
        train = tables.read(release.outputs["interactions"].path("train.parquet"))
        relations = truth.learned(shelf.catalogue, train)
        mixer = Mixer.of(release, train, shelf.codebook, loaded.index)
        return cls(release, loaded, shelf, relations, mixer, release.decoding, release.repeats)

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.release.names)

    def ask(self, question: Question) -> Ask:
        """Understand a question.

        Raises:
            SidrError: it is unclear or impossible; what is, and how it may be put.
        """
        mode = question.mode or next(mode for mode in (MERGED, THINKING, DIRECT) if mode in self.release.names)
        if mode not in self.release.names:
            raise SidrError(
                f"mode {mode} is not published for {self.release.model} of {self.shelf.where}",
                expected=f"one of {', '.join(self.modes)}",
                found=mode,
                fix=f"ask in another mode, or add {self.release.model}'s {mode} lists to decoding.models",
            )
        if (question.user_id is None) == (question.history is None):
            raise SidrError(
                "it is unclear whose history to use",
                expected="either `user_id` or `history`",
                found="both" if question.user_id is not None else "neither",
                fix="leave one of them out" if question.user_id is not None else "give one of them",
            )
        if question.user_id is not None:
            had = self.shelf.bought(question.user_id)
        else:
            refuse_empty(question.history or [])
            had = self.shelf.known(question.history or [])
        history = tuple(had[-self.shelf.max_history :])
        allowed = self.shelf.allowed(question.filters, had)
        if not self.repeats:
            allowed = self.shelf.without(history, allowed)
        self._refuse_short(question, len(self.shelf) if allowed is None else int(allowed.sum()))
        width = max(question.k, self.decoding.beam_width)
        return Ask(self, mode, question.k, width, history, frozenset(had), allowed)  # type: ignore[arg-type]

    def _refuse_short(self, question: Question, items: int) -> None:
        if question.k > items:
            filtered = question.filters != Filters()
            among = "that the filters let through" if filtered else "there are"
            raise SidrError(
                f"a list of {question.k} cannot be filled",
                expected=f"k of 1 to {items:,}, the items {among}"
                + ("" if self.repeats else "; these lists hold none of the history"),
                found=f"k = {question.k}" if items else f"no item {among}",
                fix="ask for fewer items" + (" or let more through the filters" if filtered else ""),
            )

    def find(self, asks: Sequence[Ask]) -> list[Found]:
        """Decode questions of one group together."""
        rows = [str(row) for row in range(len(asks))]
        lists = self._lists(rows, asks)
        places: dict[str, list[tuple[str, str, float]]] = {row: [] for row in rows}
        for row, item, sid, score in lists.rankings.sort(ROW_ID, RANK).select(ROW_ID, ITEM_ID, SID, SCORE).iter_rows():
            ask, own = asks[int(row)], places[row]
            if len(own) < ask.k and (ask.allowed is None or ask.allowed[self.shelf.row_of[item]]):
                own.append((item, sid, score))
        thoughts: dict[str, tuple[str, bool, int]] = {}
        if lists.thoughts is not None:
            shown = lists.thoughts.filter(pl.col(TRACE) == 0).select(ROW_ID, REASONING, CLOSED, N_TOKENS)
            thoughts = {row: (text, closed, tokens) for row, text, closed, tokens in shown.iter_rows()}
        return [Found(places[row], thoughts.get(row)) for row in rows]

    def _lists(self, rows: list[str], asks: Sequence[Ask]) -> Lists:
        """Lists of one mode and width, before items of shared SIDs are left out; longer than asked for."""
        mode, allowed = asks[0].mode, self._leaves([ask.allowed for ask in asks])
        if self.mixer is None or mode != MIXED:
            return self._own(rows, asks, allowed)(mode)
        whole = None
        if not self.repeats:
            whole = self._leaves([self.shelf.without(ask.history, None) for ask in asks])
            if whole is not None and allowed is not None and np.array_equal(whole, allowed):
                allowed = None
        named = pl.DataFrame({ROW_ID: rows, HISTORY: [list(ask.history) for ask in asks]})
        reaches = [Reach(mask, self._own(rows, asks, mask)) for mask in (whole, allowed)]
        return self.mixer.lists(named, reaches[0], None if allowed is None else reaches[1], asks[0].width)

    def _leaves(self, masks: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """(R, S) bool, the SIDs of the items that masks (I,) let through; None where all let everything through."""
        if all(mask is None for mask in masks):
            return None
        everything = np.ones(len(self.shelf), dtype=bool)
        return self.loaded.index.leaves_with(np.stack([everything if mask is None else mask for mask in masks]))

    def _own(self, rows: list[str], asks: Sequence[Ask], allowed: np.ndarray | None) -> Callable[[str], Lists]:
        """What gives the checkpoint's lists of a mode, among the SIDs of `allowed` (R, S); merged ones hold more."""
        decoding = self.decoding.model_copy(update={"beam_width": asks[0].width})
        histories = [[self.shelf.catalogue[item].sid for item in ask.history] for ask in asks]

        @cache
        def made(of: str) -> Lists:
            if of == MERGED:
                weights = merging.Weights(**self.release.choices[self.release.names[MERGED]])
                everywhere = len(self.loaded.index)
                catalogue, codebook = self.shelf.catalogue, self.shelf.codebook
                return merging.merged(made(DIRECT), made(THINKING), catalogue, weights, codebook, everywhere)
            if of == DIRECT or decoding.traces == 1:
                return checkpoint_lists(self.loaded, rows, histories, of, decoding, None, allowed)
            # Several thoughts are sampled, by a row's place among the rows: so each row is alone.
            each = [
                checkpoint_lists(self.loaded, [row], [histories[n]], of, decoding, None, mask)
                for n, row in enumerate(rows)
                for mask in [None if allowed is None else allowed[n]]
            ]
            thoughts = [lists.thoughts for lists in each if lists.thoughts is not None]
            return Lists(pl.concat([lists.rankings for lists in each]), pl.concat(thoughts))

        return made

    def answer(self, ask: Ask, found: Found) -> Answer:
        """What was found, with titles, the thought taken apart, and why each item may be there."""
        catalogue = self.shelf.catalogue
        history = [catalogue[item] for item in ask.history]
        reading = read(*found.thought, self.relations, history) if found.thought is not None else None
        named = {item for candidate in (reading.candidates if reading else ()) for item in candidate.item_ids}
        place = self.release.place
        return Answer(
            items=[
                Listed(
                    item_id=item,
                    title=catalogue[item].title,
                    sid=sid,
                    score=score,
                    category=catalogue[item].category,
                    seen=item in ask.seen,
                    named_by_thought=item in named,
                    shared=shared_facts(catalogue[item], self.relations, history),
                )
                for item, sid, score in found.places
            ],
            thought=None if found.thought is None else found.thought[0],
            reading=reading,
            history=[Named(item_id=item.item_id, title=item.title, sid=item.sid) for item in history],
            model=self.release.names[ask.mode],
            mode=ask.mode,
            dataset=place.dataset,
            snapshot=place.snapshot,
            release=place.fingerprint,
            synthetic=self.release.lists.synthetic,
        )
