"""MiniOneRec's published split: rows kept as they are, mixtures and damage refused."""

import pytest

from builders.minionerec import HEADER, INFO, SIDS, row, source
from builders.reviews import Bench, checks, rows, write
from sidr_core.errors import InputError

LENIENT = {"filters": {"max_quarantine_share": 1.0}}


def test_rows_are_kept_as_they_are(tmp_path):
    made = Bench(tmp_path, source(tmp_path / "data"))
    out = made.interactions()
    columns = ("row_id", "user_id", "position", "history_item_ids", "target_item_id", "target_timestamp")
    assert rows(out, "train").select(columns).rows() == [
        ("A2:1", "A2", 1, ["7"], "8", None),
        ("A1:1", "A1", 1, ["7", "8"], "9", None),
        ("A2:2", "A2", 2, ["7", "8"], "7", None),
    ]
    assert rows(out, "valid")["row_id"].to_list() == ["A1:2"]
    assert rows(out, "test").select("row_id", "target_item_id").rows() == [("A2:3", "9"), ("A1:3", "7")]
    assert rows(out, "interactions").select("user_id", "position", "item_id", "rating", "timestamp").rows() == [
        ("A1", 1, "9", None, None),
        ("A1", 2, "7", None, None),
        ("A1", 3, "7", None, None),
        ("A2", 1, "8", None, None),
        ("A2", 2, "7", None, None),
        ("A2", 3, "9", None, None),
    ]
    items = rows(out, "items")
    assert items.select("item_id", "title", "description", "brand", "published_sid").rows() == [
        ("7", "Title, of 7", "Seven", "B", SIDS["7"]),
        ("8", "Title, of 8", "", "", SIDS["8"]),
        ("9", "Title, of 9", "", "", SIDS["9"]),
    ]
    assert all(checks(out).values())
    details = {check["name"]: check["detail"] for check in out.manifest["checks"]}
    assert "does not apply" in details["k_core"] and "does not apply" in details["split_order"]
    raw = rows(made.run("raw_reviews"), "raw_reviews")
    assert raw["split"].to_list() == ["train"] * 3 + ["valid"] + ["test"] * 2
    assert raw["file"].unique(maintain_order=True).to_list() == [
        f"{s}/Office.csv.gz" for s in ("train", "valid", "test")
    ]
    assert raw["line"].to_list() == [2, 3, 4, 2, 2, 3]


def test_history_is_cut_to_the_most_recent(tmp_path):
    out = Bench(tmp_path, source(tmp_path / "data"), split={"max_history": 2}).interactions()
    assert rows(out, "test")["history_item_ids"].to_list() == [["8", "7"], ["9", "7"]]


def test_second_snapshot_parses_nothing_again(tmp_path):
    made = Bench(tmp_path, source(tmp_path / "data"))
    made.run("raw_reviews", "2018-09")
    parts = sorted((made.store.root / "parsed_reviews").glob("*/MANIFEST.json"))
    stamps = [path.stat().st_mtime_ns for path in parts]
    assert len(parts) == 3
    made.run("raw_reviews", "2018-10")
    assert [path.stat().st_mtime_ns for path in sorted(parts)] == stamps


BAD = [
    (row("A3", [7], 8, item_sid="<a_9><b_9><c_9>"), "sid_mismatch"),
    (row("A3", [7, 8], 9, history_item_sid=str([SIDS["8"], SIDS["7"]])), "sid_mismatch"),
    (row("A3", [7], 99), "unknown_item"),
    (row("A3", [99], 7), "unknown_item"),
    (row("A3", [], 7), "bad_list"),
    (row("A3", [7], 8, history_item_id="[7"), "bad_list"),
    (row("A3", [7], 8, history_item_id="7"), "bad_list"),
    (row("A3", [7], 8, history_item_id="[[7]]"), "bad_list"),
    (row("A3", [7], 8, history_item_id="[True]"), "bad_list"),
    (row("A3", [7], 8, history_item_id="[7, 7]"), "bad_list"),
    (row("A3", [7], 8, history_item_id="__import__('os').getpid()"), "bad_list"),
    (row("A3", [7], 8, history_item_id=f"[{'7,' * 60_000}]"), "bad_list"),
    (row("A3", [7], 8, history_item_id="[" * 5_000), "bad_list"),
    (row("", [7], 8), "missing_field"),
    ("A3,7,8", "wrong_columns"),
    (row("A3", [7], 8, user_id="A\0"), "nul_byte"),
    (row("A3", [7], 8).encode().replace(b"A3", b"\xff"), "bad_encoding"),
]


