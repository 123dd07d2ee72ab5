"""What is live of each dataset: a small file that names published outputs, and the log of how it came to that.

`<root>/live/<dataset>.json` names what is live, what was live before it, and the decision that made it so.
`<root>/live/<dataset>.log` has every decision as a line of JSON, and only grows. The file is replaced whole, under a
lock, and only where it still says what the decision rests on (compare and swap). The log follows the file: a
decision whose line a kill prevented stands in the file and gets its line with the next one.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sidr_core.errors import StoreError
from sidr_core.tables.atomic import write_atomically

#: The folder below the store's root.
FOLDER = "live"
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Live:
    """What is live of a dataset.

    Attributes:
        snapshot: of its outputs.
        model: the list that was judged, `<model>/<mode>`.
        outputs: stage -> fingerprint, of all that its lists are made from, and of its evaluation. They stay in the
            store while it is live, and while it is what was live before.
    """

    dataset: str
    snapshot: str
    model: str
    outputs: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.model} of {self.snapshot} (evaluation {self.outputs['evaluation'][:12]})"


@dataclass(frozen=True)
class Alias:
    """What is live, what was before it, and the decision that made it so; a dataset starts with none of them."""

    live: Live | None = None
    before: Live | None = None
    decision: Entry = field(default_factory=dict)


def read(root: Path, dataset: str) -> Alias:
    """The alias of a dataset, in the store at `root`.

    Raises:
        StoreError: the file is damaged.
    """
    path = _file(root, dataset)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Alias()
    try:
        alias = json.loads(text)
        sides = {name: Live(**alias[name]) if alias[name] is not None else None for name in ("live", "before")}
        if not isinstance(alias["decision"]["number"], int):
            raise TypeError
        if any(not isinstance(fp, str) for side in sides.values() if side for fp in side.outputs.values()):
            raise TypeError
        return Alias(decision=alias["decision"], **sides)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(
            f"{path.relative_to(root)} is damaged",
            expected="what is live, as the last decision wrote it",
            found=repr(text[:80]),
            fix=f"take `live` and `before` from the last lines of {path.with_suffix('.log').name}, or delete the file "
            "and promote again",
        ) from None


def decide(
    root: Path, dataset: str, entry: Entry, expected: Live | None, change: tuple[Live, Live | None] | None = None
) -> Entry:
    """Write a decision down and, with `change`, make it so. Returns its line of the log.

    Args:
        entry: what is to be known of it; number, time and who are added.
        expected: what the decision took to be live.
        change: what is live from now on, and what counts as live before it.

    Raises:
        StoreError: something else is live meanwhile, or the file is damaged; nothing is changed.
    """
    with _locked(root):
        alias = read(root, dataset)
        if alias.live != expected:
            raise StoreError(
                f"{dataset}: what is live changed meanwhile",
                expected=str(expected or "nothing"),
                found=str(alias.live or "nothing"),
                fix="look at it with `sidr live`, and decide again",
            )
        written = entries(root, dataset)
        line = {
            "number": len(written) + 1,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "who": f"{_user()} on {platform.node()}",
            **entry,
        }
        _append(root, dataset, written)
        if change is not None:
            text = {"live": asdict(change[0]), "before": asdict(change[1]) if change[1] else None, "decision": line}
            write_atomically(_file(root, dataset), json.dumps(text, indent=1, sort_keys=True, allow_nan=False) + "\n")
        _append(root, dataset, [*written, line])
    return line


def entries(root: Path, dataset: str) -> list[Entry]:
    """Every decision about a dataset, oldest first."""
    lines = _logged(root, dataset)
    last = read(root, dataset).decision
    return [*lines, last] if last and last["number"] > len(lines) else lines


def kept(root: Path) -> set[tuple[str, str]]:
    """(stage, fingerprint) of all outputs of what is live, or was before it, of any dataset.

    Raises:
        StoreError: an alias is damaged, so what has to be kept is unknown.
    """
    aliases = [read(root, path.stem) for path in sorted((root / FOLDER).glob("[!.]*.json"))]
    sides = [side for alias in aliases for side in (alias.live, alias.before) if side is not None]
    return {output for side in sides for output in side.outputs.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid {os.getuid()}"


def _file(root: Path, dataset: str) -> Path:
    return root / FOLDER / f"{dataset}.json"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    from filelock import FileLock

    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for leftover in folder.glob(".*.json.*"):  # we hold the lock: its writer is dead
            leftover.unlink(missing_ok=True)
        yield


def _logged(root: Path, dataset: str) -> list[Entry]:
    """The whole lines of the log; one that a kill cut short is none."""
    try:
        text = _file(root, dataset).with_suffix(".log").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _append(root: Path, dataset: str, lines: list[Entry]) -> None:
    """Add those of `lines` that the log does not have yet; a line that was cut short is taken away first."""
    path = _file(root, dataset).with_suffix(".log")
    missing = lines[len(_logged(root, dataset)) :]
    with path.open("ab") as log:
        whole = path.read_bytes().rfind(b"\n") + 1
        log.truncate(whole)
        log.write(b"".join(json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n" for line in missing))
        log.flush()
        os.fsync(log.fileno())
