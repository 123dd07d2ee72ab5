"""The Amazon 2018 layout through raw_reviews and raw_items: what is accepted, refused, and fatal."""

import gzip
import json

import pytest
from reviews_bench import JUNE_2018, Bench, amazon, checks, item, review, rows, write

from sidr_core.errors import InputError

GOOD_ITEMS = [item("I1"), item("I2")]
LENIENT = {"filters": {"max_quarantine_share": 1.0}}


def bench(tmp_path, reviews, items=GOOD_ITEMS, **sections):
    return Bench(tmp_path / "home", amazon(tmp_path / "data", reviews, items), **sections)


def refused(artifact):
    return {line: reason for line, reason in rows(artifact, "quarantine").select("line", "reason").iter_rows()}


def test_accepted_reviews_keep_their_values_order_and_place(tmp_path):
    lines = [
        review("U2", "I1", 1_527_811_200, 4.0),
        "",
        review("U1", "I1", 1_527_724_800, 5, reviewText="x"),
        review("U1", "I1", 1_527_724_800, 5, reviewText="x"),
        review("U1", "I1", 1_527_724_800, 5, reviewText="another text"),
    ]
    out = bench(tmp_path, lines).run("raw_reviews")
    got = rows(out, "raw_reviews")
    assert got.select("user_id", "item_id", "rating", "timestamp", "file", "line").rows() == [
        ("U2", "I1", 4.0, 1_527_811_200, "reviews.json.gz", 1),
        ("U1", "I1", 5.0, 1_527_724_800, "reviews.json.gz", 3),
        ("U1", "I1", 5.0, 1_527_724_800, "reviews.json.gz", 4),
        ("U1", "I1", 5.0, 1_527_724_800, "reviews.json.gz", 5),
    ]
    assert got["synthetic"].to_list() == [False] * 4
    metrics = out.manifest["metrics"]
    assert (metrics["exact_duplicates"], metrics["lines"], metrics["rows"]) == (1, 4, 4)
    assert (metrics["first_date"], metrics["last_date"]) == ("2018-05-31", "2018-06-01")


BAD = {
    '{"reviewerID": "U1", "asin": "I1"': "bad_json",
    "[1, 2]": "bad_json",
    '"text"': "bad_json",
    "U1,I1,5.0,1527811200": "bad_json",
    '{"reviewerID": "\\ud800", "asin": "I1", "overall": 5.0, "unixReviewTime": 1}': "bad_json",
    "[" * 50_000: "bad_json",
    '{"reviewerID": "U1", "asin": "I1", "overall": 5.0}': "missing_field",
    review("U1", "I1").replace('"I1"', "null"): "missing_field",
    review(" ", "I1"): "missing_field",
    review("U1", "I1").replace('"U1"', "17"): "wrong_type",
    review("U1", "I1").replace('"I1"', '["I1"]'): "wrong_type",
    review("U1", "I1").replace("5.0", '"5.0"'): "wrong_type",
    review("U1", "I1").replace(str(JUNE_2018), '"06 1, 2018"'): "wrong_type",
    review("U1", "I1").replace(str(JUNE_2018), "true"): "wrong_type",
    review("U1", "I1", rating=5.5): "rating_out_of_range",
    review("U1", "I1", rating=-1): "rating_out_of_range",
    review("U1", "I1").replace("5.0", "NaN"): "rating_out_of_range",
    review("U1", "I1").replace("5.0", "1e999"): "rating_out_of_range",
    review("U1", "I1", -5): "bad_time",
    review("U1", "I1", 99_999_999_999): "bad_time",
    review("U1", "I1").replace(str(JUNE_2018), "1527811200.5"): "bad_time",
    review("U1", "I1", JUNE_2018 * 1000): "time_in_milliseconds",
    review("U1", "I1", JUNE_2018 * 1_000_000): "time_in_microseconds",
    review("U1\0", "I1"): "nul_byte",
    '{"reviewerID": "U1\0"}': "nul_byte",
}


