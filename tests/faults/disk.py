"""A disk that is full while a stage runs: a clear error, the old output as it was, nothing left after the next run.

Two ways to be full. A limit on file sizes (0 bytes, 1 KiB, 16 KiB, half of the stage's largest file) fails each
write beyond it with EFBIG. A small file system (tmpfs in a private mount namespace, where that is allowed) that is
cut down to what it holds and a little fails with ENOSPC. After each the room is given back and the stage run again.
The catalog and the ledger, which are no part of an output, are done alike.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import Failed, afresh
from runs import SNAPSHOT
from tiny_home import DATASET, TinyHome, Whole, build

from sidr_core.pipeline import catalog
from sidr_core.pipeline.graph import STAGES

HEADER = "| stage | room | outcome | old output | next run | litter |\n| --- | --- | --- | --- | --- | ---: |"
PRIVATE = ("unshare", "--map-root-user", "--mount")
_SIZE = "size=2g"
_MADE_WITH = "baseline_popularity"  # the stage whose run makes the catalog anew


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int:
    """Fill the disk in each stage (or those of `only`) `count` times; a table. Returns how much was broken."""
    try:
        private = subprocess.run([*PRIVATE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        private = False
    return afresh("disk:broken", count, only, private, prefix=PRIVATE if private else ())


def broken(count: int, only: list[str], private: bool) -> int:
    """The suite, in a process of its own; with `private` one whose mounts nobody else sees."""
    wanted = only or [*(stage.name for stage in STAGES), "catalog", "ledger"]
    stages = [name if name != "catalog" else _MADE_WITH for name in wanted if name != "ledger"]
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as folder:
        disk = Path(folder) / "disk"
        disk.mkdir()
        mounted = private and not _mount(["-t", "tmpfs", "-o", _SIZE, "tmpfs", str(disk)])
        if not mounted:
            print("no file system of its own can be mounted here: limits on file sizes only\n")
        try:
            home = TinyHome(disk / "home", tuple(stages), Path(folder) / "children.log")
            print(HEADER, flush=True)
            return sum(_all_rounds(home, name, mounted) for name in wanted for _ in range(count))
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=False)


def _all_rounds(home: TinyHome, name: str, mounted: bool) -> int:
    """Every kind of too little room for a stage, the catalog or the ledger."""
    if name == "ledger":
        target: Target = _Ledger(home)
    elif name == "catalog":
        target = _Catalog(home, home.whole(_MADE_WITH))
    else:
        target = _Stage(home, home.whole(name))
    found = 0
    for limit in sorted({0, 1024, 16 * 1024, target.largest // 2}):
        target.reset()
        told = home.child(_limited, limit, target.work, *target.arguments).result()
        found += _judge(home, name, f"files of {limit:,} bytes", target, told)
    for room in (0, 16 * 1024, target.largest) if mounted else ():
        target.reset()
        used = os.statvfs(home.home)
        size = (used.f_blocks - used.f_bfree) * used.f_frsize + room
        _resize(home, f"size={size}")
        told = home.child(target.work, *target.arguments).result()
        _resize(home, _SIZE)
        found += _judge(home, name, f"disk with {room:,} bytes", target, told)
    return found


def _judge(home: TinyHome, name: str, room: str, target: Target, told: Any) -> int:
    """A row; 1 if a promise was broken."""
    wrong: list[str] = []
    if isinstance(told, Failed):
        clear = "SidrError" in told.bases and "fix:" in told.text and any(w in told.text for w in target.words)
        outcome = "clear error" if clear else f"**{told.kind}**"
        wrong += [] if clear else [told.stack or told.text]
    else:
        outcome = "fits"
    kept = target.kept(fits=outcome == "fits") and not home.damaged()
    again = home.child(target.work, *target.arguments).result()
    completed = not isinstance(again, Failed) and target.right(again)
    left = home.litter()
    wrong += [] if kept else ["the old output is not what is current, whole"]
    wrong += [] if completed else [f"the next run: {again}"]
    wrong += [f"left behind: {path}" for path in left]
    print(
        f"| {name} | {room} | {outcome} | {'intact' if kept else '**damaged**'} | "
        f"{'completed' if completed else '**failed**'} | {len(left)} |",
        flush=True,
    )
    for line in wrong:
        print(f"- {line}", flush=True)
    return int(bool(wrong))


# -- what is run in too little room ----------------------------------------------------------


class Target:
    """Something that writes: `work(*arguments)` in a child.

    Attributes:
        largest: bytes of the largest file. words: one of them has to be in its error.
    """

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    largest: int
    words: tuple[str, ...] = ("no room to write",)

    def reset(self) -> None:
        """As before the work."""

    def kept(self, fits: bool) -> bool:
        """Whether what was there before still is, or what is new where the work completed."""
        raise NotImplementedError

    def right(self, told: Any) -> bool:
        """Whether the work, done again, gave what it should."""
        raise NotImplementedError


class _Stage(Target):
    """A stage, with an old output of it current."""

    def __init__(self, home: TinyHome, whole: Whole) -> None:
        self._home, self._whole, self.largest = home, whole, whole.largest
        self.work, self.arguments = build, (home.home, SNAPSHOT, whole.stage)

    def reset(self) -> None:
        self._home.reset(self._whole, old=True)

    def kept(self, fits: bool) -> bool:
        now = self._home.store.ref(DATASET, SNAPSHOT, self._whole.stage)
        # A catalog that did not fit comes after the ref: then the new output is current, and whole.
        return now == self._whole.fingerprint or (now == self._whole.old and not fits)

    def right(self, told: Any) -> bool:
        return told[:2] == (self._whole.fingerprint, self._whole.digest)


class _Catalog(Target):
    """The catalog, lost while every output is there."""

    def __init__(self, home: TinyHome, whole: Whole) -> None:
        self._home, self._whole = home, whole
        self._path = catalog.path(home.store)
        self.largest = self._path.stat().st_size
        self.work, self.arguments = build, (home.home, SNAPSHOT, whole.stage)

    def reset(self) -> None:
        self._path.unlink(missing_ok=True)

    def kept(self, fits: bool) -> bool:
        return self._home.child(catalog.is_current, self._home.store).result() is fits

    def right(self, told: Any) -> bool:
        return told[2] and self.kept(fits=True)


class _Ledger(Target):
    """The ledger, with replies in it that were paid for."""

    words = ("no room to write", "with room on the disk")

    def __init__(self, home: TinyHome) -> None:
        self._home, self._path = home, home.home / "ledger.sqlite"
        self.work, self.arguments = file_replies, (self._path, 200)
        self.reset()
        self.largest = self._path.stat().st_size

    def reset(self) -> None:
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()
        self._home.child(file_replies, self._path, 20).result()

    def kept(self, fits: bool) -> bool:
        return self._home.child(count_replies, self._path).result() >= 20

    def right(self, told: Any) -> bool:
        return told >= 200


def file_replies(path: Path, count: int) -> int:
    """File so many replies of 500 letters; how many the ledger then holds, all of it checked."""
    from sidr_core.remote.ledger import Label, Ledger, Stored

    ledger = Ledger(path)
    for number in range(count):
        ledger.record(None, Stored(f"{number:064d}", "complete", "x" * 500, 1, 1, 1), Label("m", "h", "k", 1))
    ledger.close()
    return count_replies(path)


def count_replies(path: Path) -> int:
    from sidr_core.remote.ledger import Ledger

    ledger = Ledger(path)
    ledger.verify()
    return ledger.usage("m", "h")["k"][0]


def _limited(limit: int, work: Callable[..., Any], *arguments: Any) -> Any:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        return work(*arguments)
    finally:  # the traceback goes to a log
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _mount(arguments: list[str]) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode


def _resize(home: TinyHome, size: str) -> None:
    """Give the small file system another size."""
    if code := _mount(["-o", f"remount,{size}", str(home.home.parent)]):
        raise RuntimeError(f"the small file system cannot be given {size}: mount ended with {code}")
