"""`sidr estimate`: what the corpus of a snapshot would cost, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sidr_core.corpus.estimate import estimates, teacher_client
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.status import newest_published, open_store
from sidr_core.render.terminal import console

if TYPE_CHECKING:
    from sidr_core.remote.client import Client, Estimate
    from sidr_core.settings import Teacher


def estimate(dataset: str | None, snapshot: str | None) -> None:
    """Print calls, tokens and USD by kind of request, and what the budget leaves. Nothing is called, no key is needed.

    Raises:
        NotMaterialized: `interactions` or `sid_codebook` is not published for the snapshot.
        ProfileError: unknown dataset or snapshot.
    """
    profile, store = load_profile(), open_store()
    dataset = dataset or profile.default_dataset
    snapshot = newest_published(profile, store, dataset, "sid_codebook", snapshot)
    settings = profile.dataset(dataset).teacher
    screen = console()
    if settings.kind == "rules" or settings.endpoint is None:
        screen.print(
            f"{dataset}, snapshot {snapshot}: the teacher is made of rules; it calls nothing and costs nothing"
        )
        return
    with teacher_client(settings) as client:
        found = estimates(client, store, dataset, snapshot, settings)
        screen.print(f"{dataset}, snapshot {snapshot}: {settings.endpoint.model} on {client.host}", markup=False)
        _print(found)
        screen.print("\n".join(_notes(client, found, settings)), markup=False)


def _print(found: Mapping[str, Estimate]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("kind")
    for name in ("on file", "calls", "input tokens", "output tokens", "USD"):
        table.add_column(name, justify="right")
    for kind, one in found.items():
        table.add_row(kind, *_cells(one.reused, one.calls, one.input_tokens, one.output_tokens, one.usd))
    total = [
        sum(getattr(one, name) for one in found.values())
        for name in ("reused", "calls", "input_tokens", "output_tokens", "usd")
    ]
    table.add_section()
    table.add_row("all", *_cells(*total))
    console().print(table)


def _cells(reused: int, calls: int, read: int, written: int, usd: float) -> list[str]:
    return [f"{reused:,}", f"{calls:,}", f"{read:,}", f"{written:,}", f"{usd:,.4f}"]


def _notes(client: Client, found: Mapping[str, Estimate], settings: Teacher) -> list[str]:
    """What the figures rest on, what was spent, and what is left."""
    measured = sum(one.measured for one in found.values())
    if measured:
        notes = [f"Tokens: the mean of {measured:,} earlier replies of this model, kind by kind."]
    else:
        notes = [
            f"Tokens: nothing is measured yet, so a token is taken as 4 bytes of the prompt, and each reply as "
            f"long as it may be ({settings.max_output_tokens:,} tokens). A first small run makes this exact."
        ]
    notes.append("Repairs and retries come on top; requests that follow from a reply are counted before it is known.")
    total, lost, budget = client.ledger.total, client.ledger.unconfirmed, settings.budget
    notes.append(
        f"Spent by this ledger so far: {total.usd:,.4f} USD and {total.tokens:,} tokens, of these {lost.usd:,.4f} USD "
        f"and {lost.tokens:,} tokens for calls without an answer, which may have been charged."
    )
    if budget.usd is None and budget.tokens is None:
        notes.append("Budget: none is set (`teacher.budget`).")
    if budget.usd is not None:
        left, needed = budget.usd - total.usd, sum(one.usd for one in found.values())
        notes.append(f"Budget left: {left:,.4f} of {budget.usd:,} USD; the calls {_fit(needed, left)}.")
    if budget.tokens is not None:
        left, needed = budget.tokens - total.tokens, sum(one.input_tokens + one.output_tokens for one in found.values())
        notes.append(f"Budget left: {left:,} of {budget.tokens:,} tokens; the calls {_fit(needed, left)}.")
    return notes


def _fit(needed: float, left: float) -> str:
    return "fit" if needed <= left else "do not fit: the stage would stop as incomplete (budget) and go on when raised"
