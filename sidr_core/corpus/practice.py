"""Histories that nobody had, made of all items of the catalogue: practice in reading facts off SIDs.

Users' histories hold the same popular items again and again, and items of the test rows hardly ever. A practice history
starts anywhere and mixes steps that follow from the state so far with jumps to any item, so that every item is read
in many states. No user's data is in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sidr_core.corpus.catalogue import Item
from sidr_core.corpus.relations import Relations

#: Chance that a step follows from the state; and of a history of a single item.
_FOLLOWS, _SINGLE = 0.75, 0.12


def histories(relations: Relations, count: int, longest: int, seed: int) -> Iterator[list[Item]]:
    """`count` histories of 1 to `longest` different items, oldest first; the same seed gives the same."""
    rng = random.Random(f"practice/{seed}")
    items = list(relations.catalogue.values())
    for _ in range(count):
        length = 1 if rng.random() < _SINGLE else rng.randint(1, longest)
        history = [rng.choice(items)]
        while len(history) < min(length, len(items)):
            candidates = relations.candidates(history) if rng.random() < _FOLLOWS else []
            likely = [candidate for candidate in candidates if candidate.item not in history]
            weights = [candidate.probability for candidate in likely]
            item = rng.choices(likely, weights)[0].item if likely else rng.choice(items)
            if item not in history:
                history.append(item)
        yield history
