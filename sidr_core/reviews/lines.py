"""Reads a text file, gzip or plain, in blocks of lines, without trusting any of them.

Lines that are not UTF-8, hold a NUL byte or are absurdly long come out marked, not dropped, so that
the caller can quarantine them with their numbers. A damaged gzip file gives all that came before the
damage, then :class:`DamagedFile`. Memory is bounded by the block, however long a line is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from isal import isal_zlib

from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Progress

#: Bytes of text in a block, and the longest line accepted (metadata lines reach some 100 kB).
CHUNK = 4 << 20
MAX_LINE = 4 << 20
#: Bytes of a file that is read at once; published ones have some megabytes.
MAX_WHOLE = 128 << 20

# What is kept of a line that is too long: enough for the quarantine.
_HEAD = 4096
_PACKED_CHUNK = 256 << 10
_GZIP = b"\x1f\x8b"
_WITH_GZIP_HEADER = 31

_Piece = TypeVar("_Piece")

_CORRUPT: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]  # its stub says: an instance


class DamagedFile(InputError):
    """A gzip file that ends too early or is corrupt; raised after all that could be read was given out."""

    @property
    def damage(self) -> str:
        """What is wrong with the file."""
        return self.found


def damaged_file(name: Path | str, damage: str, came: str = "") -> DamagedFile:
    """The error for a gzip file that cannot be unpacked to its end; `came` says what came before the damage."""
    return DamagedFile(
        f"{name} is damaged",
        expected="a whole gzip file",
        found=f"{damage}; {came}" if came else damage,
        fix="fetch the file again: the download or copy was probably cut short; "
        "`filters.allow_truncated: true` uses it as far as it goes",
    )


@dataclass(frozen=True)
class Block:
    """Whole lines of a file.

    Args:
        first: number of the first line, from 1.
        data: the lines, joined by newlines, without the last one's newline.
        fault: `line_too_long` (then `data` is the beginning of one line) or `truncated` (one line that
            the damage of the file cut short); else None.
    """

    first: int
    data: bytes
    fault: str | None = None


def blocks(
    path: Path, progress: Progress | None = None, chunk: int = CHUNK, max_line: int = MAX_LINE
) -> Iterator[Block]:
    """Yield the file's lines, some `chunk` bytes at a time; a byte order mark at its start is dropped.

    Raises:
        DamagedFile: after the last block, if the gzip stream ends too early or is corrupt.
    """
    first, carry = 1, b""
    damage: list[DamagedFile] = []
    for piece in until_damage(pieces(path, min(chunk, max_line), progress), damage):
        if len(carry) > max_line and b"\n" not in piece:
            continue  # more of a line of which enough is known: to join it again and again would take long
        complete, newline, carry = (carry + piece).rpartition(b"\n")
        if newline:
            for block in _whole_lines(first, complete, max_line):
                yield block
                first = block.first + block.data.count(b"\n") + 1
        if len(carry) > max_line:
            carry = carry[: max_line + 1]  # enough to see that it is too long
    if carry:
        too_long = len(carry) > max_line
        yield from (
            _whole_lines(first, carry, max_line) if too_long else [Block(first, carry, "truncated" if damage else None)]
        )
    if damage:
        raise damage[0]


def until_damage(pieces: Iterator[_Piece], damage: list[DamagedFile]) -> Iterator[_Piece]:
    """The pieces of a file; the error that ends them is put into `damage`."""
    try:
        yield from pieces
    except DamagedFile as error:
        damage.append(error)


def _whole_lines(first: int, data: bytes, max_line: int) -> Iterator[Block]:
    """Blocks of whole lines of which only the first can be too long: a piece of a file is no longer than that."""
    start, newline, rest = data.partition(b"\n")
    if len(start) > max_line:
        yield Block(first, start[: min(_HEAD, max_line)], "line_too_long")
        if newline:
            yield Block(first + 1, rest)
    else:
        yield Block(first, data)


def pieces(path: Path, size: int, progress: Progress | None = None) -> Iterator[bytes]:
    """The file's bytes, unpacked if it is gzip (by its first bytes), at most `size` at a time. Raises DamagedFile."""
    total = path.stat().st_size
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        source = _unpacked(path, raw, size) if packed else iter(lambda: raw.read(size), b"")
        for number, piece in enumerate(source):
            yield piece if number else piece.removeprefix(b"\xef\xbb\xbf")
            if progress:
                progress.tick(min(raw.tell(), total - 1), total, "bytes")


