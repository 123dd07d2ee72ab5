"""Every source kind: what it reads, and that a file of any other layout is refused by name."""

import csv
import io
import json
import re
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builders.reviews import JUNE_2018, Bench, item, review, rows, write
from sidr_core.errors import InputError, ProfileError
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Store
from sidr_core.reviews import layouts
from sidr_core.reviews.layouts import Detected, detect, identify, require

LENIENT = {"filters": {"max_quarantine_share": 1.0}}
SID = "<a_1><b_2><c_3>"
MINI_HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"

# One file of each layout: the text of its lines.
FILES = {
    layouts.REVIEWS_2014: [review("U1", "I1", helpful=[0, 1])],
    layouts.REVIEWS_2018: [review("U1", "I1", verified=True)],
    layouts.REVIEWS_2014_2018: [review("U1", "I1")],
    layouts.REVIEWS_2023: [
        json.dumps({"user_id": "U1", "parent_asin": "I1", "rating": 5.0, "title": "t", "timestamp": JUNE_2018 * 1000})
    ],
    layouts.ITEMS_2014: [repr({"asin": "I1", "title": "Thing", "imUrl": "u"})],
    layouts.ITEMS_2014_JSON: [item("I1", imUrl="u")],
    layouts.ITEMS_2018: [item("I1", also_buy=[])],
    layouts.ITEMS_2014_2018: [item("I1")],
    layouts.ITEMS_2023: [json.dumps({"parent_asin": "I1", "title": "Thing"})],
    layouts.RATINGS_USER_ITEM: ["A1AAAAAAAAAAA,B000000001,5.0,1527811200", "A2AAAAAAAAAAA,B000000002,5.0,1527811200"],
    layouts.RATINGS_ITEM_USER: ["B000000001,A1AAAAAAAAAAA,5.0,1527811200", "B000000002,A2AAAAAAAAAAA,5.0,1527811200"],
    layouts.RATINGS: ["U1,I1,5.0,1527811200", "U2,I2,5.0,1527811200"],
    layouts.BENCHMARK_HISTORY: [
        "user_id,parent_asin,rating,timestamp,history",
        "A1AAAAAAAAAAA,B000000001,5.0,1527811200000,B000000002",
    ],
    layouts.MINIONEREC: [MINI_HEADER, f"A1,\"['T']\",T,[1],1,\"['{SID}']\",{SID}"],
    layouts.MINIONEREC_INFO: [f"{SID}\tThing, one\t1"],
    layouts.MINIONEREC_ITEMS: ["{", '  "1": {', '    "title": "Thing"', "  }", "}"],
    layouts.PARQUET: None,
    layouts.TABLE_CSV: ["who,what,when", "u,thing,2018-06-01"],
    layouts.SEQUENCES: ["user_id\titem_ids", "u\tI1 I2"],
    layouts.ITEMS_PLAIN: [json.dumps({"item_id": "I1", "title": "Thing"})],
    layouts.EMPTY: [" ", ""],
}

# (kind, field) -> the layouts that it reads; every other one is refused.
READS = {
    ("amazon_2014", "reviews"): {layouts.REVIEWS_2014, layouts.REVIEWS_2014_2018},
    ("amazon_2014", "items"): {layouts.ITEMS_2014, layouts.ITEMS_2014_JSON, layouts.ITEMS_2014_2018},
    ("amazon_2018", "reviews"): {layouts.REVIEWS_2018, layouts.REVIEWS_2014_2018},
    ("amazon_2018", "items"): {layouts.ITEMS_2018, layouts.ITEMS_2014_2018},
    ("amazon_2023", "reviews"): {layouts.REVIEWS_2023},
    ("amazon_2023", "items"): {layouts.ITEMS_2023},
    ("ratings_csv", "ratings"): {layouts.RATINGS_USER_ITEM, layouts.RATINGS_ITEM_USER, layouts.RATINGS},
    ("ratings_csv", "items"): {
        layouts.ITEMS_2014,
        layouts.ITEMS_2014_JSON,
        layouts.ITEMS_2018,
        layouts.ITEMS_2014_2018,
        layouts.ITEMS_2023,
    },
    ("tables", "reviews"): {layouts.PARQUET, layouts.TABLE_CSV},
    ("tables", "items"): {layouts.PARQUET, layouts.TABLE_CSV},
    ("sequences", "sequences"): {layouts.SEQUENCES},
    ("sequences", "items"): {layouts.ITEMS_PLAIN},
    ("minionerec", "train"): {layouts.MINIONEREC},
    ("minionerec", "test"): {layouts.MINIONEREC},
    ("minionerec", "info"): {layouts.MINIONEREC_INFO},
    ("minionerec", "items"): {layouts.MINIONEREC_ITEMS},
}