def test_bad_rows_are_quarantined_with_their_reason(tmp_path):
    valid = [*(line for line, _ in BAD), row("A1", [7, 8, 9], 7)]
    made = Bench(tmp_path, source(tmp_path / "data", valid=valid), **LENIENT)
    out = made.run("raw_reviews")
    got = rows(out, "quarantine")
    assert list(zip(got["line"], got["reason"], strict=True)) == list(enumerate((r for _, r in BAD), 2))
    assert got["file"].unique().to_list() == ["valid/Office.csv.gz"]
    assert got["text"].str.len_chars().max() == 500
    assert len(rows(out, "raw_reviews")) == 6
    strict = Bench(tmp_path / "strict", source(tmp_path / "data", valid=valid))
    with pytest.raises(InputError, match="sid_mismatch 2"):
        strict.run("raw_reviews")


def test_quoted_titles_may_span_lines(tmp_path):
    valid = [row("A1", [7, 8, 9], 7, item_title='two\nlines, "quoted"'), row("A9", [7], 8)]
    out = Bench(tmp_path, source(tmp_path / "data", valid=valid)).run("raw_reviews")
    got = rows(out, "raw_reviews").filter(split="valid")
    assert got.select("user_id", "line").rows() == [("A1", 2), ("A9", 4)]


def test_wrong_and_missing_files(tmp_path):
    good = source(tmp_path / "data")
    hollow = tmp_path / "hollow.csv"
    hollow.touch()
    reviews = write(tmp_path / "reviews.json", '{"reviewerID": "U", "asin": "I"}')
    cases = [
        ("raw_reviews", {"train": str(hollow)}, "0 bytes"),
        ("raw_reviews", {"test": str(tmp_path / "none.csv")}, "missing"),
        ("raw_reviews", {"valid": reviews}, "Amazon 2014/2018 reviews"),
        ("raw_reviews", {"info": reviews}, "Amazon 2014/2018 reviews"),
        ("raw_items", {"info": good["train"]}, "MiniOneRec's published CSV split"),
        ("raw_items", {"items": good["info"]}, "MiniOneRec's info file"),
        ("raw_items", {"items": write(tmp_path / "index.json", '{"7": ["<a_1>"]}')}, "no item file"),
        ("raw_items", {"info": write(tmp_path / "info.txt", "<a_1>\tonly two")}, "no info file"),
        ("raw_reviews", {"test": write(tmp_path / "x.csv", HEADER.replace("item_sid", "sid"))}, "lacks columns"),
    ]
    for number, (stage, change, message) in enumerate(cases):
        made = Bench(tmp_path / str(number), good | change, **LENIENT)
        with pytest.raises(InputError, match=message):
            made.run(stage)
        assert stage not in made.published()


def test_bad_info_lines_are_quarantined(tmp_path):
    info = [*INFO, "no tabs", "<a_1>\tonly two", "a_1\tbad sid\t5", INFO[0]]
    out = Bench(tmp_path, source(tmp_path / "data", info=info), **LENIENT).run("raw_items")
    assert rows(out, "quarantine").select("line", "reason").rows() == [
        (4, "wrong_columns"),
        (5, "wrong_columns"),
        (6, "bad_sid"),
        (7, "duplicate_item"),
    ]
    assert len(rows(out, "raw_items")) == 3


def test_an_empty_split_is_an_error(tmp_path):
    made = Bench(tmp_path, source(tmp_path / "data", valid=[row("A1", [99], 7)]), **LENIENT)
    with pytest.raises(InputError, match="the valid split is empty"):
        made.interactions()
    assert "interactions" not in made.published()
