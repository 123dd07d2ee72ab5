"""Paired differences as rows of a table and as cells of a page: the same for every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sidr_core.metrics.intervals import Differences, least_draws

if TYPE_CHECKING:
    from sidr_core.settings import Evaluation

#: Columns of a difference and of the ends of its interval, where a table holds nothing but differences.
GAP = ("difference", "ci_low", "ci_high")
#: The same where the interval of a value stands beside.
GAP_BESIDE_VALUE = ("difference", "difference_low", "difference_high")
#: Heads of :func:`gap_cells`, but for the last: who the verdict is about differs.
GAP_HEADER = ("difference", "rows better / worse / same", "p (Holm)")
_TOO_FEW = " **{draws:,} draws cannot tell any of so many from 0: {least:,} are needed.**"


def gap_rows(gaps: Differences, columns: tuple[str, str, str] = GAP) -> list[dict[str, Any]]:
    """One row per column of `gaps`: difference and interval under the names `columns`, counts of rows, raw p."""
    interval = gaps.interval
    arrays = dict(zip(columns, (interval.value, interval.low, interval.high), strict=True))
    arrays |= {"helped": gaps.helped, "harmed": gaps.harmed, "same": gaps.same, "p": gaps.p}
    return [{name: array[n].item() for name, array in arrays.items()} for n in range(len(gaps.p))]


def mark_horizons(rows: Iterable[dict[str, Any]], a: str = "seen_until_a", b: str = "seen_until_b") -> None:
    """Say in each verdict that the two models know data of different periods, where they do.

    >>> rows = [{"verdict": "higher", "seen_until_a": "2018-06-01", "seen_until_b": "2018-01-01"}]
    >>> mark_horizons(rows)
    >>> rows[0]["verdict"]
    'higher (different horizons)'
    """
    for row in rows:
        if row.get("verdict") and row[a] != row[b]:
            row["verdict"] += " (different horizons)"


def span(row: Mapping[str, Any], columns: tuple[str, str, str], sign: str = "") -> str:
    """Value and interval of the named columns as `0.1234 [0.1000, 0.1500]`."""
    value, low, high = (f"{row[name]:{sign}.4f}" for name in columns)
    return f"{value} [{low}, {high}]"


def gap_cells(row: Mapping[str, Any], columns: tuple[str, str, str] = GAP) -> tuple[str, ...]:
    """A judged row of :func:`gap_rows` as cells under :data:`GAP_HEADER` and the verdict."""
    counts = f"{row['helped']:,} / {row['harmed']:,} / {row['same']:,}"
    return span(row, columns, "+"), counts, f"{row['p_holm']:.4f}", row["verdict"]


def notes(template: str, settings: Evaluation, family: int, **more: Any) -> str:
    """A page's note on its numbers: fills in `percent`, `draws`, `seed`, `family`, `alpha`, `few`, and `more`.

    `few` is a warning, to stand behind a sentence, where the draws cannot tell any of `family` differences from 0.
    """
    least = least_draws(family, settings.confidence)
    few = _TOO_FEW.format(draws=settings.bootstrap, least=least) if settings.bootstrap < least else ""
    percent, alpha = f"{100 * settings.confidence:g}", round(1 - settings.confidence, 12)
    return template.format(
        percent=percent, draws=settings.bootstrap, seed=settings.seed, family=family, alpha=alpha, few=few, **more
    )