def put(folder: Path, layout: str, name: str = "other") -> str:
    if FILES[layout] is None:
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"who": ["u"], "what": ["thing"], "when": [JUNE_2018]}).write_parquet(folder / name)
        return str(folder / name)
    return write(folder / name, *FILES[layout])


def sound(folder: Path, kind: str) -> dict:
    """A source of this kind whose files are all as they should be."""
    own = {
        "amazon_2014": (layouts.REVIEWS_2014, layouts.ITEMS_2014),
        "amazon_2018": (layouts.REVIEWS_2018, layouts.ITEMS_2018),
        "amazon_2023": (layouts.REVIEWS_2023, layouts.ITEMS_2023),
        "tables": (layouts.TABLE_CSV, layouts.TABLE_CSV),
    }
    if kind == "minionerec":
        splits = {name: put(folder / name, layouts.MINIONEREC, "x.csv") for name in ("train", "valid", "test")}
        return {"kind": kind, **splits, "info": put(folder, layouts.MINIONEREC_INFO, "info.txt")}
    if kind == "ratings_csv":
        ratings = [put(folder, layouts.RATINGS_ITEM_USER, "ratings.csv")]
        return {"kind": kind, "ratings": ratings, "items": [put(folder, layouts.ITEMS_2018, "meta.json")]}
    if kind == "sequences":
        sequences = [put(folder, layouts.SEQUENCES, "s.tsv")]
        return {"kind": kind, "sequences": sequences, "items": [put(folder, layouts.ITEMS_PLAIN, "i.jsonl")]}
    reviews, items = own[kind]
    source = {"kind": kind, "reviews": [put(folder, reviews, "r.txt")], "items": [put(folder, items, "i.txt")]}
    if kind == "tables":
        source |= {"review_columns": {"user_id": "who", "item_id": "what", "timestamp": "when"}}
        source |= {"item_columns": {"item_id": "who", "title": "what"}}
    return source


PAIRS = [(kind, field, layout) for (kind, field) in READS for layout in FILES]


@pytest.mark.parametrize(("kind", "field", "layout"), PAIRS, ids=lambda value: value[:40].replace(" ", "_"))
def test_a_file_of_another_layout_is_named(tmp_path, kind, field, layout):
    path = put(tmp_path / "data", layout)
    source = sound(tmp_path / "data", kind)
    source[field] = path if kind == "minionerec" else [path]
    if layout == layouts.RATINGS and kind == "ratings_csv":
        source["order"] = "user_item"
    split = {"split": {"kind": "leave_one_out"}} if kind == "sequences" else {}
    made = Bench(tmp_path / "home", source, **LENIENT, **split)
    stage = "raw_items" if field in ("items", "info") else "raw_reviews"
    if layout in READS[kind, field]:
        made.run(stage)
        return
    with pytest.raises(InputError) as caught:
        made.run(stage)
    assert layout in caught.value.found
    assert "other" in caught.value.what
    if layout != layouts.EMPTY:
        assert layouts.BELONGS[layout] in caught.value.fix
    assert stage not in made.published()


def test_every_layout_says_where_it_belongs():
    assert set(layouts.BELONGS) == set(FILES) - {layouts.EMPTY}
    for (kind, field), read in READS.items():
        for layout in read:
            belongs = layouts.BELONGS[layout]
            assert kind in belongs or (kind, field) == ("ratings_csv", "items")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["{broken", "{}", FILES[layouts.REVIEWS_2018][0]], layouts.REVIEWS_2018),
        ([review("U1", "I1"), review("U1", "I1", verified=True)], layouts.REVIEWS_2018),
        (["{'asin': __import__('os')}", *FILES[layouts.ITEMS_2014] * 2], layouts.ITEMS_2014),
        ([item("I1"), repr({"asin": "I2", "title": "x"}), item("I3")], layouts.ITEMS_2014_2018),
        (["{'reviewerID': 'U', 'asin': 'I'}"], "Python-dict lines with the keys asin, reviewerID"),
        (['{"a": 1}'], "JSON objects with the keys a"),
        (["{}"], "JSON objects with the keys (none)"),
        (["once upon a time"], "a first line that begins with 'once upon a time'"),
        (["Dear reader, this is a letter", "and it is no table"], "a first line that begins with"),
        (['{"0": ["<a_1>"], "1": ["<a_2>"]}'], layouts.MINIONEREC_ITEMS),
        (["Product ID;User ID;stars;time", "1;2;3;4"], layouts.TABLE_CSV),
        (["item_id\tasin", "0\tB1"], layouts.TABLE_CSV),
        (["user,item,rating,timestamp", "7,9,4,1527811200"], layouts.RATINGS_USER_ITEM),
        (["asin,reviewerID,overall,unixReviewTime", "7,9,4,1527811200"], layouts.RATINGS_ITEM_USER),
        (["x,y,rating,timestamp", "B000000001,A1AAAAAAAAAAA,4,1"], layouts.RATINGS_ITEM_USER),
        (["x,y,rating,timestamp", "7,9,4,1"], layouts.RATINGS),
        (["user,item,timestamp,rating", "7,9,1527811200,4"], layouts.TABLE_CSV),
        ([], layouts.EMPTY),
    ],
)
def test_what_lines_look_like(lines, found):
    assert found in identify(lines).name


