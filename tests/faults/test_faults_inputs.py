"""Corrupted input and disturbed downloads, in small: see :mod:`inputs`."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc

import input_files
import pytest
from file_server import BODY, FileServer
from input_kinds import kinds
from inputs import Ground, matrix

from sidr_core.errors import InputError
from sidr_core.remote import retry
from sidr_core.reviews import downloads
from sidr_core.reviews.lines import CHUNK, MAX_LINE, blocks

KINDS = {kind.name: kind for kind in kinds()}
#: One sort of file per way of reading, and the faults that are told apart there.
SHORT = {
    "amazon_2018 reviews": ("bad line", "time NaN"),
    "amazon_2014 items": ("invalid UTF-8",),
    "ratings_csv item_user": ("bad line", "BOM"),
    "tables csv items": ("stray quote",),
    "minionerec train": ("stray quote", "BOM"),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(retry, "BASE", 0.001)
    return tmp_path / "home"


@pytest.mark.parametrize("name", SHORT)
def test_what_is_injected_is_quarantined(name, tmp_path):
    for _, cells, wrong in matrix(KINDS[name], tmp_path / "world", 60, 0, SHORT[name]):
        assert not wrong
        assert cells and all(injected == caught for injected, caught in cells.values())


@pytest.mark.parametrize("name", ["tables csv items", "minionerec train"])
def test_whole_files(name, tmp_path):
    ground = Ground(KINDS[name], tmp_path / "world", 60)
    chosen = ("several gzip members", "CRLF ends of lines", "gzip cut off", "nothing but garbage")
    for case in input_files.CASES:
        if case.name in chosen:
            assert input_files.checked(ground, case, 0)[1] == []


def test_a_long_line_takes_bounded_memory(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"a\n" + b"x" * (64 << 20) + b"\nb\n")
    tracemalloc.start()
    try:
        found = [(block.first, block.fault, len(block.data)) for block in blocks(path)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [number for number, fault, _ in found if fault] == [2]
    assert peak < 4 * (CHUNK + MAX_LINE)


# -- downloads -------------------------------------------------------------------------------------


def fetch(server: FileServer) -> bytes:
    return downloads.download(server.url).read_bytes()


def left(home) -> list[str]:
    folder = home / "cache" / "downloads"
    return sorted(path.suffix for path in folder.iterdir() if path.suffix in (".part", ".version"))


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "cut", "reset"])
def test_what_passes_is_tried_again(fault, home):
    with FileServer(fault, fault, "ok") as server:
        assert fetch(server) == BODY
        assert len(server.ranges) == 3
    assert left(home) == []


def test_what_came_is_not_asked_for_again():
    with FileServer("cut", "cut", "ok") as server:
        assert fetch(server) == BODY
        assert server.ranges == [None, f"bytes={len(BODY) // 2}-", f"bytes={len(BODY) * 3 // 4}-"]


@pytest.mark.parametrize("fault", ["400", "401", "403", "404", "410", "416", "empty"])
def test_what_does_not_pass_is_not_tried_again(fault, home):
    with FileServer(fault) as server:
        with pytest.raises(InputError, match="cannot download"):
            fetch(server)
        assert len(server.ranges) == 1
    assert left(home) == []


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_it_gives_up(fault):
    with FileServer(fault) as server:
        with pytest.raises(InputError, match="run again"):
            fetch(server)
        assert len(server.ranges) == downloads.PATIENCE.retries + 1


@pytest.mark.parametrize("fault", ["hang", "drip", "drip_head"])
def test_a_server_that_is_silent_or_drips_is_left(fault, monkeypatch):
    monkeypatch.setattr(downloads, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "PATIENCE", downloads.Patience(retries=1))
    with FileServer(fault) as server:
        with pytest.raises(InputError, match="fewer than"):
            fetch(server)
        assert len(server.ranges) == 2 or fault == "drip"  # which brings much at first, and is asked again for that


def test_the_wait_that_is_asked_for_is_kept(monkeypatch):
    waits = []

    async def wait(self, seconds):
        waits.append(seconds)

    monkeypatch.setattr(retry.Breaker, "wait", wait)
    with FileServer("429", "ok", retry_after="7") as server:
        assert fetch(server) == BODY
    assert len(waits) == 1 and 7 <= waits[0] < 7.1


@pytest.mark.parametrize("later", [BODY[::-1], BODY[:1000]])
def test_two_versions_are_never_glued(later, home):
    """Neither where the server ignores If-Range, nor where less is there now than came before."""
    with FileServer("cut", "other_range", "ok", later=later) as server:
        assert fetch(server) == later
        assert server.ranges == [None, f"bytes={len(BODY) // 2}-", None]
    assert left(home) == []


def test_a_killed_download_is_resumed_without_litter(home):
    with FileServer("drip", "ok") as server:
        call = f"from sidr_core.reviews.downloads import download; download({server.url!r})"
        child = subprocess.Popen([sys.executable, "-c", call], env=os.environ, stderr=subprocess.DEVNULL)
        folder = home / "cache" / "downloads"
        deadline = time.monotonic() + 300
        while not any(path.stat().st_size for path in folder.glob("*.part")):
            assert child.poll() is None
            assert time.monotonic() < deadline, "nothing came"
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert [path for path in folder.iterdir() if path.suffix == ".json"] == []
        assert fetch(server) == BODY
        assert server.ranges[1] is not None
        assert left(home) == []
        (folder / f"{next(folder.glob('*.json')).name}.version").write_text("left by a kill after the last byte")
        assert fetch(server) == BODY
    assert left(home) == []
