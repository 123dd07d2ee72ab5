"""The evaluation as a table to read: one grid, shown in a terminal or written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.columns import ITEM_LEVEL, MODE, MODEL, SID_LEVEL
from sidr_core.evaluation.protocol import headline

if TYPE_CHECKING:
    from rich.console import Group

SYNTHETIC_LABEL = "synthetic sample data"

_NOTES = """\
A value is the mean over test rows; in brackets stands its {percent} % interval from a bootstrap over users. The
catalogue is ranked whole, at the beam width given. Item level asks for the very item; where items share a SID it is
the expectation over their order. SID level asks for the SID, as papers do. Verdicts are not corrected for the number
of comparisons."""


@dataclass(frozen=True)
class Grid:
    """A titled table of text. The first column is aligned left, the others right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a Markdown table under a heading of level 2."""
        lines = [f"| {' | '.join(row)} |" for row in (self.header, *self.rows)]
        rule = f"| {' | '.join(['---', *['---:'] * (len(self.header) - 1)])} |"
        return "\n".join([f"## {self.title}", "", lines[0], rule, *lines[1:]])

    def rich(self) -> Any:
        """As a `rich` table."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title, box=box.SIMPLE_HEAD, title_justify="left")
        for place, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if place else "left")
        for row in self.rows:
            table.add_row(*(Text(text) for text in row))
        return table


def leaderboard(evaluation: pl.DataFrame, level: str = ITEM_LEVEL, ks: Sequence[int] | None = None) -> Grid:
    """One row per model and mode: each metric with its interval, models in the table's order.

    Args:
        evaluation: the contract `EvaluationTable` of one snapshot.
        level: `item` or `sid`.
        ks: cut-offs to show; by default the headline ones.
    """
    part = evaluation.filter(pl.col("level") == level)
    shown = headline(part["k"].unique().to_list()) if ks is None else list(ks)
    metrics = [(metric, k) for k in shown for metric in ("hr", "ndcg")]
    found = {
        (
            row[MODEL],
            row[MODE],
            row["metric"],
            row["k"],
        ): f"{row['value']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
        for row in part.iter_rows(named=True)
    }
    models = part.select(MODEL, MODE).unique(maintain_order=True).rows()
    rows = tuple((f"{model}/{mode}", *(found[model, mode, *metric] for metric in metrics)) for model, mode in models)
    title = "Item level" if level == ITEM_LEVEL else "SID level"
    return Grid(title, ("model", *(f"{metric.upper()}@{k}" for metric, k in metrics)), rows)


def differences(paired: pl.DataFrame) -> Grid:
    """One row per comparison and metric, at the largest cut-off that was compared."""
    shown = paired.filter(pl.col("k") == pl.col("k").max()).iter_rows(named=True)
    rows = tuple(
        (
            f"{row['model_a']}/{row['mode_a']} − {row['model_b']}/{row['mode_b']}",
            f"{row['metric'].upper()}@{row['k']}",
            f"{row['difference']:+.4f} [{row['ci_low']:+.4f}, {row['ci_high']:+.4f}]",
            f"{row['helped']:,} / {row['harmed']:,} / {row['same']:,}",
            row["verdict"],
        )
        for row in shown
    )
    return Grid(
        "Paired differences, item level", ("a − b", "metric", "difference", "rows better / worse / same", "a is"), rows
    )


def caption(evaluation: pl.DataFrame, synthetic: bool) -> str:
    """What was measured, on one line: dataset, snapshot, rows, users, beam width."""
    first = evaluation.row(0, named=True)
    label = f", {SYNTHETIC_LABEL}" if synthetic else ""
    return (
        f"{first['dataset']}, snapshot {first['snapshot']}{label}: {first['n_rows']:,} {first['split']} rows of "
        f"{first['n_users']:,} users, beam width {first['beam_width']}, trained on rows up to {first['seen_until']}"
    )


def render(evaluation: pl.DataFrame, paired: pl.DataFrame, synthetic: bool = False) -> Group:
    """The evaluation for a terminal: caption, item level, paired differences."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(caption(evaluation, synthetic), style="bold"), leaderboard(evaluation).rich()]
    if not paired.is_empty():
        parts.append(differences(paired).rich())
    return Group(*parts)


def page(evaluation: pl.DataFrame, paired: pl.DataFrame, synthetic: bool, confidence: float) -> str:
    """The evaluation as a Markdown page: both levels at all cut-offs, paired differences, notes."""
    grids = [leaderboard(evaluation), leaderboard(evaluation, SID_LEVEL)]
    if not paired.is_empty():
        grids.append(differences(paired))
    grids += [_values(evaluation)]
    heading = "# Evaluation" + (f" ({SYNTHETIC_LABEL})" if synthetic else "")
    notes = _NOTES.format(percent=f"{100 * confidence:g}")
    return "\n\n".join([heading, caption(evaluation, synthetic), *(grid.markdown() for grid in grids), notes]) + "\n"


def _values(evaluation: pl.DataFrame) -> Grid:
    """All metrics without intervals, item level over SID level."""
    ks = evaluation["k"].unique().sort().to_list()
    metrics = [(metric, k) for metric in ("hr", "ndcg") for k in ks]
    lines: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    for row in evaluation.iter_rows(named=True):
        name = (f"{row[MODEL]}/{row[MODE]}", row["level"])
        lines.setdefault(name, {})[row["metric"], row["k"]] = f"{row['value']:.4f}"
    rows = tuple((*name, *(values[metric] for metric in metrics)) for name, values in lines.items())
    return Grid("All cut-offs", ("model", "level", *(f"{metric.upper()}@{k}" for metric, k in metrics)), rows)
