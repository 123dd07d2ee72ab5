"""Who was trained on which domain, tested on each: the transfer matrix of a mix, with intervals and differences.

The paper claims that RL on one domain raises the others too, and prints no numbers. Here every cell has its interval,
and every difference is paired on the rows of one test domain; all differences of a page are one family (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.evaluation import compare
from sidr_core.evaluation.compare import Scored, full_name
from sidr_core.evaluation.pages import joined, titled
from sidr_core.evaluation.verdicts import GAP_BESIDE_VALUE, GAP_HEADER, JUDGED, gap_cells, horizons, judge, notes
from sidr_core.render.grid import Grid, ranged
from sidr_core.reviews.domains import of_domains

if TYPE_CHECKING:
    from sidr_core.settings import Evaluation

DOMAIN, MINUS = "domain", "minus"

_NOTES = """\
A row is a model by the dataset it was trained in, a column the test rows of one domain, ranked against the whole
catalogue of the mix. In brackets: {percent} % intervals from a bootstrap over users ({draws:,} draws, seed {seed}).
Differences are paired by row. {verdicts} Each model was trained once: what another seed would
change is not in the intervals."""


def matrix(
    entries: Sequence[Scored], references: Mapping[str, Sequence[Scored]], k: int, settings: Evaluation
) -> pl.DataFrame:
    """Every model on every domain, and its differences from each reference of that domain.

    Args:
        entries: the rows of the matrix, all tested on the same rows of the mix.
        references: test domain -> the models to compare with there, in this order; they may be among `entries`.
        k: cut-off.
        settings: bootstrap, confidence, seed.

    Returns:
        Columns of :func:`sidr_core.evaluation.compare.table`, before them `domain` and `minus`: what is subtracted,
        null for the values themselves.
    """
    rows: list[dict[str, Any]] = []
    for domain, compared in references.items():
        by_name = {entry.name: replace(entry, rows=of_domains(entry.rows, [domain])) for entry in (*entries, *compared)}
        models = [by_name[entry.name] for entry in entries]
        values = compare.table(models, k, settings)
        no_gap = {DOMAIN: domain, **dict.fromkeys((*GAP_BESIDE_VALUE, *JUDGED, MINUS))}
        rows += [row | no_gap for row in values.iter_rows(named=True)]
        for number, reference in enumerate(compared):
            skipped = {reference.name}
            if reference.name in {entry.name for entry in entries}:
                # Two references that are both models were compared already, the other way round.
                skipped |= {entry.name for entry in compared[:number]}
            others = [entry for entry in models if entry.name not in skipped]
            gaps = compare.table([by_name[reference.name], *others], k, settings).filter(pl.col("p").is_not_null())
            for row in gaps.iter_rows(named=True):
                remarks = horizons(row["seen_until"], reference.seen_until)
                rows.append(row | {DOMAIN: domain, MINUS: str(reference.name), "remarks": remarks})
    judge(rows, settings)
    types = {DOMAIN: pl.String, MINUS: pl.String, **values.schema}
    return pl.DataFrame(rows, schema=types)


def grids(transfer: pl.DataFrame) -> tuple[Grid, Grid]:
    """The matrix, models by domains; and every difference."""
    cells: dict[str, dict[tuple[str, str], str]] = {}
    gaps = []
    for row in transfer.iter_rows(named=True):
        label = f"{row['metric'].upper()}@{row['k']}"
        if row[MINUS] is None:
            cells.setdefault(full_name(row), {})[row[DOMAIN], label] = ranged(row)
        else:
            pair = f"{full_name(row)} − {row[MINUS]}"
            gaps.append((pair, row[DOMAIN], label, *gap_cells(row, GAP_BESIDE_VALUE)))
    columns = [f"{domain}: {label}" for domain, label in next(iter(cells.values()))]
    lines = tuple((name, *by_column.values()) for name, by_column in cells.items())
    return (
        Grid("Item level, by test domain", ("model", *columns), lines),
        Grid("Paired differences", ("a − b", "tested on", "metric", *GAP_HEADER, "a is"), tuple(gaps)),
    )


def page(title: str, transfer: pl.DataFrame, settings: Evaluation, synthetic: bool) -> str:
    """The matrix as Markdown."""
    sizes = transfer.group_by(DOMAIN, maintain_order=True).agg(pl.col("n_rows", "n_users").first()).iter_rows()
    values, gaps = grids(transfer)
    return joined(
        titled(f"# {title}", synthetic),
        "; ".join(f"{domain}: {rows:,} test rows of {users:,} users" for domain, rows, users in sizes),
        values.markdown(),
        gaps.markdown() if gaps.rows else "",
        notes(_NOTES, settings, len(gaps.rows)),
    )