def test_every_bad_line_is_quarantined_with_its_reason(tmp_path):
    lines = [review("U1", "I1"), *BAD, review("U2", "I2")]
    lines.insert(1, b'{"reviewerID": "\xff"}')
    out = bench(tmp_path, lines, **LENIENT).run("raw_reviews")
    assert rows(out, "raw_reviews")["user_id"].to_list() == ["U1", "U2"]
    expected = {2: "bad_encoding"} | dict(enumerate(BAD.values(), 3))
    assert refused(out) == expected
    quarantine = rows(out, "quarantine")
    assert quarantine["text"].str.len_chars().max() == 500
    assert set(quarantine["file"]) == {"reviews.json.gz"}
    assert out.manifest["metrics"]["quarantined"] == len(BAD) + 1
    assert "bad_json" in out.manifest["markdown"]["Refused lines"]


def test_share_of_bad_lines_decides(tmp_path):
    lines = [review(f"U{n}", "I1") for n in range(99)] + ["{broken"]
    out = bench(tmp_path / "one", lines).run("raw_reviews")  # 1 of 100 is just allowed
    assert checks(out) == {"quarantine_share": True}
    assert out.manifest["metrics"]["quarantine_share"] == 0.01
    dirty = bench(tmp_path / "two", [*lines, '{"reviewerID": "U1"}'])
    with pytest.raises(InputError) as caught:
        dirty.run("raw_reviews")
    message = str(caught.value)
    for part in ("2 of 101", "bad_json 1", "missing_field 1", "line 100", "{broken", "max_quarantine_share"):
        assert part in message
    assert "raw_reviews" not in dirty.published()


def test_snapshot_cuts_before_its_end_and_parses_once(tmp_path):
    july = 1_530_403_200  # 2018-07-01 00:00 UTC
    made = bench(tmp_path, [review("U1", "I1", july - 1), review("U1", "I2", july), review("U1", "I1", july + 1)])
    june = made.run("raw_reviews", "2018-06")
    assert rows(june, "raw_reviews")["timestamp"].to_list() == [july - 1]
    assert june.manifest["metrics"]["later_than_snapshot"] == 2
    before = len(made.said)
    assert len(rows(made.run("raw_reviews", "2018-07"), "raw_reviews")) == 3
    assert not any("parsed" in line for line in made.said[before:])
    assert len(list((made.store.root / "parsed_reviews").glob("*/MANIFEST.json"))) == 1
    with pytest.raises(InputError, match=r"2018-06-30 … 2018-07-01") as caught:
        made.run("raw_reviews", "2018-03")
    assert "before 2018-04-01" in str(caught.value)


def test_several_files_are_joined_in_order(tmp_path):
    source = amazon(tmp_path / "data", [], GOOD_ITEMS)
    write(tmp_path / "data" / "b.json", review("U2", "I1"))
    write(tmp_path / "data" / "a.json.gz", review("U1", "I1"), "{broken")
    source["reviews"] = [str(tmp_path / "data" / "[ab].json*")]
    out = Bench(tmp_path / "home", source, **LENIENT).run("raw_reviews")
    assert rows(out, "raw_reviews").select("user_id", "file", "line").rows() == [
        ("U1", "a.json.gz", 1),
        ("U2", "b.json", 1),
    ]
    assert rows(out, "quarantine").select("file", "line").rows() == [("a.json.gz", 2)]


AMAZON_2023 = json.dumps(
    {"rating": 5.0, "title": "t", "asin": "I1", "parent_asin": "I1", "user_id": "U", "timestamp": 1}
)
OTHER_LAYOUTS = [
    ("reviews", item("I1"), "Amazon 2014/2018 metadata"),
    ("reviews", AMAZON_2023, "Amazon 2023 reviews"),
    ("reviews", "user_id,history_item_title,item_title,history_item_id", "MiniOneRec's published CSV split"),
    ("reviews", "I1,U1,5.0,1527811200", "a ratings-only CSV"),
    ("reviews", '{"a": 1}', "keys a"),
    ("reviews", "once upon a time", "once upon a time"),
    ("reviews", "", "an empty file"),
    ("items", review("U1", "I1"), "Amazon 2014/2018 reviews"),
    ("items", AMAZON_2023, "Amazon 2023 reviews"),
    ("items", "{'asin': 'I1', 'title': 'x'}", "Python-dict lines"),
]


@pytest.mark.parametrize(("role", "line", "named"), OTHER_LAYOUTS)
def test_other_layouts_are_named(tmp_path, role, line, named):
    source = amazon(tmp_path / "data", [review("U1", "I1")], GOOD_ITEMS) | {
        role: [write(tmp_path / "data" / "other.json", line, line)]
    }
    made = Bench(tmp_path / "home", source)
    with pytest.raises(InputError) as caught:
        made.run(f"raw_{role}")
    assert named in caught.value.found
    assert "other.json" in caught.value.what
    assert made.published() == []