@given(st.lists(st.text(max_size=80), max_size=6))
def test_any_beginning_gets_some_name(lines):
    assert identify(lines).name


def test_damaged_files_still_get_a_name(tmp_path):
    packed = Path(write(tmp_path / "x.json.gz", *[review(f"U{n}", "I1", verified=n % 2 == 0) for n in range(5000)]))
    packed.write_bytes(packed.read_bytes()[:-500])
    assert detect(packed).name == layouts.REVIEWS_2018
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"x" * 40)
    assert detect(tmp_path / "x.parquet").name == "a damaged Parquet file"
    with pytest.raises(InputError, match="another layout"):
        require(tmp_path / "x", Detected("something"), (layouts.PARQUET,), "reviews")


# -- ratings CSV -----------------------------------------------------------------------------------

USER, ITEM = "A1AAAAAAAAAAA", "B000000001"


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([f"{USER},{ITEM},5.0,1527811200"], 1),
        ([f"{ITEM},{USER},5.0,1527811200"], 1),
        ([f"{ITEM},{USER},5.0,1527811200000"], 1),
        (["user_id,parent_asin,rating,timestamp", f"{USER},{ITEM},5.0,1527811200999"], 2),
        (["item,user,rating,timestamp", f"{ITEM},{USER},5.0,1527811200"], 2),
    ],
)
def test_ratings_in_any_order_unit_and_with_or_without_header(tmp_path, lines, line):
    source = {"kind": "ratings_csv", "ratings": [write(tmp_path / "x.csv.gz", *lines)]}
    got = rows(Bench(tmp_path / "home", source).run("raw_reviews"), "raw_reviews")
    columns = ("user_id", "item_id", "rating", "timestamp", "line")
    assert got.select(columns).rows() == [(USER, ITEM, 5.0, JUNE_2018, line)]


def test_files_of_two_orders_and_units_are_read_each_as_it_is(tmp_path):
    first = write(tmp_path / "a.csv", f"{USER},{ITEM},5.0,1527811200")
    second = write(tmp_path / "b.csv", f"{ITEM},{USER},4.0,1527811201000")
    source = {"kind": "ratings_csv", "ratings": [first, second]}
    got = rows(Bench(tmp_path / "home", source).run("raw_reviews"), "raw_reviews")
    assert got.select("user_id", "rating", "timestamp", "file").rows() == [
        (USER, 5.0, JUNE_2018, "a.csv"),
        (USER, 4.0, JUNE_2018 + 1, "b.csv"),
    ]


def test_an_order_that_cannot_be_told_is_asked_for(tmp_path):
    source = {"kind": "ratings_csv", "ratings": [write(tmp_path / "x.csv", *FILES[layouts.RATINGS])]}
    with pytest.raises(InputError, match=r"which of the first two columns") as caught:
        Bench(tmp_path / "home", source).run("raw_reviews")
    assert "source.order" in caught.value.fix
    for order, first in (("user_item", "U1"), ("item_user", "I1")):
        made = Bench(tmp_path / order, source | {"order": order})
        assert rows(made.run("raw_reviews"), "raw_reviews")["user_id"].to_list()[0] == first


# -- tables ----------------------------------------------------------------------------------------

MAP = {"user_id": "who", "item_id": "what", "timestamp": "when", "rating": "stars"}


