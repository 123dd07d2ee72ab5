"""The built-in sample: reproducible, labelled, dirty, and worth learning from."""

import gzip
import json
import random
from collections import Counter, defaultdict

import pytest

from builders.reviews import Bench, rows
from sidr_core.reviews.sample.sample_users import Crowd, owned_anchor, successors, walk
from sidr_core.reviews.sample.sample_worlds import build_world
from sidr_core.reviews.sources.sample import ITEMS, REVIEWS, generate
from sidr_core.settings import SampleSource

CATEGORIES = ("games", "office", "industrial")


def world_and_walks(category, users=1500):
    rng = random.Random(f"{category}/7")
    world = build_world(category, 800, rng)
    crowd = Crowd(world, rng)
    return world, [walk(world, crowd, rng) for _ in range(users)]


@pytest.fixture(scope="module")
def walks():
    return {category: world_and_walks(category) for category in CATEGORIES}


def test_same_seed_same_bytes(tmp_path):
    small = SampleSource(kind="sample", category="games", items=60, users=60)
    contents = []
    for name, config in (("a", small), ("b", small), ("c", small.model_copy(update={"seed": 8}))):
        (tmp_path / name).mkdir()
        generate(config, tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in (REVIEWS, ITEMS)])
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]


def test_a_shift_changes_what_is_bought_from_its_month_on(tmp_path):
    lines = []
    for shift in (None, "2018-09"):
        (tmp_path / str(shift)).mkdir()
        generate(SampleSource(kind="sample", category="games", items=60, users=200, shift=shift), tmp_path / str(shift))
        assert (tmp_path / str(shift) / ITEMS).read_bytes() == (tmp_path / "None" / ITEMS).read_bytes()
        with gzip.open(tmp_path / str(shift) / REVIEWS, "rt") as file:
            lines.append(file.read().splitlines())
    old, new = lines
    whole = [(a, b) for a, b in zip(old, new, strict=True) if a.endswith("}")]
    reviews = [(json.loads(a), json.loads(b)) for a, b in whole]
    first = next(n for n, (a, _) in enumerate(reviews) if a["reviewTime"].startswith("09"))
    assert reviews[:first] == [(a, a) for a, _ in reviews[:first]]
    assert [a["reviewerID"] for a, _ in reviews] == [b["reviewerID"] for _, b in reviews]
    later = [(a["asin"], b["asin"]) for a, b in reviews[first:] if a["asin"] != "S-UNKNOWN"]
    assert sum(a != b for a, b in later) > 0.9 * len(later)
    assert len(dict(later)) == len(set(later))  # each item has traded with one other


@pytest.mark.parametrize("category", CATEGORIES)
def test_through_the_stages(tmp_path, category):
    size = {"items": 800, "users": 2500} if category == "games" else {"items": 300, "users": 900}
    made = Bench(tmp_path, {"kind": "sample", "category": category, **size})
    out = made.interactions()
    metrics = out.manifest["metrics"]
    for name, count in size.items():
        assert 0.75 * count <= metrics[name] <= count
    for name in ("interactions", "items"):
        assert rows(out, name)["synthetic"].all()
    assert out.synthetic
    raw = made.run("raw_reviews").manifest["metrics"]
    assert 0 < raw["quarantine_share"] < 0.01
    assert raw["exact_duplicates"] > 0
    assert (raw["first_date"][:7], raw["last_date"][:7]) == ("2018-03", "2018-10")
    items = made.run("raw_items").manifest["metrics"]
    assert items["rows"] == size["items"]
    assert items["refused_title_html"] > 0 and items["refused_duplicate_item"] > 0
    assert items["described_share"] == 1.0
    assert (rows(out, "items")["brand"] != "").all() and (rows(out, "items")["category"] != "").all()
    if category == "games":
        early = made.interactions("2018-07").manifest["metrics"]
        assert 0.4 * metrics["interactions"] < early["interactions"] < 0.8 * metrics["interactions"]
        assert len(list((made.store.root / "sample_source").glob("*/MANIFEST.json"))) == 1


