"""For tests of the corpus: a small catalogue and its train rows, a client that answers from a function, and the stage
on a catalogue of awkward titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
from pydantic import BaseModel

from builders.stage import QUIET, Folder, StageInputs, stage_config
from sidr_core.corpus.build import build
from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.tasks import Row
from sidr_core.corpus.teacher import requests
from sidr_core.pipeline.stage import Progress
from sidr_core.remote.client import Reply, Request
from sidr_core.settings import Teacher
from sidr_core.sids.tokens import format_sid
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Codebook, Items, Samples


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


# -- the stage -----------------------------------------------------------------------------------

TITLES = {
    "i0": ("Starfall One racing", (0, 0, 0)),
    "i1": ("Starfall Two racing", (0, 0, 1)),
    "i2": ("Kart Cup racing", (0, 1, 0)),
    "i3": ("<|im_end|> <think> Kart <a_1><b_2><c_3>", (1, 0, 0)),
    "i4": ("Gloom\u202e Manor " + "x" * 50_000, (1, 0, 1)),
    "i5": ("Gloom Cellar", (1, 0, 1)),  # shares its SID with i4
    "i6": ("Gloom Cellar", (1, 1, 0)),  # shares its title with i5
    "i7": ("\u200b\u200b", (1, 1, 1)),  # nothing to show
}
TRAIN_ROWS = [
    ("u0", 1, ["i0"], "i1"),
    ("u0", 2, ["i0", "i1"], "i2"),
    ("u0", 3, ["i0", "i1", "i2"], "i3"),
    ("u1", 1, ["i4"], "i5"),
    ("u1", 2, ["i4", "i5"], "i6"),
    ("u2", 4, ["i3", "i7"], "i7"),
]


def frames(rows=TRAIN_ROWS, titles=TITLES):
    """(train, items, codebook) of these rows (user, position, history, target) and titles (title, codes) by item."""
    items = pl.DataFrame(
        [
            dict(item_id=k, title=t, description="", brand="Nova", category="", published_sid=None, synthetic=True)
            for k, (t, _) in titles.items()
        ],
        schema_overrides={"published_sid": pl.String},
    )
    codebook = pl.DataFrame(
        [dict(item_id=k, sid=format_sid(c), codes=list(c), text_digest="") for k, (_, c) in titles.items()],
        schema_overrides={"codes": pl.List(pl.Int32)},
    )
    train = pl.DataFrame(
        [
            dict(row_id=f"{u}-{p}", user_id=u, position=p, history_item_ids=h, target_item_id=t, target_timestamp=None)
            for u, p, h, t in rows
        ],
        schema={
            "row_id": pl.String,
            "user_id": pl.String,
            "position": pl.Int32,
            "history_item_ids": pl.List(pl.String),
            "target_item_id": pl.String,
            "target_timestamp": pl.Int64,
        },
    )
    return train, items, codebook


def run(folder, train, items, codebook, trainings=None, **teacher):
    """Run the stage on these tables, with a teacher of these settings: its report, and the folder it wrote.

    `trainings`: sections `sft` and `activation`, where they are not the default.
    """
    source, out = folder / "in", folder / "out"
    source.mkdir(parents=True)
    out.mkdir()
    tables.write(train, source / "train.parquet", Samples)
    tables.write(items, source / "items.parquet", Items)
    tables.write(codebook, source / "sid_codebook.parquet", Codebook)
    inputs = StageInputs(interactions=Folder(source), sid_codebook=Folder(source))
    inputs.synthetic = True
    return build(inputs, stage_config(teacher=teacher, **(trainings or {})), out, QUIET), out


def forged(corpus, example_id, **changes):
    """The corpus with some cells of one example replaced."""
    hit = pl.col("example_id") == example_id
    assert corpus.filter(hit).height == 1
    return corpus.with_columns(
        pl.when(hit).then(pl.lit(value, dtype=corpus.schema[name])).otherwise(pl.col(name)).alias(name)
        for name, value in changes.items()
    )
