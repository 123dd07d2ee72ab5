"""The built-in sample: seeded, invented shops in the Amazon 2018 layout, with some dirt.

It writes the files that `amazon_2018` reads, so the sample runs through the same parser as real data.
What it makes is synthetic and labelled so in every table. The same configuration gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import random
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.pipeline.store import Artifact
from sidr_core.reviews.records import ReviewParts
from sidr_core.reviews.sample.shop import simulate, user_id
from sidr_core.reviews.sample.worlds import Thing
from sidr_core.reviews.sources.amazon import RELEASES, parse_reviews
from sidr_core.reviews.sources.item_records import ItemRecords, parse_metadata

if TYPE_CHECKING:
    from sidr_core.settings import Filters, SampleSource

#: Raise it when the same configuration should give other files.
GENERATOR_VERSION = "2"

REVIEWS, ITEMS = "reviews.jsonl.gz", "meta.jsonl.gz"


def reviews(inputs: Inputs, source: SampleSource, filters: Filters, progress: Progress) -> ReviewParts:
    """The generated reviews as stored parts, parsed like those of Amazon 2018."""
    files = {REVIEWS: _files(inputs, source).path(REVIEWS)}
    return parse_reviews(inputs, files, RELEASES["amazon_2018"].layout, filters, progress)


def items(inputs: Inputs, source: SampleSource, filters: Filters, progress: Progress) -> ItemRecords:
    """Records of the generated items, parsed like those of Amazon 2018."""
    files = {ITEMS: _files(inputs, source).path(ITEMS)}
    return parse_metadata(inputs, files, RELEASES["amazon_2018"].item_names, filters, progress)


def _files(inputs: Inputs, source: SampleSource) -> Artifact:
    key = source.model_dump(mode="json")
    return inputs.part("sample_source", GENERATOR_VERSION, key, lambda folder: generate(source, folder))


def generate(config: SampleSource, folder: Path) -> None:
    """Write `reviews.jsonl.gz` and `meta.jsonl.gz` for `config.users` users and `config.items` items."""
    shop, rng = simulate(config)
    # Which item takes the part of which from `config.shift` on; a draw of its own, so that nothing else moves.
    order = list(shop.world.things)
    random.Random(f"{config.category}/{config.seed}/shift").shuffle(order)
    traded = dict(zip(shop.world.things, order, strict=True))
    events: list[tuple[date, int, int, Thing]] = []
    for user, (days, history) in enumerate(zip(shop.days, shop.walks, strict=True)):
        for place, (day, thing) in enumerate(zip(days, history, strict=True)):
            events.append((day, user, place, traded[thing] if f"{day:%Y-%m}" >= (config.shift or "~") else thing))
    events.sort(key=lambda event: event[:3])
    lines = [json.dumps(_review(day, user, shop.ids[thing], rng)) for day, user, _, thing in events]
    records = [json.dumps(_record(shop.ids[thing], thing)) for thing in shop.world.things]
    _write(folder / REVIEWS, _dirty_reviews(lines, rng))
    _write(folder / ITEMS, _dirty_items(records, rng))


def _review(day: date, user: int, item_id: str, rng: random.Random) -> dict[str, Any]:
    return {
        "overall": float(rng.choices((5, 4, 3, 2, 1), weights=(60, 22, 9, 4, 5))[0]),
        "verified": True,
        "reviewTime": f"{day:%m} {day.day}, {day.year}",
        "reviewerID": user_id(user),
        "asin": item_id,
        "unixReviewTime": int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()),
    }


def _record(item_id: str, thing: Thing) -> dict[str, Any]:
    return {
        "category": list(thing.category),
        "description": [thing.description],
        "title": thing.title,
        "brand": thing.brand,
        "asin": item_id,
    }


def _dirty_reviews(lines: list[str], rng: random.Random) -> list[str]:
    """A few lines of each kind of damage that real files have: together well below one per cent."""
    out = []
    for line in lines:
        chance = rng.random()
        out.append(line)
        if chance < 0.002:
            out.append(line)  # an exact duplicate
        elif chance < 0.003:
            out.append(line[: len(line) // 2])
        elif chance < 0.004:
            out.append(_changed(line, unixReviewTime=json.loads(line)["unixReviewTime"] * 1000))
        elif chance < 0.005:
            out.append(_changed(line, overall="five stars"))
        elif chance < 0.006:
            out.append(_changed(line, asin="S-UNKNOWN"))  # sound, but no such item
    return out


def _dirty_items(records: list[str], rng: random.Random) -> list[str]:
    """Scraped markup for a title, ids that come twice, and one unreadable line per thousand."""
    out = list(records)
    for number in range(max(1, len(records) // 50)):
        title = '<span class="a-size-medium a-color-secondary"'
        out.append(_changed(rng.choice(records), asin=f"S-HTML-{number}", title=title))
        out.append(_changed(rng.choice(records), title="A second record of one item"))
    out += [rng.choice(records)[:40] for _ in range(len(records) // 1000)]
    return out


def _changed(line: str, **fields: Any) -> str:
    return json.dumps(json.loads(line) | fields)


def _write(path: Path, lines: list[str]) -> None:
    """Gzip with no name and no time in it, so that equal lines are equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        packed.write("".join(f"{line}\n" for line in lines).encode())