def tables(tmp_path, frame_or_lines, name="t.csv", columns=MAP, **sections):
    path = tmp_path / name
    if isinstance(frame_or_lines, pl.DataFrame):
        frame_or_lines.write_parquet(path)
    else:
        write(path, *frame_or_lines)
    source = {"kind": "tables", "reviews": [str(path)], "review_columns": columns}
    return Bench(tmp_path / f"home-{name}", source, **sections).run("raw_reviews")


JUNE = datetime(2018, 6, 1, tzinfo=UTC)
TIMES = {
    "seconds": [JUNE_2018, JUNE_2018 + 1],
    "milliseconds": [JUNE_2018 * 1000, JUNE_2018 * 1000 + 1999],
    "microseconds": [JUNE_2018 * 10**6, JUNE_2018 * 10**6 + 1_999_999],
    "floats": [float(JUNE_2018), float(JUNE_2018 + 1)],
    "dates": [date(2018, 6, 1), date(2018, 6, 2)],
    "timestamps": [datetime(2018, 6, 1), datetime(2018, 6, 1, 0, 0, 1)],
    "zoned": [JUNE, datetime(2018, 6, 1, 0, 0, 1, tzinfo=UTC)],
    "iso": ["2018-06-01", "2018-06-01T02:00:01+02:00"],
    "iso_utc": ["2018-06-01 00:00:00", "2018-06-01T00:00:01.75Z"],
    "numerals": [str(JUNE_2018), f" {JUNE_2018 + 1} "],
}


@pytest.mark.parametrize("form", TIMES)
def test_times_of_every_form_become_seconds(tmp_path, form):
    frame = pl.DataFrame({"who": ["u", "u"], "what": [1, 2], "when": TIMES[form], "stars": [5, None]})
    second = JUNE_2018 + (86_400 if form == "dates" else 1)
    expected = [("u", "1", 5.0, JUNE_2018, 1), ("u", "2", None, second, 2)]
    columns = ("user_id", "item_id", "rating", "timestamp", "line")
    got = rows(tables(tmp_path, frame, "t.parquet"), "raw_reviews")
    assert got.select(columns).rows() == expected
    as_text = ["who,what,when,stars", *(f'u,{n},"{when}",{stars}' for n, when, stars in text_rows(frame))]
    got = rows(tables(tmp_path, as_text), "raw_reviews")
    assert got.select(columns).rows() == [(*row[:4], row[4] + 1) for row in expected]


def text_rows(frame):
    for _, what, when, stars in frame.iter_rows():
        yield what, when.isoformat() if isinstance(when, date) else when, "" if stars is None else stars


BAD = [
    ("u,1,1527811200,9", "rating_out_of_range"),
    ("u,1,1527811200,-1", "rating_out_of_range"),
    ("u,1,NULL,5", "missing_field"),
    ("nan,1,1527811200,5", "missing_field"),
    ("u,1,1527811200,good", "wrong_type"),
    ("u,1,yesterday,5", "wrong_type"),
    ("u,1,2018-13-45,5", "wrong_type"),
    ("u,1,,5", "missing_field"),
    (",1,1527811200,5", "missing_field"),
    ("u,  ,1527811200,5", "missing_field"),
    ("u,1,-5,5", "bad_time"),
    ("u,1,99999999999,5", "bad_time"),
    ("u,1,1890-01-01,5", "bad_time"),
    ("u,1,inf,5", "bad_time"),
    ("u,1,1527811200000,5", "time_in_milliseconds"),
    ("u,1,1527811200000000,5", "time_in_microseconds"),
    ("u,1,1527811200", "wrong_columns"),
    ("u,1,1527811200,5,6", "wrong_columns"),
    ("u\0,1,1527811200,5", "nul_byte"),
    (b"\xff,1,1527811200,5", "bad_encoding"),
]


def test_bad_rows_are_quarantined_with_their_line_and_reason(tmp_path):
    good = [f"u,{n},{JUNE_2018 + n},5" for n in range(30)]
    out = tables(
        tmp_path, ["who,what,when,stars", *good, *(line for line, _ in BAD), "", '"a\nb",1,1527811200,5'], **LENIENT
    )
    got = rows(out, "quarantine")
    reasons = list(zip(got["line"], got["reason"], strict=True))
    assert reasons == list(enumerate((reason for _, reason in BAD), 32))
    assert got.filter(line=32)["text"].item() == "u,1,9,1527811200"
    last = rows(out, "raw_reviews").row(-1, named=True)
    assert (last["user_id"], last["line"]) == ("a\nb", 32 + len(BAD) + 1)
    assert out.manifest["metrics"]["lines"] == 30 + len(BAD) + 1


