"""The built-in sample: reproducible, labelled, dirty, and worth learning from."""

import gzip
import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from builders.reviews import Bench, rows
from sidr_core.errors import InputError
from sidr_core.reviews.sample.optimal import Optimal
from sidr_core.reviews.sample.rows import KINDS, MEMORY, RARE, SEVERAL, TASTE, row_kinds, steps
from sidr_core.reviews.sample.shop import simulate, user_id
from sidr_core.reviews.sample.users import RELEASE, options, owned_anchor, state
from sidr_core.reviews.sources.sample import ITEMS, REVIEWS, generate
from sidr_core.settings import SampleSource

CATEGORIES = ("games", "office", "industrial")


def shop_of(category, **fields):
    return simulate(SampleSource(kind="sample", category=category, **{"users": 1500, **fields}))[0]


@pytest.fixture(scope="module")
def shops():
    return {category: shop_of(category) for category in CATEGORIES}


def samples(shop):
    """Every purchase but a user's first as a sample over the whole catalogue."""
    made = [
        (user_id(n), i, [shop.ids[thing] for thing in walk[max(0, i - 10) : i]], shop.ids[walk[i]])
        for n, walk in enumerate(shop.walks)
        for i in range(1, len(walk))
    ]
    return pl.DataFrame(made, schema=["user_id", "position", "history_item_ids", "target_item_id"], orient="row")


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
    things = shop_of(category, items=items, users=50).world.things
    assert len(things) == items
    assert len({thing.title for thing in things}) == items
    assert max(len(thing.title.split()) for thing in things) <= 20


def test_lengths(shops):
    for shop in shops.values():
        lengths = [len(walk) for walk in shop.walks]
        assert (min(lengths), max(lengths)) == (6, 15)
        assert 8.8 <= sum(lengths) / len(lengths) <= 9.5


def kind_shares(shop):
    rows = samples(shop)
    cut = len(rows) * 9 // 10
    counts = Counter(row_kinds(shop, rows[cut:], rows[:cut], list(shop.ids.values())))
    return {kind: counts[kind] / (len(rows) - cut) for kind in KINDS}


def test_games_are_rich_in_rules_and_industrial_parts_poor(shops):
    shares = {category: kind_shares(shop) for category, shop in shops.items()}
    assert shares["games"][SEVERAL] > 0.3 > shares["office"][SEVERAL] > 0.1 > shares["industrial"][SEVERAL] > 0.02
    assert shares["games"][TASTE] < 0.3 < shares["office"][TASTE] < 0.6 < shares["industrial"][TASTE]
    assert all(share > 0.1 for share in shares["games"].values())


def test_knobs_move_what_they_name():
    plain = kind_shares(shop_of("games", users=500))
    assert kind_shares(shop_of("games", users=500, rule_share=0.3))[TASTE] > plain[TASTE] + 0.3
    straight = kind_shares(shop_of("games", users=500, detours=0.1))
    assert straight[SEVERAL] < plain[SEVERAL] - 0.1
    late = shop_of("games", users=500, late_share=0.125)
    assert 0.05 < sum(thing.late for thing in late.world.things) / 800 < 0.2
    bought = [
        day
        for walk, days in zip(late.walks, late.days, strict=True)
        for t, day in zip(walk, days, strict=True)
        if t.late
    ]
    assert bought and min(bought) >= RELEASE


def test_texts_state_the_facts_that_decide(shops):
    """In every shop: the same names of facts, on every thing that has one."""
    for shop in shops.values():
        for thing in shop.world.things:
            assert (f"Series: {thing.family}." in thing.description) == bool(thing.family)
            assert (f"System: {thing.anchor}." in thing.description) == bool(thing.anchor)
            if thing.kind == "main":
                assert f"Part: {thing.order}. Next series: {shop.world.sibling[thing.family]}." in thing.description


