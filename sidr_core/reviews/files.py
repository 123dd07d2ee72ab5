"""Finds the source files that a profile names: paths, globs and http(s) URLs, each with an optional checksum.

A URL is downloaded once into `$SIDR_HOME/cache/downloads`; an interrupted download resumes where it
stopped if the server can tell that the file is still the same. `#sha256=<hex>` at the end of a path or
URL is checked whenever the file's size or time of change is new.
"""

from __future__ import annotations

import glob
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from sidr_core.errors import InputError
from sidr_core.profile import home
from sidr_core.stage import Progress
from sidr_core.store import sha256_file

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


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
        place, checksum = _split_checksum(pattern, what)
        found = [download(place)] if _is_url(place) else _local(place, what, suffixes)
        if checksum:
            _verify(found, checksum, what, pattern)
        paths += [path for path in found if path not in paths]
    # Names are part of the output, so no folder of this machine may show in them; files of one name
    # (train/x.csv, test/x.csv) are told apart by the last folder, or by number.
    for name in (lambda i: paths[i].name, lambda i: f"{paths[i].parent.name}/{paths[i].name}"):
        names = [name(i) for i in range(len(paths))]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    return {f"{number}/{path.name}": path for number, path in enumerate(paths, 1)}


def one(pattern: str, what: str) -> Path:
    """Local path of the one file that `pattern` names. Raises InputError like :func:`resolve`."""
    found = list(resolve([pattern], what).values())
    if len(found) > 1:
        raise InputError(
            f"{what}: {pattern!r} names {len(found)} files",
            expected="one file",
            found=", ".join(path.name for path in found[:3]),
            do="write the path so that it names one file",
        )
    return found[0]


def located(pattern: str, what: str, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Local files that a pattern names, neither read nor fetched; none for a URL. Raises InputError like `resolve`."""
    place, _ = _split_checksum(pattern, what)
    return [] if _is_url(place) else _local(place, what, suffixes)


def _is_url(pattern: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", pattern) is not None


def _split_checksum(pattern: str, what: str) -> tuple[str, str]:
    """The path or URL, and the sha256 after it ("" if there is none)."""
    place, mark, checksum = pattern.partition("#sha256=")
    if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", checksum):
        raise InputError(
            f"{what}: the checksum of {place!r} is none",
            expected="#sha256= and 64 hexadecimal digits",
            found=repr(mark + checksum),
            do="write what `sha256sum` prints for the file",
        )
    return place, checksum.lower()


def _verify(paths: list[Path], checksum: str, what: str, pattern: str) -> None:
    if len(paths) != 1:
        raise InputError(
            f"{what}: one checksum for {len(paths)} files",
            expected="a path or URL of one file before `#sha256=`",
            found=pattern,
            do="name the files one by one, each with its own checksum",
        )
    found = digest(paths[0])
    if found != checksum:
        raise InputError(
            f"{what}: {paths[0]} is not the file that the profile names",
            expected=f"sha256 {checksum}",
            found=f"sha256 {found}",
            do="fetch the file again (delete it first if it is a download in the cache), or correct `#sha256=`",
        )


def digest(path: Path) -> str:
    """Hex sha256 of a file, remembered by (path, size, time of change) below `$SIDR_HOME/cache`."""
    stat = path.stat()
    memo = home() / "cache" / "source_digests"
    memo.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    entry = memo / key
    if entry.is_file() and len(text := entry.read_text()) == 64:
        return text
    value = sha256_file(path)
    entry.write_text(value)
    return value


def _local(pattern: str, what: str, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(pattern).expanduser()
    if suffixes and path.is_dir():
        return [_present(match, what) for match in _below(path, what, suffixes)]
    if path.exists() or not glob.has_magic(pattern):
        return [_present(path, what)]
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not found:
        raise InputError(
            f"{what}: no file matches {pattern!r}",
            expected="at least one file",
            found=f"none below {Path.cwd() if not path.is_absolute() else path.anchor}",
            do="correct the path in the profile's `source`, or put the files there",
        )
    return [_present(match, what) for match in found]


def _below(folder: Path, what: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below a folder by their names; those that writers leave beside data (`_SUCCESS`, `.crc`) are not data."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name.endswith(suffixes) and not path.name.startswith((".", "_"))
    )
    if not found:
        raise InputError(
            f"{what}: the folder {folder} holds no table",
            expected=f"files that end in {', '.join(suffixes)}",
            found=", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "an empty folder",
            do="correct the path in the profile's `source`, or put the files there",
        )
    return found


def _present(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InputError(
            f"{what}: {path} is missing",
            expected="a file",
            found="a folder" if path.is_dir() else f"nothing (paths are relative to {Path.cwd()})",
            do="correct the path in the profile's `source`, or put the file there",
        )
    if path.stat().st_size == 0:
        raise InputError(
            f"{what}: {path} has no content",
            expected="records",
            found="0 bytes; an incomplete checkout or a failed download leaves such files",
            do="fetch the file again",
        )
    return path


def download(url: str, progress: Progress | None = None) -> Path:
    """Path of the local copy of `url`, fetched if it is not there yet.

    Raises:
        InputError: another scheme than http(s), or the server refuses or breaks off.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise InputError(
            f"cannot read from {parts.hostname!r} with a password",
            expected="a URL without a user part: it stands in manifests and logs",
            found="one before the @",
            do="download the file yourself and give its path",
        )
    if parts.scheme.lower() not in ("http", "https"):
        raise InputError(
            f"cannot read {url!r}",
            expected="a path, or a URL that begins with http:// or https://",
            found=f"scheme {parts.scheme!r}",
            do="download the file yourself and give its path",
        )
    folder = home() / "cache" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]", "_", unquote(PurePosixPath(parts.path).name))[-100:] or "download"
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            say = (progress or Progress()).named(f"download {name}")
            try:
                _fetch(url, target, say)
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                raise InputError(
                    f"cannot download {url}",
                    expected="the whole file",
                    found=str(error) or type(error).__name__,
                    do="check the address and the connection and run again; what came so far is resumed",
                ) from None
    return target


def _fetch(url: str, target: Path, progress: Progress) -> None:
    part, stamp = Path(f"{target}.part"), Path(f"{target}.version")
    done = part.stat().st_size if part.exists() and stamp.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sidr", "Accept-Encoding": "identity"})  # noqa: S310
    if done:  # If-Range: the server sends the whole file when it is no longer the one we began with
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", stamp.read_text())
    with _opener().open(request, timeout=_TIMEOUT_SECONDS) as response:
        resumed = done > 0 and (response.headers.get("Content-Range") or "").startswith(f"bytes {done}-")
        done = done if resumed else 0
        total = done + int(response.headers.get("Content-Length") or 0)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        stamp.write_text(version) if version else stamp.unlink(missing_ok=True)
        with part.open("ab" if resumed else "wb") as handle:
            while block := response.read(_CHUNK):
                handle.write(block)
                done += len(block)
                progress.tick(done, max(total, done + 1), "bytes")
            handle.flush()
            os.fsync(handle.fileno())
    if total and done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")
    os.replace(part, target)
    stamp.unlink(missing_ok=True)
    progress.say(f"{done:,} bytes")


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only: a redirect to file: or ftp: finds no handler."""
    opener = urllib.request.OpenerDirector()
    handlers: list[Any] = [
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ]
    for handler in handlers:
        opener.add_handler(handler())
    return opener
