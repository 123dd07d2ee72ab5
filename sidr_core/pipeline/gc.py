"""What in the working folder nothing needs any more, and how it goes without harm to who is at work.

Needed is what a ref names and, unless `deep`, what that was made from: its inputs and parts, and theirs. Locks
decide, not guesses: what another process writes or holds stays. Lock files stay too; they are empty, and one that
is deleted while a process waits for it locks nothing any more.
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
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.store import Store

Kind = Literal["output", "part", "unfinished", "temporary", "cache"]

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
#: Names below `<stage>/` that belong to an output, besides its folder and its lock.
_RESUME = re.compile(r"\.resume-([0-9a-f]{32})")
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{32})-.+|\.([0-9a-f]{32})\.owner")
#: Files that are written aside and moved into place, by the process whose number they hold.
_ASIDE = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}(\.wal)?")
#: A number may belong to a process of another machine that shares the folder: no such file is written this long.
_ASIDE_SECONDS = 3600.0
_GONE = ".gone-"


@dataclass(frozen=True)
class Litter:
    """Something that can go.

    Args:
        stage, fingerprint: of the output that it is or belongs to; "" where there is none.
        bytes: of all its files. why: in words.
    """

    kind: Kind
    path: Path
    bytes: int
    why: str
    stage: str = ""
    fingerprint: str = ""


def needed(store: Store, deep: bool = False) -> set[tuple[str, str]]:
    """(stage, fingerprint) of what has to stay; with `deep` of the current outputs alone.

    Raises:
        StoreError: a ref or a current manifest is damaged, so what it needs cannot be told.
    """
    current = (store.find(*where) for where in store.refs() if not _names_nothing(store, where))
    todo = [(artifact.stage, artifact.fingerprint) for artifact in current if artifact is not None]
    found: set[tuple[str, str]] = set()
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.add(one)
        if not deep and (artifact := store.open(*one)) is not None:
            # An input of an earlier snapshot is named `<snapshot>/<stage>`.
            todo += [(name.rpartition("/")[2], fp) for name, fp in artifact.manifest.get("lineage", {}).items()]
            todo += [(name, fp) for name, fp in artifact.manifest.get("parts", ())]
    return found


def _names_nothing(store: Store, where: tuple[str, str, str]) -> bool:
    """Whether a ref is sound and its output was removed by hand, whole: it needs nothing any more."""
    fp = store.ref(*where)
    return fp is not None and not os.path.lexists(store.root / where[2] / fp)


def find(store: Store, days: float, *, deep: bool = False, cache: bool = False) -> Iterator[Litter]:
    """What can go, in the order of its paths; nothing that another process writes.

    Args:
        days: unfinished work (resume points, parts that no published output uses) younger than this stays.
        deep: current outputs are all that stays.
        cache: the caches go too, if no stage is running.
    """
    stays = needed(store, deep)
    oldest = time.time() - days * 86_400
    for folder in sorted(store.root.iterdir()) if store.root.is_dir() else ():
        if not folder.is_dir() or folder.is_symlink() or folder.name == "refs":
            continue
        for path in sorted(folder.iterdir()):
            if _FINGERPRINT.fullmatch(path.name):
                found = None if (folder.name, path.name) in stays else _output(store, path, oldest)
            else:
                found = _beside(store, path, oldest)
            if found is not None:
                yield found
    yield from _outside(store, cache)


def drop(store: Store, litter: Litter) -> bool:
    """Delete it. Returns whether it is gone; False where a process has come to need it meanwhile."""
    if litter.kind == "cache":
        aside = litter.path.with_name(f"{_GONE}{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # another one was faster
            os.replace(litter.path, aside)
        _delete(aside)
        return True
    if not litter.stage:
        _delete(litter.path)
        return True
    if litter.path.name == litter.fingerprint:
        return store.remove(litter.stage, litter.fingerprint)
    if litter.kind == "unfinished":
        return store.drop_resume_folder(litter.stage, litter.fingerprint)
    with store.owned(litter.stage, litter.fingerprint) as mine:
        if mine:
            _delete(litter.path)
    return mine


def _output(store: Store, path: Path, oldest: float) -> Litter | None:
    """A folder that no ref leads to: an output, a part of one, or what a crash left of either."""
    stage, fp = path.parent.name, path.name
    artifact = store.open(stage, fp)
    if artifact is None:
        if _is_written(store, stage, fp):
            return None
        return Litter("temporary", path, size(path), "has no valid manifest", stage, fp)
    if stage in {known.name for known in STAGES}:
        return Litter("output", path, size(path), "no snapshot refers to it", stage, fp)
    # The parts of a stage that has not finished look like this, and save its next run the work.
    if datetime.fromisoformat(artifact.manifest["created_at"]).timestamp() > oldest:
        return None
    return Litter("part", path, size(path), "no published output uses it", stage, fp)


def _beside(store: Store, path: Path, oldest: float) -> Litter | None:
    """Resume points and temporary files of an output, if their owner is done or dead."""
    stage = path.parent.name
    if (match := _RESUME.fullmatch(path.name)) and not _is_written(store, stage, match[1]):
        if store.open(stage, match[1]) is not None:
            return Litter("unfinished", path, size(path), "its output is published", stage, match[1])
        newest = max((status.st_mtime for status in _statuses(path)), default=0.0)
        if newest <= oldest:
            why = f"not touched for {(time.time() - newest) / 86_400:.0f} days"
            return Litter("unfinished", path, size(path), why, stage, match[1])
    elif (match := _TEMPORARY.fullmatch(path.name)) and not _is_written(store, stage, match[1] or match[2]):
        return Litter("temporary", path, size(path), "its writer is dead", stage, match[1] or match[2])
    return None


def _outside(store: Store, cache: bool) -> Iterator[Litter]:
    """What was written aside and never moved into place, and the caches."""
    home = store.root.parent
    caches = sorted(path for path in (home / "cache").glob("*") if path.is_dir())
    for path in [*sorted(home.glob(".*")), *sorted((store.root / "refs").glob("*/*/.*"))]:
        if (match := _ASIDE.fullmatch(path.name)) and _is_abandoned(path, int(match[1])):
            yield Litter("temporary", path, size(path), "its writer is dead")
    for path in caches:
        if path.name.startswith(_GONE):
            yield Litter("temporary", path, size(path), "was on its way out")
        elif cache and not is_busy(store):
            yield Litter("cache", path, size(path), "is made or fetched again when needed")


def is_busy(store: Store) -> bool:
    """Whether any process is writing an output."""
    locks = (path for path in store.root.glob("*/.*.lock") if _FINGERPRINT.fullmatch(path.name[1:-5]))
    return any(_is_written(store, path.parent.name, path.name[1:-5]) for path in locks)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts as nothing."""
    return sum(status.st_size for status in _statuses(path) if not stat.S_ISDIR(status.st_mode))


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Of a file, or of a folder and all that lies below it, as far as it is still there."""
    below = (Path(folder) / name for folder, folders, files in os.walk(path) for name in (*folders, *files))
    for entry in itertools.chain([path], below):
        with contextlib.suppress(FileNotFoundError):
            yield entry.lstat()


def _is_written(store: Store, stage: str, fp: str) -> bool:
    if not store.lock_path(stage, fp).exists():
        return False
    with store.owned(stage, fp) as mine:
        return not mine


def _is_abandoned(path: Path, pid: int) -> bool:
    import psutil

    try:
        return time.time() - path.lstat().st_mtime > _ASIDE_SECONDS and not psutil.pid_exists(pid)
    except FileNotFoundError:
        return False


def _delete(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
