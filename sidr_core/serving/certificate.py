"""Whether another engine answers as ours does: an equivalence certificate of two sets of lists.

A half-precision engine need not give the same lists; it must not be a worse recommender. So the certificate has
three parts. The catalogue must be ours, row by row, and each row be answered with items of it. No item may be lost:
one that stands in the first half of a reference list must be in some list of the engine. And HR and NDCG of the same
rows must agree: the interval of their difference, over users, lies within a margin that was set before. Identical lists
need no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from sidr_core.errors import SidrError
from sidr_core.metrics.intervals import paired
from sidr_core.metrics.ranking import HR, NDCG, gains
from sidr_core.render.grid import markdown_table
from sidr_core.render.text import markdown_text
from sidr_core.serving.catalogues import Catalogue

MARGIN = 0.02
#: Most characters of a fault.
_SHOWN = 120
_DRAWS, _CONFIDENCE, _SEED = 10_000, 0.95, 42


@dataclass(frozen=True)
class Certificate:
    """Two sets of lists compared at `k`. R rows.

    Attributes:
        overlap: mean share of the reference's first k items that are among the engine's.
        order: share of pairs of common items that stand in the same order; 1 where no row has two.
        identical: rows whose first k items are the same in the same order.
        gaps: metric -> (reference, engine minus reference, low, high).
        lost: items of the first half of a reference list that no list of the engine holds.
        faults: what is wrong with the engine's catalogue.
        strangers: what the engine's lists hold that is no item.
        empty: rows for which the engine's list holds nothing, and why.
    """

    k: int
    rows: int
    users: int
    overlap: float
    order: float
    identical: int
    gaps: Mapping[str, tuple[float, float, float, float]]
    lost: tuple[str, ...]
    faults: tuple[str, ...]
    strangers: tuple[str, ...]
    empty: tuple[str, ...]

    @property
    def equivalent(self) -> bool:
        """The catalogue is ours, each row has a list of its items, none is lost, and no interval leaves the margin."""
        return not self._against

    @property
    def _against(self) -> str:
        """What speaks against it, in words."""
        for wrong, told in (
            (self.faults, "the engine's catalogue is another"),
            (self.strangers, "it answers with what is no item"),
            (self.empty, "rows without a list"),
            (self.lost, "lost items"),
        ):
            if wrong:
                return f"NOT equivalent: {told}"
        inside = all(low > -MARGIN and high < MARGIN for _, _, low, high in self.gaps.values())
        if inside or self.identical == self.rows:
            return ""
        worse = any(high <= 0 for _, _, _, high in self.gaps.values())
        return (
            "NOT equivalent: worse" if worse else "NOT shown: an interval reaches past the margin; more rows narrow it"
        )

    def __str__(self) -> str:
        head = self._against or "equivalent"
        rows = [
            ["rows, users", f"{self.rows:,}, {self.users:,}", ""],
            ["identical lists", f"{self.identical:,} of {self.rows:,}", ""],
            [f"overlap@{self.k}", f"{self.overlap:.4f}", ""],
            ["order agreement", f"{self.order:.4f}", ""],
        ]
        for name, (value, gap, low, high) in self.gaps.items():
            rows.append([f"{name}@{self.k}", f"{value:.4f}", f"{gap:+.4f} [{low:+.4f}, {high:+.4f}], margin ±{MARGIN}"])
        for title, names in (
            ("lost items", self.lost),
            ("rows without a list", self.empty),
            ("answers that are no item", self.strangers),
            ("catalogue", self.faults),
        ):
            rows.append([title, f"{len(names):,}", "; ".join(markdown_text(name, _SHOWN) for name in names[:3])])
        table = markdown_table(["", "reference", "engine - reference"], rows)
        return f"Equivalence certificate: {head}\n\n{table}"


def certificate(
    reference: Sequence[Mapping[str, Any]],
    lists: Mapping[str, Sequence[str]],
    k: int,
    right: Catalogue | None = None,
    faults: Sequence[str] = (),
    reasons: Mapping[str, str] | None = None,
) -> Certificate:
    """Compare the lists of an engine with the reference.

    Args:
        reference: R rows with `row_id`, `user_id`, `target` and `items`.
        lists: row_id -> items of the engine, best first.
        k: items per list that count.
        right: the catalogue that the lists are to be of; None: they are not looked up.
        faults: of the engine's catalogue.
        reasons: row_id -> why its list is empty, where that is known.

    Raises:
        SidrError: a row has no list, or there are fewer than two users.
    """
    users = [row["user_id"] for row in reference]
    missing = [row["row_id"] for row in reference if row["row_id"] not in lists]
    if missing or len(set(users)) < 2:
        raise SidrError(
            "the lists cannot be compared",
            expected=f"a list for each of {len(reference):,} reference rows, of two users at least",
            found=f"{len(missing):,} rows without one, such as {', '.join(map(str, missing[:3])) or '-'}; "
            f"{len(set(users))} users",
            fix="answer every prompt of reference.jsonl, under its row_id",
        )
    ours = [list(row["items"])[:k] for row in reference]
    theirs = [list(lists[row["row_id"]])[:k] for row in reference]
    answered = {item for items in theirs for item in items}
    known = answered if right is None else {item for items in right.items for item in items}
    why = reasons or {}
    expected = {item for items in ours for item in items[: (k + 1) // 2]}
    values = [
        np.array([_gain(items, row["target"], k) for items, row in zip(side, reference, strict=True)])
        for side in (ours, theirs)
    ]
    gap = paired(values[1], values[0], users, draws=_DRAWS, confidence=_CONFIDENCE, seed=_SEED).interval
    columns = zip((HR, NDCG), values[0].mean(axis=0), gap.value, gap.low, gap.high, strict=True)
    pairs = [_same_order(a, b) for a, b in zip(ours, theirs, strict=True)]
    total = sum(count for _, count in pairs)
    return Certificate(
        k=k,
        rows=len(reference),
        users=len(set(users)),
        overlap=float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(ours, theirs, strict=True)])),
        order=sum(same for same, _ in pairs) / total if total else 1.0,
        identical=sum(a == b for a, b in zip(ours, theirs, strict=True)),
        gaps={name: (float(value), *map(float, rest)) for name, value, *rest in columns},  # type: ignore[misc]
        lost=tuple(sorted(expected - answered)),
        faults=tuple(faults),
        strangers=tuple(sorted(answered - known)),
        empty=tuple(
            f"{row['row_id']}: {why.get(row['row_id'], 'nothing in it')}"
            for row, items in zip(reference, theirs, strict=True)
            if not items
        ),
    )


def _gain(items: Sequence[str], target: str, k: int) -> tuple[float, float]:
    """HR@k and NDCG@k of one list."""
    return gains([items.index(target) + 1], k)[:2] if target in items else (0.0, 0.0)


def _same_order(a: Sequence[str], b: Sequence[str]) -> tuple[int, int]:
    """Pairs of common items that stand in the same order in both lists, and all pairs.

    >>> _same_order(["x", "y", "z"], ["y", "x", "w"])
    (0, 1)
    """
    place = {item: n for n, item in enumerate(b)}
    common = [place[item] for item in a if item in place]
    pairs = list(combinations(common, 2))
    return sum(first < second for first, second in pairs), len(pairs)
