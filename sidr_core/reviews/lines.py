"""Reads a text file, gzip or plain, in batches of lines, without trusting any of them.

Lines that are not UTF-8, hold a NUL byte or are absurdly long come out marked, not dropped, so that
the caller can quarantine them with their numbers.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import polars as pl

from sidr_core.errors import InputError
from sidr_core.stage import Progress

#: Bytes read at once, and the longest line accepted (metadata lines reach some 100 kB).
CHUNK = 16 << 20
MAX_LINE = 4 << 20


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    """The bytes of an open file, unpacked if it is gzip (told by its first bytes, not by its name)."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw  # type: ignore[arg-type]


def read_whole(path: Path) -> bytes:
    """All bytes of a small file, unpacked. Raises InputError if it is damaged."""
    try:
        with path.open("rb") as raw:
            return _unpacked(raw).read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None


def line_batches(
    path: Path, progress: Progress | None = None, chunk: int = CHUNK, max_line: int = MAX_LINE
) -> Iterator[pl.DataFrame]:
    """Yield frames (line: Int64 from 1, text: String, fault: String or null) covering the file.

    `fault` is `bad_encoding`, `nul_byte` or `line_too_long`; a line of the last kind is cut short.

    Raises:
        InputError: the gzip stream ends too early or is corrupt.
    """
    first, carry, size = 1, b"", path.stat().st_size
    try:
        with path.open("rb") as raw:
            handle = _unpacked(raw)
            while block := handle.read(chunk):
                whole, newline, rest = (carry + block).rpartition(b"\n")
                if newline:
                    batch = _frame(whole, first, max_line)
                    first += len(batch)
                    yield batch
                # Bounds memory: what is kept of an endless line is enough to refuse it.
                carry = rest[: max_line + 1]
                if progress:
                    progress.tick(min(raw.tell(), size - 1), size, "bytes")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None
    if carry:
        yield _frame(carry, first, max_line)


def _frame(block: bytes, first: int, max_line: int) -> pl.DataFrame:
    if first == 1:
        block = block.removeprefix(b"\xef\xbb\xbf")
    try:
        texts, faults = block.decode().split("\n"), None
    except UnicodeDecodeError:
        raw = block.split(b"\n")
        texts = [line.decode(errors="replace") for line in raw]
        faults = [None if _decodes(line) else "bad_encoding" for line in raw]
    text = pl.col("text")
    return (
        pl.DataFrame({"text": texts, "fault": faults}, schema={"text": pl.String, "fault": pl.String})
        .with_row_index("line", offset=first)
        .select(
            pl.col("line").cast(pl.Int64),
            text,
            pl.when(text.str.len_bytes() > max_line)
            .then(pl.lit("line_too_long"))
            .when(text.str.contains("\0", literal=True))
            .then(pl.lit("nul_byte"))
            .otherwise(pl.col("fault"))
            .alias("fault"),
        )
    )


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _damaged(path: Path, error: Exception) -> InputError:
    """The error for a gzip file that cannot be unpacked to its end."""
    return InputError(
        f"{path} is damaged",
        expected="a whole gzip file",
        found=str(error) or type(error).__name__,
        do="fetch the file again: the download or copy was probably cut short",
    )
