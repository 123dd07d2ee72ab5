"""HR and NDCG on parts of the test rows: for whom a model, and its thought, is worth something.

Slices are made of what was known before the target, and of the target itself, never of a model's list:

- `history_length`: items in the prompt.
- `target_popularity`: train samples that have the target, in terciles of the test rows that have any, and `0`.
- `cold_target`: whether the target has no train sample.
- `seen_pair`: whether a train sample goes from the history's last item to the target, only has the target, or neither.
- `kind`: what it takes to know the target, where the source says (the column `kind` of test rows; the sample does).
- `repeat_purchase`: whether the target is in the history.
- `same_brand`, `same_category`: as the last item of the history; `unknown` where either has none.

The paper has no slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.evaluation.protocol import headline, thinking_pairs
from sidr_core.evaluation.verdicts import gap_rows, judge
from sidr_core.metrics.intervals import Floats, differences, draw_means, share_summary
from sidr_core.metrics.ranking import HR, NDCG, column
from sidr_core.settings.models import split_name
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Slices

if TYPE_CHECKING:
    from sidr_core.settings import Evaluation

METRICS = (HR, NDCG)
_VALUE = ("value", "ci_low", "ci_high")
#: First length of each bin of the history.
_LENGTHS = (1, 3, 5, 10)


def groups_of(test: pl.DataFrame, train: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Which group of each slice each row is in.

    Args:
        test: the contract `Samples`.
        train: the contract `Samples`; only targets and the last items of histories count.
        items: item_id, brand, category.

    Returns:
        row_id and one column of text per slice, in the order of `test`; columns in the order of the tables.
    """
    counts = train.group_by(c.TARGET).len("count")
    rows = test.join(counts, on=c.TARGET, how="left", maintain_order="left").with_columns(pl.col("count").fill_null(0))
    last = rows.with_columns(pl.col(c.HISTORY).list.last().alias("last"))
    known = items.select(c.ITEM_ID, c.BRAND, c.CATEGORY)
    for side in ("last", c.TARGET):
        renamed = known.rename({c.ITEM_ID: side, c.BRAND: f"{side}_{c.BRAND}", c.CATEGORY: f"{side}_{c.CATEGORY}"})
        last = last.join(renamed, on=side, how="left", maintain_order="left")
    pairs = train.select(pl.col(c.HISTORY).list.last().alias("last"), c.TARGET, pl.lit(True).alias("pair")).unique()
    last = last.join(pairs, on=["last", c.TARGET], how="left", maintain_order="left")
    kinds = [pl.col(c.KIND).fill_null("unknown")] if c.KIND in test.columns and test[c.KIND].count() else []
    return last.select(
        c.ROW_ID,
        _length().alias("history_length"),
        _popularity(rows["count"]).alias("target_popularity"),
        _yes(pl.col("count") == 0).alias("cold_target"),
        pl.when("pair")
        .then(pl.lit("pair seen"))
        .when(pl.col("count") > 0)
        .then(pl.lit("target seen"))
        .otherwise(pl.lit("never seen"))
        .alias("seen_pair"),
        _yes(pl.col(c.HISTORY).list.contains(pl.col(c.TARGET))).alias("repeat_purchase"),
        _same(c.BRAND).alias("same_brand"),
        _same(c.CATEGORY).alias("same_category"),
        *kinds,
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
    columns = [column(c.ITEM_LEVEL, metric, k) for metric in METRICS]
    names = list(scores)
    labelled = scores[names[0]].select(c.ROW_ID, c.USER_ID).join(groups, on=c.ROW_ID, how="left", maintain_order="left")
    values = np.hstack([scores[name].select(columns).to_numpy() for name in names])
    users = labelled[c.USER_ID].to_numpy()
    rows: list[dict[str, Any]] = []
    for slice_name in groups.columns[1:]:
        labels = labelled[slice_name].to_numpy()
        for label in sorted(set(labels), key=_order):
            inside = labels == label
            shared = {**context, "slice": slice_name, "group": label, "k": k, "level": c.ITEM_LEVEL}
            shared |= {"n_rows": int(inside.sum()), "n_users": len(np.unique(users[inside])), "seed": settings.seed}
            rows += [shared | row for row in _group(values[inside], users[inside], names, settings)]
    judge(rows, settings, "value")
    return tables.typed(rows, Slices)


def _group(values: Floats, users: np.ndarray, names: list[str], settings: Evaluation) -> list[dict[str, Any]]:
    """Rows of one group: values of every list, then the differences; `values` is (R, lists x metrics)."""
    means = None
    if len(np.unique(users)) > 1:
        means = draw_means(values, users, draws=settings.bootstrap, seed=settings.seed)
    columns = {name: slice(len(METRICS) * n, len(METRICS) * (n + 1)) for n, name in enumerate(names)}
    rows: list[dict[str, Any]] = []

    def add(name: str, minus: str | None, numbers: Sequence[Mapping[str, Any]]) -> None:
        model, mode = split_name(name)
        rows.extend(
            {c.MODEL: model, c.MODE: mode, "minus": minus, "metric": metric, **row}
            for metric, row in zip(METRICS, numbers, strict=True)
        )

    for name, at in columns.items():
        if means is None:
            add(name, None, [{"value": value} for value in values[:, at].mean(axis=0)])
        else:
            interval = share_summary(values[:, at], means[:, at], len(np.unique(users)), settings.confidence)
            ends = zip(interval.value, interval.low, interval.high, strict=True)
            add(name, None, [dict(zip(_VALUE, numbers, strict=True)) for numbers in ends])
    for a, b in thinking_pairs(names):
        gap = values[:, columns[a]] - values[:, columns[b]]
        if means is None:
            add(a, b, [{"value": value} for value in gap.mean(axis=0)])
        else:
            drawn = means[:, columns[a]] - means[:, columns[b]]
            add(a, b, gap_rows(differences(gap, drawn, users, settings.confidence, settings.margin), _VALUE))
    return rows


def _yes(condition: pl.Expr) -> pl.Expr:
    return pl.when(condition).then(pl.lit("yes")).otherwise(pl.lit("no"))


def _same(name: str) -> pl.Expr:
    """Whether the target has the last item's brand or category; `unknown` where either is absent or empty."""
    last, target = pl.col(f"last_{name}"), pl.col(f"{c.TARGET}_{name}")
    absent = last.is_null() | target.is_null() | (last == "") | (target == "")
    return pl.when(absent).then(pl.lit("unknown")).otherwise(_yes(last == target))


def _length() -> pl.Expr:
    length = pl.col(c.HISTORY).list.len()
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
