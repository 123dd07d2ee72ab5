"""Garbage collection of the working folder, safe beside running stages.

Kept are the outputs that a ref names, those of what is live or was before it (`sidr_core/pipeline/live.py`), and,
unless `deep`, the inputs and parts they were made from, recursively.
What another process writes or holds is kept as well; locks decide that, not ages or guesses. Lock files stay: they
are empty, and deleting one while a process waits for it would leave that process with a lock on nothing. In a bucket
age decides instead (`bucket_gc.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from sidr_core.errors import StoreError
from sidr_core.pipeline import bucket_gc, host, live
from sidr_core.pipeline.bucket_store import BucketStore
from sidr_core.pipeline.graph import OPTIONAL, STAGES
from sidr_core.pipeline.removable import Removable
from sidr_core.pipeline.store import Store

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
#: Names below `<stage>/` that belong to an output, besides its folder and its lock.
_RESUME = re.compile(r"\.resume-([0-9a-f]{32})")
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{32})-.+|\.([0-9a-f]{32})\.owner")
#: Temporary files that are renamed into place when complete; the number is the pid of their writer.
_UNRENAMED = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}(\.wal)?")
#: The pid may be one of another machine that shares the folder; writing such a file never takes this long.
_UNRENAMED_SECONDS = 3600.0
_BEING_DELETED = ".gone-"


def needed(store: Store, deep: bool = False) -> set[tuple[str, str]]:
    """(stage, fingerprint) of every output that has to be kept; with `deep` the current and the live ones
    only.

    Raises:
        StoreError: a ref, a current manifest or the file of what is live is damaged, so what they need is unknown.
    """
    unvisited: list[tuple[str, str]] = []
    for output in live.kept(store.live_at):
        artifact = store.open(*output)
        # What was chosen on valid rows lies in the parts: a server needs it.
        unvisited += [output, *((name, fp) for name, fp in (artifact.manifest.get("parts", ()) if artifact else ()))]
    for dataset, snapshot, stage in store.refs():
        try:
            artifact = store.find(dataset, snapshot, stage)
        except StoreError:
            fp = store.ref(dataset, snapshot, stage)
            if fp is None or store.exists(stage, fp):
                raise
            continue  # the whole output was deleted by hand
        if artifact is not None:
            unvisited.append((stage, artifact.fingerprint))
    keep: set[tuple[str, str]] = set()
    while unvisited:
        output = unvisited.pop()
        if output in keep:
            continue
        keep.add(output)
        if not deep and (artifact := store.open(*output)) is not None:
            # An input of an earlier snapshot is named `<snapshot>/<stage>`.
            unvisited += [(name.rpartition("/")[2], fp) for name, fp in artifact.manifest.get("lineage", {}).items()]
            unvisited += [(name, fp) for name, fp in artifact.manifest.get("parts", ())]
    return keep


def unlisted(store: Store, listed: Mapping[str, Sequence[str]]) -> Iterator[Removable]:
    """What is current of datasets and snapshots that a profile does not have; the outputs go once nothing names them.

    Args:
        listed: dataset -> its snapshots.
    """
    for dataset, snapshot in sorted({(dataset, snapshot) for dataset, snapshot, _ in store.refs()}):
        if snapshot not in listed.get(dataset, ()):
            path = store.root / "refs" / dataset / snapshot
            yield Removable("snapshot", path, size(path), "the profile does not have it")


def find(store: Store, days: float, *, deep: bool = False, cache: bool = False) -> Iterator[Removable]:
    """Everything that can be deleted, in the order of paths; nothing that another process is writing.

    Args:
        days: unfinished work (resume points, parts that no published output uses) is kept while younger than this.
        deep: also the inputs and parts of current outputs.
        cache: also the caches, if no stage is running.
    """
    keep = needed(store, deep)
    oldest = time.time() - days * 86_400
    if isinstance(store, BucketStore):
        yield from bucket_gc.find(store, keep, oldest, {known.name for known in (*STAGES, *OPTIONAL)})
    for folder in sorted(store.root.iterdir()) if store.root.is_dir() else ():
        if not folder.is_dir() or folder.is_symlink() or folder.name in ("refs", live.FOLDER):
            continue
        for path in sorted(folder.iterdir()):
            if _FINGERPRINT.fullmatch(path.name):
                is_kept = (folder.name, path.name) in keep or isinstance(store, BucketStore)  # there it is a cache
                removable = None if is_kept else _unneeded_output(store, path, oldest)
            else:
                removable = _unfinished_work(store, path, oldest)
            if removable is not None:
                yield removable
    yield from _outside_outputs(store, cache)


def drop(store: Store, removable: Removable) -> bool:
    """Delete it. Returns whether it is gone; False if a process has come to need it since it was found."""
    if removable.in_bucket:
        assert isinstance(store, BucketStore)
        return bucket_gc.drop(store, removable)
    if removable.kind == "cache":
        aside = removable.path.with_name(f"{_BEING_DELETED}{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # another process deleted it
            os.replace(removable.path, aside)
        _delete(aside)
        return True
    if not removable.stage:
        _delete(removable.path)
        return True
    if removable.path.name == removable.fingerprint:
        return store.remove(removable.stage, removable.fingerprint)
    if removable.kind == "unfinished":
        return store.drop_resume_folder(removable.stage, removable.fingerprint)
    with store.owned(removable.stage, removable.fingerprint) as is_owned:
        if is_owned:
            _delete(removable.path)
    return is_owned


def _unneeded_output(store: Store, path: Path, oldest: float) -> Removable | None:
    """A folder that no ref leads to: an output, a part of one, or what a crash left of either."""
    stage, fp = path.parent.name, path.name
    artifact = store.open(stage, fp)
    if artifact is None:
        if _is_written(store, stage, fp):
            return None
        return Removable("temporary", path, size(path), "has no valid manifest", stage, fp)
    if stage in {known.name for known in (*STAGES, *OPTIONAL)}:
        return Removable("output", path, size(path), "no snapshot refers to it", stage, fp)
    # The parts of a stage that has not finished look the same; its next run reuses them.
    if datetime.fromisoformat(artifact.manifest["created_at"]).timestamp() > oldest:
        return None
    return Removable("part", path, size(path), "no published output uses it", stage, fp)


def _unfinished_work(store: Store, path: Path, oldest: float) -> Removable | None:
    """Resume points and temporary files of an output whose writer has finished or died."""
    stage = path.parent.name
    if (match := _RESUME.fullmatch(path.name)) and not _is_written(store, stage, match[1]):
        if store.open(stage, match[1]) is not None:
            return Removable("unfinished", path, size(path), "its output is published", stage, match[1])
        newest = max((status.st_mtime for status in _statuses(path)), default=0.0)
        if newest <= oldest:
            why = f"not touched for {(time.time() - newest) / 86_400:.0f} days"
            return Removable("unfinished", path, size(path), why, stage, match[1])
    elif (match := _TEMPORARY.fullmatch(path.name)) and not _is_written(store, stage, match[1] or match[2]):
        return Removable("temporary", path, size(path), "its writer is dead", stage, match[1] or match[2])
    return None


def _outside_outputs(store: Store, cache: bool) -> Iterator[Removable]:
    """Temporary files that were never renamed into place, and the caches."""
    home = store.home
    caches = sorted(path for path in (home / "cache").glob("*") if path.is_dir())
    refs = sorted((store.root / "refs").glob("*/*/.*"))
    for path in [*sorted(home.glob(".*")), *refs, *sorted((store.root / live.FOLDER).glob(".*"))]:
        if not (match := _UNRENAMED.fullmatch(path.name)) or host.is_alive(int(match[1])):
            continue
        newest = max((status.st_mtime for status in _statuses(path)), default=time.time())
        if time.time() - newest > _UNRENAMED_SECONDS:
            yield Removable("temporary", path, size(path), "its writer is dead")
    for path in caches:
        if path.name.startswith(_BEING_DELETED):
            yield Removable("temporary", path, size(path), "its deletion was cut short")
        elif cache and not is_busy(store):
            yield Removable("cache", path, size(path), "is made or fetched again when needed")


def is_busy(store: Store) -> bool:
    """Whether any process of this machine is writing an output, into this store or another one of the home."""
    stores = [store, Store(store.home / "store"), *map(Store, (store.home / "cache").glob("bucket-*"))]
    locks = ((one, path) for one in stores for path in one.root.glob("*/.*.lock"))
    return any(
        _is_written(one, path.parent.name, path.name[1:-5])
        for one, path in locks
        if _FINGERPRINT.fullmatch(path.name[1:-5])
    )


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; a file that vanishes meanwhile counts as 0."""
    return sum(status.st_size for status in _statuses(path) if not stat.S_ISDIR(status.st_mode))


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Status of a file, or of a folder and everything below it that still exists."""
    below = (Path(folder) / name for folder, folders, files in os.walk(path) for name in (*folders, *files))
    for entry in itertools.chain([path], below):
        with contextlib.suppress(FileNotFoundError):
            yield entry.lstat()


def _is_written(store: Store, stage: str, fp: str) -> bool:
    if not store.lock_path(stage, fp).exists():
        return False
    with store.owned(stage, fp) as is_owned:
        return not is_owned


def _delete(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
