"""Reading files in blocks, damage, exact duplicates, and parts that are parsed once."""

import gzip
import tracemalloc
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.reviews import DAY, JUNE_2018, Bench, amazon, item, review, rows, write
from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.pipeline.store import Store
from sidr_core.reviews.judge import Judged, digests
from sidr_core.reviews.lines import DamagedFile, blocks
from sidr_core.reviews.records import stored_part
from sidr_core.settings import Filters
from sidr_core.tables.ahead import ahead

ITEMS = [item("I1"), item("I2")]


def read(path, **options):
    """(line number, text, fault) of every line, and the damage that was met."""
    found, damage = [], ""
    try:
        for block in blocks(path, **options):
            found += [(n, text, block.fault) for n, text in enumerate(block.data.split(b"\n"), block.first)]
    except DamagedFile as error:
        damage = error.found
    return found, damage


# -- blocks -------------------------------------------------------------------------------------


def test_gzip_of_several_members_and_padding(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfa\nb") + gzip.compress(b"") + gzip.compress(b"c\nd\n") + bytes(600))
    for chunk in (3, 7, 1 << 20):
        assert read(path, chunk=chunk) == ([(1, b"a", None), (2, b"bc", None), (3, b"d", None)], "")


def test_what_came_before_a_cut_is_kept(tmp_path):
    lines = [f"{n} {n * n}".encode() for n in range(300)]
    data, path = gzip.compress(b"\n".join(lines) + b"\n"), tmp_path / "x"
    most = 0
    for end in range(3, len(data), 7):
        path.write_bytes(data[:end])
        found, damage = read(path, chunk=256)
        assert "before its end mark" in damage
        whole = [text for _, text, fault in found if fault is None]
        assert whole == lines[: len(whole)]
        most = max(most, len(whole))
        if len(found) > len(whole):  # only the last line can have been cut
            assert found[-1][2] == "truncated"
            assert lines[len(whole)].startswith(found[-1][1])
    assert most == 300


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_what_came_before_corrupt_bytes_is_kept(tmp_path, place):
    lines = [f"{n} {n * n}".encode() for n in range(2_000)]
    data, path = bytearray(gzip.compress(b"\n".join(lines))), tmp_path / "x"
    data[int(len(data) * place)] ^= 0xFF
    path.write_bytes(data)
    found, damage = read(path)
    assert damage
    before = int(2_000 * place * 0.8)  # what lies well before the wrong byte
    assert [text for _, text, _ in found[:before]] == lines[:before]


def test_wrong_checksum_and_foreign_bytes_behind_the_end(tmp_path):
    data, path = gzip.compress(b"a\nb\n"), tmp_path / "x"
    for damaged in (data[:-8] + b"zzzz" + data[-4:], data + b"these are no gzip bytes"):
        path.write_bytes(damaged)
        found, damage = read(path)
        assert [text for _, text, _ in found] == [b"a", b"b"]
        assert damage


def test_endless_lines_take_no_memory(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a\n" + b"x" * 10_000_000 + b"\nb\n" + b"y" * 70_000 + b"\n" + b"z" * 10_000_000))
    tracemalloc.start()
    found, damage = read(path, chunk=1 << 16, max_line=1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(n, text[:1], len(text), fault) for n, text, fault in found] == [
        (1, b"a", 1, None),
        (2, b"x", 4096, "line_too_long"),
        (3, b"b", 1, None),
        (4, b"y", 4096, "line_too_long"),
        (5, b"z", 4096, "line_too_long"),
    ]
    assert damage == ""
    assert peak < 2_000_000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=30).filter(lambda data: b"\n" not in data)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
)
def test_every_line_comes_out_once(tmp_path_factory, lines, chunk, longest, packed):
    path = tmp_path_factory.mktemp("blocks") / "x"
    data = b"\n".join(lines)
    if data.startswith((b"\xef\xbb\xbf", b"\x1f\x8b")):
        return
    path.write_bytes(gzip.compress(data) if packed else data)
    found, damage = read(path, chunk=chunk, max_line=longest)
    expected = [(n, text, "line_too_long" if len(text) > longest else None) for n, text in enumerate(lines, 1)]
    while expected and expected[-1][1] == b"":  # a newline at the end begins no line
        expected.pop()
    while found and found[-1][1] == b"":
        found.pop()
    assert damage == ""
    assert [(n, fault) for n, _, fault in found] == [(n, fault) for n, _, fault in expected]
    for (_, got, fault), (_, text, _) in zip(found, expected, strict=True):
        assert text.startswith(got) if fault else got == text


