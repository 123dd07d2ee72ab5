"""Tables that cost more than they seem to, or are written loosely; downloads that end early or are refused."""

import csv
import errno
import http.server
import os
import sys
import threading
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidr_core.errors import InputError
from sidr_core.remote import retry
from sidr_core.reviews import csv_rows, downloads, files
from sidr_core.reviews.csv_rows import CsvForm, csv_batches
from sidr_core.reviews.sources import parquet_rows
from sidr_core.reviews.sources.table_rows import batches, table_of

# -- CSV -------------------------------------------------------------------------------------------

HEADER = "user_id,item_id,title"


class Record(NamedTuple):
    line: int
    cells: list[str]
    fault: str | None


@pytest.fixture
def takes(monkeypatch):
    """How often a line was handed to the CSV reader, and the most lines that were kept at once."""
    counted = {"lines": 0, "kept": 0}
    real = csv_rows._Lines.__next__

    def counting(self):
        line = real(self)
        counted["lines"] += 1
        counted["kept"] = max(counted["kept"], len(self.taken) + len(self._put_back))
        return line

    monkeypatch.setattr(csv_rows._Lines, "__next__", counting)
    return counted


def records(tmp_path, *lines):
    (tmp_path / "t.csv").write_text("\n".join((HEADER, *lines)) + "\n")
    columns = {name: place for place, name in enumerate(HEADER.split(","))}
    rows = pl.concat(csv_batches(tmp_path / "t.csv", CsvForm(",", 3, header=True), columns))
    return [Record(line, list(cells), fault) for line, fault, _, *cells in rows.iter_rows()]


HOSTILE = {
    "each closes and opens": lambda number: 'a","',
    "each opens": lambda number: 'a,"b' if number % 2 else '",a,"b',
    "ended just below the limit": lambda number: 'a","' if number % (csv_rows.RECORD_LINES - 10) else 'a"',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_quotes_without_end_cost_no_more_than_their_lines(tmp_path, takes, kind):
    count = 20_000
    found = records(tmp_path, *map(HOSTILE[kind], range(1, count + 1)))
    assert [record.line for record in found] == list(range(2, count + 2))
    assert {record.fault for record in found} == {"wrong_columns"}
    assert takes["lines"] <= 12 * count
    assert takes["kept"] <= csv_rows.RECORD_LINES + 1


def test_a_record_ends_after_so_many_characters(tmp_path, takes):
    line = 'a","' + "x" * 100_000
    assert len(records(tmp_path, *[line] * 40)) == 40
    assert takes["kept"] <= 12


def test_records_between_quotes_without_end_stay_whole(tmp_path):
    good = [f'u{number},i{number},"two\nlines, ""quoted"""' for number in range(3000)]
    lines = list(good)
    for place in range(300, 3000, 300):
        lines[place] = 'bad,"i,t'
    found = records(tmp_path, *lines)
    assert [record.cells for record in found if not record.fault] == [
        [f"u{number}", f"i{number}", 'two\nlines, "quoted"'] for number in range(3000) if number % 300 or not number
    ]
    assert sum(1 for record in found if record.fault) == 9


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('u,i,"19" Monitor"', ["u", "i", '19" Monitor']),
        ('u,i,"abc" ', ["u", "i", "abc"]),
        ('"u" ,"i","abc"\r', ["u", "i", "abc"]),
        ('u,"a, b","19" and ""20"""', ["u", "a, b", '19" and "20"']),
        ('"u","","19" x"', ["u", "", '19" x']),
        ('u, "i","19" x"', ["u", ' "i"', '19" x']),
    ],
)
def test_loose_quotes_are_understood(tmp_path, line, cells):
    found = records(tmp_path, "v,j,t", line, "w,k,t")
    assert [(record.line, record.cells, record.fault) for record in found] == [
        (2, ["v", "j", "t"], None),
        (3, cells, None),
        (4, ["w", "k", "t"], None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        'u,"i,t',
        'u,"i,"t"',
        'u,i,""t, x"',
        'u,"i,"say ""hi"", ok"',
        'u,"i,"","t"',
        'u,i,"19", 20" Monitor"',
        'u,i,"19" Monitor',
        'u,i\r,"19" x"',
        'u,i,"19" x",',
        'u,"19" x"',
        'u,i,"19" ' + "x" * (csv.field_size_limit() + 1) + '"',
    ],
)
def test_loose_quotes_that_could_mean_more_are_refused(tmp_path, line):
    found = records(tmp_path, "v,j,t", line, "w,k,t")
    assert [record.fault for record in found] == [None, "wrong_columns", None]


