"""Real Amazon files through the first three stages; skipped where they are absent."""

import pytest

from builders.reviews import Bench, checks, rows
from sidr_core.errors import InputError
from sidr_core.reviews import layouts

SPLIT = "Office_Products_5_2016-10-2018-11"


def amazon_source(real_data, category):
    folder = real_data / "amazon_2018"
    return {
        "kind": "amazon_2018",
        "reviews": [str(folder / f"{category}_5.json.gz")],
        "items": [str(folder / f"meta_{category}.json.gz")],
    }


def test_office_from_raw_reviews(tmp_path, real_data):
    made = Bench(tmp_path, amazon_source(real_data, "Office_Products"))
    out = made.interactions("2018-09")
    raw = made.run("raw_reviews", "2018-09").manifest["metrics"]
    assert (raw["lines"], raw["rows"], raw["later_than_snapshot"], raw["quarantined"]) == (22_447, 21_296, 1, 0)
    assert raw["exact_duplicates"] == 1_150
    assert raw["first_date"] == "2016-10-01"
    assert len(rows(made.run("raw_items", "2018-09"), "raw_items")) == 3_317
    metrics = out.manifest["metrics"]
    assert (metrics["users"], metrics["items"], metrics["interactions"]) == (406, 226, 2_501)
    assert (metrics["train_rows"], metrics["valid_rows"], metrics["test_rows"]) == (1_676, 209, 210)
    assert [name for name, passed in checks(out).items() if not passed] == ["core_share"]
    whole = Bench(tmp_path, amazon_source(real_data, "Office_Products"), filters={"keep_duplicates": True})
    metrics = whole.interactions("2018-09").manifest["metrics"]
    assert (metrics["users"], metrics["items"]) == (1_183, 642)
    assert (metrics["train_rows"], metrics["valid_rows"], metrics["test_rows"]) == (5_092, 636, 637)


def test_published_office_split(tmp_path, real_data):
    folder = real_data / "minionerec"
    source = {
        "kind": "minionerec",
        "train": str(folder / "train" / f"{SPLIT}.partial.csv.gz"),
        "valid": str(folder / "valid" / f"{SPLIT}.csv.gz"),
        "test": str(folder / "test" / f"{SPLIT}.csv.gz"),
        "info": str(folder / "info" / f"{SPLIT}.txt.gz"),
        "items": str(folder / "index" / "Office_Products.item.json.gz"),
    }
    out = Bench(tmp_path, source).interactions()
    sizes = {name: len(rows(out, name)) for name in ("train", "valid", "test", "items")}
    assert sizes == {"train": 7_648, "valid": 4_866, "test": 4_866, "items": 3_459}
    test = rows(out, "test")
    assert test["user_id"].n_unique() == 2_024  # docs/method.md, "Data"
    histories = test["history_item_ids"]
    assert histories.list.len().max() == 10
    assert round(histories.list.len().mean(), 2) == 4.97
    items = rows(out, "items")
    assert items["published_sid"].n_unique() == 3_444
    sid = dict(items.select("item_id", "published_sid").iter_rows())
    lasts = list(zip(histories.list.last(), test["target_item_id"], strict=True))
    assert sum(last == target for last, target in lasts) == 76
    assert (
        round(sum(sid[last] == sid[target] for last, target in lasts) / 4_866, 3) == 0.020
    )  # docs/method.md counts SIDs


HISTORY = {"snapshots": {"start": "2001-01", "end": "2023-12", "cadence": "monthly"}}
KEEP, DROP = {"items_without_text": "keep"}, {"items_without_text": "drop"}


def through(tmp_path, source, **filters):
    """Metrics of the first three stages at the end of 2023, the interactions' checks passing; a 5-core may be small."""
    made = Bench(tmp_path, source, **HISTORY, filters=filters)
    stages = {name: made.run(name, "2023-12") for name in ("raw_reviews", "raw_items", "interactions")}
    assert {name for name, passed in checks(stages["interactions"]).items() if not passed} <= {"core_share"}
    assert (rows(stages["raw_reviews"], "raw_reviews")["synthetic"].any()) is False
    return [artifact.manifest["metrics"] for artifact in stages.values()]