def test_the_cue_may_lie_before_the_last_item(shops):
    shop = shops["games"]
    neutral = [walk[: i + 1] for walk in shop.walks for i in range(1, len(walk) - 1) if walk[i].kind == "companion"]
    mains = [
        (option.thing.anchor, owned_anchor(past))
        for past in neutral
        for option in options(shop.world, past, RELEASE)
        if option.thing.kind == "main"
    ]
    assert len(neutral) > 200
    # A soundtrack names no platform, yet the next game is for the one owned since earlier.
    assert all(anchor == owned for anchor, owned in mains)
    assert len({anchor for anchor, _ in mains}) == 5


def test_state_and_options_by_hand(shops):
    world = shops["games"].world
    family, anchor = next((f, a) for (f, a), mains in world.series.items() if len(mains) >= 3)
    one, two, three = world.mains(family, anchor)[:3]
    console, soundtrack = world.anchors[anchor][0], world.companions[family][0]
    past = [console, one, two, soundtrack]
    assert state(past) == (family, 2, anchor)
    weights = {option.thing: (option.relation, option.weight) for option in options(world, past, RELEASE)}
    assert weights[three] == ("next part", 8.0)  # after a detour
    assert weights[world.extras[family, anchor][0]] == ("extra", 2.0)
    assert weights[world.companions[family][1]] == ("companion", 1.5)
    assert weights[world.kits[anchor][0]] == ("accessory", 2.5) and len(weights) == 4
    assert soundtrack not in weights and console not in weights
    assert dict((o.relation, o.weight) for o in options(world, [console], RELEASE)) == {"accessory": 2.0}


def test_no_list_beats_the_generators_own_probabilities(shops):
    """The sum of the ten largest probabilities is the hit rate that is found, and a counter's is lower."""
    shop = shops["games"]
    rows = samples(shop)
    ids = list(shop.ids.values())
    cut = len(rows) * 9 // 10
    optimal = Optimal(shop)
    column = {thing: n for n, thing in enumerate(optimal.things)}
    hits = expected = 0.0
    some = rows[cut : cut + 300]
    for step in steps(shop, some, ids):
        chances = optimal.next_item(step)
        assert chances.sum() == pytest.approx(1) and (chances >= 0).all()
        assert not any(chances[column[thing]] for thing in step.history)
        expected += np.sort(chances)[-10:].sum()
        hits += chances[column[step.thing]] >= np.sort(chances)[-10]
    assert hits / 300 == pytest.approx(expected / 300, abs=0.05)
    assert expected / 300 > hit_rates(shop.walks)[1] + 0.1


def test_kinds_by_hand(shops):
    shop = shops["games"]
    world = shop.world
    family, anchor = next((f, a) for (f, a), mains in world.series.items() if len(mains) >= 3)
    one, two = world.mains(family, anchor)[:2]
    console, soundtrack = world.anchors[anchor][0], world.companions[family][0]
    stranger = next(t for t in world.things if t.family not in ("", family) and t.order == 2 and t.kind == "main")
    walks = [[one, two], [console, one, soundtrack, two], [one, stranger]]
    days = [[RELEASE] * len(walk) for walk in walks]
    made = replace(shop, walks=walks, days=days)
    rows = samples(made).filter(pl.col("position") == pl.col("position").max().over("user_id"))
    seldom, often = rows[:1], pl.concat([rows[:1]] * 3)
    assert row_kinds(made, rows, seldom, list(shop.ids.values())) == [RARE, SEVERAL, TASTE]
    assert row_kinds(made, rows, often, list(shop.ids.values())) == [MEMORY, SEVERAL, TASTE]
    with pytest.raises(InputError, match="no purchase number"):
        steps(made, rows.with_columns(pl.lit("U999999").alias("user_id")), list(shop.ids.values()))


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


def test_counting_beats_popularity_most_on_games(shops):
    margins = {}
    for category in ("games", "industrial"):
        popularity, counter = hit_rates(shops[category].walks)
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
