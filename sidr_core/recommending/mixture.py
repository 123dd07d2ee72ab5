"""Lists that combine what others know: the shortcut, SASRec, and a checkpoint's own lists.

An item's worth is the weighted sum of what each part gives it, from 1 for the part's first item down to 0 for what it
does not list: the shortcut its score over that of its first item, the others the square root of their probability over
that of their first item (the root keeps a sharp list from shutting the others out). It is shallow fusion, as speech
recognisers mix a language model in, and no part of the paper's method.

Weights are tenths that sum to 1, chosen on valid rows, apart for the routes of a rule: what a row shows before its
answer. Which rule, and whether the mixture is published at all, is decided on rows that did not choose its weights: one
half of the valid users chooses for the other. Where that is not above the shortcut, the list is the shortcut.

Shapes: R rows, E candidates of all rows, P parts, G weights that are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from sidr_core.decoding.lists import Lists, counted
from sidr_core.metrics.ranking import NDCG, column, per_row
from sidr_core.tables.columns import (
    DIRECT,
    HISTORY,
    ITEM_ID,
    ITEM_LEVEL,
    MODE,
    MODEL,
    RANK,
    ROW_ID,
    SCORE,
    SID,
    TARGET,
    USER_ID,
)

#: The part that all others are measured against; it always comes first.
SHORTCUT = "shortcut"
#: The parts that are no checkpoint's lists, and how much longer than the list theirs are.
RANKERS, _DEEPER = (SHORTCUT, "sasrec"), 5
_STEPS, _K = 10, 10
#: A route with fewer valid rows has the weights of all rows.
_LEAST_ROWS = 100
#: A history is short up to so many items.
_SHORT = 5
#: Above every rank.
_LONGEST = 1_000_000


@dataclass(frozen=True)
class Choice:
    """What valid rows chose.

    Attributes:
        parts: the shortcut, then the others. weights: route -> one weight per part.
        rule: what tells the routes of a row, a key of :func:`routes`.
        ndcg: NDCG@10 (item level) on each half of the valid rows with what the other half chose.
        shortcut: of the shortcut on the same rows. rows: how many they are.
    """

    parts: tuple[str, ...]
    weights: Mapping[str, tuple[float, ...]]
    rule: str
    ndcg: float
    shortcut: float
    rows: int

    @property
    def is_shortcut(self) -> bool:
        """Whether nothing was better than the shortcut, so that the list is the shortcut's."""
        return all(weights[0] == 1 for weights in self.weights.values())

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts on which the lists rest."""
        return self.parts[:1] if self.is_shortcut else self.parts

    def __str__(self) -> str:
        return "; ".join(
            f"{route}: " + ", ".join(f"{part} {weight:g}" for part, weight in zip(self.parts, of_route, strict=True))
            for route, of_route in self.weights.items()
        )


def depth(width: int, codebook: pl.DataFrame) -> int:
    """Distinct SIDs in the rankers' lists behind a list of `width`. `codebook`: item_id -> sid."""
    return min(_DEEPER * width, codebook[SID].n_unique())


def met_in(train: pl.DataFrame) -> pl.Series:
    """The items of the histories of train rows (the contract `Samples`)."""
    return train.select(pl.col(HISTORY).explode().unique()).to_series()


def routes(rows: pl.DataFrame, met: pl.Series) -> dict[str, np.ndarray]:
    """The rules that are tried: name -> the route (R,) of each row, by what it shows before its answer.

    Args:
        rows: the contract `Samples`; only histories count. met: of :func:`met_in`.
    """
    last, length = pl.col(HISTORY).list.last(), pl.col(HISTORY).list.len()
    told = {
        "none": (length >= 0, "all rows", ""),
        "last item": (last.is_in(met.implode()), "last item met in train", "last item new"),
        "length": (length <= _SHORT, f"up to {_SHORT} items", "more items"),
    }
    return {
        rule: rows.select(pl.when(first).then(pl.lit(yes)).otherwise(pl.lit(no))).to_series().to_numpy()
        for rule, (first, yes, no) in told.items()
    }