def test_magazine_with_its_dirty_metadata(tmp_path, real_data):
    source = amazon_source(real_data, "Magazine_Subscriptions")
    reviews, items, log = through(tmp_path, source, **KEEP)
    assert (reviews["lines"], reviews["rows"], reviews["exact_duplicates"]) == (2_375, 2_331, 44)
    assert items["refused_duplicate_item"] == 1_065
    assert (items["rows"], items["titles_from_text"], items["titles_placeholder"]) == (2_320, 2_163, 0)
    assert (log["users"], log["items"], log["interactions"]) == (285, 126, 1_956)
    # Nine in ten records have no usable title, so by default all items stay.
    assert Bench(tmp_path, source).run("raw_items").manifest["metrics"]["rows"] == 2_320
    dropped = Bench(tmp_path, source, filters=DROP).run("raw_items").manifest["metrics"]
    assert dropped["refused_title_html"] == 3_153
    assert dropped["rows"] + dropped["quarantined"] == dropped["lines"] == 3_385
    # Markup stands in categories as `&amp;` and in descriptions as tags; a quote at one end of a title stays.
    assert {name: n for name, n in dropped.items() if name.startswith("cleaned_")} == {
        "cleaned_blanks": 74,
        "cleaned_tags": 777,
        "cleaned_entities": 762,
        "cleaned_quotes": 10,
    }


def test_digital_music_2014(tmp_path, real_data):
    folder = real_data / "amazon_2014"
    source = {
        "kind": "amazon_2014",
        "reviews": [str(folder / "reviews_Digital_Music_5.json.gz")],
        "items": [str(folder / "meta_Digital_Music.json.gz")],
    }
    reviews, items, log = through(tmp_path, source, max_quarantine_share=0.0)
    assert (reviews["rows"], reviews["quarantined"]) == (6_908, 0)
    assert (reviews["first_date"], reviews["last_date"]) == ("1998-04-28", "2014-07-07")
    # 98 records have no title and three have one of a single character.
    assert (items["lines"], items["rows"]) == (7_419, 7_317)
    assert (items["refused_title_missing"], items["refused_title_too_short"]) == (98, 3)
    assert items["refused_title_too_long"] == 1
    assert (log["users"], log["items"], log["interactions"]) == (268, 206, 2_480)


def test_fashion_has_no_metadata(tmp_path, real_data):
    source = amazon_source(real_data, "AMAZON_FASHION") | {"items": []}
    reviews, items, log = through(tmp_path, source, **KEEP)
    assert (reviews["lines"], reviews["rows"], reviews["exact_duplicates"]) == (3_176, 3_087, 89)
    assert (items["rows"], items["titles_placeholder"]) == (31, 31)
    assert log["items"] <= 31
    with pytest.raises(InputError, match="no item metadata"):
        Bench(tmp_path, source, filters=DROP).run("raw_items")


def test_ratings_only_magazine(tmp_path, real_data):
    folder = real_data / "amazon_2018"
    source = {
        "kind": "ratings_csv",
        "ratings": [str(folder / "Magazine_Subscriptions.ratings_only.csv.gz")],
        "items": [str(folder / "meta_Magazine_Subscriptions.json.gz")],
    }
    reviews, items, log = through(tmp_path, source, **KEEP)
    assert (reviews["lines"], reviews["quarantined"]) == (89_689, 0)
    assert reviews["rows"] + reviews["exact_duplicates"] == 89_689
    assert items["rows"] == 2_320
    assert (log["users"], log["items"], log["interactions"]) == (284, 126, 1_950)


