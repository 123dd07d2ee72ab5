"""`sidr status`: what is published, whether it matches the profile, and what a refresh would cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from sidr_core.errors import SidrError
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import Profile, load_profile
from sidr_core.pipeline.status import ABSENT, CURRENT, STALE, State, states
from sidr_core.pipeline.store import Store
from sidr_core.render.terminal import console

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Refresh:
    """What it costs at most to make all stages of a snapshot current; a stage whose inputs turn out equal is reused.

    Args:
        stages: how many have to be built.
        seconds: the sum of how long they took the last time.
        untimed: those of them that were never built.
        usd: price of a paid teacher; None if it is unknown, and `usd_unknown` says why.
    """

    stages: int
    seconds: float
    untimed: tuple[str, ...]
    usd: float | None
    usd_unknown: str

    def line(self) -> str:
        """The cost in words."""
        if not self.stages:
            return "refresh: nothing to do"
        text = f"refresh: {self.stages} stages"
        if len(self.untimed) == self.stages:
            text += ", never built before"
        else:
            text += f", at most {duration(self.seconds)} by the last time each was built"
            text += f", and {', '.join(self.untimed)}, never built before" if self.untimed else ""
        if self.usd is None:
            text += f"; the teacher's price is not known yet: {self.usd_unknown}"
        elif self.usd:
            text += f"; about {self.usd:,.4f} USD for the teacher (more: sidr estimate)"
        return text


def refresh(profile: Profile, store: Store, stages: Sequence[State]) -> Refresh:
    """The cost of bringing one snapshot up to date, from the states of all its stages."""
    due = [state for state in stages if state.state != CURRENT]
    usd, unknown = 0.0, ""
    if any(state.stage == "synthetic_corpus" for state in due):
        from sidr_core.corpus.estimate import corpus_usd

        try:
            usd = corpus_usd(store, due[0].dataset, due[0].snapshot, profile.dataset(due[0].dataset).asked_teacher)
        except SidrError as error:
            usd, unknown = None, error.what
    untimed = tuple(state.stage for state in due if state.refresh_seconds is None)
    return Refresh(len(due), sum(state.refresh_seconds or 0.0 for state in due), untimed, usd, unknown)


def status(dataset: str | None, form: str = "table") -> None:
    """Print each stage of every snapshot and what a refresh would cost, as tables or (`form`) as `json`."""
    profile = load_profile()
    store = open_store(profile)
    if dataset is not None:
        profile.dataset(dataset)
    snapshots = (
        (name, snapshot, stages, refresh(profile, store, stages))
        for name in ([dataset] if dataset else profile)
        for snapshot, group in groupby(states(profile, store, name), key=lambda state: state.snapshot)
        for stages in [list(group)]
    )
    if form == "json":
        records = [
            {"dataset": name, "snapshot": snapshot, "refresh": vars(cost), "stages": [_record(s) for s in stages]}
            for name, snapshot, stages, cost in snapshots
        ]
        print(json.dumps({"profile": profile.name, "store": store.place, "snapshots": records}, indent=1))
        return
    from rich.text import Text

    screen = console()
    screen.print(f"profile {profile.name}, store {store.place}", soft_wrap=True, markup=False)
    for name, snapshot, stages, cost in snapshots:
        screen.print(Text(f"\n{name}, snapshot {snapshot}", style="bold"))
        if all(state.untouched for state in stages):
            screen.print(f"nothing is published yet; {cost.line()}", markup=False)
            continue
        screen.print(_table(stages))
        screen.print(cost.line(), markup=False)


def _record(state: State) -> dict[str, object]:
    """A stage of the JSON form."""
    return {
        "stage": state.stage,
        "state": state.state,
        "why": state.why,
        "warnings": state.warnings,
        "fingerprint": state.artifact.fingerprint if state.artifact else None,
        "seconds": state.artifact.manifest["seconds"] if state.artifact else None,
        "refresh_seconds": state.refresh_seconds,
    }


def duration(seconds: float) -> str:
    """Seconds for people: 42.0 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _table(stages: Iterable[State]) -> Table:
    """One row per stage: rows of its main table, seconds, size, fingerprint and state."""
    from rich.table import Table
    from rich.text import Text

    colours = {CURRENT: "green", STALE: "yellow", ABSENT: "dim"}
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    for name in ("rows", "seconds", "MB", "fingerprint"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state")
    for state in stages:
        cells = ["", "", "", ""]
        if (artifact := state.artifact) is not None:
            files = artifact.manifest["files"]
            rows = files.get(f"{artifact.stage}.parquet", {}).get("rows")
            megabytes = sum(entry["bytes"] for entry in files.values()) / 1e6
            cells = ["" if rows is None else f"{rows:,}", f"{artifact.manifest['seconds']:,.1f}"]
            cells += [f"{megabytes:,.1f}", artifact.fingerprint[:8]]
        text = Text(state.state, style=colours[state.state])
        remarks = "; ".join(filter(None, (state.why, *state.warnings)))
        text.append(f": {remarks}" if remarks else "", style="default")
        table.add_row(state.stage, *cells, text)
    return table
