"""A publish, killed between each of its system calls and the next.

Every call that changes the file system counts. Before each the process is killed; a reader then has to see the
old state or the new one, whole, and the next run has to give the new one and to leave nothing temporary.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import syscalls
from runs import torn

from sidr_core.pipeline import catalog
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.store import MANIFEST, Store, fingerprint

WHERE = ("games", "2018-10", "s")
OLD, NEW = (fingerprint("s", version, {}) for version in ("1", "2"))


@dataclass(frozen=True)
class Act:
    """Something that the store does in several steps.

    Args:
        prepare: makes the state before. do: the act. see: what a reader finds, in a word.
        before, after: what it may find on the way, and what it has to find in the end.
    """

    name: str
    prepare: Callable[[Store], object]
    do: Callable[[Store], object]
    see: Callable[[Store], str]
    before: str
    after: str


def make(store: Store, version: str) -> str:
    """Publish a small output: a file, one in a folder of its own, unfinished work besides."""

    def build(folder: Path) -> Report:
        (folder / "more").mkdir()
        (folder / "more" / "b.txt").write_text(version * 10_000)
        (folder / "a.txt").write_text(version)
        unfinished = store.resume_folder("s", fingerprint("s", version, {}))
        unfinished.mkdir(exist_ok=True)
        (unfinished / "point").write_text("x")
        return Report(metrics={"n": 1})

    return store.obtain("s", version, {}, build)[0].fingerprint


def publish(store: Store, version: str) -> None:
    """As a run does: make it, and make it current."""
    store.set_ref(*WHERE, make(store, version))


def damage(store: Store) -> None:
    """An old output that is current, and a new one whose manifest was lost."""
    make(store, "2")
    (store.root / "s" / NEW / MANIFEST).unlink()
    publish(store, "1")


def both(store: Store) -> None:
    """The new output current, the old one still there."""
    publish(store, "1")
    publish(store, "2")


def current(store: Store) -> str:
    """Which version is current, if every byte of it is right."""
    if text := torn(store, WHERE):
        return f"torn: {text}"
    artifact = store.require(*WHERE)
    version = artifact.path("a.txt").read_text()
    whole = artifact.path("more/b.txt").read_text() == version * 10_000
    return {"1": "old", "2": "new"}[version] if whole else "torn"


def old_output(store: Store) -> str:
    """Whether the old output is there, whole, or gone; the current one has to be right."""
    if current(store) != "new":
        return "torn"
    artifact = store.open("s", OLD)
    if artifact is not None:
        artifact.verified_folder()
    return "gone" if artifact is None else "there"


def views(store: Store) -> str:
    """Whether the catalog can be opened, and for which outputs it was made."""
    return "new" if catalog.is_current(store) else "old"


def outdated(store: Store) -> None:
    """A catalog that was made before the new output became current."""
    publish(store, "1")
    catalog.refresh(store)
    publish(store, "2")


ACTS = (
    Act("publish", lambda s: publish(s, "1"), lambda s: publish(s, "2"), current, "old", "new"),
    Act("publish over a damaged one", damage, lambda s: publish(s, "2"), current, "old", "new"),
    Act("remove", both, lambda s: s.remove("s", OLD), old_output, "there", "gone"),
    Act("catalog", outdated, lambda s: catalog.refresh(s, if_other=True), views, "old", "new"),
)


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int | None:
    """Print a line per step of each act (or those of `only`).

    Returns:
        how many promises were broken, None where nothing can be checked here.
    """
    if why := syscalls.available():
        print(f"skipped: {why}")
        return None
    print("| act | step | killed before | a reader sees | next run | litter |\n| --- | ---: | --- | --- | --- | ---: |")
    broken = 0
    for act in ACTS:
        if not only or act.name in only:
            with tempfile.TemporaryDirectory(prefix="sidr-faults-") as folder:
                broken += _steps(act, Path(folder))
    return broken


def _steps(act: Act, folder: Path) -> int:
    """All steps of an act."""
    home = folder / "home"
    act.prepare(Store(folder / "before" / "store"))
    broken, step, killed = 0, 0, True
    while killed:
        step += 1
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(folder / "before", home)
        store = Store(home / "store")
        calls = syscalls.run_until(lambda store=store: act.do(store), step, home)
        killed = len(calls) == step
        seen = act.see(store)
        act.do(store)
        done, left = act.see(store), litter(home)
        right = seen in ((act.before, act.after) if killed else (act.after,)) and done == act.after and not left
        broken += not right
        what = _short(calls[-1], home) if killed else "nothing: it completed"
        print(f"| {act.name} | {step} | `{what}` | {seen} | {done} | {len(left)}{'' if right else ' **broken**'} |")
        for path in left:
            print(f"- left behind: {path}")
    return broken + (step < 5)  # fewer calls than that publish nothing: the tracer has seen none


def litter(home: Path) -> list[str]:
    """Hidden names besides locks: what no finished run leaves."""
    return [path.relative_to(home).as_posix() for path in home.rglob(".*") if not path.name.endswith(".lock")]


def _short(call: str, home: Path) -> str:
    """A call without what differs from run to run."""
    text = call.replace(str(home) + os.sep, "").replace("store/", "").replace(NEW, "<new>").replace(OLD, "<old>")
    return re.sub(r"\.\d+\.[0-9a-f]{8}|-\d+-[0-9a-f]{8}|-[0-9a-f]{8}\b", "…", text)