@pytest.mark.parametrize(("last", "count"), [('"x', 5), ('"x', 2000), ('"x" y', 5), ("x", 5)])
def test_a_header_with_a_quote_without_end_swallows_no_rows(tmp_path, last, count):
    path = tmp_path / "t.csv"
    path.write_text(f"user_id,item_id,{last}\n" + "u,i,t\n" * count)
    assert sum(map(len, batches(table_of(path, {"user_id": "user_id"}, (), "reviews")))) == count


def test_loose_quotes_do_not_hide_a_damaged_line(tmp_path):
    assert [record.fault for record in records(tmp_path, 'u,i\0,"19" Monitor"')] == ["nul_byte"]


# -- Parquet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (pa.list_(pa.string_view()), ["a", "b"], ["a", "b"]),
        (pa.large_list(pa.string_view()), ["a"], ["a"]),
        (pa.list_(pa.string_view(), 2), ["a", "b"], ["a", "b"]),
        (pa.list_(pa.list_(pa.string_view())), [["a"]], [["a"]]),
        (pa.list_(pa.binary_view()), [b"a"], [b"a"]),
        (pa.struct({"q": pa.string_view(), "n": pa.int64()}), {"q": "a", "n": 1}, {"q": "a", "n": 1}),
        (pa.map_(pa.string_view(), pa.string_view()), [("k", "v")], {"k": "v"}),
    ],
    ids=str,
)
def test_nested_view_types_are_read(tmp_path, kind, value, read):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": pa.array([value, None] * 20, kind)}), path)
    rows = pl.concat(batches(table_of(path, {"x": "x"}, (), "reviews")))["x"].to_list()
    assert [row if row is None else _plain(row) for row in rows] == [read, None] * 20


def _plain(row):
    return row.to_list() if isinstance(row, pl.Series) else row


def _listed(path, lengths, values):
    offsets = pa.array([0, *pl.Series(lengths).cum_sum()], pa.int32())
    pq.write_table(pa.table({"x": pa.ListArray.from_arrays(offsets, values)}), path, compression="zstd")


def test_lists_are_measured_by_the_batch(tmp_path, monkeypatch):
    """The row group holds more than is allowed at once, a batch of it does not."""
    monkeypatch.setattr(parquet_rows, "LARGEST", 1 << 20)
    _listed(path := tmp_path / "t.parquet", [130] * 10_000, pa.array(os.urandom(1_300_000), pa.uint8()))
    assert sum(len(rows) for rows, _ in parquet_rows.batches(path, ["x"], 1000)) == 10_000
    with pytest.raises(InputError, match="more than it seems"):
        list(parquet_rows.batches(path, ["x"], 5000))


def test_a_row_group_does_not_hide_one_row_with_very_many_values(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "LARGEST", 1 << 20)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1_300_000, pa.int32()), pa.array(["x"]))
    _listed(path := tmp_path / "t.parquet", [1_300_000] + [0] * 9_999, values)
    with pytest.raises(InputError, match="more than it seems"):
        list(parquet_rows.batches(path, ["x"], 1000))


# -- the memory of digests -------------------------------------------------------------------------


def test_a_digest_that_cannot_be_remembered_is_still_told(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cache").write_text("in the way")
    (tmp_path / "x").write_bytes(b"abc")
    assert files.digest(tmp_path / "x").startswith("ba7816bf")


# -- downloads -------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of a file of 3 MB; see :class:`Cutting`."""
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(retry, "BASE", 0.001)
    with Cutting() as served:
        yield served


class Cutting:
    """Serves a file; ends an answer after `most` bytes, gives `status` instead, may hide its length; knows ranges."""

    def __init__(self):
        self.body, self.etag, self.most, self.status, self.ranges = os.urandom(3_000_000), '"v"', None, None, []
        self.length = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.ranges.append(wanted := self.headers.get("Range"))
                resumed = bool(wanted) and self.headers.get("If-Range") == outer.etag
                begin = int((wanted or "").removeprefix("bytes=").rstrip("-")) if resumed else 0
                status = outer.status or (416 if begin >= len(outer.body) else 206 if resumed else 200)
                rest = outer.body[begin:] if status < 400 else b""
                place = f"*/{len(outer.body)}" if status == 416 else f"{begin}-{len(outer.body) - 1}/{len(outer.body)}"
                self.send_response(status)
                for name, value in (("ETag", outer.etag), ("Content-Range", f"bytes {place}")):
                    if status in (200, 206, 416):
                        self.send_header(name, value)
                if outer.length:
                    self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: outer.most])
                self.close_connection = True

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/x.gz"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


