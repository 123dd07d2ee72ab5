"""`sidr status` and `sidr show`: what is published, and whether it is what the profile asks for now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sidr_core.errors import SidrError
from sidr_core.graph import STAGES, stage_named
from sidr_core.profile import Profile, home, load_profile
from sidr_core.report.terminal import console
from sidr_core.run import plan
from sidr_core.stage import Stage
from sidr_core.store import Artifact, Store

CURRENT, STALE, ABSENT = "current", "stale", "not published"


@dataclass(frozen=True)
class State:
    """One stage of one snapshot; `why` says what makes it stale or keeps it from being built."""

    dataset: str
    snapshot: str
    stage: str
    state: str
    why: str
    artifact: Artifact | None


def open_store() -> Store:
    """The store of the working folder."""
    return Store(home() / "store")


def newest_published(profile: Profile, store: Store, dataset: str, stage: str, snapshot: str | None) -> str:
    """The newest snapshot for which a stage is published; `snapshot` itself where one is named.

    Raises:
        ProfileError: unknown dataset or snapshot.
        NotMaterialized: the stage is published for none.
    """
    snapshots = profile.dataset(dataset).snapshots
    if snapshot is not None:
        snapshots.window(snapshot)
    wanted = [snapshot] if snapshot is not None else snapshots.keys()[::-1]
    for key in wanted:
        if store.current(dataset, key, stage) is not None:
            return key
    store.require(dataset, wanted[0], stage)
    raise AssertionError("unreachable: require raises")


def states(profile: Profile, store: Store, dataset: str) -> Iterator[State]:
    """Every stage of the snapshots that have an output, and of the newest one."""
    published = {snapshot for name, snapshot, _ in store.refs() if name == dataset}
    known = profile.dataset(dataset).snapshots.keys()
    for snapshot in (key for key in known if key in published or key == known[-1]):
        unsettled: list[str] = []
        for stage in STAGES:
            state, why, artifact = _state(profile, store, dataset, snapshot, stage, unsettled)
            if state != CURRENT:
                unsettled.append(stage.name)
            yield State(dataset, snapshot, stage.name, state, why, artifact)


def _state(
    profile: Profile, store: Store, dataset: str, snapshot: str, stage: Stage, unsettled: list[str]
) -> tuple[str, str, Artifact | None]:
    artifact = store.current(dataset, snapshot, stage.name)
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
    for part, word in (("inputs", "input"), ("sources", "source file")):
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


def status(dataset: str | None) -> None:
    """Print a table per dataset and snapshot, one line per stage."""
    from rich.text import Text

    profile, store = load_profile(), open_store()
    if dataset is not None:
        profile.dataset(dataset)
    screen = console()
    screen.print(f"profile {profile.name}, store {store.root}", soft_wrap=True, markup=False)
    for name in [dataset] if dataset else profile:
        for snapshot, group in groupby(states(profile, store, name), key=lambda state: state.snapshot):
            screen.print(Text(f"\n{name}, snapshot {snapshot}", style="bold"))
            screen.print(_table(group))


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
