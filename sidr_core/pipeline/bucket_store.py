"""A store whose outputs lie in a bucket, for several machines; a local folder is scratch and cache.

`<stage>/<fingerprint>/<writer>/…` holds the files that one writer uploaded, `<stage>/<fingerprint>/MANIFEST.json` names
the writer whose files count. The manifest is created last and only if there is none, so of two writers the first wins
and nobody overwrites bytes that a manifest names; correctness needs no lock across machines. Locks of the local folder
still make the processes of one machine wait for one another.

Files are fetched when they are opened, into a cache by content (`objects/<sha256>`), and linked into the folder of the
output. What a machine cannot do is to keep another one from deleting; so `sidr gc` spares what is young, deletes the
manifest first, and puts it back if a ref has come to name it meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidr_core.errors import StoreError
from sidr_core.pipeline.bucket import Bucket, Stat
from sidr_core.pipeline.resume_mirror import ResumeMirror
from sidr_core.pipeline.store import (
    MANIFEST,
    Artifact,
    Store,
    canonical_json,
    move_into_place,
    ref_name,
    sealed_manifest,
    sealed_text,
    sha256_file,
)

if TYPE_CHECKING:
    pass

#: Object beside a writer's files which says that one of them has other bytes than the manifest says.
DAMAGED = "DAMAGED"
#: Folder of resume points beside the writers' folders, which are named by hex digits.
RESUME = "resume"
_WRITER = "writer"
_HEX = re.compile(r"[0-9a-f]{16,64}")
#: Bytes that hold the schema of most Parquet files.
_FOOTER_BYTES = 64 * 1024


class BucketArtifact(Artifact):
    """A published output in a bucket; `folder` holds those of its files that were opened here."""

    def __init__(self, folder: Path, manifest: dict[str, Any], store: BucketStore) -> None:
        super().__init__(folder, manifest)
        self._store = store

    def path(self, name: str, hashed: Callable[[Path], str] = sha256_file) -> Path:
        """Like :meth:`Artifact.path`; a file that is not here, or not as published, is fetched first."""
        try:
            return super().path(name, hashed)
        except StoreError:
            if name not in self.manifest["files"]:
                raise
        self._fetch(name)
        return super().path(name)

    def is_here(self, name: str) -> bool:
        """Whether opening the file would fetch nothing."""
        path = self.folder / name
        return path.is_file() and path.stat().st_size == self.manifest["files"][name]["bytes"]

    def hold(self) -> bool:
        """True: no lock reaches other machines. What is unneeded is deleted from a bucket by age."""
        return True

    def schema_only(self, name: str) -> Path:
        """Path of a Parquet file of which only the schema has to be here: a view can name it, no row can be read.

        Where the file is not here, its footer is fetched and stands in for it until :meth:`path` fetches the whole.
        """
        path = self.folder / name
        if not path.is_file():
            size, key = self.manifest["files"][name]["bytes"], self._key(name)
            tail = self._store.bucket.tail(key, size, _FOOTER_BYTES)
            footer = int.from_bytes(tail[-8:-4], "little") + 8  # its length and the magic word follow it
            if footer > len(tail):
                tail = self._store.bucket.tail(key, size, footer)
            partial = self._store.partial()
            partial.write_bytes(b"PAR1" + tail[-footer:])
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, path)
        return path

    def _key(self, name: str) -> str:
        return f"{self.stage}/{self.fingerprint}/{self.manifest[_WRITER]}/{name}"

    def _fetch(self, name: str) -> None:
        """Link a file of the cache into the folder, and download it if it is not there or not sound.

        Raises:
            StoreError: it is gone, or twice had other bytes than the manifest says.
        """
        entry = self.manifest["files"][name]
        cached, path = self._store.objects / entry["sha256"], self.folder / name
        if not (cached.is_file() and sha256_file(cached) == entry["sha256"]):
            partial = self._store.partial()
            try:
                for attempt in (1, 2):
                    whole = self._store.bucket.download(self._key(name), partial, entry["bytes"])
                    if whole and sha256_file(partial) == entry["sha256"]:
                        break
                    if attempt == 2:
                        self._store.report_damage(self)
                        raise self._damaged(name, f"sha256 {entry['sha256'][:16]}…", "other bytes, or none")
                    self._resolve(name)  # it may have been rebuilt meanwhile, by another writer
                os.replace(partial, cached)
            finally:
                partial.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        link = self._store.partial()
        try:
            os.link(cached, link)
        except OSError:  # a file system without links
            shutil.copyfile(cached, link)
        os.replace(link, path)

    def _resolve(self, name: str) -> None:
        """Read the manifest once more, and go on with it if it has the same bytes."""
        again = self._store.open(self.stage, self.fingerprint)
        if again is None:
            raise self._damaged(name, "an output in the bucket", "its manifest is gone: it was deleted")
        if again.digest == self.digest:
            self.manifest = again.manifest


class BucketStore(Store):
    """A store in a bucket.

    Args:
        home: the working folder of this machine. Scratch and cache lie below its `cache/`, so they can be lost.
    """

    keeps_catalog = False  # rewriting it would read each ref and each manifest after every stage

    def __init__(self, home: Path, bucket: Bucket) -> None:
        # A folder of its own: what is cached of one bucket is no output of another.
        super().__init__(home / "cache" / f"bucket-{hashlib.sha256(bucket.url.encode()).hexdigest()[:8]}")
        self.bucket = bucket
        self.objects = self.root / "objects"

    @property
    def home(self) -> Path:
        return self.root.parents[1]

    @property
    def place(self) -> str:
        return self.bucket.url

    @property
    def live_at(self) -> Bucket:
        return self.bucket

    def partial(self) -> Path:
        """A new name for a file that is not whole yet; left behind by a process that is killed."""
        self.objects.mkdir(parents=True, exist_ok=True)
        return self.objects / f".{os.getpid()}.{uuid.uuid4().hex}"

    # -- outputs -----------------------------------------------------------------------------

    def open(self, stage: str, fp: str) -> Artifact | None:
        manifest = _manifest(self._read(f"{stage}/{fp}/{MANIFEST}"), stage, fp)
        return None if manifest is None else BucketArtifact(self.root / stage / fp, manifest, self)

    def _read(self, name: str) -> str | None:
        found = self.bucket.get(name)
        return None if found is None else found[0].decode(errors="replace")

    def sound(self, stage: str, fp: str) -> Artifact | None:
        """The output, if all its files are in the bucket in full and none was found damaged; nothing is fetched."""
        artifact = self.open(stage, fp)
        return artifact if artifact is not None and self._is_whole(artifact.manifest) else None

    def _is_whole(self, manifest: dict[str, Any]) -> bool:
        prefix = f"{manifest['stage']}/{manifest['fingerprint']}/{manifest[_WRITER]}/"
        sizes = {one.name.removeprefix(prefix): one.bytes for one in self.bucket.list(prefix)}
        return sizes == {name: entry["bytes"] for name, entry in manifest["files"].items()}

    def writer_of(self, artifact: Artifact | None) -> str | None:
        """Name of the folder whose files count."""
        return None if artifact is None else artifact.manifest[_WRITER]

    def report_damage(self, artifact: Artifact) -> None:
        """Have the output count as absent, so that the next run builds it again."""
        with contextlib.suppress(StoreError):  # a reader that may not write
            self.bucket.create(f"{_prefix(artifact.manifest)}{DAMAGED}", b"")

    @contextlib.contextmanager
    def _working_on(self, stage: str, fp: str, say: Callable[[str], None] | None) -> Iterator[None]:
        """Asks the server before the work, not after it; fetches unfinished work and copies it as it goes on."""
        self.trust()
        mirror = ResumeMirror(self.bucket, f"{stage}/{fp}/{RESUME}/", self.resume_folder(stage, fp), say)
        mirror.fetch()
        with mirror.following():
            yield

    def _drop_resume(self, stage: str, fp: str) -> None:
        super()._drop_resume(stage, fp)
        with contextlib.suppress(StoreError):  # the garbage collector finds them
            self.bucket.delete([one.name for one in self.bucket.list(f"{stage}/{fp}/{RESUME}/")])

    def _publish(self, tmp: Path, final: Path, manifest: dict[str, Any], say: Callable[[str], None] | None) -> Artifact:
        """Upload the files under a prefix of our own, then claim the output; of two writers the first wins."""
        ours = manifest | {_WRITER: uuid.uuid4().hex[:16]}
        names = [f"{_prefix(ours)}{name}" for name in ours["files"]]
        try:
            for name in ours["files"]:
                self.bucket.upload(tmp / name, f"{_prefix(ours)}{name}")
        except Exception:
            with contextlib.suppress(StoreError):  # no network: the garbage collector finds them
                self.bucket.delete(names)
            raise
        # From here on the manifest may name our files even if the answer of the server is lost.
        theirs = self._claim(ours)
        artifact = BucketArtifact(final, theirs, self)
        if theirs[_WRITER] != ours[_WRITER]:
            self.bucket.delete(names)
            if artifact.digest != Artifact(final, ours).digest:
                if say is not None:
                    say(
                        f"{artifact.stage}: another machine published other bytes for the same inputs and settings; "
                        "its output is used. Something in this stage is not a function of them"
                    )
                shutil.rmtree(tmp)
                return artifact
        # What was built here need not be fetched.
        self.objects.mkdir(parents=True, exist_ok=True)
        for name, entry in manifest["files"].items():
            with contextlib.suppress(OSError):  # there already, or a file system without links
                os.link(tmp / name, self.objects / entry["sha256"])
        move_into_place(tmp, final)
        return artifact

    def _claim(self, ours: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest unless there is a sound one; gives the one that counts."""
        name = f"{ours['stage']}/{ours['fingerprint']}/{MANIFEST}"
        text = sealed_text(ours).encode()
        while not self.bucket.create(name, text):
            found = self.bucket.get(name)
            if found is None:  # deleted just now
                continue
            theirs = _manifest(found[0].decode(errors="replace"), ours["stage"], ours["fingerprint"])
            if theirs is not None and self._is_whole(theirs):
                return theirs
            if self.bucket.swap(name, text, found[1]):  # it was damaged
                break
        return ours

    def remove(self, stage: str, fp: str) -> bool:
        """Delete an output that no ref names, the manifest first. Returns whether it is gone.

        A ref that another machine sets meanwhile is seen after the manifest is gone, and the manifest put back; that
        machine looks for the manifest after it has set the ref. One of the two sees the other.
        """
        name = f"{stage}/{fp}/{MANIFEST}"
        if self._is_current(stage, fp):
            return False
        found = self.bucket.get(name)
        if found is not None:
            self.bucket.delete([name])
            if self._is_current(stage, fp):
                self.bucket.create(name, found[0])
                return False
        self.bucket.delete([one.name for one in self.bucket.list(f"{stage}/{fp}/")])
        with self.owned(stage, fp) as is_owned:
            if is_owned:
                self._discard(self.root / stage / fp, fp)
        return True

    # -- refs --------------------------------------------------------------------------------

    def set_ref(self, dataset: str, snapshot: str, stage: str, fp: str) -> None:
        """Make `fp` the current output, by compare-and-swap.

        Raises:
            StoreError: the output was deleted by another machine just before.
        """
        self.trust()
        name, text = ref_name(dataset, snapshot, stage), canonical_json({"fingerprint": fp}).encode()
        while (found := self.bucket.get(name)) is None or found[0] != text:
            written = self.bucket.create(name, text) if found is None else self.bucket.swap(name, text, found[1])
            if written:
                break
        if self.open(stage, fp) is None:
            raise StoreError(
                f"{dataset}/{stage} of snapshot {snapshot} was deleted while it became current",
                expected="an output in the bucket",
                found="no manifest: another machine collected garbage",
                fix="materialize it again; give `sidr gc` more `--days` than outputs lie unused",
            )

    def refs(self) -> list[tuple[str, str, str]]:
        parts = [one.name.split("/") for one in self.bucket.list("refs/") if one.name.endswith(".json")]
        return sorted((part[1], part[2], part[3].removesuffix(".json")) for part in parts if len(part) == 4)

    def exists(self, stage: str, fp: str) -> bool:
        return any(True for _ in self.bucket.list(f"{stage}/{fp}/"))

    # -- all objects -------------------------------------------------------------------------

    def objects_by_output(self) -> dict[tuple[str, str], list[Stat]]:
        """Every object that belongs to an output, by (stage, fingerprint)."""
        outputs: dict[tuple[str, str], list[Stat]] = defaultdict(list)
        for one in self.bucket.list(""):
            parts = one.name.split("/")
            if len(parts) > 2 and parts[0] != "refs":
                outputs[parts[0], parts[1]].append(one)
        return outputs

    def size(self) -> int:
        """Bytes of everything in the bucket."""
        return sum(one.bytes for one in self.bucket.list(""))

    def trust(self) -> None:
        """Probe the server before this machine first writes to it.

        Raises:
            StoreError: it cannot hold a store.
        """
        note = self.root / ".probed"
        if not note.exists():
            self.bucket.probe()
            self.root.mkdir(parents=True, exist_ok=True)
            note.touch()


def _manifest(text: str | None, stage: str, fp: str) -> dict[str, Any] | None:
    """The manifest in a text, if it is that of this output as a bucket has it."""
    manifest = sealed_manifest(text, stage, fp)
    if manifest is None or not _HEX.fullmatch(str(manifest.get(_WRITER))):
        return None
    # Whoever may write to the bucket can seal a manifest: its names must not lead out of the cache.
    files = manifest["files"].items()
    clean = all(_HEX.fullmatch(entry["sha256"]) and not {"", ".", ".."} & set(name.split("/")) for name, entry in files)
    return manifest if clean else None


def _prefix(manifest: dict[str, Any]) -> str:
    return f"{manifest['stage']}/{manifest['fingerprint']}/{manifest[_WRITER]}/"
