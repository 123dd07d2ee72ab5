"""A bucket: named objects on S3, Google Cloud, Azure or a mounted folder, with the two conditions that a store needs.

Create-if-absent decides between two writers, compare-and-swap moves a ref. A server that takes a condition and
ignores it would let both writers win, so :meth:`Bucket.probe` tries both before anything is published.

Keys come from where the provider's own tools read them (`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_ACCOUNT_KEY`, the machine's role); an S3-compatible server from `AWS_ENDPOINT_URL`. A server repeats
keys and signed requests in its errors, so their texts are never shown: only their kind and code.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidr_core.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: Largest request in bytes: an upload in parts is bounded to 10,000 of them by S3.
PART_BYTES = 64 * 2**20
#: A server that does not answer is asked again, with growing waits between, for about three minutes.
RETRY: dict[str, Any] = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
#: Options given here replace those of the environment, so this one is read by hand (a server on a private network).
_PLAIN_HTTP = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP")
_CLIENT: dict[str, Any] = {"timeout": timedelta(minutes=10), "connect_timeout": timedelta(seconds=10)}
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"\bstatus: (\d{3})\b|\bstatus code: (\d{3})\b|\b([45]\d\d) (?:[A-Z][a-z]+ ?){1,4}")


@dataclass(frozen=True)
class Stat:
    """An object of a listing: its name, size in bytes, and when it was written (unix seconds)."""

    name: str
    bytes: int
    written: float


class Bucket:
    """The objects below a URL.

    Args:
        url: for people; it holds no key.
        objects: what reads and writes them.
    """

    def __init__(self, url: str, objects: ObjectStore) -> None:
        self.url, self._objects = url, objects

    @classmethod
    def at(cls, url: str) -> Bucket:
        """The bucket at a URL; nothing is asked of the server yet.

        Raises:
            StoreError: obstore is not installed, or the URL or the environment lacks something.
        """
        try:
            import obstore.store
        except ImportError:
            raise StoreError(
                "a store in a bucket needs the package obstore",
                expected="sidr with its extra `bucket`",
                found="no obstore",
                fix="pip install -c constraints.txt 'sidr[bucket]'",
            ) from None
        try:
            if url.startswith("file://"):
                return cls(url, obstore.store.LocalStore.from_url(url, mkdir=True))
            plain = any(os.environ.get(name, "").lower() == "true" for name in _PLAIN_HTTP)
            client: Any = _CLIENT | {"allow_http": plain}
            retry: Any = RETRY
            return cls(url, obstore.store.from_url(url, client_options=client, retry_config=retry))
        except Exception as error:
            raise StoreError(
                f"the store {url} cannot be opened",
                expected="s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder, and what "
                "its provider needs in the environment",
                found=_kind(error),
                fix="correct `store.url` or SIDR_STORE, and set what the provider's own tools need (docs/scale.md)",
            ) from None

    # -- small objects -----------------------------------------------------------------------

    def get(self, name: str) -> tuple[bytes, str | None] | None:
        """Content and version (e_tag) of an object, or None."""
        import obstore

        with self._explained(f"read {name}"):
            try:
                answer = obstore.get(self._objects, name)
                return bytes(answer.bytes()), answer.meta["e_tag"]
            except FileNotFoundError:
                return None

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that does not exist yet; False if it does."""
        return self._put_if(name, content, "create")

    def swap(self, name: str, content: bytes, version: str | None) -> bool:
        """Write an object that still has this version; False if it has not.

        A mounted folder (`file://`) knows no such condition: there the last writer wins.
        """
        return self._put_if(name, content, {"e_tag": version})

    def _put_if(self, name: str, content: bytes, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._explained(f"write {name}"):
            try:
                obstore.put(self._objects, name, content, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return False
            except FileNotFoundError:  # the object with that version is gone; or there is no bucket
                if mode == "create":
                    raise
                return False
            except NotImplementedError:
                if mode == "create":  # without it of two writers both would win
                    raise
                obstore.put(self._objects, name, content)
        return True

    # -- files -------------------------------------------------------------------------------

    def upload(self, path: Path, name: str) -> None:
        """Write a file as an object; it appears whole or not at all."""
        import obstore

        with self._explained(f"write {name}"):
            obstore.put(self._objects, name, path, chunk_size=PART_BYTES, max_concurrency=4)

    def download(self, name: str, path: Path, size: int) -> bool:
        """Read an object of `size` bytes into a file, part by part; False if it is gone or shorter."""
        import obstore

        with self._explained(f"read {name}"), path.open("wb") as file:
            try:
                for start in range(0, size, PART_BYTES):
                    file.write(obstore.get_range(self._objects, name, start=start, end=min(size, start + PART_BYTES)))
            except FileNotFoundError:
                return False
            except Exception as error:
                if "range" in str(error).lower() and self.size(name) < size:  # each provider words it differently
                    return False
                raise
        return True

    def size(self, name: str) -> int:
        """Bytes of an object; -1 if it is gone."""
        import obstore

        with self._explained(f"look at {name}"):
            try:
                return obstore.head(self._objects, name)["size"]
            except FileNotFoundError:
                return -1

    def tail(self, name: str, size: int, count: int) -> bytes:
        """The last `count` bytes of an object of `size` bytes."""
        import obstore

        with self._explained(f"read {name}"):
            return bytes(obstore.get_range(self._objects, name, start=max(0, size - count), end=size))

    def list(self, prefix: str) -> Iterator[Stat]:
        """The objects below a prefix, which ends at a `/`."""
        import obstore

        with self._explained(f"list {prefix or 'objects'}"):
            for page in obstore.list(self._objects, prefix or None):
                for one in page:
                    yield Stat(one["path"], one["size"], one["last_modified"].timestamp())

    def delete(self, names: list[str]) -> None:
        """Delete objects; one that is gone already counts as deleted."""
        import obstore

        if not names:
            return
        with self._explained("delete objects"):
            try:
                obstore.delete(self._objects, names)
            except FileNotFoundError:  # some providers say so: then one by one
                for name in names:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._objects, name)

    # -- trust -------------------------------------------------------------------------------

    def probe(self) -> None:
        """Try both conditions on an object of our own.

        Raises:
            StoreError: the server takes a condition and ignores it, or may not be written to.
        """
        name = f"probe/{uuid.uuid4().hex}"
        broken = ""
        try:
            if not self.create(name, b"first"):
                broken = "a new object counts as existing"
            elif self.create(name, b"second"):
                broken = "two writers could both create one object: it ignores `If-None-Match: *`"
            elif not self.url.startswith("file://") and self.swap(name, b"third", '"0123456789abcdef"'):
                broken = "a write against another version was taken: it ignores `If-Match`"
        finally:
            self.delete([name])
        if broken:
            raise StoreError(
                f"the server of {self.url} cannot hold a store",
                expected="conditional writes, as S3, Google Cloud, Azure, MinIO and Ceph have them",
                found=broken,
                fix="use another server, or a newer version of it; nothing was published",
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an error of the server or the network into one that shows no key."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (BaseError, FileNotFoundError, NotImplementedError) as error:
            kind = _kind(error)
            if isinstance(error, FileNotFoundError):
                expected, fix = "a bucket that exists", "make the bucket, or correct the URL"
            elif isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or "status 403" in kind:
                expected = "credentials that may read, write and list there"
                fix = "check the bucket's name, and the keys that the environment or the machine's role gives"
            elif isinstance(error, NotImplementedError):
                expected = "a place where an object can be written only if it is not there yet"
                fix = "use S3, Google Cloud, Azure, or a mounted folder, with conditional writes switched on"
            else:
                expected = "a server that answers"
                fix = "check the network and the address (AWS_ENDPOINT_URL for an S3-compatible server), then run again"
            raise StoreError(
                f"could not {what} in the store {self.url}",
                expected=expected,
                found=kind,
                fix=f"{fix}: nothing half done is ever read",
            ) from None


def _kind(error: Exception) -> str:
    """Kind and code of an error, without its text, which may hold keys."""
    text = str(error)
    parts = [type(error).__name__]
    if match := _STATUS.search(text):
        parts.append(f"status {next(group for group in match.groups() if group)}")
    if match := _CODE.search(text):
        parts.append(match[1])
    if match := re.search(r"\bkind: (\w+)", text):
        parts.append(f"{match[1].lower()} failed")
    if re.search(r"MissingAccount|Missing\w+|must be specified", text):
        parts.append("something is missing in the environment or the URL")
    return ", ".join(parts)
