"""`raw_items`: what is cleaned, refused and kept, by hand; hostile metadata; sources without metadata."""

import json
import time
import tracemalloc

import pytest

from builders.reviews import Bench, amazon, checks, item, review, rows, write
from sidr_core.errors import InputError
from sidr_core.reviews import text

LENIENT = {"filters": {"max_quarantine_share": 1.0}}
KEEP = {"filters": {"items_without_text": "keep"}}
DROP = {"filters": {"items_without_text": "drop"}}
COLUMNS = ("item_id", "title", "description", "brand", "category")


def bench(tmp_path, items, **sections):
    return Bench(tmp_path / "home", amazon(tmp_path / "data", [review("U1", "I1")], items), **sections)


def metadata(tmp_path, kind, lines, **sections):
    """`raw_items` of a source whose metadata are these lines."""
    files = {"reviews": [write(tmp_path / "r.json", review("U1", "I1"))], "items": [write(tmp_path / "m.gz", *lines)]}
    return Bench(tmp_path / "home", {"kind": kind, **files}, **sections).run("raw_items")


def refused(artifact):
    return {line: reason for line, reason in rows(artifact, "quarantine").select("line", "reason").iter_rows()}


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
    out = bench(tmp_path, lines, filters={"max_quarantine_share": 0.0}).run("raw_items")
    assert rows(out, "raw_items").select(COLUMNS).rows() == [
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
        8: "title_too_short",
    }
    assert rows(out, "quarantine").filter(line=5)["text"].item() == lines[4]
    assert checks(out) == {"unique_items": True, "every_line_counted": True}


def test_cleaning_is_reported_by_rule_and_field(tmp_path):
    lines = [
        item("I1", '"Pen &amp; Ink" />', description=["<b>Fine</b>", "a\tb"], brand="A &amp; B"),
        item("I2", description="['x', 'y']", category=["A &amp; B", "C &amp; D"]),
        item("I3", description="<style>.x {}</style>plain"),
        item("I4", "Nothing to clean", description="plain"),
        item("I5", "y" * 50_000),
        '{"asin": 3, "title": "&amp;"}',
    ]
    out = bench(tmp_path, lines, **LENIENT).run("raw_items")
    metrics = {name: n for name, n in out.manifest["metrics"].items() if name.startswith("cleaned_")}
    assert metrics == {
        "cleaned_cut": 1,
        "cleaned_list": 1,
        "cleaned_blanks": 1,
        "cleaned_blocks": 1,
        "cleaned_tags": 1,
        "cleaned_entities": 3,  # one title, one brand, one category path
        "cleaned_quotes": 1,
    }
    table = out.manifest["markdown"]["Cleaning"].splitlines()
    assert table[0] == "| values changed | title | description | brand | category |"
    assert f"| {text.RULES['entities']} | 1 | 0 | 1 | 1 |" in table
    assert f"| {text.RULES['list']} | 0 | 1 | 0 | 0 |" in table


def test_clean_metadata_reports_no_cleaning(tmp_path):
    out = bench(tmp_path, [item("I1")]).run("raw_items")
    assert out.manifest["markdown"]["Cleaning"] == "Nothing was changed."


def test_first_usable_record_of_a_repeated_item_wins(tmp_path):
    lines = [item("I1", "<span id", description="old"), item("I2"), item("I1", "The name"), item("I1", "Later name")]
    dropped = bench(tmp_path / "drop", lines).run("raw_items")
    assert rows(dropped, "raw_items")["title"].to_list() == ["Thing I2", "The name"]
    assert refused(dropped) == {1: "title_html", 4: "duplicate_item"}
    kept = bench(tmp_path / "keep", lines, **KEEP).run("raw_items")
    assert rows(kept, "raw_items").select("title", "description").rows() == [("Thing I2", ""), ("The name", "")]
    assert refused(kept) == {1: "duplicate_item", 4: "duplicate_item"}


