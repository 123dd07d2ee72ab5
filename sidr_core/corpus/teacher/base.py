"""What a teacher can do. The paper's is a paid language model; `rules` needs no key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sidr_core.corpus.catalogue import Item


class Teacher(Protocol):
    """Writes about items and users, naming items by SID alone.

    Attributes:
        frame_words: the wording of its thoughts that is the same whatever the target is, so that it says nothing
            of it; as `catalogue.audit_words`.
    """

    @property
    def frame_words(self) -> frozenset[str]: ...

    def narrate_item(self, item: Item) -> str:
        """One flowing paragraph about an item (docs/method.md, "Corpus"), or "" for none."""
        ...

    def narrate_user(self, history: Sequence[Item], target: Item) -> str:
        """One paragraph about a train row, oldest item first, that ends by naming the target's SID, or "" for none."""
        ...

    def think(self, history: Sequence[Item], target: Item) -> str:
        """The thought before the answer, or "" where there is nothing to say (the row then gets no trace).

        `target` is hidden guidance: it may choose among the facts of the history and never adds one, so
        the result names no SID and no word that the history lacks.
        """
        ...
