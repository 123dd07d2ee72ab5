"""What a stage says about its output: numbers, checks, pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """The outcome of one promise about an output. `detail` says what was counted."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What a stage says about its output. Row counts are read from its Parquet files, not told.

    Args:
        metrics: plain numbers and strings, plotted over snapshots in the UI.
        checks: one per :class:`CheckSpec` of the stage.
        markdown: title -> Markdown text shown in the UI (cards, tables).
    """

    metrics: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    markdown: Mapping[str, str] = field(default_factory=dict)