def test_damaged_first_lines_do_not_hide_the_layout(tmp_path):
    out = bench(tmp_path, ["{broken", "{}", review("U1", "I1")], **LENIENT).run("raw_reviews")
    assert len(rows(out, "raw_reviews")) == 1


def test_missing_empty_and_truncated_files(tmp_path):
    source = amazon(tmp_path / "data", [review("U1", "I1")], GOOD_ITEMS)
    with pytest.raises(InputError, match="missing"):
        Bench(tmp_path / "a", source | {"reviews": [str(tmp_path / "none.json")]}).run("raw_reviews")
    packed = tmp_path / "empty.json.gz"
    packed.write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="no records"):
        Bench(tmp_path / "b", source | {"reviews": [str(packed)]}).run("raw_reviews")
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress("".join(review(f"U{n}", "I1") + "\n" for n in range(500)).encode())[:-300])
    made = Bench(tmp_path / "c", source | {"reviews": [str(cut)]})
    with pytest.raises(InputError, match=r"cut\.json\.gz is damaged"):
        made.run("raw_reviews")
    assert made.published() == []


def test_items_are_cleaned_and_refused_by_rule(tmp_path):
    lines = [
        item("I1", "Pen &amp; Ink", description=["<b>Fine</b>", ""], brand=" Quill ", category=["A", "B &amp; C"]),
        item("I2", '<span id="x">'),
        item("I3", "word " * 20),
        item("I4", "word " * 21),
        item("I1", "Second record"),
        item("I5").replace('"Thing I5"', "null"),
        item("I6", description="['one', 'two']", categories=[["X", "Y"], ["Z"]], brand=None, price=3),
        item("I7", "x"),
        item("I8", description={"a": 1}, category="Pens"),
    ]
    out = bench(tmp_path, [review("U1", "I1")], lines, filters={"max_quarantine_share": 0.0}).run("raw_items")
    columns = ("item_id", "title", "description", "brand", "category")
    assert rows(out, "raw_items").select(columns).rows() == [
        ("I1", "Pen & Ink", "Fine", "Quill", "A > B & C"),
        ("I3", " ".join(["word"] * 20), "", "", ""),
        ("I6", "Thing I6", "one two", "", "X > Y"),
        ("I8", "Thing I8", "", "", "Pens"),
    ]
    assert refused(out) == {
        2: "title_html",
        4: "title_too_long",
        5: "duplicate_item",
        6: "title_missing",
        8: "title_missing",
    }
    assert rows(out, "quarantine")["line"].to_list() == [2, 4, 5, 6, 8]
    assert rows(out, "quarantine").filter(line=5)["text"].item() == lines[4]
    assert checks(out) == {"unique_items": True}


def test_first_accepted_record_of_a_repeated_item_wins(tmp_path):
    lines = [item("I1", "<span id"), item("I1", "The name"), item("I1", "Later name")]
    out = bench(tmp_path, [review("U1", "I1")], lines).run("raw_items")
    assert rows(out, "raw_items")["title"].to_list() == ["The name"]
    assert refused(out) == {1: "title_html", 3: "duplicate_item"}


def test_bad_item_lines_count_and_rules_do_not(tmp_path):
    bad = ["{broken", '{"title": "x"}', '{"asin": 3, "title": "x"}', '{"asin": "I9", "title": 3}']
    out = bench(tmp_path / "a", [review("U1", "I1")], [*GOOD_ITEMS, *bad], **LENIENT).run("raw_items")
    assert list(refused(out).values()) == ["bad_json", "missing_field", "wrong_type", "wrong_type"]
    with pytest.raises(InputError, match="too many items"):
        bench(tmp_path / "b", [review("U1", "I1")], [*GOOD_ITEMS, *bad]).run("raw_items")
    with pytest.raises(InputError, match="no item is left"):
        bench(tmp_path / "c", [review("U1", "I1")], [item("I1", "<span id")]).run("raw_items")


def test_same_lines_give_the_same_bytes(tmp_path):
    lines = [review(f"U{n % 7}", f"I{n % 3}", JUNE_2018 + n) for n in range(50)] + ["{broken"]
    one, two = (bench(tmp_path / name, lines, **LENIENT).run("raw_reviews") for name in ("a", "b"))
    assert one.digest == two.digest
