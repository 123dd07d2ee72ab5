"""A full disk, a refused write and too little memory are reported as such; nothing else is."""

import errno
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest

from sidr_core.errors import InputError, SidrError, StoreError
from sidr_core.pipeline import disk


def raised(error: Exception, tmp_path: Path, context: Exception | None = None) -> Exception:
    """What comes out of the block for an error that is raised inside, maybe while another one is handled."""
    try:
        with disk.explained(tmp_path):
            try:
                if context is not None:
                    raise context
            except Exception:
                raise error  # noqa: B904 (the context is the point)
            raise error
    except Exception as outcome:
        return outcome
    raise AssertionError("nothing came out")


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EFBIG, "File too large"),
    OSError("99 requested and 46 written"),
    duckdb.IOException('Could not write file "x": No space left on device'),
    sqlite3.OperationalError("database or disk is full"),
)


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_failed_write_is_told_with_what_to_do(error: Exception, tmp_path: Path) -> None:
    found = raised(error, tmp_path)
    assert isinstance(found, StoreError)
    assert str(tmp_path) in found.what and "bytes are free" in found.found and "sidr gc" in found.fix


def test_an_error_of_a_library_that_came_while_a_write_failed(tmp_path: Path) -> None:
    found = raised(RuntimeError("unexpected pos 64 vs 0"), tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(found, StoreError)


def test_a_project_error_raised_from_a_failed_write(tmp_path: Path) -> None:
    wrapped = SidrError("cannot save", expected="a file", found="none", fix="look")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(raised(wrapped, tmp_path), StoreError)


OTHERS = (
    SidrError("the teacher refused", expected="200", found="HTTP 413: file too large", fix="send less"),
    InputError("wrong title", expected="a title", found="'No space left on device'", fix="mend it"),
    ValueError("os error 28"),
    OSError(errno.ENOENT, "No such file or directory"),
)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
def test_other_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    assert raised(error, tmp_path) is error


def test_a_bug_while_a_failed_write_is_handled_stays_a_bug(tmp_path: Path) -> None:
    bug = KeyError("bug")
    assert raised(bug, tmp_path, OSError(errno.EFBIG, "File too large")) is bug


def test_a_file_system_that_tells_nothing_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=0, f_frsize=4096, f_blocks=0))
    error = RuntimeError("of another kind")
    assert raised(error, tmp_path) is error


def test_with_nothing_free_a_write_without_a_number_is_told_and_a_wrong_input_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096, f_blocks=100))
    assert isinstance(raised(RuntimeError("file write failed"), tmp_path), StoreError)
    wrong = InputError("no row was accepted", expected="rows", found="none", fix="look")
    assert raised(wrong, tmp_path) is wrong


def test_the_disk_that_is_full_is_named(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/piece")
    if os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    found = raised(error, tmp_path)
    assert isinstance(found, StoreError) and "/dev/shm" in found.what


def test_a_home_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    store = tmp_path / "home" / "store"
    for path in (store / "raw_items" / "x", tmp_path / "home" / "cache", tmp_path):
        for number in (errno.EACCES, errno.EROFS):
            found = raised(OSError(number, os.strerror(number), str(path)), store)
            assert isinstance(found, StoreError) and found.what == f"{path} cannot be written"
            assert "SIDR_HOME" in found.fix
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/data/reviews.csv")
    assert raised(elsewhere, store) is elsewhere  # a source file that may not be read


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 12.0 GiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate data of size 1 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_says_what_to_lower(error: Exception, tmp_path: Path) -> None:
    found = raised(error, tmp_path)
    assert isinstance(found, StoreError) and "micro_batch" in found.fix
    assert "llocat" in found.found
