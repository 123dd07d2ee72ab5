"""Fetches http(s) URLs into `$SIDR_HOME/cache/downloads`, each once.

An attempt that may pass (no connection, a body that is cut off or stops coming, 429 and 5xx) is repeated by the
project's one retry layer (`sidr_core.remote.retry`); whatever came is resumed, in the next attempt or the next
run, if the server can tell that the file is still the same. A server that breaks off again and again is asked as long
as each round of attempts brings more. A file is in the cache under its own name only when whole. An answer that has
no end, or is longer than there is room for, is given up and what came of it deleted.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies

from filelock import FileLock

from sidr_core.errors import InputError
from sidr_core.pipeline.profile import home
from sidr_core.pipeline.stage import Progress

if TYPE_CHECKING:
    import httpx2

#: An attempt ends when so many seconds bring fewer than so many bytes, be it a server that is silent or one that drips.
STALL_SECONDS = 60.0
STALL_BYTES = 64 << 10
#: Bytes that a file of unknown length may have, and that are left free on the disk.
LARGEST = 64 << 30
SPARE = 1 << 30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Patience:
    """How often a download is tried; how long an attempt may take depends on the file, see :data:`STALL_SECONDS`."""

    retries: int = 5
    timeout_seconds: float | None = None
    give_up_after: int = 1


PATIENCE = Patience()


class _Refused(Exception):
    """The server will not give the file, now or later."""


def download(url: str, progress: Progress | None = None) -> Path:
    """Path of the local copy of `url`, fetched if it is not there yet.

    Raises:
        InputError: another scheme than http(s), or the server refuses, is empty-handed, or breaks off every time.
    """
    parts = _checked(url)
    folder = home() / "cache" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]", "_", unquote(PurePosixPath(parts.path).name))[-100:] or "download"
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    with FileLock(f"{target}.lock"):
        copy = _Copy(url, target, (progress or Progress()).named(f"download {name}"))
        if not target.is_file():
            copy.fetch()
        copy.forget()  # also what a run left behind that was killed right after its last byte
    return target


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise InputError(
            f"cannot read from {parts.hostname!r} with a password",
            expected="a URL without a user part: it stands in manifests and logs",
            found="one before the @",
            fix="download the file yourself and give its path",
        )
    if parts.scheme.lower() not in ("http", "https"):
        raise InputError(
            f"cannot read {url!r}",
            expected="a path, or a URL that begins with http:// or https://",
            found=f"scheme {parts.scheme!r}",
            fix="download the file yourself and give its path",
        )
    return parts


class _Copy:
    """The copy of one URL in the making: `<target>.part`, and in `<target>.version` which version of the file it is."""

    def __init__(self, url: str, target: Path, progress: Progress) -> None:
        self._url, self._target, self._progress = url, target, progress
        self._part, self._version = Path(f"{target}.part"), Path(f"{target}.version")

    def forget(self) -> None:
        """Delete what came; the version last, as a part without one is never resumed."""
        self._part.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)

    def fetch(self) -> None:
        """Bring the file to its place. Raises InputError."""
        from sidr_core.remote.retry import CallFailed

        try:
            asyncio.run(self._fetch())
        except CallFailed as error:
            raise self._failed(error.reason, "run again when the server is well: what came is resumed") from None
        except _Refused as error:  # what came stays: it may pass, and If-Range guards what is resumed
            raise self._failed(str(error), "correct the address, or give the path of your own download") from None
        except OSError as error:
            first = "make room below SIDR_HOME" if error.errno in _NO_ROOM else "mend what the system refuses"
            raise self._failed(str(error), f"{first} and run again: what came is resumed") from None

    def _failed(self, reason: str, fix: str) -> InputError:
        return InputError(f"cannot download {self._url}", expected="the whole file", found=reason, fix=fix)

    async def _fetch(self) -> None:
        from sidr_core.remote.retry import CallFailed, call_with_retries

        async with self._client() as client:
            fetched = False
            while not fetched:
                before = self._came()
                try:
                    await call_with_retries(lambda: self._attempt(client), PATIENCE, means=self._meaning)
                    fetched = True
                except CallFailed:
                    if self._came() - before < STALL_BYTES:
                        raise
        os.replace(self._part, self._target)
        self._progress.say(f"{self._target.stat().st_size:,} bytes")

    def _client(self) -> httpx2.AsyncClient:
        """A client without a time limit: a large file may take as long as it keeps coming."""
        import httpx2

        try:
            return httpx2.AsyncClient(follow_redirects=True, timeout=None)
        except (ImportError, ValueError, httpx2.InvalidURL):  # nothing else is given to it; ImportError: for SOCKS
            kinds = {name: getproxies().get(name, "").rpartition("://")[0] for name in ("http", "https", "all")}
            asked = ", ".join(f"{name}_proxy={kind}://…" for name, kind in kinds.items() if kind)  # no passwords
            raise self._failed(
                f"a proxy in the environment that cannot be used ({asked})",
                "set http_proxy and https_proxy to http://… and unset ALL_PROXY (and all_proxy), or give the path of "
                "your own download",
            ) from None

    def _meaning(self, error: BaseException) -> Exception:
        """What an exception of an attempt means: CallFailed if another one may help."""
        import httpx2

        from sidr_core.remote.retry import CallFailed

        if isinstance(error, TimeoutError):
            error = CallFailed(f"fewer than {STALL_BYTES:,} bytes came in {STALL_SECONDS:g} s", free=True)
        elif isinstance(error, httpx2.UnsupportedProtocol | httpx2.TooManyRedirects | httpx2.InvalidURL):
            return _Refused(str(error))
        elif isinstance(error, httpx2.ConnectError):
            error = CallFailed(f"no connection: {error}", free=True)
        elif isinstance(error, httpx2.TransportError):
            error = CallFailed(f"the connection broke off; {self._came():,} bytes are there", free=True)
        if isinstance(error, CallFailed):
            self._progress.say(f"failed: {error.reason}")
            return error
        raise error

    def _came(self) -> int:
        """Bytes that are there and of which it is known what version they are of."""
        return self._part.stat().st_size if self._part.exists() and self._version.exists() else 0

    async def _attempt(self, client: httpx2.AsyncClient) -> None:
        done = self._came()
        headers = {"User-Agent": "sidr", "Accept-Encoding": "identity"}
        if done:  # If-Range: the server sends the whole file when it is no longer the one we began with
            headers |= {"Range": f"bytes={done}-", "If-Range": self._version.read_text()}
        stream = client.stream("GET", self._url, headers=headers)
        async with asyncio.timeout(STALL_SECONDS) as limit, stream as response:
            if self._is_whole(response, done):
                return
            self._require_body(response, done)
            if response.status_code == 200:  # another version is forgotten before the new one is noted: never glued
                done = 0
                self.forget()
                if version := _version_in(response.headers):
                    self._version.write_text(version)
            length = response.headers.get("Content-Length", "")
            total = done + int(length) if length.isdecimal() else 0
            most = self._most(done, total)
            recent = 0
            with self._part.open("ab") as out:
                async for piece in response.aiter_raw():
                    done, recent = done + len(piece), recent + len(piece)
                    if done > most:
                        self.forget()
                        raise _Refused(f"more than {most:,} bytes without an end; what came is deleted")
                    out.write(piece)
                    self._progress.tick(done, max(total, done + 1), "bytes")
                    if recent >= STALL_BYTES:
                        limit.reschedule(asyncio.get_running_loop().time() + STALL_SECONDS)
                        recent = 0
                out.flush()
                os.fsync(out.fileno())
        if not done:
            self.forget()
            raise _Refused("0 bytes")

    def _most(self, done: int, total: int) -> int:
        """Bytes that the whole file may have, of which `done` are there; `total` is what the server says, or 0."""
        room = done + shutil.disk_usage(self._part.parent).free - SPARE
        if total > room:
            self.forget()
            raise _Refused(f"{total:,} bytes, and room for {max(room, 0):,} below SIDR_HOME ({SPARE:,} stay free)")
        return total or min(LARGEST, room)

    def _is_whole(self, response: httpx2.Response, done: int) -> bool:
        """Whether nothing is missing, as after a run that was killed between its last byte and the end."""
        same = _version_in(response.headers) in ("", self._version.read_text()) if done else False
        return same and response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{done}"

    def _require_body(self, response: httpx2.Response, done: int) -> None:
        """Raise unless what follows is the file, or, of the version that we began with, the rest after `done` bytes."""
        from sidr_core.remote.retry import CallFailed, may_pass, retry_after

        status, headers = response.status_code, response.headers
        version = _version_in(headers)
        rest = headers.get("Content-Range", "").startswith(f"bytes {done}-") and done > 0
        if (status == 206 and not (rest and version in ("", self._version.read_text()))) or (status == 416 and done):
            self.forget()
            raise CallFailed("the file changed on the server; from the beginning", free=True)
        if status not in (200, 206):
            reason = f"HTTP {status} {response.reason_phrase}".strip()
            raise CallFailed(reason, free=True, wait=retry_after(headers)) if may_pass(status) else _Refused(reason)


def _version_in(headers: httpx2.Headers) -> str:
    """What tells versions of a file apart, "" where the server does not say; a weak ETag does not vouch for bytes."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