def test_parquet_rows_are_quarantined_by_number(tmp_path):
    frame = pl.DataFrame(
        {"who": ["u", None, "u", "u"], "what": ["1", "1", "", "1"], "when": [JUNE_2018 * 1000] * 3 + [JUNE_2018]}
    )
    columns = {name: theirs for name, theirs in MAP.items() if name != "rating"}
    out = tables(tmp_path, frame, "t.parquet", columns, **LENIENT)
    assert rows(out, "quarantine").select("file", "line", "reason").rows() == [
        ("t.parquet", 2, "missing_field"),
        ("t.parquet", 3, "missing_field"),
        ("t.parquet", 4, "time_in_seconds"),
    ]
    assert rows(out, "raw_reviews")["rating"].to_list() == [None]


@pytest.mark.parametrize("when", [20180601, 1, JUNE_2018 * 10**9])
def test_times_in_no_known_unit_are_an_error(tmp_path, when):
    frame = pl.DataFrame({"who": ["u"], "what": ["1"], "when": [when], "stars": [5]})
    with pytest.raises(InputError, match="no unix times") as caught:
        tables(tmp_path, frame, "t.parquet")
    assert str(when) in caught.value.found


@pytest.mark.parametrize(
    ("columns", "frame", "named"),
    [
        (MAP | {"rating": "mark"}, {"who": ["u"], "what": ["i"], "when": [1]}, "no column 'mark'"),
        ({}, {"who": ["u"], "what": ["i"], "when": [1]}, "no column 'user_id'"),
        (MAP, {"who": [b"u"], "what": ["i"], "when": [JUNE_2018], "stars": [1]}, "'who' cannot be read"),
        (MAP, {"who": ["u"], "what": [0.5], "when": [JUNE_2018], "stars": [1]}, "'what' cannot be read"),
        (MAP, {"who": ["u"], "what": ["i"], "when": [[1]], "stars": [1]}, "'when' cannot be read"),
        (MAP, {"who": ["u"], "what": ["i"], "when": [JUNE_2018], "stars": [[1]]}, "'stars' cannot be read"),
    ],
)
def test_columns_that_are_missing_or_of_another_type(tmp_path, columns, frame, named):
    with pytest.raises(InputError) as caught:
        tables(tmp_path, pl.DataFrame(frame), "t.parquet", columns)
    assert named in caught.value.what


def test_unknown_names_in_the_map_are_profile_errors(tmp_path):
    with pytest.raises(ProfileError, match="review_columns"):
        tables(tmp_path, ["who,what", "u,i"], columns={"user": "who"})


def test_a_folder_of_tables_and_its_items(tmp_path):
    folder = tmp_path / "log"
    for number in (2, 1):
        (folder / f"part={number}").mkdir(parents=True)
        frame = pl.DataFrame({"user_id": ["u"], "item_id": [f"i{number}"], "timestamp": [JUNE_2018], "extra": [1]})
        frame.write_parquet(folder / f"part={number}" / "x.parquet")
    write(folder / "_SUCCESS", "")
    write(folder / "notes.txt", "no table")
    catalogue = pl.DataFrame(
        {
            "item_id": ["i1", "i2", "i3", None],
            "name": ["Pen &amp; Ink", "Cup", "Cup", "Hat"],
            "text": [["<b>Fine</b>", "blue"], [], None, None],
            "category": ["A > B", "", "C", "D"],
        }
    )
    catalogue.write_parquet(tmp_path / "items.parquet")
    source = {
        "kind": "tables",
        "reviews": [str(folder)],
        "items": [str(tmp_path / "items.parquet")],
        "item_columns": {"title": "name", "description": "text"},
    }
    made = Bench(tmp_path / "home", source, filters={"k_core": 1, "max_quarantine_share": 0.5})
    got = rows(made.run("raw_reviews"), "raw_reviews")
    assert got.select("item_id", "file").rows() == [("i1", "part=1/x.parquet"), ("i2", "part=2/x.parquet")]
    out = made.run("raw_items")
    assert rows(out, "raw_items").select("item_id", "title", "description", "category", "line").rows() == [
        ("i1", "Pen & Ink", "Fine blue", "A > B", 1),
        ("i2", "Cup", "", "", 2),
        ("i3", "Cup", "", "C", 3),
    ]
    assert rows(out, "quarantine").select("line", "reason").rows() == [(4, "missing_field")]


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "log").mkdir()
    write(tmp_path / "log" / "notes.txt", "x")
    source = {"kind": "tables", "reviews": [str(tmp_path / "log")]}
    with pytest.raises(InputError, match="holds no table") as caught:
        Bench(tmp_path / "home", source).run("raw_reviews")
    assert "notes.txt" in caught.value.found


