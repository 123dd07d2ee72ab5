"""Users of the sample source: what they buy next, given all they bought before.

A user owns an anchor and has two tastes. With the world's `succession` share the next item is one of
the few that the history determines (:func:`successors`); often the cue lies further back than the
last item: after a soundtrack it is the console bought earlier that decides for which platform the
next part of the series is bought. Otherwise the user follows tastes, or the crowd.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

from sidr_core.reviews.sample.sample_worlds import Thing, World

#: Share of users who begin with their anchor, and chance per step of moving to another one.
_BEGINS_WITH_ANCHOR, _NEW_ANCHOR = 0.6, 0.04
_SHORTEST, _LONGEST, _MEAN_TAIL = 5, 15, 3.0

Weighted = list[tuple[Thing, float]]


def owned_anchor(history: Sequence[Thing]) -> str:
    """The newest anchor bought; failing that, the one that the newest bound thing fits."""
    consoles = [thing.anchor for thing in history if thing.kind == "anchor"]
    bound = consoles or [thing.anchor for thing in history if thing.anchor]
    return bound[-1] if bound else ""


def successors(world: World, history: Sequence[Thing]) -> Weighted:
    """The few things that the history makes likely next, with weights; empty if it decides nothing."""
    last, anchor = history[-1], owned_anchor(history)
    likely: Weighted = []
    if last.kind in ("anchor", "accessory"):
        kit = world.kits[anchor] if world.repeats else [t for t in world.kits[anchor] if t not in history]
        likely += zip(kit, (3.0, 1.0), strict=False)
        if world.repeats and last.kind == "accessory":
            likely.append((last, 2.0))  # the same cartridge again
    if last.kind != "anchor":
        family = last.family or next((t.family for t in reversed(history) if t.family), "")
        likely += _next_in_series(world, history, family, anchor)
    return [(thing, weight) for thing, weight in likely if thing not in history or thing.kind == "accessory"]


def _next_in_series(world: World, history: Sequence[Thing], family: str, anchor: str) -> Weighted:
    if not family:
        return []
    reached = max((t.order for t in history if t.family == family and t.kind == "main"), default=0)
    following = [t for t in world.mains(family, anchor) if t.order > reached][:1]
    extras = [t for t in (*world.extras[family, anchor], *world.extras[family, ""]) if t.order == reached]
    likely: Weighted = [(t, 5.0) for t in following]
    likely += [(t, 3.0) for t in extras]
    likely += [(t, 1.5) for t in world.companions[family] if reached]
    if not following:  # the series is over: on to the kindred one
        likely += [(t, 5.0) for t in world.mains(world.sibling[family], anchor)[:1]]
    return likely


class Crowd:
    """Draws things by popularity: a few are bought by many."""

    def __init__(self, world: World, rng: random.Random) -> None:
        order = list(range(len(world.things)))
        rng.shuffle(order)
        self._rng = rng
        self._weight = {world.things[i]: (rank + 30.0) ** -0.6 for rank, i in enumerate(order)}

    def draw(self, things: Sequence[Thing]) -> Thing:
        """One of the things."""
        totals = list(accumulate(self._weight[thing] for thing in things))
        return self._rng.choices(things, cum_weights=totals)[0]


def walk(world: World, crowd: Crowd, rng: random.Random) -> list[Thing]:
    """What one user buys, oldest first: 5 to 15 things."""
    length = min(_LONGEST, _SHORTEST + int(rng.expovariate(1 / _MEAN_TAIL)))
    anchor = rng.choice(sorted(world.anchors))
    families = {t.taste: None for t in world.things if t.taste}
    tastes = rng.sample(sorted(families), min(2, len(families)))
    history: list[Thing] = []
    while len(history) < length:
        if not history and rng.random() < _BEGINS_WITH_ANCHOR:
            thing = world.anchors[anchor][0]
        elif history and rng.random() < _NEW_ANCHOR:
            anchor = rng.choice(sorted(world.anchors))
            thing = world.anchors[anchor][0]
        else:
            thing = _next(world, crowd, history, anchor, tastes, rng)
        if thing not in history or (world.repeats and thing.kind == "accessory"):
            history.append(thing)
    return history


def _next(
    world: World, crowd: Crowd, history: list[Thing], anchor: str, tastes: list[str], rng: random.Random
) -> Thing:
    likely = successors(world, history) if history else []
    if likely and rng.random() < world.succession:
        return rng.choices([t for t, _ in likely], weights=[w for _, w in likely])[0]
    if rng.random() < world.taste:
        taste = tastes[0] if rng.random() < 0.7 else tastes[-1]
        first = [t for t in world.things if t.taste == taste and t.order == 1 and t.anchor in ("", anchor)]
        fitting = first if rng.random() < 0.8 else world.kits[anchor]
        if fitting:
            return crowd.draw(fitting)
    return crowd.draw(world.things)