def _unpacked(path: Path, raw: IO[bytes], size: int) -> Iterator[bytes]:
    """Unpack gzip, several members too, in pieces of at most `size` bytes. Raises DamagedFile at its damage."""
    given = 0
    try:
        for piece in _inflated(raw, size, path.stat().st_size):
            yield piece
            given += len(piece)
        return
    except EOFError as error:
        raise damaged_file(path, str(error)) from None
    except _CORRUPT as error:
        damage = damaged_file(path, str(error) or type(error).__name__)
        failed = raw.tell()
    # A call that fails gives nothing of the bytes it was fed: unpack again, one byte at a time where it failed.
    raw.seek(0)
    try:
        for piece in _inflated(raw, size, failed - 2 * _PACKED_CHUNK):
            if given < len(piece):
                yield piece[given:]
            given = max(given - len(piece), 0)
    except _CORRUPT:
        pass
    raise damage


def _inflated(raw: IO[bytes], size: int, fine_from: int) -> Iterator[bytes]:
    """Unpack; from the byte `fine_from` of the file on, feed single bytes. It gives what it has before it raises."""
    buffer, waiting = bytearray(), b""

    def more() -> bytes:
        return raw.read(_PACKED_CHUNK if raw.tell() <= fine_from else 1)

    try:
        while waiting := waiting or more():
            member = isal_zlib.decompressobj(_WITH_GZIP_HEADER)
            while not member.eof:
                waiting = waiting or more()
                unpacked = member.decompress(waiting, size - len(buffer))
                if not waiting and not unpacked:  # without input it may still give what it held back
                    raise EOFError("the compressed data ends before its end mark")
                buffer += unpacked
                waiting = member.unconsumed_tail
                if len(buffer) == size:
                    yield bytes(buffer)
                    buffer.clear()
            waiting = member.unused_data.lstrip(b"\0")
            while not waiting and (padding := more()):  # zeros after the end are allowed
                waiting = padding.lstrip(b"\0")
    except (EOFError, _CORRUPT):
        if buffer:
            yield bytes(buffer)
        raise
    if buffer:
        yield bytes(buffer)


def read_whole(path: Path) -> bytes:
    """All bytes of a small file, unpacked.

    Raises:
        DamagedFile: it is damaged. InputError: it holds more than `MAX_WHOLE` bytes.
    """
    parts: list[bytes] = []
    for piece in pieces(path, CHUNK):
        parts.append(piece)
        if sum(map(len, parts)) > MAX_WHOLE:
            raise InputError(
                f"{path} is too large to be read at once",
                expected=f"at most {MAX_WHOLE:,} bytes when unpacked",
                found="more",
                fix="name the published file; it is some megabytes large",
            )
    return b"".join(parts)


def numbered_lines(path: Path, progress: Progress | None = None) -> Iterator[tuple[int, str, str | None]]:
    """(number, text, fault) of every line of a file, see :func:`lines_of`.

    Raises:
        DamagedFile: after the last line, if the gzip stream ends too early or is corrupt.
    """
    for block in blocks(path, progress):
        yield from lines_of(block)


def lines_of(block: Block) -> Iterator[tuple[int, str, str | None]]:
    """(number, text, fault) of every line of a block; `fault` is `bad_encoding`, `nul_byte`, the block's, or None."""
    is_utf8, has_nul = decodes(block.data), b"\0" in block.data
    for number, line in enumerate(block.data.split(b"\n"), block.first):
        fault = block.fault or ("nul_byte" if has_nul and b"\0" in line else None)
        yield number, line.decode(errors="replace"), fault or (None if is_utf8 or decodes(line) else "bad_encoding")


def decodes(data: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        return data.isascii() or data.decode() is not None
    except UnicodeDecodeError:
        return False
