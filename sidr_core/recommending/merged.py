"""Direct and thinking in one list: what a checkpoint knows at once, and what its thought leads to.

A single committed thought empties a list where several answers are good; memory needs no thought. So an item's worth is

    (1 - thought) * p(item) + thought * ((1 - named) * t(item) + named * c(item))

with p its probability directly, t its probability after the thought, and c that of a candidate: the share of valid rows
in which the n-th of so many candidates that a thought names is the target. Only candidates count whose title and SID
are of one item of the catalogue. The two weights are chosen on valid rows. A thought that is ignored gets weight 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import polars as pl

from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.thoughts import named_items
from sidr_core.decoding.lists import Lists
from sidr_core.recommending.mixture import by_worth, chances, ndcg_at
from sidr_core.tables.columns import ITEM_ID, RANK, REASONING, ROW_ID, TARGET, TRACE

#: The weights that are tried.
THOUGHT_WEIGHTS = tuple(step / 10 for step in range(11))
NAMED_WEIGHTS = (0.0, 0.5, 1.0)
#: Hits and rows that are added to each share of :func:`candidate_shares`.
_PRIOR_HITS, _PRIOR_ROWS = 0.2, 1.0

#: (candidates that a thought names, position from 0) -> probability of being the target
Shares = Mapping[tuple[int, int], float]


@dataclass(frozen=True)
class Weights:
    """What was chosen on valid rows.

    Attributes:
        thought, named: the weights of the module's formula.
        ndcg: NDCG@10 (item level) on the valid rows at these; `direct` and `thinking` of these lists alone.
        rows: valid rows it was chosen on. shares: `n/position` -> probability of a candidate.
    """

    thought: float
    named: float
    ndcg: float
    direct: float
    thinking: float
    rows: int
    shares: dict[str, float]

    def known_shares(self) -> dict[tuple[int, int], float]:
        """`shares` by (n, position)."""
        pairs = {name: name.split("/") for name in self.shares}
        return {(int(n), int(position)): self.shares[name] for name, (n, position) in pairs.items()}


def named_candidates(thoughts: pl.DataFrame | None, catalogue: Catalogue) -> pl.DataFrame:
    """The real candidates of each row's thought: row_id, n (how many), position (from 0), item_id.

    Args:
        thoughts: row_id, trace and reasoning, as `Lists.thoughts`; trace 0 counts.
    """
    assert thoughts is not None, "candidates are named by thoughts"
    rows: list[tuple[str, int, int, str]] = []
    for row_id, text in thoughts.filter(pl.col(TRACE) == 0).select(ROW_ID, REASONING).iter_rows():
        item_ids = named_items(text or "", catalogue)
        rows += [(row_id, len(item_ids), position, item_id) for position, item_id in enumerate(item_ids)]
    return pl.DataFrame(
        rows, schema={ROW_ID: pl.String, "n": pl.Int32, "position": pl.Int32, ITEM_ID: pl.String}, orient="row"
    )


def candidate_shares(candidates: pl.DataFrame, targets: Mapping[str, str]) -> dict[tuple[int, int], float]:
    """How often the candidate at a position is the target, with a little doubt. `targets`: row_id -> item_id."""
    rows: Counter[tuple[int, int]] = Counter()
    hits: Counter[tuple[int, int]] = Counter()
    for row_id, n, position, item_id in candidates.iter_rows():
        rows[n, position] += 1
        hits[n, position] += targets[row_id] == item_id
    return {key: (hits[key] + _PRIOR_HITS) / (count + _PRIOR_ROWS) for key, count in rows.items()}


def merged(
    direct: Lists, thinking: Lists, catalogue: Catalogue, weights: Weights, codebook: pl.DataFrame, width: int
) -> Lists:
    """Lists of the merger, of `width` distinct SIDs; the score is the log of an item's worth.

    Args:
        direct, thinking: lists of one checkpoint for the same rows, scores in nats.
        weights: as :func:`choose_weights` gives them; a candidate without a share counts 0.
        codebook: item_id -> sid.
    """
    candidates = named_candidates(thinking.thoughts, catalogue)
    chosen = (weights.thought, weights.named)
    return _merged(direct, thinking, candidates, weights.known_shares(), chosen, codebook, width)


def choose_weights(
    direct: Lists, thinking: Lists, catalogue: Catalogue, valid: pl.DataFrame, codebook: pl.DataFrame, width: int
) -> Weights:
    """The weights with the highest NDCG@10 on valid rows; of equal ones the least thought.

    Args:
        direct, thinking: of the rows of `valid`, as of :func:`merged`. Test rows must never come here.
    """
    candidates = named_candidates(thinking.thoughts, catalogue)
    shares = candidate_shares(candidates, dict(valid.select(ROW_ID, TARGET).iter_rows()))

    def score(weights: tuple[float, float]) -> float:
        lists = _merged(direct, thinking, candidates, shares, weights, codebook, width)
        return ndcg_at(lists.rankings, valid, codebook, width)

    pairs = [weights for weights in product(THOUGHT_WEIGHTS, NAMED_WEIGHTS) if weights[0] or not weights[1]]
    tried = {weights: score(weights) for weights in pairs}
    best = max(tried, key=lambda weights: (tried[weights], -weights[0], -weights[1]))
    plain = {f"{n}/{position}": share for (n, position), share in sorted(shares.items())}
    return Weights(*best, tried[best], tried[0.0, 0.0], tried[1.0, 0.0], valid.height, plain)


def _merged(
    direct: Lists,
    thinking: Lists,
    candidates: pl.DataFrame,
    shares: Shares,
    weights: tuple[float, float],
    codebook: pl.DataFrame,
    width: int,
) -> Lists:
    thought, named = weights
    table = [(n, position, share) for (n, position), share in shares.items()]
    known = pl.DataFrame(table, schema={"n": pl.Int32, "position": pl.Int32, "worth": pl.Float64}, orient="row")
    parts = [
        (chances(direct.rankings), 1 - thought),
        (chances(thinking.rankings), thought * (1 - named)),
        (candidates.join(known, on=["n", "position"]), thought * named),
    ]
    # A part of weight 0 stays in the list at worth 0: where another part is empty, a row still has its list.
    weighed = [part.select(ROW_ID, ITEM_ID, pl.col("worth") * weight) for part, weight in parts]
    order = direct.rankings.select(ROW_ID, ITEM_ID, RANK)
    total = pl.concat(weighed).group_by(ROW_ID, ITEM_ID).agg(pl.col("worth").sum())
    lists = by_worth(total.join(order, on=[ROW_ID, ITEM_ID], how="left"), (RANK,), codebook, width)
    return Lists(lists.rankings, thinking.thoughts)