def test_a_server_that_breaks_off_again_and_again_is_asked_while_more_comes(server):
    server.most = 150_000
    assert downloads.download(server.url).read_bytes() == server.body
    assert len(server.ranges) == 20 > downloads.PATIENCE.retries + 1


def test_a_server_that_brings_next_to_nothing_is_left(server):
    server.most = 1000
    with pytest.raises(InputError, match="broke off; 6,000 bytes"):
        downloads.download(server.url)
    assert len(server.ranges) == downloads.PATIENCE.retries + 1


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    path = downloads.download(server.url)
    part, version = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.version")
    path.rename(part)
    version.write_text(server.etag)
    assert downloads.download(server.url).read_bytes() == server.body
    assert server.ranges == [None, f"bytes={len(server.body)}-"]
    assert not part.exists() and not version.exists()


def test_an_endless_answer_is_given_up(server, monkeypatch):
    """Of unknown length, and more than may come: nothing stays on the disk."""
    monkeypatch.setattr(downloads, "LARGEST", 1_000_000)
    server.length = False
    with pytest.raises(InputError, match="1,000,000 bytes without an end"):
        downloads.download(server.url)
    assert len(server.ranges) == 1
    assert [path.suffix for path in downloads.home().glob("cache/downloads/*")] == [".lock"]


def test_a_file_that_the_disk_has_no_room_for_is_not_begun(server, monkeypatch):
    monkeypatch.setattr(downloads, "SPARE", 1 << 60)
    with pytest.raises(InputError, match="3,000,000 bytes, and room for 0"):
        downloads.download(server.url)


@pytest.mark.parametrize("change", ["version", "length"])
def test_a_whole_part_of_another_version_is_fetched_again(server, change):
    path = downloads.download(server.url)
    path.rename(path.with_name(f"{path.name}.part"))
    path.with_name(f"{path.name}.version").write_text('"old"' if change == "version" else server.etag)
    server.body = server.body[::-1] if change == "version" else server.body[:1000]
    assert downloads.download(server.url).read_bytes() == server.body


@pytest.mark.parametrize("status", [403, 404, 407])
def test_a_refusal_leaves_what_came(server, status, monkeypatch):
    monkeypatch.setattr(downloads, "PATIENCE", downloads.Patience(retries=0))
    server.most = 50_000
    with pytest.raises(InputError, match="50,000 bytes"):
        downloads.download(server.url)
    server.status = status
    with pytest.raises(InputError, match=f"HTTP {status}"):
        downloads.download(server.url)
    server.status = server.most = None
    assert downloads.download(server.url).read_bytes() == server.body
    assert server.ranges == [None, "bytes=50000-", "bytes=50000-"]


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:9", "socks4://me:secret@127.0.0.1:9", "http://127.0.0.1:x"])
def test_a_proxy_that_cannot_be_used_is_named(server, monkeypatch, proxy):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(InputError, match="proxy") as caught:
        downloads.download(server.url)
    assert "ALL_PROXY" in caught.value.fix
    assert proxy.partition("://")[0] in caught.value.found
    assert "secret" not in str(caught.value)


def test_a_socks_proxy_without_its_package_is_named(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(InputError, match="all_proxy=socks5"):
        downloads.download(server.url)


@pytest.mark.parametrize(("number", "room"), [("ENOSPC", 1), ("EDQUOT", 1), ("EFBIG", 1), ("EIO", 0), ("EACCES", 0)])
def test_only_a_full_disk_asks_for_room(server, monkeypatch, number, room):
    def failing(_):
        raise OSError(getattr(errno, number), number)

    monkeypatch.setattr(downloads.os, "fsync", failing)
    with pytest.raises(InputError, match=number) as caught:
        downloads.download(server.url)
    assert ("make room" in caught.value.fix) == room
