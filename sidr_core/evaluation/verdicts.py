"""Paired differences: as rows of a table, in words, and as cells of a page. The same for every comparison.

The words of a verdict, and when they are used:

- `higher`, `lower`: p of no difference, corrected for the family (Holm), is below 1 - confidence.
- `within ±δ`: the difference is smaller than `evaluation.margin` either way: two one-sided tests, corrected likewise.
- `too few rows to tell`: neither, and the difference is below the smallest detectable one.
- `not distinguishable`: neither.

What limits a verdict stands behind it in brackets: different horizons, few users, a list that did not learn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sidr_core.metrics.intervals import UNCLEAR, Differences, holm, judge_family, least_draws, smallest_detectable

if TYPE_CHECKING:
    from sidr_core.settings import Evaluation

#: Columns of a difference and of the ends of its interval, where a table holds nothing but differences.
GAP = ("difference", "ci_low", "ci_high")
#: The same where the interval of a value stands beside.
GAP_BESIDE_VALUE = ("difference", "difference_low", "difference_high")
#: Columns of a judged difference besides :data:`GAP`.
JUDGED = ("helped", "harmed", "same", "se", "detectable", "p", "p_holm", "p_within", "p_within_holm", "verdict")
#: Heads of :func:`gap_cells`, but for the last: who the verdict is about differs.
GAP_HEADER = ("difference", "smallest detectable", "rows better / worse / same", "p (Holm)")
TOO_FEW_ROWS = "too few rows to tell"

_VERDICTS_NOTE = """\
p is corrected for all {family} differences of this page (Holm): "higher" and "lower" need p < {alpha:g}.{few} "Within
±{margin:g}" says that the difference is smaller than that either way (two one-sided tests, corrected likewise). The
smallest detectable difference is what so many users show in 80 of 100 cases, as one of {family}; where a difference
below it decides nothing, there are "too few rows to tell"."""
_TOO_FEW_DRAWS = " **{draws:,} draws cannot tell any of so many from 0: {least:,} are needed.**"


def gap_rows(gaps: Differences, columns: tuple[str, str, str] = GAP) -> list[dict[str, Any]]:
    """One row per column of `gaps`: difference and interval under the names `columns`, and what :func:`judge` needs."""
    interval = gaps.interval
    arrays = dict(zip(columns, (interval.value, interval.low, interval.high), strict=True))
    arrays |= {name: getattr(gaps, name) for name in ("helped", "harmed", "same", "se", "p", "p_within")}
    return [{name: array[n].item() for name, array in arrays.items()} for n in range(len(gaps.p))]


def judge(rows: Iterable[dict[str, Any]], settings: Evaluation, difference: str = "difference") -> None:
    """Judge all rows that have a `p` as one family; adds `p_holm`, `p_within_holm`, `detectable` and `verdict`.

    Args:
        rows: of :func:`gap_rows`, with further columns; changed in place. `remarks`, a list of texts, goes into the
            verdict where there are any, and `n_users` where there are fewer than `evaluation.least_users`.
        settings: confidence and margin.
        difference: the name of the column with the difference.
    """
    family = [row for row in rows if row.get("p") is not None]
    judge_family(family, settings.confidence, difference)
    alpha = (1 - settings.confidence) * (1 - 1e-9)
    for row, p_within in zip(family, holm([row["p_within"] for row in family]), strict=True):
        detectable = smallest_detectable(row["se"], settings.confidence, len(family))
        row |= {"p_within_holm": p_within, "detectable": detectable}
        within = f"within ±{settings.margin:g}"
        if p_within < alpha:
            row["verdict"] = within if row["verdict"] == UNCLEAR else f"{row['verdict']}, {within}"
        elif row["verdict"] == UNCLEAR and abs(row[difference]) < detectable:
            row["verdict"] = TOO_FEW_ROWS
        remarks = list(row.get("remarks", ()))
        if row["n_users"] < settings.least_users:
            remarks.append(f"{row['n_users']} users")
        row["verdict"] += f" ({'; '.join(remarks)})" if remarks else ""


def horizons(seen_a: str, seen_b: str) -> list[str]:
    """The remark that two models know data of different periods, where they do.

    >>> horizons("2018-06-01", "2018-01-01"), horizons("2018-06-01", "2018-06-01")
    (['different horizons'], [])
    """
    return ["different horizons"] if seen_a != seen_b else []


def limits(
    names: tuple[str, str], seen_until: tuple[str, str], remarks: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """What limits a verdict on two lists.

    Args:
        names: `<model>/<mode>` of both.
        seen_until: up to when each knows data.
        remarks: `<model>/<mode>` -> what a verdict on it has to say beside; under "" what all verdicts have to.
    """
    remarks = remarks or {}
    of_lists = [f"{name} {text}" for name in names for text in remarks.get(name, ())]
    return [*horizons(*seen_until), *of_lists, *remarks.get("", ())]


def span(row: Mapping[str, Any], columns: tuple[str, str, str], sign: str = "") -> str:
    """Value and interval of the named columns as `0.1234 [0.1000, 0.1500]`."""
    value, low, high = (f"{row[name]:{sign}.4f}" for name in columns)
    return f"{value} [{low}, {high}]"


def gap_cells(row: Mapping[str, Any], columns: tuple[str, str, str] = GAP) -> tuple[str, ...]:
    """A judged row as cells under :data:`GAP_HEADER` and the verdict."""
    counts = f"{row['helped']:,} / {row['harmed']:,} / {row['same']:,}"
    return span(row, columns, "+"), f"{row['detectable']:.4f}", counts, f"{row['p_holm']:.4f}", row["verdict"]


def notes(template: str, settings: Evaluation, family: int, **more: Any) -> str:
    """A page's note on its numbers: fills in `percent`, `draws`, `seed`, `verdicts`, and `more`.

    `verdicts` says how the page's `family` differences were judged, with a warning where the draws are too few to tell
    any of so many from 0.
    """
    least = least_draws(family, settings.confidence)
    few = _TOO_FEW_DRAWS.format(draws=settings.bootstrap, least=least) if settings.bootstrap < least else ""
    alpha = round(1 - settings.confidence, 12)
    verdicts = _VERDICTS_NOTE.format(family=family, alpha=alpha, few=few, margin=settings.margin)
    return template.format(
        percent=f"{100 * settings.confidence:g}",
        draws=settings.bootstrap,
        seed=settings.seed,
        verdicts=verdicts if family else "Nothing is compared.",
        **more,
    )
