"""A full disk, told in one way whichever library ran into it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidr_core.errors import StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: The words for it of libraries that raise no OSError with a number (DuckDB, SQLite, Arrow, safetensors; NumPy).
_WORDS = re.compile(
    r"no space left on device|file too large|disk quota exceeded|disk is full|out of disk space|"
    r"os error (28|27|122)\b|\d+ requested and \d+ written",
    re.IGNORECASE,
)
#: With less than this free, whatever failed while writing failed for want of room.
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
        cause = next((one for one in _chain(error) if _says_full(one)), None)
        free = _free(folder)
        if cause is None and (free is None or free >= _NOTHING_BYTES):
            raise
        text = (str(cause or error).strip() or type(error).__name__).splitlines()[0][:300]
        room = "" if free is None else f"; {free:,} bytes are free there"
        raise StoreError(
            f"no room to write on the file system of {folder}",
            expected="room for an output, its temporary files and the catalog, and no limit on file sizes below theirs",
            found=f"{text}{room}",
            do="free space (`sidr gc` shows what nothing needs), raise the quota or `ulimit -f`, or set SIDR_HOME to a "
            "folder on another disk; then run again: what was published is as it was",
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it and what was being handled when it came, each once."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop(0)
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [one.__cause__, one.__context__]


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return _WORDS.search(str(error)) is not None


def _free(folder: Path) -> int | None:
    """Bytes that this user can write, None where nobody knows."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
