"""`sidr serve`: lists over HTTP, from what a dataset has published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidr_core.serving import run
from sidr_core.serving.app import Server


def serve(
    dataset: str | None,
    model: str | None,
    host: str,
    port: int,
    token_file: Path | None,
    allowed_hosts: Sequence[str],
    batch_size: int,
    most_waiting: int,
    seconds: float,
    reload_seconds: float,
) -> None:
    """Serve until stopped."""
    limits = run.limits_of(host, run.token_of(token_file), allowed_hosts)
    run.check(dataset, model)

    def assembled() -> Server:
        return run.assemble(
            dataset,
            model,
            limits,
            batch_size=batch_size,
            most_waiting=most_waiting,
            seconds=seconds,
            reload_seconds=reload_seconds,
        )

    run.run(assembled, host, port)
