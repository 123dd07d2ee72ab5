"""What is live of each dataset: a small file that names published outputs, and the log of how it came to that.

`<root>/live/<dataset>.json` names what is live, what was live before it, and the decision that made it so.
`<root>/live/<dataset>.log` has every decision as a line of JSON, and only grows. The file is replaced whole, under a
lock, and only where it still says what the decision rests on (compare and swap). The log follows the file: a
decision whose line a kill prevented stands in the file and gets its line with the next one.

Of a store in a bucket it is one object with the log in it, moved by the bucket's own compare-and-swap, so that servers
on every machine follow a decision made on any.
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
from typing import TYPE_CHECKING, Any

from sidr_core.errors import StoreError
from sidr_core.tables.atomic import write_atomically

if TYPE_CHECKING:
    from sidr_core.pipeline.bucket import Bucket

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


def read(place: Path | Bucket, dataset: str) -> Alias:
    """The alias of a dataset.

    Args:
        place: the root of the store, or its bucket (`Store.live_at`).

    Raises:
        StoreError: the file is damaged.
    """
    if isinstance(place, Path):
        try:
            text = _file(place, dataset).read_text()
        except FileNotFoundError:
            return Alias()
    else:
        stored = place.get(_name(dataset))
        if stored is None:
            return Alias()
        text = stored[0].decode(errors="replace")
    return _parsed(text, dataset)


def _parsed(text: str, dataset: str) -> Alias:
    try:
        alias = json.loads(text)
        sides = {name: Live(**alias[name]) if alias[name] is not None else None for name in ("live", "before")}
        undecided = bool(alias.get("log")) and alias["decision"] == {} and not sides["live"]  # nothing but refusals
        if not undecided and not isinstance(alias["decision"]["number"], int):
            raise TypeError
        if any(not isinstance(fp, str) for side in sides.values() if side for fp in side.outputs.values()):
            raise TypeError
        return Alias(decision=alias["decision"], **sides)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(
            f"{_name(dataset)} is damaged",
            expected="what is live, as the last decision wrote it",
            found=repr(text[:80]),
            fix=f"take `live` and `before` from the last lines of its log ({dataset}.log, in a bucket `log`), "
            "or delete it and promote again",
        ) from None


def decide(
    place: Path | Bucket,
    dataset: str,
    entry: Entry,
    expected: Live | None,
    change: tuple[Live, Live | None] | None = None,
) -> Entry:
    """Write a decision down and, with `change`, make it so. Returns its line of the log.

    Args:
        entry: what is to be known of it; number, time and who are added.
        expected: what the decision took to be live.
        change: what is live from now on, and what counts as live before it.

    Raises:
        StoreError: something else is live meanwhile, or the file is damaged; nothing is changed.
    """
    if not isinstance(place, Path):
        return _decide_in_bucket(place, dataset, entry, expected, change)
    root = place
    with _locked(root):
        _refuse_change(dataset, read(root, dataset), expected)
        written = entries(root, dataset)
        line = _line(entry, len(written) + 1)
        _append(root, dataset, written)
        if change is not None:
            write_atomically(_file(root, dataset), _text(*change, line))
        _append(root, dataset, [*written, line])
    return line


def _decide_in_bucket(
    bucket: Bucket, dataset: str, entry: Entry, expected: Live | None, change: tuple[Live, Live | None] | None
) -> Entry:
    name = _name(dataset)
    while True:
        stored = bucket.get(name)
        alias = _parsed(stored[0].decode(errors="replace"), dataset) if stored else Alias()
        _refuse_change(dataset, alias, expected)
        log = json.loads(stored[0])["log"] if stored else []
        line = _line(entry, len(log) + 1)
        sides, decision = (change, line) if change is not None else ((alias.live, alias.before), alias.decision)
        text = _text(*sides, decision, [*log, line]).encode()
        if bucket.create(name, text) if stored is None else bucket.swap(name, text, stored[1]):
            return line


def _refuse_change(dataset: str, alias: Alias, expected: Live | None) -> None:
    if alias.live != expected:
        raise StoreError(
            f"{dataset}: what is live changed meanwhile",
            expected=str(expected or "nothing"),
            found=str(alias.live or "nothing"),
            fix="look at it with `sidr live`, and decide again",
        )


def _line(entry: Entry, number: int) -> Entry:
    at, who = datetime.now(UTC).isoformat(timespec="seconds"), f"{_user()} on {platform.node()}"
    return {"number": number, "at": at, "who": who, **entry}


def _text(live: Live | None, before: Live | None, decision: Entry, log: list[Entry] | None = None) -> str:
    """An alias as it is written; in a bucket its log is part of it."""
    sides = {"live": asdict(live) if live else None, "before": asdict(before) if before else None}
    fields = {**sides, "decision": decision} | ({} if log is None else {"log": log})
    return json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n"


def entries(place: Path | Bucket, dataset: str) -> list[Entry]:
    """Every decision about a dataset, oldest first."""
    if not isinstance(place, Path):
        stored = place.get(_name(dataset))
        return json.loads(stored[0])["log"] if stored else []
    lines = _logged(place, dataset)
    last = read(place, dataset).decision
    return [*lines, last] if last and last["number"] > len(lines) else lines


def kept(place: Path | Bucket) -> set[tuple[str, str]]:
    """(stage, fingerprint) of all outputs of what is live, or was before it, of any dataset.

    Raises:
        StoreError: an alias is damaged, so what has to be kept is unknown.
    """
    if isinstance(place, Path):
        datasets = [path.stem for path in sorted((place / FOLDER).glob("[!.]*.json"))]
    else:
        datasets = [Path(one.name).stem for one in place.list(f"{FOLDER}/")]
    aliases = [read(place, dataset) for dataset in datasets]
    sides = [side for alias in aliases for side in (alias.live, alias.before) if side is not None]
    return {output for side in sides for output in side.outputs.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid {os.getuid()}"


def _name(dataset: str) -> str:
    return f"{FOLDER}/{dataset}.json"


def _file(root: Path, dataset: str) -> Path:
    return root / _name(dataset)


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
