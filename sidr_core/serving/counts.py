"""What the server counts about itself, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Counts:
    """The figures of one server.

    Args:
        waiting: questions in the queue now. swaps, failures: releases taken over, and those that could not be.
    """

    def __init__(self, waiting: Callable[[], int], swaps: Callable[[], int], failures: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._answers = Counter("sidr_answers", "Answers by route and status.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "sidr_answer_seconds", "Time from a question to its answer.", ["mode"], buckets=_SECONDS, registry=registry
        )
        self._rows = Histogram(
            "sidr_batch_rows", "Questions decoded together.", ["mode"], buckets=_ROWS, registry=registry
        )
        self._decoding = Counter("sidr_decoding_seconds", "Time spent decoding.", ["mode"], registry=registry)
        for name, about, value in (
            ("sidr_waiting", "Questions that wait to be decoded.", waiting),
            ("sidr_release_swaps", "Releases that took the place of another since the start.", swaps),
            ("sidr_release_failures", "Looks for another release that failed since the start.", failures),
        ):
            Gauge(name, about, registry=registry).set_function(value)

    def answered(self, route: str, status: int) -> None:
        """A request was answered, or refused."""
        self._answers.labels(route, status).inc()

    def decoded(self, rows: int, seconds: float, mode: str) -> None:
        """A batch was decoded."""
        self._rows.labels(mode).observe(rows)
        self._decoding.labels(mode).inc(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
