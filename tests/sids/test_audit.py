"""The audit of a table of SIDs, by hand, and what it refuses."""

import gzip
import json

import polars as pl
import pytest

from builders.small_world import SNAPSHOT
from sidr_core.errors import InputError
from sidr_core.sids.audit import audit, read_index
from sidr_core.tables import files as tables

#: Two prefixes of four and two items; E and F share a SID.
SIDS = {
    "A": "<a_0><b_0>",
    "B": "<a_0><b_1>",
    "C": "<a_0><b_2>",
    "D": "<a_0><b_3>",
    "E": "<a_1><b_0>",
    "F": "<a_1><b_0>",
}


def table(sids: dict[str, str] = SIDS) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(sids), "sid": list(sids.values())})


def train(*pairs: str) -> pl.DataFrame:
    """`AB` is a history that ends with A, and the target B."""
    rows = [{"history_item_ids": ["C", pair[0]], "target_item_id": pair[1]} for pair in pairs]
    return pl.DataFrame(rows)


def test_by_hand():
    found = audit(table(), train("AB", "AB", "BC", "AE", "EF", "AA", "AX"))
    assert (found.items, found.pairs, found.without_sid) == (6, 5, (1, 6))
    assert found.collisions == (pytest.approx(1 / 6), 2)
    a, ab = found.levels
    assert (a.prefix, a.codes, a.prefixes, a.largest, a.fan_out) == ("a", 2, 2, 4, (2.0, 2))
    # AB, AB, BC and EF of five; a shuffle puts two items under one a with (4·3 + 2·1) / (6·5).
    assert a.together == 4 / 5 and a.shuffled[0] == pytest.approx(14 / 30, abs=0.15) and a.shuffled[1] <= 1
    # B, B, C and A under a_0, E and F under a_1; X has none.
    assert a.top == pytest.approx(4 / 6) and a.popular == pytest.approx(1.8899, abs=1e-4)
    assert (ab.prefix, ab.codes, ab.prefixes, ab.largest, ab.fan_out) == ("ab", 4, 5, 2, (2.5, 4))
    assert ab.together == 1 / 5 and a.changed is ab.changed is None


def test_churn_is_told_level_by_level():
    before = {**SIDS, "A": "<a_1><b_0>", "B": "<a_0><b_9>", "gone": "<a_5><b_5>"}
    a, ab = audit(table(), train("AB"), table(before)).levels
    assert (a.changed, ab.changed) == (pytest.approx(1 / 6), pytest.approx(2 / 6))


def test_sids_that_know_nothing_have_a_lift_of_one():
    """Pairs that cover every two items alike: no prefix can be better than a shuffled one."""
    every = [a + b for a in SIDS for b in SIDS if a != b]
    a, ab = audit(table(), train(*every)).levels
    assert a.together == pytest.approx(a.shuffled[0]) == 14 / 30
    assert ab.together == pytest.approx(ab.shuffled[0]) == 2 / 30


@pytest.mark.parametrize("zipped", [False, True])
def test_a_published_index_is_read_as_it_is_published(tmp_path, zipped):
    text = json.dumps({"A": ["<a_0>", "<b_0>"], "B": ["<a_0>", "<b_12>"]}).encode()
    path = tmp_path / ("index.json.gz" if zipped else "index.json")
    path.write_bytes(gzip.compress(text) if zipped else text)
    assert read_index(path).rows() == [("A", "<a_0><b_0>"), ("B", "<a_0><b_12>")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", b"[1]"),
        ("x.json", b"{"),
        ("x.json.gz", b"no gzip"),
        ("x.json", b'{"A": "<a_0>"}'),
        ("x.parquet", b"no"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, tables.StoreError)):
        read_index(tmp_path / name)


@pytest.mark.parametrize("sids", [{}, {"A": "<a_0>", "B": "<a_0><b_1>"}, {"A": "<b_0>", "B": "<a_1>"}])
def test_malformed_tables_are_refused(sids):
    frame = pl.DataFrame(table(sids), schema={"item_id": pl.String, "sid": pl.String})
    with pytest.raises(InputError, match="cannot be audited"):
        audit(frame, train("AB"))


def test_rows_of_other_items_are_refused():
    with pytest.raises(InputError, match="these train rows"):
        audit(table(), train("XY"))


def test_the_command_audits_a_codebook_and_a_file(world, sidr, tmp_path):
    code, out, _ = sidr("audit")
    assert code == 0 and f"toys, snapshot {SNAPSHOT} (synthetic sample data): the codebook" in out
    assert "16 items; 6.250% without a SID of their own, at most 2 to one SID; 0 of" in out
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({f"A{n:02d}": [f"<a_{n // 4}>", f"<b_{n % 4}>"] for n in range(16)}))
    code, theirs, _ = sidr("audit", "--index", str(path))
    assert code == 0 and "theirs.json" in theirs and "0.000% without a SID of their own" in theirs
    assert sidr("audit", "--index", str(tmp_path / "none.json"))[0] == 2
