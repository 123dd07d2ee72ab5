"""`sidr promote`, `sidr rollback`, `sidr live`: what goes live, and how it came to that."""

from __future__ import annotations

import json
from typing import Any

import typer

from sidr_core.pipeline import live as alias
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.render.text import printable
from sidr_core.serving import challenge, promotion


def promote(dataset: str | None, force: str | None) -> None:
    """Promote the newest judged candidate and print the decision."""
    profile = load_profile()
    name = dataset or profile.default_dataset
    _show(name, promotion.promote(profile, open_store(), name, force))


def rollback(dataset: str | None, reason: str) -> None:
    """Go back to what was live before and print the decision."""
    name = _dataset(dataset)
    _show(name, promotion.rollback(open_store(), name, reason))


def live(dataset: str | None, log: bool, form: str) -> None:
    """Print what is live and what was before it, or every decision."""
    name = _dataset(dataset)
    store = open_store()
    if log:
        entries = alias.entries(store.live_at, name)
        for entry in entries:
            typer.echo(json.dumps(entry, sort_keys=True) if form == "json" else _line(entry))
        if not entries and form == "table":
            typer.echo(f"{name}: no decision yet")
        return
    state = alias.read(store.live_at, name)
    if form == "json":
        sides = {"live": state.live, "before": state.before}
        typer.echo(json.dumps({side: vars(of) if of else None for side, of in sides.items()}, sort_keys=True))
        return
    typer.echo(f"live:   {state.live or 'nothing'}")
    typer.echo(f"before: {state.before or 'nothing'}")
    if state.decision:
        typer.echo(f"since:  {_line(state.decision)}")


def _dataset(name: str | None) -> str:
    profile = load_profile()
    name = name or profile.default_dataset
    profile.dataset(name)
    return name


def _show(dataset: str, entry: alias.Entry) -> None:
    typer.echo(f"{dataset}: {_line(entry)}")
    if rules := entry.get("rules"):
        typer.echo(challenge.page(rules))


def _line(entry: alias.Entry) -> str:
    """A decision in one line."""
    reason = f": {printable(entry['reason'])}" if entry["reason"] else ""
    was = f", was {_named(entry['was_live'])}" if entry["was_live"] else ""
    failed = [rule["rule"] for rule in entry.get("rules", ()) if not rule["passed"]]
    rules = f" (does not hold: {', '.join(failed)})" if failed else ""
    head = f"{entry['number']}. {entry['at']} {entry['who']}"
    return f"{head} {entry['decision']} {_named(entry['candidate'])}{rules}{was}{reason}"


def _named(side: dict[str, Any]) -> str:
    return str(alias.Live(**side))
