"""`sidr estimate`: what the corpus of a snapshot would cost, before anything is spent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from sidr_core.corpus.estimate import estimates, teacher_client
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.status import newest_published
from sidr_core.render.terminal import console

if TYPE_CHECKING:
    from sidr_core.remote.client import Client, Estimate
    from sidr_core.settings import Teacher


def estimate(dataset: str | None, snapshot: str | None) -> None:
    """Print calls, tokens and USD by kind of request, and the remaining budget. It calls nothing and needs no key.

    Raises:
        NotMaterialized: `interactions` or `sid_codebook` is not published for the snapshot.
        ProfileError: unknown dataset or snapshot.
    """
    from rich import box
    from rich.table import Table

    profile = load_profile()
    store = open_store(profile)
    dataset = dataset or profile.default_dataset
    snapshot = newest_published(profile, store, dataset, "sid_codebook", snapshot)
    settings = profile.dataset(dataset).asked_teacher
    screen = console()
    if settings.kind == "rules" or settings.endpoint is None:
        screen.print(f"{dataset}, snapshot {snapshot}: the teacher writes by rules; it calls nothing and costs nothing")
        return
    with teacher_client(settings) as client:
        by_kind = estimates(client, store, dataset, snapshot, settings)
        screen.print(f"{dataset}, snapshot {snapshot}: {settings.endpoint.model} on {client.host}", markup=False)
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("kind")
        for name in ("on file", "calls", "input tokens", "output tokens", "USD"):
            table.add_column(name, justify="right")
        for kind, calls in by_kind.items():
            table.add_row(kind, *_cells([calls]))
        table.add_section()
        table.add_row("all", *_cells(by_kind.values()))
        screen.print(table)
        screen.print("\n".join(_notes(client, by_kind, settings)), markup=False)


def _cells(calls: Collection[Estimate]) -> list[str]:
    """The sums of several estimates, as text."""
    fields = ("reused", "calls", "input_tokens", "output_tokens", "usd")
    *counts, usd = (sum(getattr(estimate, field) for estimate in calls) for field in fields)
    return [*(f"{count:,}" for count in counts), f"{usd:,.4f}"]


def _notes(client: Client, by_kind: Mapping[str, Estimate], settings: Teacher) -> list[str]:
    """Where the figures come from, what was spent, and what is left."""
    measured = sum(calls.measured for calls in by_kind.values())
    if measured:
        notes = [f"Tokens: the mean of {measured:,} earlier replies of this model, kind by kind."]
    else:
        notes = [
            "Tokens: nothing is measured yet, so 4 bytes of the prompt count as a token, and each reply as the longest "
            f"allowed ({settings.max_output_tokens:,} tokens). After a first small run the estimate is exact."
        ]
    notes.append("Repairs and retries come on top; requests that depend on a reply are counted before it is known.")
    total, lost, budget = client.ledger.total, client.ledger.unconfirmed, settings.budget
    notes.append(
        f"Spent by this ledger so far: {total.usd:,.4f} USD and {total.tokens:,} tokens, of these {lost.usd:,.4f} USD "
        f"and {lost.tokens:,} tokens for calls without an answer, which may have been charged."
    )
    if budget.usd is None and budget.tokens is None:
        notes.append("Budget: none is set (`teacher.budget`).")
    if budget.usd is not None:
        left, needed = budget.usd - total.usd, sum(calls.usd for calls in by_kind.values())
        notes.append(f"Budget left: {left:,.4f} of {budget.usd:,} USD; the calls {_fit(needed, left)}.")
    if budget.tokens is not None:
        left = budget.tokens - total.tokens
        needed = sum(calls.input_tokens + calls.output_tokens for calls in by_kind.values())
        notes.append(f"Budget left: {left:,} of {budget.tokens:,} tokens; the calls {_fit(needed, left)}.")
    return notes


def _fit(needed: float, left: float) -> str:
    if needed <= left:
        return "fit"
    return "do not fit: the stage would stop as incomplete (budget) and continue once the budget is raised"