def test_ahead_keeps_order_passes_errors_on_and_stops():
    assert list(ahead(iter(range(50)))) == list(range(50))
    made = []

    def source():
        for number in range(50):
            made.append(number)
            yield number
        raise KeyError("end")

    with pytest.raises(KeyError, match="end"):
        list(ahead(source()))
    made.clear()
    taken = ahead(source())
    assert next(taken) == 0
    taken.close()
    assert made == [0, 1]


# -- damaged files ------------------------------------------------------------------------------


def test_a_truncated_file_fails_unless_it_is_allowed(tmp_path):
    lines = [review(f"U{n}", "I1", JUNE_2018 + n) for n in range(500)]
    source = amazon(tmp_path / "data", lines, ITEMS)
    path = tmp_path / "data" / "reviews.json.gz"
    path.write_bytes(path.read_bytes()[:-300])
    strict = Bench(tmp_path / "home", source)
    with pytest.raises(InputError) as caught:
        strict.run("raw_reviews")
    assert "is damaged" in caught.value.what
    assert "records before that" in caught.value.found
    assert "allow_truncated" in caught.value.fix
    assert strict.published() == ["parsed_reviews"]
    lenient = Bench(tmp_path / "home", source, filters={"allow_truncated": True})
    out = lenient.run("raw_reviews")
    kept = rows(out, "raw_reviews")
    assert 200 < len(kept) < 500
    assert kept["user_id"].to_list() == [f"U{n}" for n in range(len(kept))]
    quarantine = rows(out, "quarantine")
    assert quarantine.select("line", "reason").rows() == [(len(kept) + 1, "truncated")]
    assert lines[len(kept)].startswith(quarantine["text"].item())
    metrics = out.manifest["metrics"]
    assert (metrics["damaged_files"], metrics["refused_truncated"]) == (1, 1)
    assert "reviews.json.gz" in out.manifest["markdown"]["Damaged files"]
    assert any("is damaged" in said for said in lenient.said)
    assert not any("parsed" in said for said in lenient.said)  # it was stored when it was refused


# -- exact duplicates ---------------------------------------------------------------------------


def test_exact_duplicates_are_dropped_in_and_across_files(tmp_path):
    first = [
        review("U1", "I1", reviewText="good"),
        review("U1", "I1", reviewText="good"),
        review("U1", "I1", reviewText="bad"),
        review("U1", "I1"),
        review("U1", "I1", reviewText="good", summary="the summary tells nothing apart"),
        review("U1", "I1", JUNE_2018 + DAY, reviewText="good"),
        review("U1", "I1", rating=4.0, reviewText="good"),
        review("U2", "I1", reviewText="good"),
        "{broken",
        "{broken",
    ]
    second = [review(f"V{n}", "I1") for n in range(40)]
    second += [first[7], review("U3", "I2"), review("U3", "I2"), first[2], second[0], second[0]]
    source = amazon(tmp_path / "data", first, ITEMS)
    source["reviews"].append(write(tmp_path / "data" / "z.json", *second))
    made = Bench(tmp_path / "home", source, filters={"max_quarantine_share": 1.0})
    out = made.run("raw_reviews")
    got = rows(out, "raw_reviews").select("file", "line").rows()
    assert [line for file, line in got if file == "reviews.json.gz"] == [1, 3, 4, 6, 7, 8]
    assert [line for file, line in got if file == "z.json"] == [*range(1, 41), 42]
    metrics = out.manifest["metrics"]
    assert metrics["exact_duplicates"] == 2 + 5
    parts = ("rows", "later_than_snapshot", "exact_duplicates", "quarantined")
    assert metrics["lines"] == 56 == sum(metrics[part] for part in parts)
    kept = Bench(tmp_path / "home", source, filters={"max_quarantine_share": 1.0, "keep_duplicates": True})
    again = kept.run("raw_reviews")
    assert again.manifest["metrics"]["exact_duplicates"] == 7, "they are counted all the same"
    assert len(rows(again, "raw_reviews")) == len(got) + 7


