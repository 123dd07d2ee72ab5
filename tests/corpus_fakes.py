"""A small catalogue, its train rows, and a client that answers from a function, for tests of the corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.tasks import Row
from sidr_core.corpus.teacher import requests
from sidr_core.pipeline.stage import Progress
from sidr_core.remote.client import Reply, Request
from sidr_core.settings import Teacher
from sidr_core.sids.tokens import format_sid

QUIET = Progress(lambda line: None)


def item(item_id: str, title: str, codes: Sequence[int] = (0, 0), **fields: str) -> Item:
    """An item whose SID has these codes."""
    return Item(item_id, format_sid(codes), tuple(codes), title, **fields)


def catalogue(*items: Item) -> Catalogue:
    return Catalogue({one.item_id: one for one in items})


def row(user: str, position: int, history: Sequence[Item], target: Item) -> Row:
    return Row(f"{user}-{position}", user, position, tuple(history), target)


PENS = item("pens", "Blue Gel Pens", (1, 1), brand="Inkwell", category="Office > Writing", description="Smooth pens.")
BOOK = item("book", "Dotted Notebook", (1, 2), brand="Papyr", category="Office > Paper", description="Thick paper.")
CLIP = item("clip", "Steel Paper Clips", (2, 1), brand="Grip", category="Office > Desk", description="Strong clips.")
LAMP = item("lamp", "Brass Desk Lamp", (3, 1), brand="Lumen", category="Office > Light", description="Warm light.")
SHOP = catalogue(PENS, BOOK, CLIP, LAMP)
ROWS = [
    row("u1", 1, [PENS], BOOK),
    row("u1", 2, [PENS, BOOK], CLIP),
    row("u2", 1, [BOOK], CLIP),
    row("u2", 2, [BOOK, CLIP], PENS),
    row("u2", 3, [BOOK, CLIP, PENS], LAMP),
    row("u3", 1, [PENS], BOOK),  # the same history and target as u1-1
]

NARRATIVE = (
    "[item] is made for daily use at home and in shops. It suits anyone who wants order without fuss. "
    "People praise how well it keeps its shape over many months."
)
PATH = (
    "I began with [1] because I care about order in small things. Since then my wishes moved towards quiet quality, "
    "and I keep to what lasts and feels good in the hand."
)
STORY = (
    "The shopper took [1] at the start and stayed close to it in spirit. A wish for order runs through it all, "
    "and so the story goes on with [next]."
)


def usual(request: Request) -> BaseModel:
    """A good reply to any request."""
    if request.kind == requests.ITEM_ANALYSIS:
        return requests.ItemAnalysis(
            description="A useful thing.", use_cases=["at home"], audience="anyone", features=["sturdy"], keywords=["x"]
        )
    texts = {requests.ITEM_NARRATIVE: NARRATIVE, requests.USER_PATH: PATH, requests.USER_NARRATIVE: STORY}
    (field,) = request.schema.model_fields
    return request.schema.model_validate({field: texts[request.kind]})


class FakeClient:
    """Answers with `answer(request)`: a reply model, or a string as the reason why there is none."""

    def __init__(self, answer: Callable[[Request], BaseModel | str] = usual) -> None:
        self._answer, self.asked, self._known = answer, [], set()

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        reused = {request for request in requests if request in self._known}
        self._known.update(requests)
        self.asked += requests
        replies = []
        for request in requests:
            found = self._answer(request)
            value, reason = (None, found) if isinstance(found, str) else (found, "")
            replies.append(Reply(value, reason, 100, 50, 0.001, reused=request in reused))
        return replies


def settings(**fields: Any) -> Teacher:
    """Teacher settings of an endpoint that is never called."""
    return Teacher(kind="openai", endpoint={"model": "fake", "base_url": "http://127.0.0.1:9/v1"}, **fields)
