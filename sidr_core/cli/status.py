"""`sidr status` and `sidr show`: what is published, whether it is what the profile asks for, what a refresh costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sidr_core.errors import InputError, SidrError
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import Profile, load_profile
from sidr_core.pipeline.status import ABSENT, CURRENT, STALE, State, newest_published, open_store, states
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.render.terminal import console


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
        from sidr_core.corpus.estimate import corpus_usd

        try:
            usd = corpus_usd(store, due[0].dataset, due[0].snapshot, profile.dataset(due[0].dataset).teacher)
        except SidrError as error:
            usd, unknown = None, error.what
    untimed = tuple(state.stage for state in due if state.refresh_seconds is None)
    return Refresh(len(due), sum(state.refresh_seconds or 0.0 for state in due), untimed, usd, unknown)


def status(dataset: str | None, form: str = "table") -> None:
    """Print a table per dataset and snapshot, one line per stage, and what a refresh costs; or all of it as JSON."""
    if form not in ("table", "json"):
        raise InputError(f"unknown format {form!r}", expected="table or json", found=form, fix="name one of these")
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
    from sidr_core.evaluation.pages import render
    from sidr_core.tables import files as tables

    profile, store = load_profile(), open_store()
    dataset = dataset or profile.default_dataset
    snapshot = newest_published(profile, store, dataset, "evaluation", snapshot)
    artifact = store.require(dataset, snapshot, stage_named("evaluation").name)
    evaluation, paired = (tables.read(artifact.path(f"{name}.parquet")) for name in ("evaluation", "paired"))
    console().print(render(evaluation, paired, artifact.synthetic))
