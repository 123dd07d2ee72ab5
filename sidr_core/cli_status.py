"""`sidr status` and `sidr show`: what is published, whether it is what the profile asks for, what a refresh costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from sidr_core.errors import InputError, SidrError, StoreError
from sidr_core.graph import STAGES, stage_named
from sidr_core.profile import Profile, home, load_profile
from sidr_core.report.terminal import console
from sidr_core.run import plan
from sidr_core.stage import Stage
from sidr_core.store import Artifact, Store

CURRENT, STALE, ABSENT = "current", "stale", "not published"


@dataclass(frozen=True)
class State:
    """One stage of one snapshot.

    Args:
        why: what makes it stale or keeps it from being built.
        artifact: what is published, if anything.
        refresh_seconds: what building it took the last time, here or for the snapshot or dataset that is
            nearest; 0 where it is current, None where it was never built.
    """

    dataset: str
    snapshot: str
    stage: str
    state: str
    why: str
    artifact: Artifact | None
    refresh_seconds: float | None


def open_store() -> Store:
    """The store of the working folder."""
    return Store(home() / "store")


def newest_published(profile: Profile, store: Store, dataset: str, stage: str, snapshot: str | None) -> str:
    """The newest snapshot for which a stage is published; `snapshot` itself where one is named.

    Raises:
        ProfileError: unknown dataset or snapshot.
        NotMaterialized: the stage is published for none.
        StoreError: that of the newest one is damaged.
    """
    snapshots = profile.dataset(dataset).snapshots
    if snapshot is not None:
        snapshots.window(snapshot)
    wanted = [snapshot] if snapshot is not None else snapshots.keys()[::-1]
    for key in wanted:
        if store.find(dataset, key, stage) is not None:
            return key
    store.require(dataset, wanted[0], stage)
    raise AssertionError("unreachable: require raises")


def states(profile: Profile, store: Store, dataset: str) -> Iterator[State]:
    """Every stage of the snapshots that have an output, and of the newest one."""
    published = {snapshot for name, snapshot, _ in store.refs() if name == dataset}
    known = profile.dataset(dataset).snapshots.keys()
    timed = Timings(store)
    for snapshot in (key for key in known if key in published or key == known[-1]):
        unsettled: list[str] = []
        for stage in STAGES:
            state, why, artifact = _state(profile, store, dataset, snapshot, stage, unsettled)
            if state != CURRENT:
                unsettled.append(stage.name)
            seconds = 0.0 if state == CURRENT else timed.last(dataset, snapshot, stage.name)
            yield State(dataset, snapshot, stage.name, state, why, artifact, seconds)


def _state(
    profile: Profile, store: Store, dataset: str, snapshot: str, stage: Stage, unsettled: list[str]
) -> tuple[str, str, Artifact | None]:
    try:
        artifact = store.find(dataset, snapshot, stage.name)
    except StoreError as error:
        return STALE, error.what, None
    below = [name for name in stage.reads(profile.dataset(dataset)) if name in unsettled]
    if artifact is None:  # not planned: that could fetch the source files
        return ABSENT, f"needs {', '.join(below)}" if below else "", None
    try:
        planned = plan(profile, dataset, snapshot, stage, store)
    except SidrError as error:
        return STALE, error.what, artifact
    changes = differences(artifact.manifest, planned.key, stage.code_version)
    if not changes and below:
        changes = [f"{name} is stale" for name in below]
    return (STALE if changes else CURRENT), "; ".join(changes), artifact


def differences(manifest: Mapping[str, Any], key: Mapping[str, Any], code_version: str) -> list[str]:
    """What separates a published output from the one that its stage would give now, in words."""
    found = []
    if manifest["code_version"] != code_version:
        found.append(f"code version {manifest['code_version']} -> {code_version}")
    old, new = manifest["key"], dict(key)
    for name, before, after in _changed(old["config"], new["config"]):
        found.append(f"{name}: {before} -> {after}")
    for part, word in (("inputs", "input"), ("sources", "source file"), ("earlier", "earlier output")):
        found += [f"{word} {name} changed" for name, _, _ in _changed(old.get(part, {}), new.get(part, {}))]
    if old.get("previous") != new.get("previous"):
        found.append("the previous snapshot changed")
    return found


def _changed(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of values that differ in two nested mappings; an absent one counts as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _changed(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new


class Timings:
    """How long stages took, by the manifests of the outputs that are current somewhere."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _refs(self) -> list[tuple[str, str, str]]:
        return self._store.refs()[::-1]

    def last(self, dataset: str, snapshot: str, stage: str) -> float | None:
        """Seconds of this very output before, else of the dataset's newest, else of another dataset's newest."""
        refs = [ref for ref in self._refs if ref[2] == stage]
        for ref in sorted(refs, key=lambda ref: (ref[0] != dataset, ref[1] != snapshot)):
            if (artifact := self._store.current(*ref)) is not None:
                return artifact.manifest["seconds"]
        return None


