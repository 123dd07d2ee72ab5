"""The evaluation as tables to read, in a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.evaluation.protocol import headline, list_name
from sidr_core.evaluation.remarks import remark_lines
from sidr_core.evaluation.verdicts import GAP_HEADER, gap_cells, notes
from sidr_core.metrics.lists import AT_K, WHOLE
from sidr_core.metrics.ranking import HR, NDCG, RANKED
from sidr_core.render.grid import SYNTHETIC_LABEL, Grid, ranged
from sidr_core.tables.columns import ITEM_LEVEL, MODE, MODEL, SID_LEVEL

if TYPE_CHECKING:
    from rich.console import Group

    from sidr_core.settings import Evaluation


_NOTES = """\
A value is the mean over test rows; in brackets stands its {percent} % interval from a bootstrap over users ({draws:,}
draws, seed {seed}). The catalogue is ranked whole, at the beam width given. Item level asks for the very item; where
items share a SID it is the expectation over their order. SID level asks for the SID, as papers do. Differences are
paired: the same rows, a minus b. {verdicts} Intervals stand alone: they are not widened for being many. How all of it
is done: docs/evaluation.md."""

_EXPOSURE_LABELS = {
    "coverage": "coverage",
    "gini": "Gini",
    "novelty": "novelty, bits",
    "invalid_rate": "invalid places",
    "distinct_rate": "distinct beams",
    "close_rate": "thoughts closed",
    "thought_tokens": "thought tokens per row",
}


def titled(title: str, synthetic: bool) -> str:
    """A title that says where data are synthetic."""
    return f"{title} ({SYNTHETIC_LABEL})" if synthetic else title


def joined(*parts: str) -> str:
    """The text of a Markdown page from its paragraphs; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def caption(evaluation: pl.DataFrame, synthetic: bool) -> str:
    """What was measured, on one line: dataset, snapshot, rows, users, beam width, and what was known."""
    first = evaluation.row(0, named=True)
    label = f", {SYNTHETIC_LABEL}" if synthetic else ""
    seen = evaluation["seen_until"].unique().sort().to_list()
    horizons = f"up to {seen[0]}" if len(seen) == 1 else f"of different horizons, up to {' or '.join(seen)}"
    return (
        f"{first['dataset']}, snapshot {first['snapshot']}{label}: {first['n_rows']:,} {first['split']} rows of "
        f"{first['n_users']:,} users, beam width {first['beam_width']}, trained on rows {horizons}"
    )


# -- the evaluation --------------------------------------------------------------------------------


def page(
    evaluation: pl.DataFrame,
    paired: pl.DataFrame,
    synthetic: bool,
    settings: Evaluation,
    remarks: pl.DataFrame,
    protocol: str = "",
) -> str:
    """The evaluation as a Markdown page: both levels at all cut-offs, paired differences, the lists, notes."""
    grids = [leaderboard(evaluation), leaderboard(evaluation, SID_LEVEL)]
    if not paired.is_empty():
        grids.append(differences(paired))
    grids += [exposure(evaluation), _all_cut_offs(evaluation)]
    return joined(
        titled("# Evaluation", synthetic),
        caption(evaluation, synthetic),
        protocol,
        remark_lines(remarks),
        *(grid.markdown() for grid in grids),
        notes_of(settings, paired.height),
    )