def test_kept_items_have_the_best_text_they_have(tmp_path):
    lines = [
        item("I1", "<span id", description="<p>Red pen for teachers</p>", brand="Quill", category=["Pens"]),
        item("I2", "<span id", brand="Quill", category=["Pens"]),
        item("I3", "<span id", category=["Office", "Pens"]),
        item("I4").replace('"Thing I4"', "null"),
        item("I5", "one two three four five"),
    ]
    filters = {"items_without_text": "keep", "max_title_words": 3}
    out = bench(tmp_path, lines, filters=filters).run("raw_items")
    assert rows(out, "raw_items").select(COLUMNS).rows() == [
        ("I1", "Red pen for", "Red pen for teachers", "Quill", "Pens"),
        ("I2", "Quill", "", "Quill", "Pens"),
        ("I3", "Office > Pens", "", "", "Office > Pens"),
        ("I4", "Item I4", "", "", ""),
        ("I5", "one two three", "", "", ""),
    ]
    assert refused(out) == {}
    metrics = out.manifest["metrics"]
    assert [metrics[f"titles_{name}"] for name in ("from_text", "placeholder", "shortened")] == [3, 1, 1]
    assert "titles made of the item's id alone | 1 |" in out.manifest["markdown"]["Cleaning"]


def test_a_change_of_policy_parses_nothing_again(tmp_path):
    made = [bench(tmp_path, [item("I1", "<i"), item("I2")], **sections) for sections in ({}, KEEP)]
    assert [len(rows(one.run("raw_items"), "raw_items")) for one in made] == [1, 2]
    assert any("lines parsed" in line for line in made[0].said)
    assert not any("lines parsed" in line for line in made[1].said)


def test_bad_item_lines_count_and_rules_do_not(tmp_path):
    good = [item("I1"), item("I2")]
    bad = [
        "{broken",
        '{"title": "x"}',
        '{"asin": 3, "title": "x"}',
        '{"asin": "I9", "title": 3}',
        '{"asin": "\\u0000"}',
    ]
    out = bench(tmp_path / "a", [*good, *bad], **LENIENT).run("raw_items")
    assert list(refused(out).values()) == ["bad_json", "missing_field", "wrong_type", "wrong_type", "nul_byte"]
    with pytest.raises(InputError, match="too many items"):
        bench(tmp_path / "b", [*good, *bad]).run("raw_items")
    with pytest.raises(InputError, match="no item is left"):
        bench(tmp_path / "c", [item("I1", "<span id")], **DROP).run("raw_items")


@pytest.mark.parametrize(("usable", "kept"), [(2, ["I0", "I1"]), (1, ["I0", "I1", "I2"])])
def test_items_without_a_title_stay_where_they_are_most(tmp_path, usable, kept):
    """By default; two of four go, as the paper has it, two of three stay."""
    items = [item(f"I{n}") for n in range(usable)] + [item(f"I{n}", "<span id") for n in range(usable, usable + 2)]
    out = bench(tmp_path, items).run("raw_items")
    assert rows(out, "raw_items")["item_id"].to_list() == kept
    assert out.manifest["metrics"].get("refused_title_html", 0) == (2 if usable == 2 else 0)


def test_truncated_metadata_is_used_only_if_allowed(tmp_path):
    source = amazon(tmp_path / "data", [review("U1", "I1")], [item(f"I{n}", f"Title {n * 7919}") for n in range(5000)])
    path = tmp_path / "data" / "meta.json.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="damaged"):
        Bench(tmp_path / "home", source).run("raw_items")
    out = Bench(tmp_path / "home", source, filters={"allow_truncated": True}).run("raw_items")
    assert 1000 < len(rows(out, "raw_items")) < 5000
    with pytest.raises(InputError, match="lines came before"):  # also when it is stored already
        Bench(tmp_path / "home", source).run("raw_items")


# -- Python-dict lines ---------------------------------------------------------------------------


def test_2014_metadata_is_read_as_python_writes_it(tmp_path):
    lines = [
        repr({"asin": "I1", "title": 'Don\'t "stop"', "price": 9.49, "related": {"also_bought": ["I2"]}}),
        repr({"asin": "I2", "title": "Tab\there", "categories": [["Music", "Rock"], ["CDs"]], "brand": "", "x": None}),
        r"{'asin': 'I3', 'title': u'\xc9tude \\ \u266b', 'salesRank': {'Music': -1}}",
        json.dumps({"asin": "I4", "title": "JSON too"}),
    ]
    out = metadata(tmp_path, "amazon_2014", lines)
    assert rows(out, "raw_items").select("item_id", "title", "category").rows() == [
        ("I1", 'Don\'t "stop"', ""),
        ("I2", "Tab here", "Music > Rock"),
        ("I3", "Étude \\ ♫", ""),
        ("I4", "JSON too", ""),
    ]