@dataclass(frozen=True)
class Refresh:
    """What it costs at most to make all stages of a snapshot current; a stage that meets known inputs is reused.

    Args:
        stages: how many are to be built. seconds: of those of them that were built before, added up.
        untimed: those that never were.
        usd: of a paid teacher; None where it cannot be told, and `usd_unknown` says why.
    """

    stages: int
    seconds: float
    untimed: tuple[str, ...]
    usd: float | None
    usd_unknown: str


def refresh(profile: Profile, store: Store, group: Sequence[State]) -> Refresh:
    """The cost of bringing one snapshot up to date, from the states of all its stages."""
    due = [state for state in group if state.state != CURRENT]
    usd, unknown = 0.0, ""
    if any(state.stage == "synthetic_corpus" for state in due):
        from sidr_core.cli_estimate import corpus_usd

        try:
            usd = corpus_usd(store, due[0].dataset, due[0].snapshot, profile.dataset(due[0].dataset).teacher)
        except SidrError as error:
            usd, unknown = None, error.what
    untimed = tuple(state.stage for state in due if state.refresh_seconds is None)
    return Refresh(len(due), sum(state.refresh_seconds or 0.0 for state in due), untimed, usd, unknown)


def status(dataset: str | None, form: str = "table") -> None:
    """Print a table per dataset and snapshot, one line per stage, and what a refresh costs; or all of it as JSON."""
    if form not in ("table", "json"):
        raise InputError(f"unknown format {form!r}", expected="table or json", found=form, do="name one of these")
    profile, store = load_profile(), open_store()
    if dataset is not None:
        profile.dataset(dataset)
    found = (
        (name, snapshot, stages, refresh(profile, store, stages))
        for name in ([dataset] if dataset else profile)
        for snapshot, group in groupby(states(profile, store, name), key=lambda state: state.snapshot)
        for stages in [list(group)]
    )
    if form == "json":
        print(json.dumps(_as_json(profile, store, found), indent=1))
        return
    from rich.text import Text

    screen = console()
    screen.print(f"profile {profile.name}, store {store.root}", soft_wrap=True, markup=False)
    for name, snapshot, stages, cost in found:
        screen.print(Text(f"\n{name}, snapshot {snapshot}", style="bold"))
        screen.print(_table(stages))
        screen.print(_in_words(cost), markup=False)


def _as_json(profile: Profile, store: Store, found: Iterable[tuple[str, str, list[State], Refresh]]) -> dict[str, Any]:
    snapshots = [
        {
            "dataset": name,
            "snapshot": snapshot,
            "refresh": vars(cost),
            "stages": [
                {
                    "stage": state.stage,
                    "state": state.state,
                    "why": state.why,
                    "fingerprint": state.artifact.fingerprint if state.artifact else None,
                    "seconds": state.artifact.manifest["seconds"] if state.artifact else None,
                    "refresh_seconds": state.refresh_seconds,
                }
                for state in stages
            ],
        }
        for name, snapshot, stages, cost in found
    ]
    return {"profile": profile.name, "store": str(store.root), "snapshots": snapshots}


def _in_words(cost: Refresh) -> str:
    if not cost.stages:
        return "refresh: nothing to do"
    words = f"refresh: {cost.stages} stages, at most {_duration(cost.seconds)} by the last time each was built"
    if cost.untimed:
        words += f", and {', '.join(cost.untimed)}, never built before"
    if cost.usd is None:
        words += f"; the teacher's price is not known yet: {cost.usd_unknown}"
    elif cost.usd:
        words += f"; about {cost.usd:,.4f} USD for the teacher (more: sidr estimate)"
    return words


def _duration(seconds: float) -> str:
    """Seconds for people: 42.0 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _table(group: Iterable[State]) -> Any:
    from rich.table import Table
    from rich.text import Text

    colours = {CURRENT: "green", STALE: "yellow", ABSENT: "dim"}
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    for name in ("rows", "seconds", "MB", "fingerprint"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state")
    for state in group:
        text = Text(state.state, style=colours[state.state])
        text.append(f": {state.why}" if state.why else "", style="default")
        table.add_row(state.stage, *_facts(state.artifact), text)
    return table


def _facts(artifact: Artifact | None) -> tuple[str, str, str, str]:
    """Rows of the main table, seconds, size and fingerprint, for people."""
    if artifact is None:
        return "", "", "", ""
    files = artifact.manifest["files"]
    rows = files.get(f"{artifact.stage}.parquet", {}).get("rows")
    size = sum(entry["bytes"] for entry in files.values())
    return (
        "" if rows is None else f"{rows:,}",
        f"{artifact.manifest['seconds']:,.1f}",
        f"{size / 1e6:,.1f}",
        artifact.fingerprint[:8],
    )


def show(dataset: str | None, snapshot: str | None) -> None:
    """Print the evaluation of the newest snapshot that has one."""
    from sidr_core import tables
    from sidr_core.report.tables import render

    profile, store = load_profile(), open_store()
    dataset = dataset or profile.default_dataset
    snapshot = newest_published(profile, store, dataset, "evaluation", snapshot)
    artifact = store.require(dataset, snapshot, stage_named("evaluation").name)
    evaluation, paired = (tables.read(artifact.path(f"{name}.parquet")) for name in ("evaluation", "paired"))
    console().print(render(evaluation, paired, artifact.synthetic))
