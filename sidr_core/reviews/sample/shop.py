"""A shop of the sample source as its generator knows it: the world, and every walk with its days.

Used to write the source files, and to label test rows and rank them as well as can be (`kinds`, `optimal`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from sidr_core.reviews.sample.users import Crowd, draw_length, walk
from sidr_core.reviews.sample.worlds import Thing, World, build_world

if TYPE_CHECKING:
    from sidr_core.settings import SampleSource

FIRST_DAY, LAST_DAY = date(2018, 3, 1), date(2018, 10, 31)
_MEAN_GAP_DAYS = 9.0


@dataclass(frozen=True)
class Shop:
    """What `simulate` makes.

    Args:
        ids: item ids. walks: what each user buys, oldest first; days: when.
    """

    world: World
    ids: dict[Thing, str]
    crowd: Crowd
    walks: list[list[Thing]]
    days: list[list[date]]


def simulate(source: SampleSource) -> tuple[Shop, random.Random]:
    """The shop of a source, always the same, and the generator of random numbers as it stands afterwards."""
    rng = random.Random(f"{source.category}/{source.seed}")
    world = build_world(source, rng)
    numbers = rng.sample(range(100_000), len(world.things))  # so that an id tells nothing about its item
    ids = {thing: f"S{number:05d}" for thing, number in zip(world.things, numbers, strict=True)}
    crowd = Crowd(world, rng)
    walks, days = [], []
    for _ in range(source.users):
        days.append(_days(draw_length(rng), rng))
        walks.append(walk(world, crowd, days[-1], rng))
    return Shop(world, ids, crowd, walks, days), rng


def user_id(number: int) -> str:
    """The id of the user whose walk is `walks[number]`."""
    return f"U{number:06d}"


def _days(count: int, rng: random.Random) -> list[date]:
    """Days of one user's purchases: gaps of about nine days, the whole inside the months of the sample."""
    span = (LAST_DAY - FIRST_DAY).days
    gaps = [1 + int(rng.expovariate(1 / (_MEAN_GAP_DAYS - 1))) for _ in range(count - 1)]
    while sum(gaps) > span:
        gaps = [max(1, gap // 2) for gap in gaps]
    day = FIRST_DAY + timedelta(days=rng.randint(0, span - sum(gaps)))
    days = [day]
    for gap in gaps:
        days.append(days[-1] + timedelta(days=gap))
    return days
