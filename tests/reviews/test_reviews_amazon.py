"""Amazon review files through raw_reviews: what is accepted, refused, and fatal."""

import gzip

import pytest

from builders.reviews import JUNE_2018, Bench, amazon, checks, item, review, rows, write
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
        ("U1", "I1", 5.0, 1_527_724_800, "reviews.json.gz", 5),
    ]
    assert got["synthetic"].to_list() == [False] * 3
    metrics = out.manifest["metrics"]
    assert (metrics["exact_duplicates"], metrics["lines"], metrics["rows"]) == (1, 4, 3)
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
    assert all(checks(out).values())
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
    assert "raw_reviews" not in made.published()


def test_same_lines_give_the_same_bytes(tmp_path):
    lines = [review(f"U{n % 7}", f"I{n % 3}", JUNE_2018 + n) for n in range(50)] + ["{broken"]
    one, two = (bench(tmp_path / name, lines, **LENIENT).run("raw_reviews") for name in ("a", "b"))
    assert one.digest == two.digest
