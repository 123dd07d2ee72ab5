"""A full disk, a home that cannot be written, too little memory: each one error, whichever library ran into it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sidr_core.errors import SidrError, StoreError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
#: Messages of libraries that ran out of memory and raise no MemoryError (torch, DuckDB, Arrow).
_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|cannot allocate memory|malloc of size \d+ failed", re.IGNORECASE
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Messages of libraries that raise no OSError with an errno (DuckDB, SQLite, Arrow, safetensors; NumPy).
_MESSAGES = re.compile(
    r"no space left on device|file too large|disk quota exceeded|disk is full|out of disk space|"
    r"os error (28|27|122)\b|\d+ requested and \d+ written",
    re.IGNORECASE,
)
#: Libraries whose own errors can mean a failed write.
_WRITERS = {"duckdb", "_duckdb", "sqlite3", "pyarrow", "polars", "safetensors", "safetensors_rust", "torch"}
#: With less than this free, a write that failed without an errno failed because the disk is full.
_FULL_BELOW_BYTES = 256 * 1024


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the machine refuses inside the block into one clear error.

    Args:
        folder: the store, in the home.

    Raises:
        StoreError: in place of an error that a full disk, a quota or a limit on file sizes, missing permission to write
            to the home, or too little memory caused.
    """
    try:
        yield
    except Exception as error:
        _explain_refused(error, folder.parent)
        _explain_memory(error)
        cause = _cause(error, folder)
        if cause is None:
            raise
        place = folder
        if isinstance(file := getattr(cause, "filename", None), str):
            with suppress(OSError):  # the file may lie on another disk
                parent = Path(file).absolute().parent
                place = parent if parent.stat().st_dev != _existing(folder).stat().st_dev else folder
        free = _free(place)
        text = (str(cause).strip() or type(cause).__name__).splitlines()[0][:300]
        free_there = "" if free is None else f"; {free:,} bytes are free there"
        raise StoreError(
            f"no room to write on the file system of {place}",
            expected="space for an output, its temporary files and the catalog, and no smaller limit on file sizes",
            found=f"{text}{free_there}",
            fix="free space (`sidr gc` lists what can be deleted), raise the quota or `ulimit -f`, or set SIDR_HOME to "
            "a folder on another disk; then run again: nothing that was published has changed",
        ) from error


def _explain_refused(error: BaseException, home: Path) -> None:
    """Raise StoreError if the system refused a write to a file of the home, or to a folder on the way to it."""
    name = getattr(error, "filename", None)
    if not isinstance(error, OSError) or error.errno not in _REFUSED or not isinstance(name, str):
        return
    path = Path(name).absolute()
    if home in (path, *path.parents) or path in home.parents:
        raise StoreError(
            f"{path} cannot be written",
            expected="a home that this user may write to",
            found=str(error.strerror),
            fix="change the owner or the mode of the folder, or set SIDR_HOME to one of your own; a home "
            "that is only to be read takes `sidr show`, `sql`, `explain` and `status`",
        ) from error


def _explain_memory(error: BaseException) -> None:
    """Raise StoreError if memory ran out."""
    of_library = type(error).__module__.partition(".")[0] in (*_WRITERS, "builtins")
    if isinstance(error, MemoryError) or (of_library and _NO_MEMORY.search(str(error))):
        raise StoreError(
            "this machine has too little memory for the stage",
            expected="enough memory for one batch beside the model and the tables",
            found=(str(error).strip() or type(error).__name__).splitlines()[0][:300],
            fix="lower `micro_batch` of the training, `decoding.batch_size` or `encoder.batch_size`, which costs "
            "time and nothing else; end other programs; or take a smaller base model. `sidr doctor` says what there is",
        ) from error


def _cause(error: Exception, folder: Path) -> BaseException | None:
    """The failed write behind an error; None if it is something else: a wrong input, a bug, a refused request."""
    link: BaseException | None = error
    while link is not None:
        if _is_full(link) or (_can_be_failed_write(link) and _MESSAGES.search(str(link))):
            return link
        handled = link.__context__
        if isinstance(link, SidrError):  # it may hide its cause and repeat it in its own words
            implied = handled if _is_full(handled) else None
        else:  # a bug that comes up while a failed write is handled is still a bug
            implied = handled if _can_be_failed_write(link) and not link.__suppress_context__ else None
        link = link.__cause__ or implied
    free = _free(folder)
    return error if _can_be_failed_write(error) and free is not None and free < _FULL_BELOW_BYTES else None


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def _can_be_failed_write(error: BaseException) -> bool:
    """Whether a failed write can look like this: an OSError without an errno, or a library's own error."""
    if isinstance(error, OSError):
        return error.errno is None or _is_full(error)
    return type(error) is RuntimeError or type(error).__module__.partition(".")[0] in _WRITERS


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _free(folder: Path) -> int | None:
    """Bytes that this user can still write; None if the file system does not say."""
    try:
        filesystem = os.statvfs(_existing(folder))
    except OSError:
        return None
    return filesystem.f_bavail * filesystem.f_frsize if filesystem.f_blocks else None
