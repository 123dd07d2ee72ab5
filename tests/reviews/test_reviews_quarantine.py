"""Every line gets its verdict, the same on the fast path of whole blocks and line by line."""

import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core.pipeline.stage import Progress
from sidr_core.reviews.csv_rows import CsvForm
from sidr_core.reviews.json_lines import ReviewLayout, json_judge, read_json
from sidr_core.reviews.lines import Block
from sidr_core.reviews.sources.table_rows import Table, judged_reviews
from sidr_core.reviews.text import BLANKS

IN_2018 = ReviewLayout(("reviewerID",), ("asin",), "overall", "unixReviewTime", "s")
IN_2023 = ReviewLayout(("user_id",), ("parent_asin", "asin"), "rating", "timestamp", "ms")
NOON = 1_527_854_400  # 2018-06-01 12:00 UTC


def line(**fields):
    return json.dumps({"reviewerID": "U", "asin": "I", "overall": 4.0, "unixReviewTime": NOON} | fields)


def line_2023(**fields):
    return json.dumps(
        {"user_id": "U", "parent_asin": "P", "asin": "A", "rating": 4.0, "timestamp": NOON * 1000} | fields
    )


def judged(judge, *lines, first=1):
    found = judge(Block(first, b"\n".join(text.encode() if isinstance(text, str) else text for text in lines)))
    accepted = found.accepted.select("line", "user_id", "item_id", "rating", "timestamp").rows()
    return accepted, dict(found.refused.select("line", "reason").iter_rows()), found.lines


def reason(judge, text):
    accepted, refused, _ = judged(judge, text)
    return refused.get(1) if not accepted else None


TIMES = [
    (NOON, None),
    (float(NOON), None),
    (0, None),
    (-1, "bad_time"),
    (NOON + 0.5, None),
    (4_102_444_801, "bad_time"),
    (99_999_999_999, "bad_time"),
    (NOON * 1000, "time_in_milliseconds"),
    (NOON * 1_000_000, "time_in_microseconds"),
    (NOON * 10**9, "bad_time"),
    (float("nan"), "bad_time"),
    (float("inf"), "bad_time"),
    (str(NOON), "wrong_type"),
    (True, "wrong_type"),
    (None, "missing_field"),
]


@pytest.mark.parametrize(("time", "expected"), TIMES)
def test_times_in_seconds(time, expected):
    assert reason(json_judge(IN_2018), line(unixReviewTime=time)) == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (NOON * 1000, None),
        (NOON * 1000 + 999, None),
        (NOON, "time_in_seconds"),
        (NOON * 1_000_000, "time_in_microseconds"),
        (4_102_444_800_001, "bad_time"),
        (NOON * 1000 + 0.5, None),
        (-1, "bad_time"),
    ],
)
def test_times_in_milliseconds(time, expected):
    assert reason(json_judge(IN_2023), line_2023(timestamp=time)) == expected


def test_milliseconds_become_whole_seconds():
    accepted, _, _ = judged(json_judge(IN_2023), line_2023(timestamp=NOON * 1000 + 999))
    assert accepted == [(1, "U", "P", 4.0, NOON)]


def test_first_present_key_wins():
    judge = json_judge(IN_2023)
    without = json.loads(line_2023())
    del without["parent_asin"]
    accepted, refused, _ = judged(
        judge,
        line_2023(),
        line_2023(parent_asin=None),
        json.dumps(without),
        line_2023(parent_asin=""),
        line_2023(asin=3),
    )
    assert [row[2] for row in accepted] == ["P", "A", "A", "P"]
    assert refused == {4: "missing_field"}
    assert reason(judge, line_2023(parent_asin=3)) == "wrong_type"
    assert reason(judge, line_2023(parent_asin=None, asin=None)) == "missing_field"


