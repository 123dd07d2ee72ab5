"""Sequences without times, and leave-one-out: the last of each user is test, the one before valid."""

import json

import polars as pl
import pytest

from builders.reviews import JUNE_2018, Bench, checks, review, rows, write
from builders.reviews import item as amazon_item
from sidr_core.errors import InputError, ProfileError

LINES = ("u1\tR1\t0 1 2 3 4", "u0\tR0\t3 1 0", "u2\tR2\t4 4 1 2")
HEADER = "user_id\treviewer_id\titem_ids"
LEFT_OUT = {"split": {"kind": "leave_one_out", "max_history": 3}, "filters": {"k_core": 1}}


def items(*ids: object) -> list[str]:
    return [
        json.dumps({"item_id": n, "asin": f"B{n}", "title": f"Game {n}", "platform": "PC", "kind": "game"}) for n in ids
    ]


def bench(folder, lines=LINES, records=None, **sections) -> Bench:
    sequences, catalogue = folder / "Games.sequences.tsv.gz", folder / "Games.items.jsonl.gz"
    write(sequences, HEADER, *lines)
    write(catalogue, *(items(0, 1, 2, 3, 4) if records is None else records))
    source = {"kind": "sequences", "sequences": [str(sequences)], "items": [str(catalogue)]}
    return Bench(folder, source, **(LEFT_OUT | sections))


def test_each_user_s_last_items_are_left_out_and_the_order_is_the_file_s(tmp_path):
    out = bench(tmp_path).interactions()
    columns = ("row_id", "history_item_ids", "target_item_id", "target_timestamp")
    assert rows(out, "test").select(columns).rows() == [
        ("u0:2", ["3", "1"], "0", None),
        ("u1:4", ["1", "2", "3"], "4", None),
        ("u2:3", ["4", "4", "1"], "2", None),
    ]
    assert rows(out, "valid").select("row_id", "history_item_ids").rows() == [
        ("u0:1", ["3"]),
        ("u1:3", ["0", "1", "2"]),
        ("u2:2", ["4", "4"]),
    ]
    assert rows(out, "train")["row_id"].to_list() == ["u1:1", "u1:2", "u2:1"]
    assert rows(out, "items").select("item_id", "title", "brand", "category").row(0) == ("0", "Game 0", "PC", "game")
    assert all(checks(out).values())
    details = {check["name"]: check["detail"] for check in out.manifest["checks"]}
    assert "leave-one-out" in details["split_order"] and "own order" in details["train_only_past"]
    metrics = out.manifest["metrics"]
    assert (metrics["users"], metrics["items"], metrics["interactions"]) == (3, 5, 12)


def test_bad_lines_are_refused_whole_with_their_reason_and_counted(tmp_path):
    bad = ("u3\tR3\t", "\tR4\t1 2 3", "u5\tR5\t1  2", "u6\t1 2 3")
    made = bench(tmp_path, (*LINES, *bad), filters={"k_core": 1, "max_quarantine_share": 0.5})
    raw = made.run("raw_reviews")
    assert rows(raw, "quarantine").select("line", "reason").rows() == [
        (5, "missing_field"),
        (6, "missing_field"),
        (7, "bad_list"),
        (8, "wrong_columns"),
    ]
    assert raw.manifest["metrics"]["lines"] == 12 + 4 and rows(raw, "raw_reviews").height == 12
    assert rows(raw, "raw_reviews")["line"].to_list() == [2] * 5 + [3] * 3 + [4] * 4
    with pytest.raises(InputError, match="too many reviews cannot be read"):
        bench(tmp_path / "strict", (*LINES, *bad)).run("raw_reviews")


def test_bad_items_are_refused_and_their_interactions_left_out(tmp_path):
    records = [*items(0, 1, 2, 3), "{broken", json.dumps({"item_id": True, "title": "No id"})]
    made = bench(tmp_path, records=records, filters={"k_core": 1, "max_quarantine_share": 0.5})
    out = made.interactions()
    assert rows(made.run("raw_items"), "quarantine")["reason"].to_list() == ["bad_json", "wrong_type"]
    assert rows(out, "interactions").filter(pl.col("item_id") == "4").is_empty()


def test_files_of_other_layouts_are_named(tmp_path):
    write(tmp_path / "reviews.json.gz", review("u", "i"))
    source = {"kind": "sequences", "sequences": [str(tmp_path / "reviews.json.gz")], "items": []}
    with pytest.raises(InputError, match="another layout") as refused:
        Bench(tmp_path, source, **LEFT_OUT).run("raw_reviews")
    assert "sequences without times" in refused.value.expected and "amazon" in refused.value.fix
    bench(tmp_path)
    source = {"kind": "tables", "reviews": [str(tmp_path / "Games.sequences.tsv.gz")], "items": []}
    with pytest.raises(InputError, match="is of another layout") as refused:
        Bench(tmp_path, source, **LEFT_OUT).run("raw_reviews")
    assert "kind: sequences" in refused.value.fix


def test_time_cannot_split_what_has_none(tmp_path):
    with pytest.raises(ProfileError, match="sequences carry no times"):
        bench(tmp_path, split={"kind": "time"})


def test_leave_one_out_of_reviews_with_times_lets_the_times_of_users_cross(tmp_path):
    days = [(user, n, late + n) for user, late in (("a", 0), ("b", 50)) for n in range(4)]
    write(tmp_path / "r.json.gz", *(review(user, f"i{n}", JUNE_2018 + 86_400 * day) for user, n, day in days[::-1]))
    write(tmp_path / "m.json.gz", *(amazon_item(f"i{n}", f"Item {n}") for n in range(4)))
    source = {"kind": "amazon_2018", "reviews": [str(tmp_path / "r.json.gz")], "items": [str(tmp_path / "m.json.gz")]}
    out = Bench(tmp_path, source, **LEFT_OUT).interactions()
    assert rows(out, "test")["row_id"].to_list() == ["a:3", "b:3"]
    assert rows(out, "train").select("row_id", "history_item_ids").rows() == [("a:1", ["i0"]), ("b:1", ["i0"])]
    assert rows(out, "train")["target_timestamp"].max() > rows(out, "test")["target_timestamp"].min()
    assert all(checks(out).values())
