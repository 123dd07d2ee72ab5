"""What a teacher can do. The paper's is a paid language model; `rules` needs no key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sidr_core.corpus.catalogue import Item


class Teacher(Protocol):
    """Writes about items and users. Narratives name items by SID alone; thoughts name candidates by title and SID."""

    def narrate_item(self, item: Item) -> str:
        """One flowing paragraph about an item (docs/method.md, "Corpus"), or "" for none."""
        ...

    def narrate_user(self, history: Sequence[Item], target: Item) -> str:
        """One paragraph about a train row, oldest item first, that ends by naming the target's SID, or "" for none."""
        ...

    def think(self, history: Sequence[Item]) -> str:
        """The thought about a history, oldest item first, or "" where there is nothing to say.

        A teacher of thoughts never sees the target: what it writes is what its reader can know
        (`sidr_core.corpus.thoughts`). A row without a thought gets no trace.
        """
        ...
