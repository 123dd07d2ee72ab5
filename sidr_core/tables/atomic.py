"""Writes a file whole or not at all: a reader never meets half of it, whenever its writer dies."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to inside the block; at its end that file takes the name `path`.

    Where the block fails, the new file is removed and what stood at `path` stays. A process that is killed leaves a
    file `.<name>.<pid>.<8 hex digits>` behind: whoever holds the folder's lock may remove it.

    Args:
        path: the file's name at the end, in a folder that exists.
        durable: whether file and name are on the disk when the block is left (fsync), so that they outlive a crash
            of the machine too.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        yield partial
        if durable:
            fsync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        fsync(path.parent)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write text (as UTF-8) or bytes as the file `path`, with :func:`replacing`."""
    with replacing(path, durable=durable) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
