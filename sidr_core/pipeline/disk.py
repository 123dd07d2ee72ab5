"""A full disk, told in one way whichever library ran into it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidr_core.errors import SidrError, StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: The words for it of libraries that raise no OSError with a number (DuckDB, SQLite, Arrow, safetensors; NumPy).
_WORDS = re.compile(
    r"no space left on device|file too large|disk quota exceeded|disk is full|out of disk space|"
    r"os error (28|27|122)\b|\d+ requested and \d+ written",
    re.IGNORECASE,
)
#: Whose own errors may stand for a failed write.
_WRITERS = {"duckdb", "_duckdb", "sqlite3", "pyarrow", "polars", "safetensors", "safetensors_rust", "torch"}
#: With less than this free, a write that failed without a number failed for want of room.
_NOTHING_BYTES = 256 * 1024


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what fails inside the block for want of room on the disk of `folder` into one clear error.

    Raises:
        StoreError: in place of an error that a full disk, a quota or a limit on file sizes caused.
    """
    try:
        yield
    except Exception as error:
        cause = _cause(error, folder)
        if cause is None:
            raise
        place = _place(cause, folder)
        free = _free(place)
        text = (str(cause).strip() or type(cause).__name__).splitlines()[0][:300]
        room = "" if free is None else f"; {free:,} bytes are free there"
        raise StoreError(
            f"no room to write on the file system of {place}",
            expected="room for an output, its temporary files and the catalog, and no limit on file sizes below theirs",
            found=f"{text}{room}",
            fix="free space (`sidr gc` shows what nothing needs), raise the quota or `ulimit -f`, or set SIDR_HOME to "
            "a folder on another disk; then run again: what was published is as it was",
        ) from error


def _cause(error: Exception, folder: Path) -> BaseException | None:
    """The failed write behind an error, None where it is of another kind: a wrong input, a bug, a refusal."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, OSError) and told.errno in _FULL:
            return told
        if _of_writer(told) and _WORDS.search(str(told)):
            return told
        told = told.__cause__ or _implied(told)
    free = _free(folder)
    return error if _of_writer(error) and free is not None and free < _NOTHING_BYTES else None


def _implied(error: BaseException) -> BaseException | None:
    """What was being handled when an error came up, where that can be its cause: a bug or a refusal has none."""
    handled = error.__context__
    if isinstance(error, SidrError):  # one that hides what it tells in its own words
        return handled if isinstance(handled, OSError) and handled.errno in _FULL else None
    return handled if _of_writer(error) and not error.__suppress_context__ else None


def _of_writer(error: BaseException) -> bool:
    """Whether a failed write can look like this: an OSError without a number, or a library's own error."""
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _FULL
    return type(error) is RuntimeError or type(error).__module__.partition(".")[0] in _WRITERS


def _place(cause: BaseException, folder: Path) -> Path:
    """The folder of the file that could not be written, where that is told and on another disk."""
    named = getattr(cause, "filename", None)
    if not isinstance(named, str):
        return folder
    place = Path(named).absolute().parent
    try:
        return place if place.stat().st_dev != _existing(folder).stat().st_dev else folder
    except OSError:
        return folder


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _free(folder: Path) -> int | None:
    """Bytes that this user can write, None where nobody knows."""
    try:
        found = os.statvfs(_existing(folder))
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None
