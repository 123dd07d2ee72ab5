"""The best that can be known: the generator's own probability of every next item, given all that a user bought before.

Hidden from the history are the two tastes and, until something bound to one is bought, the system; they are weighed by
how well they explain the purchases so far. So no list can be expected to beat the one in the order of these
probabilities, and what is missing to a hit rate of 1 is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import permutations

import numpy as np

from sidr_core.reviews.sample.rows import Step
from sidr_core.reviews.sample.shop import Shop
from sidr_core.reviews.sample.users import (
    BEGINS_WITH_ANCHOR,
    FIRST_TASTE,
    RELEASE,
    entries,
    may_repeat,
    options,
    owned_anchor,
)
from sidr_core.reviews.sample.worlds import Thing


class Optimal:
    """Exact next-item probabilities of a shop. Letters: A anchors, P ordered pairs of tastes, N things."""

    def __init__(self, shop: Shop) -> None:
        self.world, self.things = shop.world, shop.world.things
        self._column = {thing: n for n, thing in enumerate(self.things)}
        self._anchors = sorted(self.world.anchors)
        tastes = sorted(self.world.families)
        pairs = list(permutations(range(len(tastes)), 2)) or [(0, 0)]
        first, second = (np.array(side) for side in zip(*pairs, strict=True))
        weight = np.array([shop.crowd.weight[thing] for thing in self.things])
        late = np.array([thing.late for thing in self.things])
        #: By whether late things are on sale: popularity (N,), and what a pair of tastes leads to (A, P, N).
        self._popularity: dict[bool, np.ndarray] = {}
        self._taste: dict[bool, np.ndarray] = {}
        for released in (False, True):
            selling = weight * (released | ~late)
            self._popularity[released] = selling / selling.sum()
            by_taste = np.empty((len(tastes), len(self._anchors), len(self.things)))  # (T, A, N)
            day = RELEASE if released else date.min
            for t, taste in enumerate(tastes):
                for a, anchor in enumerate(self._anchors):
                    by_taste[t, a] = self._share(entries(self.world, taste, anchor, day), weight, released)
            mixed = FIRST_TASTE * by_taste[first] + (1 - FIRST_TASTE) * by_taste[second]  # (P, A, N)
            self._taste[released] = mixed.transpose(1, 0, 2)
        self._start = np.stack([self._share([self.world.anchors[a][0]], weight, True) for a in self._anchors])  # (A, N)

    def _share(self, things: Sequence[Thing], weight: np.ndarray, released: bool) -> np.ndarray:
        """(N,): how the crowd's demand is spread over some things; over all on sale where there are none."""
        if not things:
            return self._popularity[released]
        columns = [self._column[thing] for thing in things]
        share = np.zeros(len(self.things))
        share[columns] = weight[columns] / weight[columns].sum()
        return share

    def next_item(self, step: Step) -> np.ndarray:
        """(N,): probability of each thing, in the order of `things`, after all that the step's user bought before."""
        belief = np.full((len(self._anchors), self._taste[True].shape[1]), 1.0)  # (A, P), not normalised
        for place, thing in enumerate(step.history):
            bought = self._given(step.history[:place], step.days[place], [self._column[thing]])
            belief = belief * bought[..., 0]
            belief = belief / belief.sum() if belief.any() else np.ones_like(belief)
        after = self._given(step.history, step.day, list(range(len(self.things))))
        if len(after) == 1:  # the system is known
            belief = belief.sum(axis=0, keepdims=True)
        return np.einsum("ap,apn->n", belief / belief.sum(), after)

    def _given(self, history: list[Thing], day: date, columns: list[int]) -> np.ndarray:
        """(A, P, C), or (1, P, C) where the history shows the system: what C things are likely to be bought."""
        gone = sorted({self._column[thing] for thing in history if not may_repeat(self.world, thing)})
        chances = self._drawn(history, day, [*columns, *gone])  # of all N things they sum to 1
        left = 1.0 - chances[..., len(columns) :].sum(axis=-1, keepdims=True)
        return np.where(np.isin(columns, gone), 0.0, chances[..., : len(columns)]) / left

    def _drawn(self, history: list[Thing], day: date, columns: list[int]) -> np.ndarray:
        """As :meth:`_given`, as if everything could be bought again."""
        world, released = self.world, day >= RELEASE
        taste, popularity = self._taste[released], self._popularity[released][columns]
        if anchor := owned_anchor(history):
            taste = taste[self._anchors.index(anchor)][None]
        drawn = world.taste * taste[..., columns] + (1 - world.taste) * popularity
        if not history:
            return BEGINS_WITH_ANCHOR * self._start[:, None, columns] + (1 - BEGINS_WITH_ANCHOR) * drawn
        if likely := options(world, history, day):
            ruled = np.zeros(len(self.things))
            for option in likely:
                ruled[self._column[option.thing]] += option.weight
            drawn = world.rule_share * (ruled / ruled.sum())[columns] + (1 - world.rule_share) * drawn
        return world.switches * self._start.mean(axis=0)[columns] + (1 - world.switches) * drawn
