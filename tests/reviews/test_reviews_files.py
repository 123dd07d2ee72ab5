"""Finding, downloading and reading files; cleaning text."""

import gzip
import hashlib
import http.server
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core.errors import InputError
from sidr_core.reviews import downloads, text
from sidr_core.reviews.files import download, one, resolve
from sidr_core.reviews.lines import blocks, lines_of, numbered_lines

BODY = bytes(range(256)) * 40


class Server:
    """A loopback server of one file; it can break off, and it remembers the ranges it was asked for."""

    def __init__(self) -> None:
        self.body, self.etag, self.break_after, self.ranges = BODY, '"one"', None, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/to-file"):
                    self.send_response(302)
                    self.send_header("Location", "ftp://127.0.0.1/etc/passwd")
                    self.end_headers()
                    return
                if self.path.startswith("/gone"):
                    self.send_error(404)
                    return
                wanted = self.headers.get("Range")
                outer.ranges.append(wanted)
                begin = 0
                if wanted and self.headers.get("If-Range") == outer.etag:
                    begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {begin}-{len(outer.body) - 1}/{len(outer.body)}")
                else:
                    self.send_response(200)
                self.send_header("ETag", outer.etag)
                self.send_header("Content-Length", str(len(outer.body) - begin))
                self.end_headers()
                data = outer.body[begin:]
                self.wfile.write(data if outer.break_after is None else data[: outer.break_after])

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "PATIENCE", downloads.Patience(retries=0))  # retries: tests/faults
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


def test_download_is_cached(server, tmp_path):
    path = download(f"{server.url}/data/x.json.gz")
    assert path.read_bytes() == BODY
    assert path.parent == tmp_path / "home" / "cache" / "downloads"
    assert download(f"{server.url}/data/x.json.gz") == path
    assert server.ranges == [None]
    assert resolve([f"{server.url}/data/x.json.gz"], "reviews") == {path.name: path}


def test_broken_download_is_resumed(server):
    server.break_after = 1000
    with pytest.raises(InputError, match="broke off; 1,000 bytes"):
        download(f"{server.url}/x")
    server.break_after = None
    assert download(f"{server.url}/x").read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]


def test_changed_file_is_not_glued_to_the_old_start(server):
    server.break_after = 1000
    with pytest.raises(InputError):
        download(f"{server.url}/x")
    server.break_after, server.body, server.etag = None, BODY[::-1], '"two"'
    assert download(f"{server.url}/x").read_bytes() == BODY[::-1]


def test_refused_addresses(server):
    for url in ("ftp://example.org/x", "file:///etc/passwd", "s3://bucket/x"):
        with pytest.raises(InputError, match="http"):
            download(url)
        with pytest.raises(InputError, match="http"):
            resolve([url], "reviews")
    with pytest.raises(InputError, match="404"):
        download(f"{server.url}/gone")
    with pytest.raises(InputError, match="cannot download"):
        download(f"{server.url}/to-file")
    with pytest.raises(InputError, match="cannot download"):
        download("http://127.0.0.1:9/x")


def test_missing_files_name_what_to_do(tmp_path):
    with pytest.raises(InputError, match="missing"):
        resolve([str(tmp_path / "none.json")], "reviews")
    with pytest.raises(InputError, match="no file matches"):
        resolve([str(tmp_path / "*.json")], "reviews")
    (tmp_path / "empty.json").touch()
    with pytest.raises(InputError, match="0 bytes"):
        resolve([str(tmp_path / "*.json")], "reviews")
    with pytest.raises(InputError, match="a folder"):
        resolve([str(tmp_path)], "reviews")


