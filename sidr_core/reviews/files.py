"""Finds the source files that a profile names: paths, globs and http(s) URLs, each with an optional checksum.

A URL is downloaded once (`sidr_core.reviews.downloads`). `#sha256=<hex>` at the end of a path or URL is checked
whenever the file's size or time of change is new.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from sidr_core.errors import InputError
from sidr_core.pipeline.digest import digest
from sidr_core.reviews.downloads import download


def resolve(patterns: Iterable[str], what: str, suffixes: tuple[str, ...] = ()) -> dict[str, Path]:
    """Local path of every file that the patterns name, by a short unique name, in the order given.

    Args:
        patterns: paths, globs (matches in sorted order) or http(s) URLs.
        what: what the files hold, for the error message.
        suffixes: ends of names; if given, a folder stands for all such files below it, in sorted order.

    Raises:
        InputError: a file is missing or has no bytes, a glob or folder holds nothing, a download fails, a
            checksum differs.
    """
    paths: list[Path] = []
    for pattern in patterns:
        location, checksum = _split_checksum(pattern, what)
        matches = [download(location)] if _is_url(location) else _local(location, what, suffixes)
        if checksum:
            _verify(matches, checksum, what, pattern)
        paths += matches
    paths = list({path.resolve(): path for path in reversed(paths)}.values())[::-1]  # named in several ways, read once
    # Names are part of the output, so no folder of this machine may show in them; files of one name
    # (train/x.csv, test/x.csv) are told apart by the last folder, or by number.
    for name in (lambda i: paths[i].name, lambda i: f"{paths[i].parent.name}/{paths[i].name}"):
        names = [name(i) for i in range(len(paths))]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    return {f"{number}/{path.name}": path for number, path in enumerate(paths, 1)}


def one(pattern: str, what: str) -> Path:
    """Local path of the one file that `pattern` names. Raises InputError like :func:`resolve`."""
    paths = list(resolve([pattern], what).values())
    if len(paths) > 1:
        raise InputError(
            f"{what}: {pattern!r} names {len(paths)} files",
            expected="one file",
            found=", ".join(path.name for path in paths[:3]),
            fix="write the path so that it names one file",
        )
    return paths[0]


def located(pattern: str, what: str, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Local files that a pattern names, neither read nor fetched; none for a URL. Raises InputError like `resolve`."""
    location, _ = _split_checksum(pattern, what)
    return [] if _is_url(location) else _local(location, what, suffixes)


