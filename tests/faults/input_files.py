"""Whole files that are damaged, or only look it: gzip cut and corrupted, ends of lines, names, nothing but garbage."""

from __future__ import annotations

import gzip
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from input_kinds import Kind
from polars.testing import assert_frame_equal

from sidr_core.errors import InputError

if TYPE_CHECKING:
    from inputs import Ground

_GARBAGE = b"\x8f\x00 no record at all"


@dataclass(frozen=True)
class Case:
    """One version of a file.

    Args:
        name: for people. make: the bytes, given the sound text and a source of chance.
        gz: whether the file is named so.
        refused: whether the stage must refuse it; with `partial`, unless `filters.allow_truncated`.
    """

    name: str
    make: Callable[[bytes, random.Random], bytes]
    gz: bool = True
    refused: bool = False
    partial: bool = False


def _packed(text: bytes, level: int = 1) -> bytes:
    return gzip.compress(text, level, mtime=0)


def _cut(text: bytes, rng: random.Random) -> bytes:
    packed = _packed(text)
    return packed[: rng.randrange(len(packed) // 4, len(packed) - 8)]


def _flipped(text: bytes, rng: random.Random) -> bytes:
    packed = bytearray(_packed(text))
    packed[rng.randrange(len(packed) // 2, len(packed) - 8)] ^= 0x55
    return bytes(packed)


def _wrong_sum(text: bytes, rng: random.Random) -> bytes:
    packed = _packed(text)
    return packed[:-8] + bytes(byte ^ 1 for byte in packed[-8:-4]) + packed[-4:]


def _members(text: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(1, len(text))
    return _packed(text[:where]) + _packed(b"") + _packed(text[where:])


CASES = (
    Case("gzip", lambda text, rng: _packed(text)),
    Case("gzip, name without .gz", lambda text, rng: _packed(text), gz=False),
    Case("plain, named .gz", lambda text, rng: text),
    Case("several gzip members", _members),
    Case("gzip, zeros behind it", lambda text, rng: _packed(text) + bytes(512)),
    Case("byte order mark first", lambda text, rng: b"\xef\xbb\xbf" + text, gz=False),
    Case("CRLF ends of lines", lambda text, rng: text.replace(b"\n", b"\r\n"), gz=False),
    Case("no end of the last line", lambda text, rng: text[:-1], gz=False),
    Case("gzip cut off", _cut, refused=True, partial=True),
    Case("gzip with a flipped byte", _flipped, refused=True),
    Case("gzip with a wrong CRC", _wrong_sum, True, True, True),
    Case("gzip, garbage behind it", lambda text, rng: _packed(text) + b"garbage", True, True, True),
    Case("gzip of nothing", lambda text, rng: _packed(b""), refused=True),
    Case("0 bytes", lambda text, rng: b"", refused=True),
    Case("nothing but garbage", lambda text, rng: (_GARBAGE + b"\n") * 1000, gz=False, refused=True),
)  # fmt: skip


def checked(ground: Ground, case: Case, seed: int) -> tuple[str, list[str]]:
    """What became of one version of a file, and what is wrong with that."""
    kind = ground.kind
    data = case.make(kind.text(ground.sound), random.Random(f"{kind.name}/{case.name}/{seed}"))
    folder = ground.new()
    kind.put(folder, [], name="unused")  # for what lies beside the file
    (folder / "unused").unlink()
    path = folder / (kind.file + (".gz" if case.gz else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if not case.refused:
        return _compared(ground, "read:", len(ground.sound))
    try:
        ground.read()
        return "accepted", ["it is accepted"]
    except InputError as error:
        told = f"refused, {error.what.replace(str(path), 'the file')}"
    return _compared(ground, f"{told}; if allowed:", _whole(ground, data)) if case.partial else (told, [])


def _compared(ground: Ground, told: str, whole: int) -> tuple[str, list[str]]:
    """Whether the first `whole` records are accepted as ever, and no more than a rest that was cut short refused."""
    accepted, refused, _ = ground.read(allow_truncated=whole < len(ground.sound) or "refused" in told)
    mine = pl.col("file").str.starts_with(ground.kind.file)
    accepted, expected = (rows.filter(mine).drop("file") for rows in (accepted, ground.expected))
    wrong = []
    rest = 0 if whole == len(ground.sound) else 2  # lines: a record may have two
    if len(refused) > rest or not set(refused["reason"]) <= {"truncated", "wrong_columns"}:
        wrong.append(f"refused: {refused.head(3).rows()}")
    try:
        assert_frame_equal(accepted, expected.head(whole), check_exact=True)
    except AssertionError as error:
        wrong.append(str(error).splitlines()[0])
    return f"{told} {len(accepted):,} of {len(expected):,} accepted", wrong


def _whole(ground: Ground, data: bytes) -> int:
    """How many records an independent reader gets out of a damaged gzip file."""
    left = len(_readable(data)) - len(ground.kind.text([]))
    for number, record in enumerate(ground.sound):
        left -= len(ground.kind.write(record)) + 1
        if left < 0:
            return number
    return len(ground.sound)


def suite(chosen: Sequence[Kind], home: Path, records: int, seed: int) -> list[str]:
    """Print a table: case -> what became of it, for all kinds alike or by kind. Returns what is wrong."""
    from inputs import Ground

    texts = [kind for kind in chosen if kind.write is not None]
    broken = []
    print(f"\n| file | became | of {len(texts)} sorts of file |\n| --- | --- | ---: |", flush=True)
    grounds = [Ground(kind, home / f"files-{kind.name}", records) for kind in texts]
    for case in CASES:
        told: Counter[str] = Counter()
        for ground in grounds:
            became, wrong = checked(ground, case, seed)
            told[became.partition(";")[0].partition(":")[0]] += 1
            broken += [f"{ground.kind.name}, {case.name}: {text}" for text in wrong]
        for became, times in told.items():
            print(f"| {case.name} | {became} | {times} |", flush=True)
    return broken


def _readable(data: bytes) -> bytes:
    """What an independent reader gets out of a gzip file up to its damage."""
    reader, out = zlib.decompressobj(31), bytearray()
    try:
        for byte in data:
            out += reader.decompress(bytes([byte]))
    except zlib.error:
        pass
    return bytes(out)