def test_exact_duplicates_of_a_table_are_dropped_and_counted(tmp_path):
    out = tables(tmp_path, ["who,what,when,stars", *["u,1,1527811200,5"] * 3, "u,1,1527811200,4"])
    assert len(rows(out, "raw_reviews")) == 2
    assert out.manifest["metrics"]["exact_duplicates"] == 2


def test_truncated_tables_are_used_only_if_allowed(tmp_path):
    out = io.StringIO()
    csv.writer(out).writerows([f"user{n * 7919}", f"i{n}", JUNE_2018 + n, 5] for n in range(5000))
    path = Path(write(tmp_path / "t.csv.gz", "who,what,when,stars", out.getvalue()))
    path.write_bytes(path.read_bytes()[:-2000])
    source = {"kind": "tables", "reviews": [str(path)], "review_columns": MAP}
    with pytest.raises(InputError, match="damaged"):
        Bench(tmp_path / "home", source).run("raw_reviews")
    got = Bench(tmp_path / "home", source, filters={"allow_truncated": True}).run("raw_reviews")
    assert 1000 < len(rows(got, "raw_reviews")) < 5000
    with pytest.raises(InputError, match="damaged"):
        Bench(tmp_path / "home", source).run("raw_reviews")


def test_a_parquet_file_cut_short_is_named(tmp_path):
    users = [f"u{n}" for n in range(1000)]
    frame = pl.DataFrame({"user_id": users, "item_id": users, "timestamp": [JUNE_2018] * 1000})
    frame.write_parquet(tmp_path / "t.parquet")
    path = tmp_path / "t.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="another layout") as caught:
        Bench(tmp_path / "home", {"kind": "tables", "reviews": [str(path)]}).run("raw_reviews")
    assert "damaged Parquet" in caught.value.found


# -- docs/own-data.md ------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
OWN_DATA = (ROOT / "docs" / "own-data.md").read_text()


def blocks(language):
    """(name after the language, text) of each code block."""
    return re.findall(rf"^```{language} ?(\S*)\n(.*?)^```$", OWN_DATA, re.DOTALL | re.MULTILINE)


def test_the_worked_example_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in blocks("csv"):
        write(Path(name), *content.splitlines())
    (example,) = [content for name, content in blocks("yaml") if name == "mine.yaml"]
    profile = parse_profile("mine", yaml.safe_load(example))
    store, progress = Store(tmp_path / "home" / "store"), Progress(lambda _: None)
    out = {
        name: run_stage(profile, "shop", "2018-06", stage_named(name), store, progress).artifact
        for name in ("raw_reviews", "raw_items", "interactions")
    }
    assert len(rows(out["raw_reviews"], "raw_reviews")) == 6
    assert rows(out["raw_reviews"], "quarantine").select("line", "reason").rows() == [(7, "rating_out_of_range")]
    assert rows(out["raw_items"], "raw_items").select("title", "description").rows() == [
        ("Fountain Pen & Ink", "A pen with blue ink."),
        ("Notebook A5", ""),
        ("A box of 24 clips", "A box of 24 clips"),
    ]
    metrics = out["interactions"].manifest["metrics"]
    assert (metrics["users"], metrics["items"], metrics["interactions"]) == (3, 2, 6)
    first = rows(out["raw_reviews"], "raw_reviews")["timestamp"].to_list()[:3]
    assert first == [JUNE_2018 + 34_200, JUNE_2018 + 86_400, JUNE_2018 + 86_400 + 57_600]


def test_every_source_of_the_docs_is_a_valid_profile():
    kinds = set()
    for _, content in blocks("yaml"):
        profile = parse_profile("docs", yaml.safe_load(content))
        kinds |= {config.source.kind for config in profile.datasets.values()}
    assert kinds == {"amazon_2014", "amazon_2018", "amazon_2023", "ratings_csv", "tables", "sequences", "minionerec"}


def test_every_reason_in_the_docs_is_one_that_the_code_gives():
    table = OWN_DATA.split("| reason | of |")[1].split("\n\n")[0]
    code = "".join(path.read_text() for path in (ROOT / "sidr_core" / "reviews").rglob("*.py"))
    for reason in re.findall(r"`([a-z_]+)`", table):
        assert f'"{reason}"' in code or reason.startswith("time_in_")
