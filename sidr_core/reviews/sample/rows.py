"""What the generator knows of sample rows: where they stand in a user's walk, and what kind of step the target is.

Nothing here may enter a training or a choice: it labels rows and says what could be known (docs/evaluation.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import polars as pl

from sidr_core.errors import InputError
from sidr_core.reviews.sample.shop import Shop, user_id
from sidr_core.reviews.sample.users import options
from sidr_core.reviews.sample.worlds import Thing
from sidr_core.tables.columns import HISTORY, POSITION, TARGET, USER_ID

#: Kinds of row. Memory: the newest item alone leads to the target, and train has the pair often. Rare: it does, and
#: train has the pair seldom or never. Several: facts of earlier items must be joined. Taste: no rule leads there.
MEMORY, RARE, SEVERAL, TASTE = "memory", "one hop, rare", "several hops", "taste"
KINDS = (MEMORY, RARE, SEVERAL, TASTE)
#: From so many train rows with the same newest item and target on, a pair can be remembered.
OFTEN = 3


@dataclass(frozen=True)
class Step:
    """One purchase: all that was bought before it, with days, and its own day."""

    history: list[Thing]
    days: list[date]
    day: date
    thing: Thing


def steps(shop: Shop, rows: pl.DataFrame, item_ids: Sequence[str]) -> list[Step]:
    """The purchase behind each sample row, looked up by user and position.

    Args:
        rows: samples with user_id and position, which counts the user's purchases of catalogue items.
        item_ids: the catalogue; what a k-core removed is missing from histories, not from the walks.

    Raises:
        InputError: a row is of no user of this shop.
    """
    catalogue, walks = set(item_ids), {user_id(n): n for n in range(len(shop.walks))}
    found: list[Step] = []
    for user, position in rows.select(USER_ID, POSITION).iter_rows():
        walk = shop.walks[walks[user]] if user in walks else []
        kept = [place for place, thing in enumerate(walk) if shop.ids[thing] in catalogue]
        if position >= len(kept):
            raise InputError(
                f"the sample's generator knows no purchase number {position} of user {user!r}",
                expected="rows of this source, with neither a shift nor filters that drop purchases of a user",
                found=f"{len(kept)} purchases",
                fix="materialize interactions again from this source",
            )
        place, days = kept[position], shop.days[walks[user]]
        found.append(Step(walk[:place], days[:place], days[place], walk[place]))
    return found


def row_kinds(shop: Shop, rows: pl.DataFrame, train: pl.DataFrame, item_ids: Sequence[str]) -> list[str]:
    """The kind of each sample row, one of `KINDS`."""
    pairs = Counter(train.select(pl.col(HISTORY).list.last(), TARGET).iter_rows())
    newest = rows.select(pl.col(HISTORY).list.last(), TARGET).rows()
    kinds = []
    for step, pair in zip(steps(shop, rows, item_ids), newest, strict=True):
        if step.thing not in {option.thing for option in options(shop.world, step.history, step.day)}:
            kinds.append(TASTE)
        elif step.thing not in {option.thing for option in options(shop.world, step.history[-1:], step.day)}:
            kinds.append(SEVERAL)
        else:
            kinds.append(MEMORY if pairs[pair] >= OFTEN else RARE)
    return kinds