def test_globs_expand_in_order_and_names_are_unique(tmp_path):
    for name in ("b/x.json", "a/x.json", "a/y[1].json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = resolve([str(tmp_path / "*/x.json"), str(tmp_path / "a/y[1].json")], "reviews")
    assert list(found.values()) == [tmp_path / "a/x.json", tmp_path / "b/x.json", tmp_path / "a/y[1].json"]
    assert list(found) == ["a/x.json", "b/x.json", "a/y[1].json"]
    for folder in ("c/same", "d/same"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "z").write_text("x")
    assert list(resolve([str(tmp_path / "*/same/z")], "reviews")) == ["1/z", "2/z"]
    assert len(resolve([str(tmp_path / "a/x.json"), str(tmp_path / "a/x*")], "reviews")) == 1
    with pytest.raises(InputError, match="names 2 files"):
        one(str(tmp_path / "*/x.json"), "train")


def test_checksums_are_verified_and_remembered(server, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_bytes(BODY)
    good, other = hashlib.sha256(BODY).hexdigest(), "0" * 64
    assert resolve([f"{path}#sha256={good.upper()}"], "reviews") == {"x.json": path}
    with pytest.raises(InputError, match="not the file that the profile names") as caught:
        resolve([f"{path}#sha256={other}"], "reviews")
    assert good in caught.value.found and other in caught.value.expected
    url = f"{server.url}/y.json.gz"
    assert resolve([f"{url}#sha256={good}"], "reviews") == resolve([url], "reviews")
    with pytest.raises(InputError, match="not the file"):
        resolve([f"{url}#sha256={other}"], "reviews")
    assert one(f"{path}#sha256={good}", "train") == path
    monkeypatch.setattr("sidr_core.pipeline.digest.sha256_file", lambda _: pytest.fail("read again"))
    resolve([f"{path}#sha256={good}", f"{url}#sha256={good}"], "reviews")


def test_a_changed_file_is_summed_again(server, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(BODY)
    pattern = f"{path}#sha256={hashlib.sha256(BODY).hexdigest()}"
    resolve([pattern], "reviews")
    path.write_bytes(BODY[:-1] + b"!")
    with pytest.raises(InputError, match="not the file"):
        resolve([pattern], "reviews")


def test_checksums_that_are_none_or_name_many_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(name)
    for pattern in ("a.json#sha256=", "a.json#sha256=abc", f"a.json#sha256={'g' * 64}"):
        with pytest.raises(InputError, match="64 hex"):
            resolve([str(tmp_path / pattern)], "reviews")
    with pytest.raises(InputError, match="one checksum for 2 files"):
        resolve([f"{tmp_path}/*.json#sha256={'0' * 64}"], "reviews")


def test_folders_stand_for_their_tables_only_where_asked(tmp_path):
    for name in ("b.csv", "a/x.parquet", "a/.x.parquet.crc", "_hidden.csv", "readme.txt"):
        (tmp_path / "log" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "log" / name).write_text("x")
    suffixes = (".parquet", ".csv")
    assert list(resolve([str(tmp_path / "log")], "reviews", suffixes)) == ["x.parquet", "b.csv"]
    with pytest.raises(InputError, match="a folder"):
        resolve([str(tmp_path / "log")], "reviews")


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]))), st.integers(1, 40))
def test_batches_cover_every_line(tmp_path_factory, lines, chunk):
    path = tmp_path_factory.mktemp("lines") / "x"
    path.write_bytes("\n".join(lines).encode())
    got = [line for block in blocks(path, chunk=chunk) for line in lines_of(block)]
    expected = [(number, line.removeprefix("\ufeff") if number == 1 else line) for number, line in enumerate(lines, 1)]
    if lines and lines[-1] == "":
        expected.pop()
    assert [(number, line) for number, line, _ in got if (number, line) != (len(lines), "")] == [
        pair for pair in expected if pair != (len(lines), "")
    ]
    assert all(fault is None for _, _, fault in got)


def test_bad_lines_are_marked(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"good\n\xff\xfe\na\0b\n" + b"x" * 5000 + b"\nlast")
    lines = [line for block in blocks(path, chunk=64, max_line=100) for line in lines_of(block)]
    got = {number: (line[:4], fault) for number, line, fault in lines}
    assert got[1] == ("good", None) and got[5] == ("last", None)
    assert [got[n][1] for n in (2, 3, 4)] == ["bad_encoding", "nul_byte", "line_too_long"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_gzip_is_named(tmp_path, damage):
    data = bytearray(gzip.compress(BODY * 10))
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    path = Path(tmp_path / "x.json.gz")
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with pytest.raises(InputError, match=r"x\.json\.gz is damaged"):
        list(numbered_lines(path))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<p>A &amp; B</p>", "A & B"),
        ("a<br>b", "a b"),
        ("<style>.x {color: red}</style>Pen<script>if (a<b) alert('x')</script>!", "Pen !"),
        ("<!-- .h { } > --> text", "text"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
        ("cut <span class='a-si", "cut"),
        ("two\n\n  lines\x00\x07", "two lines"),
        ("['one', '<b>two</b>']", "one two"),
        ('["it\'s"]', "it's"),
        (["x", "", 3, None, "y"], "x y"),
        ("[broken", "[broken"),
        ("[__import__('os').system('true')]", "[__import__('os').system('true')]"),
        ("['x'] + ['y']", "['x'] + ['y']"),
        ("a\ud800b &#1;c", "a b c"),
        ("[" * 3000, "[" * 3000),
        (None, ""),
        (7, ""),
    ],
)
def test_clean_value(raw, clean):
    assert text.clean_value(raw) == clean


