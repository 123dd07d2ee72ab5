"""What a stage reports about its output: metrics, checks, pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """The outcome of one check of an output. `detail` says what was counted."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What a stage reports about its output. Row counts are not part of it: they are read from the Parquet files.

    Args:
        metrics: plain numbers and strings, plotted over snapshots in the UI.
        checks: one per :class:`CheckSpec` of the stage.
        markdown: title -> Markdown text shown in the UI (cards, tables).
    """

    metrics: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    markdown: Mapping[str, str] = field(default_factory=dict)
