"""Real Amazon files through the first three stages; skipped where they are absent."""

import pytest
from reviews_bench import Bench, checks, rows

from sidr_core.errors import InputError

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
    assert (raw["lines"], raw["rows"], raw["later_than_snapshot"], raw["quarantined"]) == (22_447, 22_446, 1, 0)
    assert raw["first_date"] == "2016-10-01"
    assert len(rows(made.run("raw_items", "2018-09"), "raw_items")) == 3_317
    metrics = out.manifest["metrics"]
    assert (metrics["users"], metrics["items"], metrics["interactions"]) == (1_183, 642, 7_548)
    assert (metrics["train_rows"], metrics["valid_rows"], metrics["test_rows"]) == (5_092, 636, 637)
    assert all(checks(out).values())


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
    assert test["user_id"].n_unique() == 2_024  # METHOD 1.3
    histories = test["history_item_ids"]
    assert histories.list.len().max() == 10
    assert round(histories.list.len().mean(), 2) == 4.97
    items = rows(out, "items")
    assert items["published_sid"].n_unique() == 3_444
    sid = dict(items.select("item_id", "published_sid").iter_rows())
    lasts = list(zip(histories.list.last(), test["target_item_id"], strict=True))
    assert sum(last == target for last, target in lasts) == 76
    assert round(sum(sid[last] == sid[target] for last, target in lasts) / 4_866, 3) == 0.020  # METHOD counts SIDs


def test_dirty_magazine_metadata_is_not_fatal(tmp_path, real_data):
    made = Bench(tmp_path, amazon_source(real_data, "Magazine_Subscriptions"))
    reviews = made.run("raw_reviews").manifest["metrics"]
    assert (reviews["rows"], reviews["exact_duplicates"]) == (2_375, 42)
    items = made.run("raw_items").manifest["metrics"]
    assert items["refused_title_html"] == 3_153
    assert items["rows"] + items["quarantined"] == items["lines"] == 3_385


@pytest.mark.parametrize(
    ("file", "role", "named"),
    [
        ("amazon_2018/meta_Office_Products.json.gz", "reviews", "Amazon 2014/2018 metadata"),
        ("amazon_2018/Office_Products_5.json.gz", "items", "Amazon 2014/2018 reviews"),
        ("amazon_2018/Magazine_Subscriptions.ratings_only.csv.gz", "reviews", "ratings-only CSV"),
        ("amazon_2014/meta_Digital_Music.json.gz", "items", "Python-dict"),
        ("amazon_2023/All_Beauty.jsonl.gz", "reviews", "Amazon 2023 reviews"),
        ("amazon_2023/Books.sample8000.jsonl.gz", "items", "Amazon 2023 reviews"),
        ("amazon_2023/meta_All_Beauty.jsonl.gz", "items", "Amazon 2023 metadata"),
        ("amazon_2023/All_Beauty.5core.rating_only.csv.gz", "reviews", "Amazon 2023 benchmark CSV"),
        (f"minionerec/test/{SPLIT}.csv.gz", "reviews", "MiniOneRec"),
    ],
)
def test_files_of_another_layout_are_named(tmp_path, real_data, file, role, named):
    made = Bench(tmp_path, amazon_source(real_data, "Office_Products") | {role: [str(real_data / file)]})
    with pytest.raises(InputError) as caught:
        made.run(f"raw_{role}")
    assert named in caught.value.found
    assert made.published() == []


def test_2014_reviews_are_read_like_those_of_2018(tmp_path, real_data):
    source = amazon_source(real_data, "Office_Products")
    source["reviews"] = [str(real_data / "amazon_2014" / "reviews_Digital_Music_5.json.gz")]
    metrics = Bench(tmp_path, source).run("raw_reviews").manifest["metrics"]
    assert (metrics["rows"], metrics["quarantined"]) == (6_908, 0)