@settings(max_examples=1000, deadline=None)
@given(st.text(st.sampled_from("<>/!-& ;ltgab\0script")))
def test_no_tag_is_left(raw):
    assert re.search(r"<[A-Za-z/!][^<>]*>", text.clean_text(raw)) is None
    assert re.search(r"<[A-Za-z/!][^<>]*>", text.clean_text(f"<b>{raw}<script>x</script>&lt;i&gt;")) is None


def test_hostile_markup_takes_linear_time():
    started = time.process_time()
    for piece in ("<script ", "<!--", "<", "<style>", "&lt;", " ", "a", "< ", "/>"):
        for raw in (piece * 100_000, "<a" + piece * 100_000):
            text.clean_text(raw)
            text.clean_title(raw)
            text.looks_like_markup(raw)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("title", "markup"),
    [
        ('<span id="x">', True),
        ('<span class="a-size-medium a-color-secondary"', True),
        ("var aPageStart = 1;", True),
        ("function() { return 1 }", True),
        ("I <3 Pens", False),
        ("Rolling Stone {the Country Issue}", False),
        ('Colored Pencils" />', False),
    ],
)
def test_markup_titles(title, markup):
    assert text.looks_like_markup(title) is markup


def test_clean_title():
    assert text.clean_title(' "Colored  Pencils" /> ') == "Colored Pencils"
    assert text.clean_title("8.5&rdquo; x 11&quot; &amp; more") == '8.5” x 11" & more'
    assert text.title_words("a&nbsp;b c") == 2


@pytest.mark.parametrize(
    ("raw", "clean", "rules"),
    [
        ("plain", "plain", set()),
        ("a  b", "a b", {"blanks"}),
        ("a &amp; b", "a & b", {"entities"}),
        ("<i>a</i>", "a", {"tags"}),
        ("cut <span class='a-si", "cut", {"tags"}),
        ("<script>x</script>a", "a", {"blocks"}),
        ("a<!-- x -->", "a", {"blocks"}),
        ("&lt;b&gt;a", "a", {"entities", "tags"}),
        ("['a']", "a", {"list"}),
        ("['a', '<b>b']", "a b", {"list", "tags"}),
        ("x" * 50_000, "x" * text.MAX_FIELD, {"cut"}),
        ("5 < 6", "5 < 6", set()),
    ],
)
def test_rules_that_changed_a_value_are_named(raw, clean, rules):
    changed: set[str] = set()
    assert text.clean_value(raw, changed) == clean
    assert changed == rules and changed <= set(text.RULES)


def test_rules_that_changed_a_title_are_named():
    for raw, rules in (("Pen", set()), ('"Pen" />', {"quotes"}), ("A &amp; B", {"entities"}), (" A", {"blanks"})):
        changed: set[str] = set()
        text.clean_title(raw, changed)
        assert changed == rules


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
        max_leaves=20,
    )
)
def test_literals_are_what_python_writes(value):
    assert text.literal(repr(value)) == value


@pytest.mark.parametrize(
    "raw",
    [
        "open('x')",
        "a",
        "1 + 1",
        "{**{}}",
        "lambda: 1",
        "f'{1}'",
        "b'x'",
        "[x for x in []]",
        "(" * 300 + ")" * 300,
        "{[]: 1}",
        "'open",
        "1j",
        "...",
        "9" * 5000,
        "not 1",
        "-" * 9,
        "",
        "'a'.upper()",
        "[1, 2",
        "'\\x'",
    ],
)
def test_anything_but_a_literal_is_refused(raw):
    with pytest.raises(ValueError):
        text.literal(raw)
