"""How the lines of one review format become reviews."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReviewLayout:
    """How a line of JSON becomes a review.

    Args:
        name: for people.
        user, item: JSON keys, the first that is present and not null wins.
        rating, time: JSON keys.
        time_unit: of `time`; tables hold seconds.
        text: JSON keys of the review's text, used to tell exact duplicates apart; the first one wins.
    """

    name: str
    user: tuple[str, ...]
    item: tuple[str, ...]
    rating: str
    time: str
    time_unit: Literal["s", "ms"]
    text: tuple[str, ...] = ("reviewText", "text")