def test_order_of_the_files_decides_which_one_stays(tmp_path):
    small = write(tmp_path / "a.json", review("U", "I1"), review("W", "I1"))
    large = write(tmp_path / "b.json", *[review(f"V{n}", "I1") for n in range(9)], review("U", "I1"))
    items = [write(tmp_path / "meta.json", *ITEMS)]
    for files, lost in (([small, large], ("b.json", 10)), ([large, small], ("a.json", 1))):
        source = {"kind": "amazon_2018", "reviews": files, "items": items}
        out = Bench(tmp_path / f"home{lost[1]}", source).run("raw_reviews")
        got = rows(out, "raw_reviews").select("file", "line").rows()
        assert len(got) == 11
        assert lost not in got


@pytest.mark.parametrize("distinct", [True, False])
def test_rows_of_a_part_count_once_or_each(tmp_path, distinct):
    rows = {"line": [1, 2, 3, 4], "user_id": list("uuuv"), "item_id": list("iiji"), "timestamp": [5] * 4}
    frame = pl.DataFrame(rows | {"rating": [None] * 4}, schema_overrides={"rating": pl.Float64})
    digest = digests(frame, "timestamp") if distinct else pl.repeat(None, 4, dtype=pl.UInt64, eager=True)
    frame = frame.with_columns(digest.alias("digest"))
    refused = pl.DataFrame(schema={"line": pl.Int64, "reason": pl.String, "text": pl.String})
    path = Path(write(tmp_path / "x", "four lines"))
    calls = []

    def parse(_):
        calls.append(1)
        return [Judged(frame[:1], refused, 1), Judged(frame[1:], refused, 3)]

    arguments = ("x", path, "1", {"kind": "test"}, parse, Filters(), Progress(lambda _: None))
    parts = [stored_part(Inputs({}, Store(tmp_path)), *arguments) for _ in range(2)]
    assert parts[0].lines == 4
    assert len(calls) == 1
    repeats = pl.read_parquet(parts[1].artifact.path("repeats.parquet"))["line"].to_list()
    assert repeats == ([2] if distinct else [])
    assert pl.read_parquet(parts[1].artifact.path("records.parquet"))["rating"].to_list() == [None] * 4


EXPECTED = [15852824328812046998, 17903854563515575100, 4609989596197180686, 6487319784361541777]


def test_digests_tell_fields_apart_and_never_change():
    frame = pl.DataFrame(
        {
            "user_id": ["a", "ab", "a", "a"],
            "item_id": ["bc", "c", "bc", "bc"],
            "rating": [1.0, 1, 1, 0],
            "time": [7.0, 7, 7, 7],
        }
    )
    found = digests(frame, "time", ["x", "x", "y", "x"])
    assert found.n_unique() == 4
    again = digests(frame.with_columns(pl.col("rating") * 1), "time", ["x", "x", "y", "x"])
    assert found.to_list() == again.to_list() == EXPECTED
    signed = frame.with_columns(pl.Series("rating", [1.0, 1, 1, -0.0]))
    assert digests(signed, "time", ["x", "x", "y", "x"]).to_list() == EXPECTED
    assert digests(frame, "time").to_list() == digests(frame, "time", [None, "", None, ""]).to_list()