@pytest.mark.parametrize("kind", ["amazon_2023", "ratings_csv"])
def test_beauty_2023_from_reviews_and_from_the_benchmark_file(tmp_path, real_data, kind):
    folder = real_data / "amazon_2023"
    items_source = {"items": [str(folder / "meta_All_Beauty.jsonl.gz")]}
    found = {
        "amazon_2023": {"reviews": [str(folder / "All_Beauty.jsonl.gz")]},
        "ratings_csv": {"ratings": [str(folder / "All_Beauty.5core.rating_only.csv.gz")]},
    }
    reviews, items, log = through(tmp_path, {"kind": kind, **items_source, **found[kind]}, **KEEP)
    lines = 2_544 if kind == "amazon_2023" else 2_535
    assert (reviews["lines"], reviews["rows"], reviews["quarantined"]) == (lines, lines, 0)
    assert reviews["last_date"] == "2023-03-07"
    assert items["rows"] == 356
    assert (log["users"], log["items"], log["interactions"]) == (253, 356, lines)


def test_books_sample_is_read_and_too_sparse(tmp_path, real_data):
    path = str(real_data / "amazon_2023" / "Books.sample8000.jsonl.gz")
    made = Bench(tmp_path, {"kind": "amazon_2023", "reviews": [path]}, **HISTORY, filters=KEEP)
    reviews = made.run("raw_reviews", "2023-12").manifest["metrics"]
    assert (reviews["lines"], reviews["quarantined"]) == (8_000, 0)
    items = made.run("raw_items", "2023-12").manifest["metrics"]
    assert items["titles_placeholder"] == items["rows"] > 7_000
    with pytest.raises(InputError, match="5-core is empty"):
        made.run("interactions", "2023-12")


@pytest.mark.parametrize(
    ("file", "role", "named"),
    [
        ("amazon_2018/meta_Office_Products.json.gz", "reviews", layouts.ITEMS_2014_2018),
        ("amazon_2018/meta_Magazine_Subscriptions.json.gz", "reviews", layouts.ITEMS_2018),
        ("amazon_2018/Office_Products_5.json.gz", "items", layouts.REVIEWS_2014_2018),
        ("amazon_2018/Magazine_Subscriptions.ratings_only.csv.gz", "reviews", layouts.RATINGS_ITEM_USER),
        ("amazon_2014/reviews_Digital_Music_5.json.gz", "reviews", layouts.REVIEWS_2014),
        ("amazon_2014/meta_Digital_Music.json.gz", "items", layouts.ITEMS_2014),
        ("amazon_2023/All_Beauty.jsonl.gz", "reviews", layouts.REVIEWS_2023),
        ("amazon_2023/Books.sample8000.jsonl.gz", "items", layouts.REVIEWS_2023),
        ("amazon_2023/meta_All_Beauty.jsonl.gz", "items", layouts.ITEMS_2023),
        ("amazon_2023/All_Beauty.5core.rating_only.csv.gz", "reviews", layouts.RATINGS_USER_ITEM),
        ("amazon_2023/All_Beauty.5core.last_out_w_his.test.csv.gz", "reviews", layouts.BENCHMARK_HISTORY),
        (f"minionerec/test/{SPLIT}.csv.gz", "reviews", layouts.MINIONEREC),
        (f"minionerec/info/{SPLIT}.txt.gz", "reviews", layouts.MINIONEREC_INFO),
        ("minionerec/index/Office_Products.item.json.gz", "items", layouts.MINIONEREC_ITEMS),
        ("minionerec/sequences/Office_Products.sequences.jsonl.gz", "reviews", "JSON objects with the keys asins"),
    ],
)
def test_files_of_another_layout_are_named(tmp_path, real_data, file, role, named):
    made = Bench(tmp_path, amazon_source(real_data, "Office_Products") | {role: [str(real_data / file)]})
    with pytest.raises(InputError) as caught:
        made.run(f"raw_{role}")
    assert named in caught.value.found
    assert made.published() == []