def test_hostile_lines_are_refused_and_nothing_runs(tmp_path):
    trap = tmp_path / "ran"
    payload = f"__import__('os').system('touch {trap}')"
    hostile = {
        f"{{'asin': {payload}, 'title': 'x'}}": "bad_literal",
        payload: "bad_literal",
        f"{{'asin': 'I9', 'title': [c for c in ().__class__.__base__.__subclasses__()] or {payload}}}": "bad_literal",
        "{'asin': 'I9', 'title': f'{1 + 1}'}": "bad_literal",
        "{'asin': 'I9', 'title': " + "[" * 5_000 + "]" * 5_000 + "}": "bad_literal",
        "{'asin': " + "-" * 100_000 + "1}": "bad_literal",
        "{'asin': 'I9', 'n': " + "9" * 10_000 + "}": "bad_literal",
        "{'asin': {[]: 1}, 'title': 'x'}": "bad_literal",
        "{'asin': 'I9', 'title': '" + "x" * 300_000 + "'}": "line_too_long",
        "{'asin': 'I9', 'title': '" + "x" * 10_000_000 + "'}": "line_too_long",
        "['asin', 'I9']": "bad_literal",
        "{'asin': 'I\\ud8009', 'title': 'x'}": "bad_encoding",
        "{'asin': 'I\\x009', 'title': 'x'}": "nul_byte",
        "{'asin': 7, 'title': 'x'}": "wrong_type",
        "{'title': 'x'}": "missing_field",
    }
    sound = r"{'asin': 'I1', 'title': 'A\x00\x07 b\ud800', 'description': '\x1b[31mred'}"
    lines = [sound, *(repr({"asin": f"J{n}", "title": f"Title {n}"}) for n in range(30)), *hostile]
    started = time.monotonic()
    tracemalloc.start()
    out = metadata(tmp_path, "amazon_2014", lines, **LENIENT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not trap.exists()
    assert refused(out) == dict(enumerate(hostile.values(), 32))
    assert rows(out, "quarantine")["text"].str.len_chars().max() == 500
    assert rows(out, "raw_items").select("title", "description").row(0) == ("A b", "[31mred")
    assert peak < 200 << 20 and time.monotonic() - started < 20


def test_longest_literal_stays_small():
    tracemalloc.start()
    assert len(text.literal("[" + "1," * (text.MAX_LITERAL // 2 - 1) + "]")) == text.MAX_LITERAL // 2 - 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
    with pytest.raises(ValueError, match="no short literal"):
        text.literal("[" + "1," * text.MAX_LITERAL + "]")


# -- 2023 ----------------------------------------------------------------------------------------


def test_2023_metadata_joins_features_and_takes_the_store_as_brand(tmp_path):
    def line(number, **fields):
        return json.dumps({"parent_asin": f"P{number}", "title": f"Thing {number}"} | fields)

    lines = [
        line(1, description=["One.", "Two."], features=["Three."], store="Shop", main_category="All Beauty"),
        line(2, description=[], categories=["Beauty", "Hair"], main_category="All Beauty", details={"Brand": "B"}),
        line(3, store=None, details={"Brand": "B"}, price=None, features=None),
        line(4, asin="V4", details="none", store=""),
    ]
    out = metadata(tmp_path, "amazon_2023", lines)
    assert rows(out, "raw_items").select(COLUMNS).rows() == [
        ("P1", "Thing 1", "One. Two. Three.", "Shop", "All Beauty"),
        ("P2", "Thing 2", "", "B", "Beauty > Hair"),
        ("P3", "Thing 3", "", "B", ""),
        ("P4", "Thing 4", "", "", ""),
    ]


# -- no metadata ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ratings_csv", "amazon_2018", "tables"])
def test_items_without_metadata_are_those_of_the_reviews(tmp_path, kind):
    csv = ["user_id,item_id,rating,timestamp", "U1,I2,5.0,1527811200", "U1,I1,4.0,1527811201", "U2,I2,3.0,1527811202"]
    found = {
        "ratings_csv": {"ratings": [write(tmp_path / "x.csv", *csv)]},
        "tables": {"reviews": [write(tmp_path / "x.csv", *csv)]},
        "amazon_2018": {"reviews": [write(tmp_path / "x.json", review("U1", "I2"), review("U2", "I1"))]},
    }
    source = {"kind": kind, **found[kind]}
    with pytest.raises(InputError, match="no item metadata") as caught:
        Bench(tmp_path / "drop", source, **DROP).run("raw_items")
    assert "items_without_text" in str(caught.value)
    out = Bench(tmp_path / "keep", source).run("raw_items")
    got = rows(out, "raw_items").select("item_id", "title", "file").rows()
    assert got == [("I1", "Item I1", "reviews"), ("I2", "Item I2", "reviews")]
    assert out.manifest["metrics"]["titles_placeholder"] == 2