SAME_AS_LAX = {
    line() + "\r": None,
    " " + line() + "\t": None,
    line().replace("4.0", "4"): None,
    line().replace("4.0", "4e0"): None,
    line().replace("4.0", "-0.0"): None,
    line()[:-1] + ', "asin": "J"}': None,
    line(price=float("nan")): None,
    line(reviewText=["a", "list"]): None,
    line().replace('"U"', '"\\u00fc"'): None,
    line()[:-1] + ', "reviewText": "\\ud800"}': None,
    line().replace("4.0", "04"): "bad_json",
    line().replace("4.0", "4."): "bad_json",
    line().replace("4.0", "+4"): "bad_json",
    line() + line(): "bad_json",
    line() + " x": "bad_json",
    line()[:-1] + ",}": "bad_json",
    "\ufeff" + line(): "bad_json",  # only the first bytes of a file may be a byte order mark
    '"' + "[" * 100_000: "bad_json",
    "[" * 100_000: "bad_json",
    line().replace('"U"', '"\\u0000"'): "nul_byte",
    line().replace('"U"', '"\\ud800"'): "bad_json",
    line().replace("4.0", "1e400"): "rating_out_of_range",
    line().replace("4.0", "9" * 5_000): "rating_out_of_range",
    line().replace("4.0", "Infinity"): "rating_out_of_range",
    line(reviewerID="\u00a0"): "missing_field",
    line(asin=None, overall="x"): "missing_field",
}


@pytest.mark.parametrize("number", range(len(SAME_AS_LAX)))
def test_edge_cases(number):
    text, expected = list(SAME_AS_LAX.items())[number]
    assert reason(json_judge(IN_2018), text) == expected
    sound = [line(reviewerID=f"U{n}") for n in range(3)]
    accepted, refused, lines = judged(json_judge(IN_2018), *sound, text, *sound, first=10)
    assert lines == 7
    assert [row[0] for row in accepted if row[0] != 13] == [10, 11, 12, 14, 15, 16]
    assert refused == ({13: expected} if expected else {})


def test_bytes_that_are_no_text():
    bad = line().encode().replace(b'"I"', b'"\xff"')
    accepted, refused, lines = judged(json_judge(IN_2018), line(), bad, b"", b" \t\r", line().encode() + b"\0", line())
    assert [row[0] for row in accepted] == [1, 6]
    assert refused == {2: "bad_encoding", 5: "nul_byte"}
    assert lines == 4