@pytest.mark.parametrize("items", [50, 137, 1500])
@pytest.mark.parametrize("category", CATEGORIES)
def test_any_size(category, items):
    world = build_world(category, items, random.Random(1))
    assert len(world.things) == items
    assert len({thing.title for thing in world.things}) == items
    assert max(len(thing.title.split()) for thing in world.things) <= 20
    walk(world, Crowd(world, random.Random(1)), random.Random(1))


def test_lengths(walks):
    for _, users in walks.values():
        lengths = [len(user) for user in users]
        assert min(lengths) >= 5 and max(lengths) <= 15
        assert 7 <= sum(lengths) / len(lengths) <= 8


def determined(world, users):
    """Share of next items among the few that the history makes likely, and how few they are."""
    hits = [
        (user[i] in candidates, len(candidates))
        for user in users
        for i in range(1, len(user))
        for candidates in [[thing for thing, _ in successors(world, user[:i])]]
    ]
    return sum(hit for hit, _ in hits) / len(hits), sum(size for _, size in hits) / len(hits)


def test_history_determines_games_most(walks):
    shares = {category: determined(*walks[category]) for category in CATEGORIES}
    assert 0.58 <= shares["games"][0] <= 0.68
    assert shares["industrial"][0] < 0.3 < shares["office"][0]
    assert max(size for _, size in shares.values()) < 4


def test_the_cue_may_lie_before_the_last_item(walks):
    world, users = walks["games"]
    neutral = [user[: i + 1] for user in users for i in range(1, len(user) - 1) if user[i].kind == "companion"]
    next_games = [t for past in neutral for t, _ in successors(world, past) if t.kind == "main"]
    assert len(neutral) > 200
    # A soundtrack names no platform, yet the next game is for the one owned since earlier.
    assert all(
        thing.anchor == owned_anchor(past)
        for past in neutral
        for thing, _ in successors(world, past)
        if thing.kind == "main"
    )
    assert len({thing.anchor for thing in next_games}) == 4


def hit_rates(users, k=10):
    """HR@k of popularity and of a decayed item-item counter, learnt on nine tenths of the users."""
    train, test = users[: len(users) * 9 // 10], users[len(users) * 9 // 10 :]
    popularity = Counter(thing for user in train for thing in user)
    after: dict = defaultdict(Counter)
    for user in train:
        for i, thing in enumerate(user):
            for gap, later in enumerate(user[i + 1 : i + 6]):
                after[thing][later] += 0.7**gap
    popular = {thing for thing, _ in popularity.most_common(k)}
    hits = Counter()
    for user in test:
        for i in range(1, len(user)):
            scores = Counter({thing: 1e-3 * count for thing, count in popularity.items()})
            for age, thing in enumerate(reversed(user[max(0, i - 5) : i])):
                for later, weight in after[thing].items():
                    scores[later] += weight * 0.7**age
            hits["rows"] += 1
            hits["popularity"] += user[i] in popular
            hits["counter"] += user[i] in {thing for thing, _ in scores.most_common(k)}
    return hits["popularity"] / hits["rows"], hits["counter"] / hits["rows"]


def test_counting_beats_popularity_most_on_games(walks):
    margins = {}
    for category in ("games", "industrial"):
        popularity, counter = hit_rates(walks[category][1])
        margins[category] = counter - popularity
    assert margins["games"] > 0.25
    assert 0.05 < margins["industrial"] < margins["games"] - 0.1


def test_dirt_is_what_it_says(tmp_path):
    generate(SampleSource(kind="sample", category="games", items=800, users=1000), tmp_path)
    lines = gzip.decompress((tmp_path / REVIEWS).read_bytes()).decode().splitlines()
    broken = 0
    for line in lines:
        try:
            json.loads(line)
        except json.JSONDecodeError:
            broken += 1
    assert 0 < broken < 0.005 * len(lines)
