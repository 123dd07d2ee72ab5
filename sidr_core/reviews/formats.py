"""Files that are no text: named for what they are, with what to do about them."""

from __future__ import annotations

import os
import re
from pathlib import Path

_UNPACK = "unpack it: `{}`; gzip is read as it is"
_EXPORT = "export it to Parquet or CSV, for example with `{}`"
_TO_UTF8 = "save it as UTF-8: `iconv -f {} -t UTF-8 {{name}} > new file`, or `CSV UTF-8` where a spreadsheet asks"
_TO_CSV = "save the sheet as `CSV UTF-8`, or `pandas.read_excel(…).to_parquet(…)`"
_PYTHON = "load it where you trust it and export it to Parquet; nothing is unpickled here"

#: The bytes with which a file begins -> what it is, and what to do.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip within gzip", "unpack it once: `gunzip {name}`"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK.format("zstd -d {name}")),
    (b"BZh", "a bzip2 file", _UNPACK.format("bunzip2 {name}")),
    (b"\xfd7zXZ\0", "an xz file", _UNPACK.format("unxz {name}")),
    (b"\x04\x22\x4d\x18", "an lz4 file", _UNPACK.format("lz4 -d {name}")),
    (b"\xff\x06\0\0sNaPpY", "a snappy file", _UNPACK.format("snzip -d {name}")),
    (b"\x1f\x9d", "a compress (.Z) file", _UNPACK.format("uncompress {name}")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format("7z x {name}")),
    (b"Rar!", "a RAR archive", _UNPACK.format("unrar x {name}")),
    (b"\xd0\xcf\x11\xe0", "an Excel (.xls) file", _TO_CSV),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT.format("sqlite3 -header -csv {name} 'SELECT …'")),
    (b"ORC", "an ORC file", _EXPORT.format("pandas.read_orc(…).to_parquet(…)")),
    (b"Obj\x01", "an Avro file", _EXPORT.format("polars.read_avro(…).write_parquet(…)")),
    (b"ARROW1", "an Arrow (Feather) file", _EXPORT.format("pandas.read_feather(…).to_parquet(…)")),
    (b"\xff\xff\xff\xff", "an Arrow stream", _EXPORT.format("polars.read_ipc_stream(…).write_parquet(…)")),
    (b"\x93NUMPY", "a NumPy array", _EXPORT.format("pandas.DataFrame(numpy.load(…)).to_parquet(…)")),
    (b"\x89HDF", "an HDF5 file", _EXPORT.format("pandas.read_hdf(…).to_parquet(…)")),
    (b"%PDF", "a PDF file", "ask for the data as a table"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "fetch the file itself: `git lfs pull`"),
    (b"\xff\xfe\0\0", "UTF-32 text", _TO_UTF8.format("UTF-32")),
    (b"\xff\xfe", "UTF-16 text", _TO_UTF8.format("UTF-16")),
    (b"\xfe\xff", "UTF-16 text", _TO_UTF8.format("UTF-16")),
)
#: Bytes at the end of a zip archive in which its directory of names is looked for.
_ZIP_DIRECTORY = 1 << 16
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
#: What the beginning matches -> what it is, and what to do.
_PATTERNS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\x80[\x02-\x05][\x95c\]}(]"), "a Python pickle", _PYTHON),
    (
        re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE),
        "a web page (HTML)",
        "fetch the file itself: a login, an error or a preview came in its place",
    ),
    (re.compile(rb"\s*\[\s*\{"), "one JSON array", "write one object per line: `jq -c '.[]' {name} > new file`"),
    (re.compile(rb"\s*<\?xml"), "XML", "export a table; or fetch it again, if this is a store's error message"),
    (
        re.compile(rb"(--|/\*).*\bdump\b|\s*(CREATE TABLE|INSERT INTO)\b", re.IGNORECASE),
        "SQL statements",
        "load it into its database and export the table as CSV or Parquet",
    ),
    (re.compile(rb".{8}DUCK", re.DOTALL), "a DuckDB database", _EXPORT.format('duckdb {name} "COPY …"')),
    (
        re.compile(rb"[^\n\0]*\r(?!\n)[^\n\0]*\Z"),
        "text whose lines end in CR alone",
        "end them in LF: `tr '\\r' '\\n' < {name} > new file`",
    ),
)


def named_format(path: Path, beginning: bytes) -> tuple[str, str] | None:
    """What a file is that is not read here, and what to do about it; None where it may be text.

    Args:
        beginning: its first bytes, some 500, unpacked where it is gzip.
    """
    name, advice = "", ""
    if beginning.startswith(b"PK\x03\x04"):
        name, advice = _zipped(path)
    elif beginning[257:262] == b"ustar":
        name, advice = "a tar archive", "unpack it: `tar -xf {name}`"
    for pattern, kind, fix in _PATTERNS:
        if not name and pattern.match(beginning):
            name, advice = kind, fix
    for signature, kind, fix in _SIGNATURES:
        if not name and beginning.startswith(signature) and (signature != b"BZh" or _BZIP2.match(beginning)):
            name, advice = kind, fix
    # In Latin text in UTF-16 without a byte order mark every other byte is null.
    even, odd = beginning[0::2], beginning[1::2]
    for form, nulls, text in (("UTF-16LE", odd, even), ("UTF-16BE", even, odd)):
        if not name and len(nulls) > 3 and nulls.count(0) > 0.7 * len(nulls) and text.count(0) < 0.3 * len(text):
            name, advice = "UTF-16 text", _TO_UTF8.format(form)
    return (name, advice.replace("{name}", path.name)) if name else None


def _zipped(path: Path) -> tuple[str, str]:
    """What a zip archive is, by the names in the directory at its end; nothing is unpacked."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _ZIP_DIRECTORY))
        directory = file.read()
    if b"xl/workbook." in directory:
        return "an Excel (.xlsx) file", _TO_CSV
    if b"content.xml" in directory and b"mimetype" in directory:
        return "an OpenDocument file", _TO_CSV
    return "a zip archive", _UNPACK.format("unzip {name}")