@dataclass(frozen=True, eq=False)
class Candidates:
    """All items that some part lists for R rows, the better placed first.

    Attributes:
        table: row_id, item_id; E of them, rows in the order of `row_ids`.
        worth: (E, P) from 0 to 1. row: (E,) number of the row. row_ids: (R,).
    """

    table: pl.DataFrame
    worth: np.ndarray
    row: np.ndarray
    row_ids: pl.Series

    @classmethod
    def of(cls, parts: Mapping[str, pl.DataFrame], row_ids: pl.Series) -> Candidates:
        """From each part's lists (`lists.RANKING`) of the same rows; the shortcut comes first."""
        numbers = pl.DataFrame({ROW_ID: row_ids, "row": np.arange(len(row_ids))}, schema_overrides={ROW_ID: pl.String})
        lines = pl.concat(
            _worths(lists, number == 0)
            .with_columns(pl.lit(number).alias("part"))
            .select(ROW_ID, ITEM_ID, RANK, "part", "worth")
            for number, lists in enumerate(parts.values())
        )
        table = (
            lines.group_by(ROW_ID, ITEM_ID)
            .agg(
                *(pl.col("worth").filter(pl.col("part") == n).sum().alias(str(n)) for n in range(len(parts))),
                (pl.col("part") * _LONGEST + pl.col(RANK)).min().alias("place"),
            )
            .join(numbers, on=ROW_ID)
            .sort("row", "place")
        )
        worth = table.select(str(n) for n in range(len(parts))).to_numpy()
        return cls(table.select(ROW_ID, ITEM_ID), worth, table["row"].to_numpy(), row_ids)

    @cached_property
    def starts(self) -> np.ndarray:
        """(R,) the first candidate of each row."""
        return np.searchsorted(self.row, np.arange(len(self.row_ids)))

    def gains(self, weights: np.ndarray, targets: pl.Series) -> np.ndarray:
        """(R,) NDCG@10 of each row's target (R,) in the list by `weights` (P,); 0 where no part lists it."""
        score = self.worth @ weights
        is_target = (self.table[ITEM_ID] == targets.gather(self.row)).to_numpy()
        at = np.flatnonzero(is_target)
        found = np.full(len(self.row_ids), np.inf)
        place = np.full(len(self.row_ids), -1)
        found[self.row[at]], place[self.row[at]] = score[at], at
        own = found[self.row]
        ahead = (score > own) | ((score == own) & (np.arange(len(score)) < place[self.row]))
        rank = np.add.reduceat(ahead, self.starts)
        return np.where((place >= 0) & (rank < _K), 1 / np.log2(rank + 2.0), 0.0)


def _worths(lists: pl.DataFrame, is_counted: bool) -> pl.DataFrame:
    """Lists with `worth`, 1 for the first item of each."""
    if is_counted:
        score = pl.col(SCORE).clip(lower_bound=0)
        return lists.with_columns((score / pl.max_horizontal(score.max().over(ROW_ID), 1e-12)).alias("worth"))
    score = pl.col(SCORE) - pl.len().over(ROW_ID, SID).log()  # items of one SID share its probability
    return lists.with_columns(((score - score.max().over(ROW_ID)) / 2).exp().alias("worth"))


def weights_tried(parts: int) -> np.ndarray:
    """(G, P): tenths that sum to 1, those with more of the first part before the others."""
    grid = np.stack(np.meshgrid(*[np.arange(_STEPS, -1, -1)] * parts, indexing="ij"), axis=-1).reshape(-1, parts)
    return grid[grid.sum(axis=1) == _STEPS] / _STEPS


def choose(
    candidates: Candidates, valid: pl.DataFrame, by_rule: Mapping[str, np.ndarray], parts: Sequence[str]
) -> Choice:
    """The rule and weights of the best mixture, by NDCG@10 on valid rows; see the head of this module.

    Args:
        candidates: of the rows of `valid`, in its order. Test rows must never come here.
        by_rule: of :func:`routes`. parts: names, as they are in `candidates`.
    """
    tried = weights_tried(len(parts))
    gains = np.stack([candidates.gains(weights, valid[TARGET]) for weights in tried])  # (G, R)
    half = valid[USER_ID].rank("dense").to_numpy() % 2

    def chosen(rule: str, rows: np.ndarray) -> dict[str, int]:
        """Route -> number of its best weights on some rows."""
        best, of = int(gains[:, rows].mean(axis=1).argmax()), by_rule[rule]
        masks = {route: rows & (of == route) for route in np.unique(of).tolist()}
        return {
            route: int(gains[:, mask].mean(axis=1).argmax()) if mask.sum() >= _LEAST_ROWS else best
            for route, mask in masks.items()
        }

    def crossed(rule: str) -> float:
        picked = np.zeros(valid.height)
        for side in (0, 1):
            there = half == side
            if there.all() or not there.any():  # one user alone has no other half
                return 0.0
            for route, number in chosen(rule, ~there).items():
                at = there & (by_rule[rule] == route)
                picked[at] = gains[number, at]
        return float(picked.mean())

    measured = {rule: crossed(rule) for rule in by_rule}
    rule = max(measured, key=lambda name: measured[name])
    shortcut = float(gains[0].mean())
    if measured[rule] <= shortcut:
        alone = (1.0, *[0.0] * (len(parts) - 1))
        return Choice(tuple(parts), {"all rows": alone}, "none", shortcut, shortcut, valid.height)
    of_route = chosen(rule, np.ones(valid.height, dtype=bool))
    weights = {route: tuple(tried[number].tolist()) for route, number in of_route.items()}
    return Choice(tuple(parts), weights, rule, measured[rule], shortcut, valid.height)


