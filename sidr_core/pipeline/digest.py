"""Content digests of source files, remembered while a file is unchanged."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from sidr_core.pipeline.profile import home
from sidr_core.pipeline.store import sha256_file


def digest(path: Path) -> str:
    """Hex sha256 of a file, remembered by (path, size, time of change) below `$SIDR_HOME/cache`."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    entry = home() / "cache" / "source_digests" / key
    remembered = entry.read_bytes() if entry.is_file() else b""
    if remembered and remembered == _sealed(value := remembered[:64].decode(errors="replace")):
        return value
    value = sha256_file(path)
    with suppress(OSError):  # not remembered, as on a full disk: the file is hashed again next time
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_bytes(_sealed(value))
    return value


def _sealed(value: str) -> bytes:
    """A digest with a short one of itself: a flipped byte must not look like changed content of the file."""
    return f"{value} {hashlib.sha256(value.encode()).hexdigest()[:16]}".encode()
