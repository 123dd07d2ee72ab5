"""Finds the source files that a profile names: paths, globs and http(s) URLs.

A URL is downloaded once into `$SIDR_HOME/cache/downloads`; an interrupted download resumes where it
stopped if the server can tell that the file is still the same.
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

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


def resolve(patterns: Iterable[str], what: str) -> dict[str, Path]:
    """Local path of every file that the patterns name, by a short unique name, in the order given.

    Args:
        patterns: paths, globs (matches in sorted order) or http(s) URLs.
        what: what the files hold, for the error message.

    Raises:
        InputError: a file is missing or has no bytes, a glob matches nothing, a download fails.
    """
    paths: list[Path] = []
    for pattern in patterns:
        found = [download(pattern)] if _is_url(pattern) else _local(pattern, what)
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


def _is_url(pattern: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", pattern) is not None


def _local(pattern: str, what: str) -> list[Path]:
    path = Path(pattern).expanduser()
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