def combined(
    candidates: Candidates, choice: Choice, by_rule: Mapping[str, np.ndarray], codebook: pl.DataFrame, width: int
) -> Lists:
    """Lists by worth, of `width` distinct SIDs; the score is the log of an item's worth.

    Args:
        by_rule: of :func:`routes`, of the rows of `candidates`. codebook: item_id -> sid.
    """
    everywhere = np.mean(list(choice.weights.values()), axis=0)  # for a route that no valid row had
    weights = np.stack([choice.weights.get(route, everywhere) for route in by_rule[choice.rule]])  # (R, P)
    worth = (candidates.worth * weights[candidates.row]).sum(axis=1)
    table = candidates.table.with_columns(pl.Series("worth", worth), pl.int_range(pl.len()).alias("place"))
    return by_worth(table, ("place",), codebook, width)


def listed(
    parts: Mapping[str, pl.DataFrame],
    choice: Choice,
    rows: pl.DataFrame,
    met: pl.Series,
    codebook: pl.DataFrame,
    width: int,
) -> Lists:
    """The lists that a choice makes of its parts: `width` distinct SIDs per row.

    Args:
        parts: lists (`lists.RANKING`) of `rows` for each of `Choice.needed`, in that order.
        met: of :func:`met_in`. codebook: item_id -> sid.
    """
    if choice.is_shortcut:
        return counted(next(iter(parts.values())), codebook, width)
    return combined(Candidates.of(parts, rows[ROW_ID]), choice, routes(rows, met), codebook, width)


def chances(rankings: pl.DataFrame, name: str = "worth") -> pl.DataFrame:
    """row_id, item_id, rank and, as `name`, the probability of each item: that of its SID, shared among its items.

    Args:
        rankings: lists of a checkpoint (`lists.RANKING`), scores in nats.
    """
    sharing = pl.len().over(ROW_ID, SID)
    return rankings.select(ROW_ID, ITEM_ID, (pl.col(SCORE).exp() / sharing).alias(name), RANK)


def by_worth(items: pl.DataFrame, ties: Sequence[str], codebook: pl.DataFrame, width: int) -> Lists:
    """Lists in the order of `worth`, of `width` distinct SIDs; the score is its log.

    Args:
        items: row_id, item_id, `worth` and the columns of `ties`.
        ties: order of items of equal worth, smallest first and null last; then by item id.
        codebook: item_id -> sid.
    """
    order = [ROW_ID, "worth", *ties, ITEM_ID]
    ranked = items.sort(order, descending=[name == "worth" for name in order], nulls_last=True).select(
        ROW_ID,
        pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(ROW_ID).alias(RANK),
        ITEM_ID,
        pl.max_horizontal("worth", pl.lit(1e-30)).log().alias(SCORE),
    )
    return counted(ranked, codebook, width)


def ndcg_at(rankings: pl.DataFrame, rows: pl.DataFrame, codebook: pl.DataFrame, k: int) -> float:
    """Mean NDCG at `min(k, 10)`, item level, of lists for some rows."""
    k = min(k, _K)
    named = rankings.with_columns(pl.lit("").alias(MODEL), pl.lit(DIRECT).alias(MODE))
    gains = per_row(named, rows, codebook, (k,))[column(ITEM_LEVEL, NDCG, k)].to_list()
    return sum(gains) / len(gains)
