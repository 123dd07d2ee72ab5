"""What the lists as a whole look like: coverage, Gini and novelty at k, invalid places, repeated beams, thoughts.

These are not means of a hit: coverage and Gini are statistics of all lists together. Their intervals come from
the same draws of users (no paper gives one). A draw holds about 63 % of the
users, so it covers fewer items than the whole: its distribution has the right width in the wrong place. The
intervals are therefore the draws moved so that their mean is the value.

Letters: R rows, U users, I items of the catalogue, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sidr_core.metrics.intervals import Floats, bootstrap, weights
from sidr_core.tables.columns import ITEM_ID, RANK, ROW_ID, SID, TARGET, USER_ID

COVERAGE, GINI, NOVELTY = "coverage", "gini", "novelty"
INVALID, DISTINCT, CLOSED_RATE, THOUGHT_TOKENS = "invalid_rate", "distinct_rate", "close_rate", "thought_tokens"
#: In the order of the tables; the first three are at each k, the others about whole lists and thoughts.
AT_K = (COVERAGE, GINI, NOVELTY)
WHOLE = (INVALID, DISTINCT, CLOSED_RATE, THOUGHT_TOKENS)

#: Draws of users for coverage and Gini: each sorts the whole catalogue.
_DRAWS = 1000
#: Numbers held at one time, as float64: 32 MiB.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Measured:
    """One number with its interval. `k` is the length of the list that counts, 0 where no list does."""

    metric: str
    k: int
    value: float
    low: float
    high: float


def coverage(counts: NDArray[Any]) -> Floats:
    """Share of the catalogue that is recommended at all: (D, I) counts of items -> (D,).

    >>> coverage(np.array([[3, 0, 1, 0]])).tolist()
    [0.5]
    """
    return (counts > 0).mean(axis=1)


def gini(counts: NDArray[Any]) -> Floats:
    """How unequal counts are, 0 (all items alike) to 1 - 1/I (one item has it all): (I,) -> (), (D, I) -> (D,).

    It is the mean absolute difference over twice the mean; 0 where all counts are 0.

    >>> gini(np.array([[1, 1, 1, 1], [0, 0, 0, 4]])).tolist()
    [0.0, 0.75]
    >>> float(gini(np.array([1, 3])))
    0.25
    """
    ordered = np.sort(counts, axis=-1).astype(np.float64)
    items = ordered.shape[-1]
    weight = 2 * np.arange(1, items + 1) - items - 1
    return (ordered @ weight) / np.maximum(items * ordered.sum(axis=-1), 1)


def self_information(train: pl.DataFrame, catalogue: pl.DataFrame) -> pl.DataFrame:
    """Bits by which each item of the catalogue surprises: -log2 of its share of train targets.

    One is added to each count, so that an item without a train sample has a finite value.

    Args:
        train: the contract `Samples`; only targets are read.
        catalogue: item_id.

    Returns:
        item_id, bits.
    """
    counts = train.group_by(pl.col(TARGET).alias(ITEM_ID)).len("n")
    known = catalogue.select(ITEM_ID).join(counts, on=ITEM_ID, how="left").with_columns(pl.col("n").fill_null(0) + 1)
    return known.select(ITEM_ID, (-(pl.col("n") / pl.col("n").sum()).log(2)).alias("bits"))


def measure(
    lists: pl.DataFrame,
    thoughts: pl.DataFrame | None,
    codebook: pl.DataFrame,
    bits: pl.DataFrame,
    ks: Sequence[int],
    width: int,
    options: dict[str, Any],
) -> list[Measured]:
    """The metrics of one model's lists.

    Args:
        lists: row_id, user_id, rank, item_id, sid of one model.
        thoughts: row_id, closed, n_tokens, any number per row; None for a model that does not think.
        codebook: item_id, sid: the catalogue.
        bits: see :func:`self_information`.
        ks: cut-offs of coverage, Gini and novelty.
        width: SIDs that a list should hold.
        options: draws, confidence and seed, as in :func:`~sidr_core.metrics.intervals.bootstrap`.
    """
    lists = lists.sort(ROW_ID, RANK)  # sums of floats have an order
    rows = lists.select(ROW_ID, USER_ID).unique().sort(ROW_ID)
    measured = []
    for k in ks:
        places = lists.filter(pl.col(RANK) <= k)
        measured += _spread(places, codebook, k, options)
        surprises = places.join(bits, on=ITEM_ID, how="inner", maintain_order="left")
        surprise = surprises.group_by(ROW_ID, maintain_order=True).agg(pl.col("bits").mean())
        measured.append(_mean(NOVELTY, k, rows.join(surprise, on=ROW_ID), "bits", options))
    catalogue = codebook.select(ITEM_ID, SID, pl.lit(False).alias("invalid"))
    full = min(width, codebook[SID].n_unique())
    validity = (
        lists.join(catalogue, on=[ITEM_ID, SID], how="left")
        .group_by(ROW_ID)
        .agg(pl.col("invalid").fill_null(True).mean(), (pl.col(SID).n_unique() / full).alias("distinct"))
    )
    scored = rows.join(validity, on=ROW_ID)
    measured += [_mean(INVALID, width, scored, "invalid", options), _mean(DISTINCT, width, scored, "distinct", options)]
    return measured + (_thoughts(rows, thoughts, options) if thoughts is not None else [])


def _thoughts(rows: pl.DataFrame, thoughts: pl.DataFrame, options: dict[str, Any]) -> list[Measured]:
    """Close rate over the rows that were thought about; tokens over all rows, 0 where nothing was thought."""
    per_row = thoughts.group_by(ROW_ID).agg(pl.col("closed").mean(), pl.col("n_tokens").sum())
    thought = rows.join(per_row, on=ROW_ID, how="inner")
    spent = rows.join(per_row, on=ROW_ID, how="left").with_columns(pl.col("n_tokens").fill_null(0))
    close_rate = [_mean(CLOSED_RATE, 0, thought, "closed", options)] if thought.height else []
    return [*close_rate, _mean(THOUGHT_TOKENS, 0, spent, "n_tokens", options)]


def _mean(metric: str, k: int, frame: pl.DataFrame, name: str, options: dict[str, Any]) -> Measured:
    """Mean of a per-row column; without an interval (its ends are the value) where all rows are of one user."""
    frame = frame.sort(ROW_ID)
    values = frame[name].cast(pl.Float64).to_numpy()[:, None]
    if frame[USER_ID].n_unique() < 2:
        value = float(values.mean())
        return Measured(metric, k, value, value, value)
    interval = bootstrap(values, frame[USER_ID].to_numpy(), **options)
    return Measured(metric, k, *(float(part[0]) for part in (interval.value, interval.low, interval.high)))


def _spread(places: pl.DataFrame, codebook: pl.DataFrame, k: int, options: dict[str, Any]) -> list[Measured]:
    """Coverage and Gini over the catalogue; intervals are the draws moved so that their mean is the value."""
    from scipy.sparse import csr_matrix

    items = codebook.select(ITEM_ID).sort(ITEM_ID).with_row_index("item")
    users = places.select(USER_ID).unique().sort(USER_ID).with_row_index("user")
    cells = places.join(items, on=ITEM_ID).join(users, on=USER_ID).group_by("user", "item").len("n")
    shape = (users.height, items.height)
    exposure = csr_matrix((cells["n"].to_numpy().astype(np.float64), (cells["user"], cells["item"])), shape=shape)
    total = np.asarray(exposure.sum(axis=0))
    drawn: list[tuple[Floats, Floats]] = []
    block = max(1, _BLOCK // max(shape)) * shape[0]
    for counts in weights(shape[0], min(options["draws"], _DRAWS), options["seed"], block):
        exposed = np.asarray(counts @ exposure)
        drawn.append((coverage(exposed), gini(exposed)))
    tail = (1 - options["confidence"]) / 2
    measured = []
    for number, (metric, function) in enumerate(((COVERAGE, coverage), (GINI, gini))):
        value, draws = float(function(total)[0]), np.concatenate([pair[number] for pair in drawn])
        low, high = np.clip(np.quantile(draws, [tail, 1 - tail]) - draws.mean() + value, 0, 1)
        measured.append(Measured(metric, k, value, min(value, float(low)), max(value, float(high))))
    return measured
