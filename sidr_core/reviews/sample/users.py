"""Users of the sample source: what they buy next, given all they bought before.

A user has a system (the newest anchor bought), follows a series, and has two tastes. With the world's `rule_share` the
next item is one of the few that the *state* of the history gives: the series under way, the highest part of it that is
owned, and the system (:func:`options`). Often a part of the state lies further back than the newest item: after a
soundtrack it is the console bought earlier that says for which platform the next part is bought. Otherwise the user
follows tastes, or the crowd.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import NamedTuple

from sidr_core.reviews.sample.worlds import Thing, World

#: Share of users who begin with their anchor; weight of the first of the two tastes.
BEGINS_WITH_ANCHOR, FIRST_TASTE = 0.6, 0.7
_SHORTEST, _LONGEST, _MEAN_TAIL = 6, 15, 4.0
#: Late lines are on sale from this day on.
RELEASE = date(2018, 8, 1)
#: How much more a late thing is in demand than another of its popularity.
_NOVELTY = 3.0
#: Weights of the options. After a detour, users return to their series.
_NEXT, _NEXT_AFTER_DETOUR, _AGAIN = 3.0, 8.0, 2.0
_EXTRA, _COMPANION, _ACCESSORY, _ACCESSORY_AFTER_ANCHOR = 2.0, 1.5, 2.5, 2.0


class State(NamedTuple):
    """What a history says: the newest series, its highest part owned (0: none), and the system; "" where unknown."""

    family: str
    part: int
    anchor: str


class Option(NamedTuple):
    """A thing that the state makes likely next, the relation that leads to it, and its weight."""

    relation: str
    thing: Thing
    weight: float


def state(history: Sequence[Thing]) -> State:
    """Read the state off a history, oldest first."""
    family = next((thing.family for thing in reversed(history) if thing.family), "")
    parts = [thing.order for thing in history if family and thing.family == family and thing.kind == "main"]
    return State(family, max(parts, default=0), owned_anchor(history))


def owned_anchor(history: Sequence[Thing]) -> str:
    """The newest anchor bought; failing that, the one that the newest bound thing fits."""
    bought = [thing.anchor for thing in history if thing.kind == "anchor"]
    bound = bought or [thing.anchor for thing in history if thing.anchor]
    return bound[-1] if bound else ""


def on_sale(thing: Thing, day: date) -> bool:
    """Whether a thing can be bought on a day."""
    return day >= RELEASE or not thing.late


def options(world: World, history: Sequence[Thing], day: date) -> list[Option]:
    """The few things that the history makes likely next; empty where it decides nothing."""
    newest = history[-1]
    family, part, anchor = state(history)
    onward = _NEXT if newest.kind == "main" else _NEXT_AFTER_DETOUR
    chosen: list[Option] = []
    if family:
        following = [t for t in world.mains(family, anchor) if t.order > part and on_sale(t, day)][:1]
        chosen += [Option("next part", thing, onward) for thing in following]
        extras = [t for t in (*world.extras[family, anchor], *world.extras[family, ""]) if t.order == part]
        chosen += [Option("extra", thing, _EXTRA * world.detours) for thing in extras]
        if part:
            chosen += [Option("companion", thing, _COMPANION * world.detours) for thing in world.companions[family]]
        if not following:
            chosen += [Option("next series", thing, onward) for thing in _next_series(world, history, day)]
    if family or newest.kind == "anchor" or world.repeats:
        kit = [thing for thing in world.kits[anchor] if world.repeats or thing not in history][:1]
        weight = (_ACCESSORY_AFTER_ANCHOR if newest.kind == "anchor" else _ACCESSORY) * world.detours
        chosen += [Option("accessory", thing, weight) for thing in kit]
    if world.repeats and newest.kind == "accessory":
        chosen.append(Option("again", newest, _AGAIN * world.detours))
    return [option for option in chosen if option.thing not in history or may_repeat(world, option.thing)]


def _next_series(world: World, history: Sequence[Thing], day: date) -> list[Thing]:
    """The first part, for the system, of the next series in line of which it is not owned yet."""
    family, _, anchor = state(history)
    for _ in range(len(world.sibling)):
        family = world.sibling[family]
        first = [thing for thing in world.mains(family, anchor) if on_sale(thing, day)][:1]
        if first and first[0] not in history:
            return first
    return []


def may_repeat(world: World, thing: Thing) -> bool:
    """Whether a thing is bought again: accessories that are used up are."""
    return world.repeats and thing.kind == "accessory"


class Crowd:
    """Draws things by popularity: a few are bought by many."""

    def __init__(self, world: World, rng: random.Random) -> None:
        order = list(range(len(world.things)))
        rng.shuffle(order)
        self._rng = rng
        demand = {thing: _NOVELTY if thing.late else 1.0 for thing in world.things}
        self.weight = {world.things[i]: (rank + 30.0) ** -0.6 * demand[world.things[i]] for rank, i in enumerate(order)}

    def draw(self, things: Sequence[Thing]) -> Thing:
        """One of the things."""
        totals = list(accumulate(self.weight[thing] for thing in things))
        return self._rng.choices(things, cum_weights=totals)[0]


def entries(world: World, taste: str, anchor: str, day: date) -> list[Thing]:
    """First parts of series of a taste that fit a system and are on sale: how a taste shows."""
    series = [world.mains(family, anchor) for family in world.families[taste]]
    return [mains[0] for mains in series if mains and on_sale(mains[0], day)]


def draw_length(rng: random.Random) -> int:
    """How many things a user buys: 6 to 15, ten in the mean."""
    return min(_LONGEST, _SHORTEST + int(rng.expovariate(1 / _MEAN_TAIL)))


@dataclass(frozen=True)
class Shopper:
    """What a user brings along, which nobody sees: a system before any is bought, and two tastes."""

    anchor: str
    tastes: tuple[str, ...]


def walk(world: World, crowd: Crowd, days: Sequence[date], rng: random.Random) -> list[Thing]:
    """What one user buys on the given days, oldest first."""
    tastes = sorted(world.families)
    shopper = Shopper(rng.choice(sorted(world.anchors)), tuple(rng.sample(tastes, min(2, len(tastes)))))
    history: list[Thing] = []
    for day in days:
        thing = _buy(world, crowd, history, shopper, day, rng)
        while thing in history and not may_repeat(world, thing):
            thing = _buy(world, crowd, history, shopper, day, rng)
        history.append(thing)
    return history


def _buy(
    world: World, crowd: Crowd, history: Sequence[Thing], shopper: Shopper, day: date, rng: random.Random
) -> Thing:
    anchor = owned_anchor(history) or shopper.anchor
    if not history and rng.random() < BEGINS_WITH_ANCHOR:
        return world.anchors[anchor][0]
    if history and rng.random() < world.switches:
        return world.anchors[rng.choice(sorted(world.anchors))][0]
    likely = options(world, history, day) if history else []
    if likely and rng.random() < world.rule_share:
        return rng.choices([option.thing for option in likely], weights=[option.weight for option in likely])[0]
    selling = world.things if day >= RELEASE else world.early
    if rng.random() < world.taste:
        taste = shopper.tastes[0] if rng.random() < FIRST_TASTE else shopper.tastes[-1]
        return crowd.draw(entries(world, taste, anchor, day) or selling)
    return crowd.draw(selling)
