"""Who was trained on which domain, tested on each: the transfer matrix of a mix, with intervals and differences.

The paper claims that RL on one domain raises the others too, and prints no numbers. Here every cell has its interval,
and every difference is paired on the rows of one test domain; all differences of a page are one family (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from sidr_core.evaluation import compare
from sidr_core.evaluation.compare import Scored
from sidr_core.evaluation.pages import too_few
from sidr_core.evaluation.protocol import with_horizons
from sidr_core.metrics.intervals import judge
from sidr_core.render.grid import SYNTHETIC_LABEL, Grid
from sidr_core.reviews.domains import of_domains
from sidr_core.tables.columns import DATASET, MODE, MODEL

if TYPE_CHECKING:
    from sidr_core.settings import Evaluation

DOMAIN, MINUS = "domain", "minus"
#: `seen_until` of what is subtracted.
_SEEN = "minus_seen_until"

_NOTES = """\
A row is a model by the dataset it was trained in, a column the test rows of one domain, ranked against the whole
catalogue of the mix. In brackets: {percent} % intervals from a bootstrap over users ({draws:,} draws, seed {seed}).
Differences are paired by row; p is corrected for all {family} differences of this page (Holm).{few} Each model was
trained once: what another seed would change is not in the intervals."""


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
    found = []
    for domain, compared in references.items():
        inside = {str(entry.name): _inside(entry, domain) for entry in (*entries, *compared)}
        wanted = [inside[str(entry.name)] for entry in entries]
        values = compare.table(wanted, k, settings)
        blank = [pl.lit(None, dtype=values.schema[name]).alias(name) for name in _GAP]
        none = [pl.lit(None, pl.String).alias(name) for name in (MINUS, _SEEN)]
        found.append(values.with_columns(pl.lit(domain).alias(DOMAIN), *none, *blank))
        for number, reference in enumerate(compared):
            first = inside[str(reference.name)]
            # Two references that are both models were compared already, the other way round.
            known = {entry.name for entry in entries}
            skipped = {reference.name, *(e.name for e in compared[:number] if reference.name in known)}
            others = [entry for entry in wanted if entry.name not in skipped]
            gaps = compare.table([first, *others], k, settings).filter(pl.col("difference").is_not_null())
            other = {DOMAIN: domain, MINUS: str(reference.name), _SEEN: reference.seen_until}
            found.append(gaps.with_columns(**{name: pl.lit(text) for name, text in other.items()}))
    return _judged(pl.concat(found), settings.confidence).select(DOMAIN, MINUS, pl.exclude(DOMAIN, MINUS))


_GAP = ("difference", "difference_low", "difference_high", "helped", "harmed", "same", "p", "p_holm", "verdict")


def _inside(entry: Scored, domain: str) -> Scored:
    return replace(entry, rows=of_domains(entry.rows, [domain]))


def _judged(found: pl.DataFrame, confidence: float) -> pl.DataFrame:
    """All differences corrected as one family, and told where the two know data of different periods."""
    gaps = found.with_row_index("n").filter(pl.col(MINUS).is_not_null())
    words = judge(gaps["difference"].to_list(), gaps["p"].to_list(), confidence)
    told = zip(words, gaps["seen_until"], gaps[_SEEN], strict=True)
    corrected = gaps.select("n").with_columns(
        pl.Series("p_holm", [verdict.p_holm for verdict in words], dtype=pl.Float64),
        pl.Series("verdict", [with_horizons(verdict.word, *seen) for verdict, *seen in told], dtype=pl.String),
    )
    values = found.drop("p_holm", "verdict", _SEEN).with_row_index("n")
    return values.join(corrected, on="n", how="left").sort("n").drop("n")


def grids(found: pl.DataFrame) -> tuple[Grid, Grid]:
    """The matrix, models by domains; and every difference."""
    named = found.with_columns(pl.concat_str(DATASET, MODEL, MODE, separator="/").alias("name"))
    named = named.with_columns(pl.format("{}@{}", pl.col("metric").str.to_uppercase(), "k").alias("label"))
    values = named.filter(pl.col(MINUS).is_null())
    cells = {
        (row["name"], row[DOMAIN], row["label"]): f"{row['value']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
        for row in values.iter_rows(named=True)
    }
    columns = [
        (d, m) for d in values[DOMAIN].unique(maintain_order=True) for m in values["label"].unique(maintain_order=True)
    ]
    rows = [
        (name, *(cells[name, *column] for column in columns)) for name in values["name"].unique(maintain_order=True)
    ]
    gaps = [
        (
            f"{row['name']} − {row[MINUS]}",
            row[DOMAIN],
            row["label"],
            f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]",
            f"{row['helped']:,} / {row['harmed']:,} / {row['same']:,}",
            f"{row['p_holm']:.4f}",
            row["verdict"],
        )
        for row in named.filter(pl.col(MINUS).is_not_null()).iter_rows(named=True)
    ]
    return (
        Grid("Item level, by test domain", ("model", *(f"{d}: {m}" for d, m in columns)), tuple(rows)),
        Grid(
            "Paired differences",
            ("a − b", "tested on", "metric", "difference", "rows better / worse / same", "p (Holm)", "a is"),
            tuple(gaps),
        ),
    )


def page(title: str, found: pl.DataFrame, settings: Evaluation, synthetic: bool) -> str:
    """The matrix as Markdown."""
    sizes = found.group_by(DOMAIN, maintain_order=True).agg(pl.col("n_rows", "n_users").first()).iter_rows()
    label = f" ({SYNTHETIC_LABEL})" if synthetic else ""
    caption = "; ".join(f"{domain}: {rows:,} test rows of {users:,} users" for domain, rows, users in sizes)
    values, gaps = grids(found)
    notes = _NOTES.format(
        percent=f"{100 * settings.confidence:g}",
        draws=settings.bootstrap,
        seed=settings.seed,
        family=len(gaps.rows),
        few=too_few(settings, len(gaps.rows)),
    )
    shown = [values.markdown(), *([gaps.markdown()] if gaps.rows else [])]
    return "\n\n".join([f"# {title}{label}", caption, *shown, notes]) + "\n"
