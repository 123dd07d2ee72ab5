"""Ways to damage a file, and the table of what came of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sidr_core.errors import SidrError

# -- ways to damage a file -------------------------------------------------------------------


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def halve(path: Path, rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def append(path: Path, rng: random.Random) -> None:
    with path.open("ab") as handle:
        handle.write(b"more")


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def binary(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"\xff\xfe" + rng.randbytes(200))


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def elsewhere(path: Path, rng: random.Random) -> None:
    """The same bytes, behind a link."""
    target = path.parents[3] / f"elsewhere-{rng.randrange(10**9)}"
    shutil.copy(path, target)
    path.unlink()
    path.symlink_to(target)


Damage = Callable[[Path, random.Random], object]
FILE: tuple[Damage, ...] = (flip, delete, truncate, append, empty, binary, folder, elsewhere)


def edited(change: Callable[[dict], object]) -> Damage:
    def edit(path: Path, rng: random.Random) -> None:
        told = json.loads(path.read_text())
        path.write_text(json.dumps(change(told) or told))

    return edit


def text(text: str) -> Damage:
    return lambda path, rng: path.write_text(text)


MANIFESTS: dict[str, Damage] = {
    "a metric": edited(lambda told: told["metrics"].update(n=1)),
    "a metric that is no number": edited(lambda told: told["metrics"].update(n=float("nan"))),
    "a sha256": edited(lambda told: next(iter(told["files"].values())).update(sha256="0" * 64)),
    "the seal": edited(lambda told: told.update(seal="0" * 64)),
    "no seal": edited(lambda told: told.pop("seal") and None),
    "a list": text("[1, 2]"),
    "a number": text("7"),
    "nested without end": text("[" * 100_000),
    **{damage.__name__: damage for damage in (flip, delete, truncate, append, empty, binary, folder)},
}
REFS: dict[str, Damage] = {
    "other JSON": text('{"print": "x"}'),
    "a list": text('["fingerprint"]'),
    "a number as fingerprint": text('{"fingerprint": 7}'),
    "an unknown fingerprint": text('{"fingerprint": "' + "0" * 32 + '"}'),
    "a path as fingerprint": text('{"fingerprint": "../../x"}'),
    **{damage.__name__: damage for damage in (truncate, empty, binary, folder)},
}


def foreign_file(path: Path, rng: random.Random) -> None:
    (path / "foreign").write_text("x")


def foreign_link(path: Path, rng: random.Random) -> None:
    (path / "foreign").symlink_to("/")


FOREIGN: tuple[Damage, ...] = (foreign_file, foreign_link)


# -- what is counted -------------------------------------------------------------------------


@dataclass
class Table:
    """What became of each kind of damage, and every promise that was broken."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    broken: list[str] = field(default_factory=list)

    def count(self, kind: str, what: str, kept: bool, detail: str) -> None:
        """Count one damage of a kind; `detail` names it where the promise `what` was not kept."""
        self.counts[kind][what] += kept
        if not kept:
            self.broken.append(f"{kind}, {detail}: not {what}")

    def show(self) -> None:
        columns = ("cases", "detected", "named", "left to a run", "rebuilt alike", "others rebuilt")
        print(f"| damage | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
        for kind, found in self.counts.items():
            print(f"| {kind} | {' | '.join(f'{found[name]:,}' for name in columns)} |", flush=True)


@contextmanager
def kept_aside(path: Path) -> Iterator[None]:
    """Put a file or folder back as it was, whatever became of it."""
    with tempfile.TemporaryDirectory(prefix="sidr-aside-") as name:
        copy = Path(name) / "copy"
        shutil.copytree(path, copy, symlinks=True) if path.is_dir() else shutil.copy2(path, copy)
        try:
            yield
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            shutil.copytree(copy, path, symlinks=True) if copy.is_dir() else shutil.copy2(copy, path)


def told_by(read: Callable[[], object]) -> str:
    """The message of a reader that refuses, "" where it reads on; any error but ours is a broken promise."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read()
    except SidrError as error:
        return str(error)
    except Exception as error:  # the finding itself
        return f"a raw {type(error).__name__}"
    return ""


def see(table: Table, kind: str, name: str, detail: str, read: Callable[[], object]) -> None:
    """Read what is damaged: it has to be refused, by an error that names `name`."""
    told = told_by(read)
    table.counts[kind]["cases"] += 1
    table.count(kind, "detected", told != "" and not told.startswith("a raw"), f"{detail} ({told[:80]})")
    table.count(kind, "named", name in told, f"{detail} ({told[:80]!r})")