def render(evaluation: pl.DataFrame, paired: pl.DataFrame, synthetic: bool = False) -> Group:
    """The evaluation for a terminal: caption, item level, paired differences."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(caption(evaluation, synthetic), style="bold"), leaderboard(evaluation).rich()]
    if not paired.is_empty():
        parts.append(differences(paired).rich())
    return Group(*parts)


def notes_of(settings: Evaluation, family: int) -> str:
    """How to read the numbers of a page that shows `family` differences."""
    return notes(_NOTES, settings, family)


def leaderboard(evaluation: pl.DataFrame, level: str = ITEM_LEVEL, ks: Sequence[int] | None = None) -> Grid:
    """One row per model and mode: HR and NDCG with their intervals, models in the table's order.

    Args:
        evaluation: the contract `EvaluationTable` of one snapshot.
        level: `item` or `sid`.
        ks: cut-offs to show; by default the headline ones.
    """
    part = evaluation.filter((pl.col("level") == level) & pl.col("metric").is_in([HR, NDCG]))
    ks = headline(part["k"].unique().to_list()) if ks is None else ks
    metrics = [(metric, k) for k in ks for metric in (HR, NDCG)]
    title = "Item level" if level == ITEM_LEVEL else "SID level"
    return _by_model(part, metrics, [f"{metric.upper()}@{k}" for metric, k in metrics], title)


def exposure(evaluation: pl.DataFrame) -> Grid:
    """One row per model and mode: what its lists look like as a whole, with intervals."""
    order = (*AT_K, *WHOLE)
    part = evaluation.filter(pl.col("metric").is_in(order))
    metrics = sorted(part.select("metric", "k").unique().rows(), key=lambda key: (order.index(key[0]), key[1]))
    labels = [f"{_EXPOSURE_LABELS[metric]}{f'@{k}' if metric in AT_K else ''}" for metric, k in metrics]
    return _by_model(part, metrics, labels, "The lists as a whole")


def _by_model(part: pl.DataFrame, metrics: Sequence[tuple[str, int]], labels: Sequence[str], title: str) -> Grid:
    """One row per model and mode, one column per (metric, k); empty where a model has none."""
    cells = {(row[MODEL], row[MODE], row["metric"], row["k"]): ranged(row) for row in part.iter_rows(named=True)}
    models = part.select(MODEL, MODE).unique(maintain_order=True).rows()
    rows = [(f"{model}/{mode}", *(cells.get((model, mode, *key), "") for key in metrics)) for model, mode in models]
    return Grid(title, ("model", *labels), tuple(rows))


def differences(paired: pl.DataFrame) -> Grid:
    """One row per comparison and metric, at the largest cut-off that was compared."""
    rows = tuple(
        (
            f"{row['model_a']}/{row['mode_a']} − {row['model_b']}/{row['mode_b']}",
            f"{row['metric'].upper()}@{row['k']}",
            *gap_cells(row),
        )
        for row in paired.filter(pl.col("k") == pl.col("k").max()).iter_rows(named=True)
    )
    return Grid("Paired differences, item level", ("a − b", "metric", *GAP_HEADER, "a is"), rows)


def _all_cut_offs(evaluation: pl.DataFrame) -> Grid:
    """HR, NDCG and MRR without intervals, item level over SID level."""
    ranked = evaluation.filter(pl.col("metric").is_in(RANKED))
    metrics = [(metric, k) for metric in RANKED for k in ranked["k"].unique().sort()]
    lines: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    for row in ranked.iter_rows(named=True):
        lines.setdefault((list_name(row), row["level"]), {})[row["metric"], row["k"]] = f"{row['value']:.4f}"
    rows = tuple((*name, *(values[metric] for metric in metrics)) for name, values in lines.items())
    return Grid("All cut-offs", ("model", "level", *(f"{metric.upper()}@{k}" for metric, k in metrics)), rows)


# -- slices ----------------------------------------------------------------------------------------


def slices_page(slices: pl.DataFrame, synthetic: bool, settings: Evaluation) -> str:
    """The slices as a Markdown page: thinking minus direct on each, then every list, one grid per slice."""
    gaps, values = slices.filter(pl.col("minus").is_not_null()), slices.filter(pl.col("minus").is_null())
    grids = [_slice_gaps(gaps)] if gaps.height else []
    grids += [_slice(part, str(name)) for (name,), part in values.group_by("slice", maintain_order=True)]
    return joined(
        titled("# Slices of the test rows", synthetic),
        *(grid.markdown() for grid in grids),
        notes_of(settings, gaps.filter(pl.col("p").is_not_null()).height),
    )


def _slice_gaps(gaps: pl.DataFrame) -> Grid:
    rows = []
    for row in gaps.iter_rows(named=True):
        group, label = f"{row['slice']}: {row['group']}", f"{row['metric'].upper()}@{row['k']}"
        cells = (ranged(row, "+"), "", "", "", "rows of one user")
        if row["p"] is not None:
            cells = gap_cells(row, ("value", "ci_low", "ci_high"))
        rows.append((group, f"{row['n_rows']:,}", f"{list_name(row)} − {row['minus']}", label, *cells))
    header = ("slice", "rows", "a − b", "metric", *GAP_HEADER, "a is")
    return Grid("Thinking minus direct, item level", header, tuple(rows))


def _slice(part: pl.DataFrame, name: str) -> Grid:
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in part.iter_rows(named=True):
        key = (row["group"], list_name(row), f"{row['n_rows']:,}", f"{row['n_users']:,}")
        lines.setdefault(key, []).append(ranged(row))
    labels = [f"{metric.upper()}@{part['k'][0]}" for metric in part["metric"].unique(maintain_order=True)]
    return Grid(name, ("group", "model", "rows", "users", *labels), tuple((*key, *row) for key, row in lines.items()))
