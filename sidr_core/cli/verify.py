"""`sidr verify`: whether claim cards are true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from sidr_core.evaluation import verify as checks
from sidr_core.evaluation.claims import Card
from sidr_core.evaluation.rebuild import rebuilt
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.stage import Progress
from sidr_core.render.text import printable

#: Differences that are printed of one card.
_MOST_LINES = 20


def verify(paths: Sequence[Path], rebuild: bool) -> int:
    """Print `true` or `false` for each card, and what differs; the exit code is 0 if all are true, else 1.

    Raises:
        InputError: a file is no card, or speaks of outputs that the store does not have.
    """
    store, known, false = open_store(), dict[str, list[Card]](), 0
    for path in paths:
        card = checks.read_card(path)
        faults = checks.verify(card, store, known)
        if rebuild and not faults:
            faults = rebuilt(card, store, Progress())
        false += bool(faults)
        again = ", lists made again" if rebuild and not faults else ""
        typer.echo(f"{'false' if faults else 'true'}: {printable(path.name)}: {printable(card.claim)}{again}")
        for line in faults[:_MOST_LINES]:
            typer.echo(f"  {printable(line)}")
        if len(faults) > _MOST_LINES:
            typer.echo(f"  and {len(faults) - _MOST_LINES:,} more")
    return 1 if false else 0
