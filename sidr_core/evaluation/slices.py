"""HR and NDCG on parts of the test rows: for whom a model, and its thought, is worth something.

Slices are made of what was known before the target, and of the target itself, never of a model's list:

- `history_length`: items in the prompt.
- `target_popularity`: train samples that have the target, in terciles of the test rows that have any, and `0`.
- `cold_target`: whether the target has no train sample.
- `repeat_purchase`: whether the target is in the history.
- `same_brand`, `same_category`: as the last item of the history; `unknown` where either has none.

The paper has no slices; by relation of target and history see METHOD.md 9.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.evaluation.protocol import headline, thinking_pairs
from sidr_core.metrics.intervals import Floats, differences, draw_means, judge, summary
from sidr_core.metrics.ranking import HR, NDCG, column
from sidr_core.settings.models import split_name
from sidr_core.tables.columns import BRAND, CATEGORY, HISTORY, ITEM_ID, ITEM_LEVEL, ROW_ID, TARGET, USER_ID
from sidr_core.tables.contracts import Slices

if TYPE_CHECKING:
    from sidr_core.settings import Evaluation

METRICS = (HR, NDCG)
#: First length of each bin of the history.
_LENGTHS = (1, 3, 5, 10)


def groups_of(test: pl.DataFrame, train: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Which group of each slice each row is in.

    Args:
        test: the contract `Samples`.
        train: the contract `Samples`; targets alone are counted.
        items: item_id, brand, category.

    Returns:
        row_id and one column of text per slice, in the order of `test`; columns in the order of the tables.
    """
    counts = train.group_by(TARGET).len("count")
    rows = test.join(counts, on=TARGET, how="left", maintain_order="left").with_columns(pl.col("count").fill_null(0))
    last = rows.with_columns(pl.col(HISTORY).list.last().alias("last"))
    known = items.select(ITEM_ID, BRAND, CATEGORY)
    for side in ("last", TARGET):
        renamed = known.rename({ITEM_ID: side, BRAND: f"{side}_{BRAND}", CATEGORY: f"{side}_{CATEGORY}"})
        last = last.join(renamed, on=side, how="left", maintain_order="left")
    return last.select(
        ROW_ID,
        _length().alias("history_length"),
        _popularity(rows["count"]).alias("target_popularity"),
        _yes(pl.col("count") == 0).alias("cold_target"),
        _yes(pl.col(HISTORY).list.contains(pl.col(TARGET))).alias("repeat_purchase"),
        _same(BRAND).alias("same_brand"),
        _same(CATEGORY).alias("same_category"),
    )


def slices_table(
    scores: Mapping[str, pl.DataFrame], groups: pl.DataFrame, settings: Evaluation, context: Mapping[str, Any]
) -> pl.DataFrame:
    """Each list on each slice, and thinking minus direct of each checkpoint, by the contract `Slices`.

    The differences of the table are one family; a group whose rows are of one user has no interval and no verdict.

    Args:
        scores: per-row metrics of each `<model>/<mode>`, sorted by row_id.
        groups: see :func:`groups_of`.
        settings: cut-offs and bootstrap; the largest headline cut-off is used.
        context: dataset, snapshot and split.
    """
    k = headline(settings.ks)[-1]
    columns = [column(ITEM_LEVEL, metric, k) for metric in METRICS]
    names = list(scores)
    first = scores[names[0]].select(ROW_ID, USER_ID).join(groups, on=ROW_ID, how="left", maintain_order="left")
    values = np.hstack([scores[name].select(columns).to_numpy() for name in names])
    users = first[USER_ID].to_numpy()
    found: list[dict[str, Any]] = []
    for slice_name in groups.columns[1:]:
        labels = first[slice_name].to_numpy()
        for label in sorted(set(labels), key=_order):
            inside = labels == label
            told = {**context, "slice": slice_name, "group": label, "k": k, "level": ITEM_LEVEL, "seed": settings.seed}
            told |= {"n_rows": int(inside.sum()), "n_users": len(np.unique(users[inside]))}
            found += [told | row for row in _group(values[inside], users[inside], names, settings)]
    _say(found, settings.confidence)
    kinds: dict[str, Any] = {name: kind.dtype.type for name, kind in Slices.to_schema().columns.items()}  # type: ignore[union-attr]
    return pl.DataFrame(found, schema=kinds)


