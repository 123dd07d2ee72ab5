"""Small figures as PNG: training curves, metrics with their intervals, and distributions.

The same frame gives the same bytes: drawing is on the Agg canvas, without pyplot's global state, and
the file carries neither a date nor the library's version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
COLOURS = ("#3465a4", "#cc5500", "#4e9a06", "#75507b", "#a40000", "#555753")


def curves(frame: pl.DataFrame, x: str, ys: Sequence[str], path: Path, title: str) -> None:
    """Draw each column of `ys` over column `x`, one panel below another, and write a PNG.

    `frame` has one row per measurement, in any order; `x` is a number such as the step. Columns that the
    frame lacks, and rows where a value is null, are left out.
    """
    drawn = [name for name in ys if name in frame.columns] or [""]
    figure = new_figure(7.0, 0.7 + 1.7 * len(drawn))
    panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name, colour in zip(panels, drawn, COLOURS * len(drawn), strict=False):
        if name:
            points = frame.select(pl.col(x).cast(pl.Float64), pl.col(name).cast(pl.Float64)).drop_nulls().sort(x)
            marker = "o" if points.height < 40 else ""
            panel.plot(points[x].to_list(), points[name].to_list(), color=colour, marker=marker, markersize=3)
        panel.set_ylabel(name, fontsize=8)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(x)
    panels[0].set_title(title, fontsize=10)
    save_png(figure, path)


def forest(
    labels: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    path: Path,
    title: str,
    axis: str,
    reference: float | None = None,
) -> None:
    """Draw one line per label: a dot at `values[i]`, a bar from `lows[i]` to `highs[i]`; write a PNG.

    Labels go from top to bottom and are as many as `values`, `lows` and `highs`; `axis` is the label of the
    horizontal axis; a dashed vertical line stands at `reference`, such as 0 for differences.
    """
    figure = new_figure(7.0, 1.2 + 0.34 * max(len(labels), 1))
    panel = figure.subplots()
    places = list(range(len(labels)))[::-1]
    for index, (place, value, low, high) in enumerate(zip(places, values, lows, highs, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        panel.plot([low, high], [place, place], color=colour, linewidth=2)
        panel.plot([value], [place], "o", color=colour, markersize=6)
    if reference is not None:
        panel.axvline(reference, color="#888888", linestyle="--", linewidth=1)
    panel.set_yticks(places, labels=list(labels), fontsize=8)
    panel.set_ylim(-0.7, len(labels) - 0.3)
    panel.set_xlabel(axis, fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.grid(axis="x", alpha=0.3)
    save_png(figure, path)


def boxes(labels: Sequence[str], values: Sequence[Sequence[float]], path: Path, title: str, axis: str) -> None:
    """Draw one horizontal box per label, whiskers from the 5th to the 95th percentile of its values; write a PNG.

    Labels go from top to bottom; no group of values is empty. `axis` is the label of the horizontal axis.
    """
    figure = new_figure(7.0, 1.2 + 0.34 * max(len(labels), 1))
    panel = figure.subplots()
    if labels:
        names = [f"{label} ({len(group):,})" for label, group in zip(labels, values, strict=True)]
        panel.boxplot(list(values)[::-1], orientation="horizontal", whis=(5, 95), showfliers=False, widths=0.6)
        panel.set_yticks(range(1, len(names) + 1), labels=names[::-1], fontsize=8)
    panel.set_xlabel(axis, fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.grid(axis="x", alpha=0.3)
    save_png(figure, path)


def bands(
    series: Mapping[str, tuple[Sequence[float], ...]],
    path: Path,
    title: str,
    x: str,
    y: str,
    level: tuple[str, float] | None = None,
    ticks: Sequence[str] | None = None,
) -> None:
    """Draw one line per label through points (x, value) with bars from low to high; write a PNG.

    Args:
        series: label -> x, values, lows, highs, all of one length.
        level: label and height of a dashed horizontal line.
        ticks: names of x = 0, 1, 2 …; without them x is a number above 0, on a log scale.
    """
    figure = new_figure(7.0, 4.2)
    panel = figure.subplots()
    for number, (label, (at, values, lows, highs)) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        panel.plot(at, values, "o-", color=colour, label=label, markersize=4)
        panel.vlines(at, lows, highs, color=colour, alpha=0.5)
    if level is not None:
        panel.axhline(level[1], color="#888888", linestyle="--", linewidth=1, label=level[0])
    if ticks is None:
        panel.set_xscale("log")
    else:
        panel.set_xticks(range(len(ticks)), labels=list(ticks), fontsize=8)
    panel.set_xlabel(x, fontsize=8)
    panel.set_ylabel(y, fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_png(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches on the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure without date and version, so that the same figure gives the same bytes."""
    metadata: dict[str, Any] = {"Software": None}
    figure.savefig(path, format="png", metadata=metadata)
