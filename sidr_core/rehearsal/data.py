"""Small files in the layout of each source, written from the generated world: what a rehearsal reads instead.

Every layout gets the same events and items; only the form differs, so that the parser, the quarantine and the rules of
that layout run. What real files hold besides (their damage, their texts, their size) is not there.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from sidr_core.rehearsal.stand_in import ITEMS, USERS, data_folder, file_name
from sidr_core.reviews.sample.shop import simulate, user_id
from sidr_core.reviews.sample.worlds import Thing
from sidr_core.settings import DatasetConfig, MixSource, SampleSource
from sidr_core.settings.sources import SingleSource
from sidr_core.sids.tokens import format_sid

_CATEGORIES = ("games", "office", "industrial")
#: Codes per level of the SIDs that a published split brings.
_PUBLISHED_SIZE = 8
_PUBLISHED_HISTORY = 10
_CHATS = 30


@dataclass(frozen=True)
class Event:
    """One review: who, what, when (unix seconds)."""

    user: str
    item: str
    time: int


@dataclass(frozen=True)
class World:
    """The events of a stand-in, oldest first, and its items by id."""

    events: tuple[Event, ...]
    items: dict[str, Thing]


def write(real: DatasetConfig, folder: Path) -> None:
    """Write every file that the stand-in of a dataset names: its source, each member of a mix, general examples."""
    members = real.source.sources if isinstance(real.source, MixSource) else {"": real.source}
    for number, (name, source) in enumerate(members.items()):
        if source.kind != "sample":
            target = data_folder(folder, name)
            target.mkdir(parents=True, exist_ok=True)
            _write_source(source, _world(number), target)
    if real.teacher.general is not None:
        lines = (json.dumps({"messages": json.dumps(_chat(n))}) for n in range(_CHATS))
        path = data_folder(folder, "general.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def _world(number: int) -> World:
    source = SampleSource(
        kind="sample", category=_CATEGORIES[number % len(_CATEGORIES)], items=ITEMS, users=USERS, seed=number
    )
    shop, _ = simulate(source)
    events = [
        Event(user_id(user), shop.ids[thing], int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()))
        for user, (days, walk) in enumerate(zip(shop.days, shop.walks, strict=True))
        for day, thing in zip(days, walk, strict=True)
    ]
    events.sort(key=lambda event: (event.time, event.user))
    return World(tuple(events), {shop.ids[thing]: thing for thing in shop.world.things})


def _chat(number: int) -> list[dict[str, str]]:
    answer = f"<think>Half of {2 * number} is {number}.</think>The answer is {number}."
    return [{"role": "user", "content": f"What is half of {2 * number}?"}, {"role": "assistant", "content": answer}]


def _write_source(source: SingleSource, world: World, folder: Path) -> None:
    if source.kind == "minionerec":
        return _published(source, world, folder)
    for role in source.PATHS:
        if not getattr(source, role):
            continue
        path = folder / file_name(source, role)
        if source.kind == "tables":
            columns = source.item_columns if role == "items" else source.review_columns
            reviews = [(event.user, event.item, event.time, 5.0) for event in world.events]
            names = ["user_id", "item_id", "timestamp", "rating"]
            rows = _table_items(world) if role == "items" else pl.DataFrame(reviews, schema=names, orient="row")
            rows = rows.drop([ours for ours, theirs in columns.items() if theirs is None], strict=False)
            rows.rename({ours: theirs for ours, theirs in columns.items() if theirs}, strict=False).write_parquet(path)
        elif source.kind == "sequences" and role == "sequences":
            taken: dict[str, list[str]] = {}
            for event in world.events:
                taken.setdefault(event.user, []).append(event.item)
            _csv(path, ("user_id", "item_ids"), [(user, " ".join(items)) for user, items in taken.items()])
        elif source.kind == "sequences":
            path.write_bytes(
                gzip.compress("".join(f"{json.dumps(row)}\n" for row in _table_items(world).to_dicts()).encode())
            )
        elif role == "ratings":
            swapped = source.kind == "ratings_csv" and source.order == "item_user"
            pairs = [(e.item, e.user) if swapped else (e.user, e.item) for e in world.events]
            names = ("item_id", "user_id") if swapped else ("user_id", "item_id")
            rows = [(*pair, 5.0, e.time) for pair, e in zip(pairs, world.events, strict=True)]
            _csv(path, (*names, "rating", "timestamp"), rows)
        else:
            lines = _amazon_items(source.kind, world) if role == "items" else _amazon_reviews(source.kind, world)
            with gzip.open(path, "wt", encoding="utf-8") as out:
                out.writelines(f"{line}\n" for line in lines)


def _amazon_reviews(kind: str, world: World) -> Iterator[str]:
    for event in world.events:
        if kind == "amazon_2023":
            fields = {"rating": 5.0, "user_id": event.user, "parent_asin": event.item, "asin": event.item}
            yield json.dumps(fields | {"timestamp": event.time * 1000})
        else:
            fields = {"overall": 5.0, "reviewerID": event.user, "asin": event.item, "unixReviewTime": event.time}
            yield json.dumps(fields | ({"verified": True} if kind == "amazon_2018" else {"helpful": [0, 0]}))


def _amazon_items(kind: str, world: World) -> Iterator[str]:
    for item_id, thing in world.items.items():
        fields: dict[str, Any] = {"title": thing.title}
        if kind == "amazon_2023":
            fields |= {"parent_asin": item_id, "store": thing.brand, "categories": list(thing.category)}
            yield json.dumps(fields | {"description": [thing.description], "main_category": thing.category[0]})
        elif kind == "amazon_2014":
            fields |= {"asin": item_id, "brand": thing.brand, "categories": [list(thing.category)]}
            yield repr(fields | {"description": thing.description, "imUrl": ""})  # Python syntax, as in the release
        else:
            fields |= {"asin": item_id, "brand": thing.brand, "category": list(thing.category)}
            yield json.dumps(fields | {"description": [thing.description], "main_cat": thing.category[0]})


def _table_items(world: World) -> pl.DataFrame:
    rows = [(i, t.title, t.description, t.brand, " > ".join(t.category)) for i, t in world.items.items()]
    return pl.DataFrame(rows, schema=["item_id", "title", "description", "brand", "category"], orient="row")


# -- MiniOneRec's split ----------------------------------------------------------------------

_COLUMNS = (
    "user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid",
)  # fmt: skip


def _published(source: SingleSource, world: World, folder: Path) -> None:
    """Rows of every position of a history in order of time, cut 8:1:1; items numbered, SIDs made up."""
    number_of = {item_id: number for number, item_id in enumerate(world.items)}
    titles = [thing.title for thing in world.items.values()]
    size = _PUBLISHED_SIZE  # three codes of an item's number, the last one counting fastest
    sids = [format_sid([n // size**2 % size, n // size % size, n % size]) for n in range(len(titles))]
    bought: dict[str, list[int]] = {}
    rows = []
    for event in world.events:
        history, target = bought.setdefault(event.user, []), number_of[event.item]
        if shown := history[-_PUBLISHED_HISTORY:]:
            past = ([titles[n] for n in shown], titles[target], shown, target, [sids[n] for n in shown], sids[target])
            rows.append((f"A{event.user.removeprefix('U')}", *past))
        history.append(target)
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    for split, part in (("train", rows[:first]), ("valid", rows[first:second]), ("test", rows[second:])):
        _csv(folder / file_name(source, split), _COLUMNS, part)
    info = (f"{sid}\t{title}\t{number}\n" for number, (sid, title) in enumerate(zip(sids, titles, strict=True)))
    (folder / file_name(source, "info")).write_text("".join(info))
    if source.kind == "minionerec" and source.items:
        details = {
            str(number): {
                "title": thing.title,
                "description": str([thing.description]),
                "brand": thing.brand,
                "categories": "",
            }
            for number, thing in enumerate(world.items.values())
        }
        (folder / file_name(source, "items")).write_text(json.dumps(details))


def _csv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows(rows)