def _is_url(pattern: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", pattern) is not None


def _split_checksum(pattern: str, what: str) -> tuple[str, str]:
    """The path or URL, and the sha256 after it ("" if there is none)."""
    location, mark, checksum = pattern.partition("#sha256=")
    if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", checksum):
        raise InputError(
            f"{what}: the checksum of {location!r} is none",
            expected="#sha256= and 64 hexadecimal digits",
            found=repr(mark + checksum),
            fix="write what `sha256sum` prints for the file",
        )
    return location, checksum.lower()


def _verify(paths: list[Path], checksum: str, what: str, pattern: str) -> None:
    if len(paths) != 1:
        raise InputError(
            f"{what}: one checksum for {len(paths)} files",
            expected="a path or URL of one file before `#sha256=`",
            found=pattern,
            fix="name the files one by one, each with its own checksum",
        )
    actual = digest(paths[0])
    if actual != checksum:
        raise InputError(
            f"{what}: {paths[0]} is not the file that the profile names",
            expected=f"sha256 {checksum}",
            found=f"sha256 {actual}",
            fix="fetch the file again (delete it first if it is a download in the cache), or correct `#sha256=`",
        )


def _local(pattern: str, what: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a path, a glob or, where there are suffixes, a folder names. Raises InputError for none."""
    path = Path(pattern).expanduser()
    is_folder = bool(suffixes) and path.is_dir()
    if not is_folder and (path.exists() or not glob.has_magic(pattern)):
        return [_present(path, what)]
    files, hidden = _matches(path, suffixes if is_folder else ())
    if not files:
        nothing = f"none below {Path.cwd() if not path.is_absolute() else path.anchor}"
        entries = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) if is_folder else nothing
        passed_over = f"; {len(hidden)} in names that begin with . or _ or belong to an open file" if hidden else ""
        raise InputError(
            f"{what}: the folder {path} holds no table" if is_folder else f"{what}: no file matches {pattern!r}",
            expected=f"files that end in {', '.join(suffixes)}" if is_folder else "at least one file",
            found=(entries or "an empty folder") + passed_over,
            fix="correct the path in the profile's `source`, or put the files there",
        )
    _require_no_log(files, what)
    return [_present(file, what) for file in files]


def _matches(pattern: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Files that a glob matches, or those below a folder that end in a suffix; and the hidden ones among them.

    Hidden is what :func:`is_hidden` says, where the pattern does not spell it out: what writers, notebooks and desktops
    leave beside data (`_SUCCESS`, `_temporary`, `.ipynb_checkpoints`, `~$orders.csv`).
    """
    spelt = len(pattern.parts)
    if not suffixes:
        spelt = next(place for place, part in enumerate(pattern.parts) if glob.has_magic(part))
    matches = pattern.rglob("*") if suffixes else map(Path, glob.glob(str(pattern), recursive=True))
    files = sorted(match for match in matches if match.is_file() and match.name.endswith(suffixes or ("",)))
    hidden = {file for file in files if any(map(is_hidden, file.parts[spelt:]))}
    return [file for file in files if file not in hidden], sorted(hidden)


def is_hidden(name: str) -> bool:
    """Whether a file or folder holds no data of its own: hidden, or a program's lock or backup of an open file.

    >>> [is_hidden(name) for name in (".git", "_temporary", "~$orders.csv", "orders.csv~", "~orders.csv")]
    [True, True, True, True, False]
    """
    return name.startswith((".", "_", "~$")) or name.endswith("~")


def passed_over(patterns: Iterable[str], suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Files that folders and globs would name, were they not hidden; see :func:`_matches`."""
    paths = [Path(_split_checksum(pattern, "")[0]).expanduser() for pattern in patterns if not _is_url(pattern)]
    hidden: list[Path] = []
    for path in paths:
        is_folder = bool(suffixes) and path.is_dir()
        if is_folder or (not path.exists() and glob.has_magic(str(path))):
            hidden += _matches(path, suffixes if is_folder else ())[1]
    return hidden


#: What lies in the folder of a table that keeps a log of its files, some of which no longer count -> its name.
_LOGS = {
    "_delta_log": "Delta Lake",
    ".hoodie": "Apache Hudi",
    "metadata/*.metadata.json": "Apache Iceberg",
    "_spark_metadata": "Spark streaming",
}


def _require_no_log(files: Iterable[Path], what: str) -> None:
    """Raise InputError for files of a table whose log says which of them count: to read all would double rows."""
    for folder in dict.fromkeys(parent for file in files for parent in file.parents):
        for log, kind in _LOGS.items():
            if mark := next(folder.glob(log), None):
                raise InputError(
                    f"{what}: {folder} is a {kind} table",
                    expected="files that all count",
                    found=f"{mark}: the table's log may have removed some of the files that lie there",
                    fix="export the table to one Parquet file (of Delta: `deltalake.DeltaTable(folder).to_pandas()"
                    ".to_parquet(file)`), or name the files that its log holds live, each by its path",
                )


def _present(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InputError(
            f"{what}: {path} is missing",
            expected="a file",
            found="a folder" if path.is_dir() else f"nothing (paths are relative to {Path.cwd()})",
            fix="correct the path in the profile's `source`, or put the file there",
        )
    if path.stat().st_size == 0:
        raise InputError(
            f"{what}: {path} has no content",
            expected="records",
            found="0 bytes; an incomplete checkout or a failed download leaves such files",
            fix="fetch the file again",
        )
    return path