def _group(values: Floats, users: np.ndarray, names: list[str], settings: Evaluation) -> list[dict[str, Any]]:
    """Rows of one group: values of every list, then the differences; `values` is (R, lists x metrics)."""
    means = None
    if len(np.unique(users)) > 1:
        means = draw_means(values, users, draws=settings.bootstrap, seed=settings.seed)
    place = {name: slice(len(METRICS) * at, len(METRICS) * (at + 1)) for at, name in enumerate(names)}
    found = [row for name in names for row in _values(name, values[:, place[name]], means, place[name], settings)]
    for a, b in thinking_pairs(names):
        gap = values[:, place[a]] - values[:, place[b]]
        if means is None:
            found += _rows(a, b, {"value": gap.mean(axis=0)})
            continue
        told = differences(gap, means[:, place[a]] - means[:, place[b]], settings.confidence)
        counted = {"helped": told.helped, "harmed": told.harmed, "same": told.same, "p": told.p}
        interval = {"value": told.interval.value, "ci_low": told.interval.low, "ci_high": told.interval.high}
        found += _rows(a, b, interval | counted)
    return found


def _values(
    name: str, values: Floats, means: Floats | None, place: slice, settings: Evaluation
) -> list[dict[str, Any]]:
    if means is None:
        return _rows(name, None, {"value": values.mean(axis=0)})
    told = summary(values, means[:, place], settings.confidence)
    return _rows(name, None, {"value": told.value, "ci_low": told.low, "ci_high": told.high})


def _rows(name: str, minus: str | None, numbers: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row per metric; each of `numbers` is (M,)."""
    model, mode = split_name(name)
    return [
        {"model": model, "mode": mode, "minus": minus, "metric": metric}
        | {key: values[at].item() for key, values in numbers.items()}
        for at, metric in enumerate(METRICS)
    ]


def _say(rows: list[dict[str, Any]], confidence: float) -> None:
    """Correct the p-values of all differences as one family and put the outcome into words."""
    family = [row for row in rows if "p" in row]
    verdicts = judge([row["value"] for row in family], [row["p"] for row in family], confidence)
    for row, verdict in zip(family, verdicts, strict=True):
        row |= {"p_holm": verdict.p_holm, "verdict": verdict.word}


def _yes(condition: pl.Expr) -> pl.Expr:
    return pl.when(condition).then(pl.lit("yes")).otherwise(pl.lit("no"))


def _same(name: str) -> pl.Expr:
    """Whether the target has the last item's brand or category; `unknown` where either is absent or empty."""
    last, target = pl.col(f"last_{name}"), pl.col(f"{TARGET}_{name}")
    absent = last.is_null() | target.is_null() | (last == "") | (target == "")
    return pl.when(absent).then(pl.lit("unknown")).otherwise(_yes(last == target))


def _length() -> pl.Expr:
    length = pl.col(HISTORY).list.len()
    label = pl.when(length >= _LENGTHS[-1]).then(pl.lit(f"{_LENGTHS[-1]} or more"))
    for low, end in pairwise(_LENGTHS):
        label = label.when((length >= low) & (length < end)).then(pl.lit(_range(low, end - 1)))
    return label.otherwise(pl.lit("0"))


def _popularity(counts: pl.Series) -> pl.Expr:
    """Terciles of the positive counts, named by their range; equal counts stay together."""
    positive = counts.filter(counts > 0).sort().to_list()
    cuts = [positive[(len(positive) - 1) * part // 3] for part in (1, 2, 3)] if positive else []
    label = pl.when(pl.col("count") == 0).then(pl.lit("0"))
    for below, top in pairwise(dict.fromkeys([0, *cuts])):
        inside = (pl.col("count") > below) & (pl.col("count") <= top)
        label = label.when(inside).then(pl.lit(_range(below + 1, top)))
    return label.otherwise(pl.lit("0"))


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _order(label: str) -> tuple[int, str]:
    """Ranges by where they begin, words after them."""
    number = label.split(" ")[0].replace(",", "")
    return (int(number), "") if number.isdigit() else (1 << 62, label)