def test_quoted_text_is_cut():
    found = json_judge(IN_2018)(Block(1, b"{" + b"x" * 5_000)).refused
    assert found["text"].item() == "{" + "x" * 499


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(-(10**20), 10**20),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "reviewerID": st.one_of(st.text(min_size=1, max_size=4), VALUES),
        "asin": st.one_of(st.text(min_size=1, max_size=4), VALUES),
        "overall": st.one_of(st.integers(0, 6), st.floats(0, 5), VALUES),
        "unixReviewTime": st.one_of(st.integers(0, 10**10), st.sampled_from([NOON * 1000, 1.5e9]), VALUES),
        "reviewText": VALUES,
    },
)
SOUND = st.builds(
    lambda user, item, rating, time: line(reviewerID=user, asin=item, overall=rating, unixReviewTime=time),
    st.text(min_size=1, max_size=4),
    st.text(min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(10**9, 2 * 10**9),
).map(str.encode)
LINES = st.one_of(
    SOUND,
    RECORDS.map(lambda record: json.dumps(record).encode()),
    RECORDS.map(lambda record: json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=12).filter(lambda data: b"\n" not in data),
    st.builds(lambda data, at: data[:at] + data[at + 1 :], SOUND, st.integers(0, 60)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=8), st.sampled_from([IN_2018, IN_2023]))
def test_a_block_is_judged_like_its_lines(lines, layout):
    judge = json_judge(layout)
    whole = judge(Block(5, b"\n".join(lines)))
    alone = [judge(Block(number, text)) for number, text in enumerate(lines, 5)]
    assert whole.accepted.equals(pl.concat([one.accepted for one in alone]))
    assert whole.refused.equals(pl.concat([one.refused for one in alone]))
    assert whole.lines == sum(one.lines for one in alone)


@settings(max_examples=150, deadline=None)
@given(st.one_of(SOUND, RECORDS.map(lambda record: json.dumps(record).encode())))
def test_the_lax_parser_agrees_where_the_strict_one_accepts(text):
    accepted, _, _ = judged(json_judge(IN_2018), text)
    if accepted:
        fields = read_json(text, IN_2018)
        assert tuple(str(field).strip(BLANKS) for field in fields[:2]) == accepted[0][1:3]
        assert fields[2:4] == (accepted[0][3], accepted[0][4])


CSV = [
    ("U,I,4.0,1527854400", None),
    ("U,I,4,1527854400\r", None),
    ('"U","I","4.0","1527854400"', None),
    ("U,I, 4.0 , 1527854400 ", None),
    ("U,I,4.0", "wrong_columns"),
    ("U,I,4.0,1527854400,x", "wrong_columns"),
    ('"U,I,4.0,1527854400', "wrong_columns"),
    ("U,,4.0,1527854400", "missing_field"),
    ("U,I,,1527854400", "missing_field"),
    ("U,I,x,1527854400", "wrong_type"),
    ("U,I,4.0,1_527_854_400", "wrong_type"),
    ("U,I,nan,1527854400", "missing_field"),
    ("U,I,7,1527854400", "rating_out_of_range"),
    ("U,I,4,1527854400000", "time_in_milliseconds"),
    ("U,I,4,-3", "bad_time"),
    ("U\0,I,4,1527854400", "nul_byte"),
]


def judged_csv(folder, *lines, items_first=False, header=False):
    """Accepted rows, reason by line, and the number of records of a ratings CSV of these lines."""
    path = folder / "ratings.csv"
    path.write_bytes(b"\n".join(text.encode(errors="surrogatepass") for text in lines))
    places = {"user_id": int(items_first), "item_id": int(not items_first), "rating": 2, "timestamp": 3}
    table = Table(path, CsvForm(",", 4, header), {name: name for name in places}, places)
    pieces = list(judged_reviews(table, (0, 5), Progress(lambda _: None), ratings_csv=True))
    accepted = [row[:5] for piece in pieces for row in piece.accepted.rows()]
    refused = {line: reason for piece in pieces for line, reason, _ in piece.refused.iter_rows()}
    return accepted, refused, sum(piece.lines for piece in pieces)


@pytest.mark.parametrize("neighbour", ["", '"W","K",2,1527854400'], ids=["at once", "line by line"])
@pytest.mark.parametrize(("text", "expected"), CSV)
def test_ratings(tmp_path, text, expected, neighbour):
    accepted, refused, _ = judged_csv(tmp_path, "V,J,1,1527854400", text, neighbour, "W,K,2,1527854400")
    assert accepted[0] == (1, "V", "J", 1.0, NOON)
    assert accepted[-1] == (4, "W", "K", 2.0, NOON)
    assert refused == ({2: expected} if expected else {})
    if expected is None:
        assert accepted[1] == (2, "U", "I", 4.0, NOON)


def test_ratings_with_a_header_and_items_first(tmp_path):
    lines = "item,user,rating,timestamp", f"I,U,4.0,{NOON * 1000}"
    outcome = judged_csv(tmp_path, *lines, items_first=True, header=True)
    assert outcome == ([(2, "U", "I", 4.0, NOON)], {}, 1)
    _, refused, _ = judged_csv(tmp_path, *reversed(lines), items_first=True)
    assert refused == {2: "wrong_type"}


LINES_ALONE = [text for text, reason in CSV if '"' not in text and reason != "rating_out_of_range"]
UNQUOTED = st.text(max_size=8).filter(lambda text: not set(text) & set('\n"'))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(LINES_ALONE) | UNQUOTED, min_size=1))
def test_ratings_are_judged_alike_at_once_and_line_by_line(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("ratings")
    quoted = f'"V","J","1","{NOON}"'  # one quote in a block, and its lines are read one by one
    at_once, one_by_one = (judged_csv(folder, first, *lines) for first in (quoted.replace('"', ""), quoted))
    assert at_once == one_by_one
