"""How good a codebook is: use of the codes, prefixes, and what they have to do with the items.

The paper reports collisions only. A codebook can have none and still be useless, when a few codes hold
nearly everything or prefixes mean nothing: hence use, agreement with labels, and nearest items, and
:func:`collapse`, which says what makes a codebook unfit to train on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.metrics.lists import gini
from sidr_core.render.grid import markdown_table
from sidr_core.render.text import markdown_text
from sidr_core.sids.collisions import group_numbers
from sidr_core.sids.kmeans import blocks
from sidr_core.tables.columns import BRAND, CATEGORY, SID, TITLE

if TYPE_CHECKING:
    from sidr_core.sids.quantize import Codebook

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EXAMPLES, _NEIGHBOURS, _SAMPLE = 5, 4, 256

#: A level is collapsed below this perplexity, as a share of its codes (or of the items, if fewer).
LEAST_PERPLEXITY = 0.05
#: ... or if one of its codes holds a larger share of the items than this.
LARGEST_CODE = 0.5
#: The largest share of the items that may stand under one prefix (all levels but the last).
LARGEST_PREFIX = 0.2
#: The lower levels may be used unevenly where no more than this share of the items collides.
FEW_COLLISIONS = 0.05


# -- numbers ------------------------------------------------------------------------------------


def perplexity(counts: np.ndarray) -> float:
    """The exponential of the entropy: the number of equally used codes that would be as even."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def usage(codes: np.ndarray, size: int) -> dict[str, float]:
    """Per level of codes (N, L): how many codes are in use, their perplexity, and Gini over all `size`."""
    used: dict[str, float] = {}
    for letter, column in zip(LETTERS, codes.T, strict=False):
        counts = np.bincount(column, minlength=size)
        used[f"level_{letter}_codes"] = int((counts > 0).sum())
        used[f"level_{letter}_perplexity"] = round(perplexity(counts), 2)
        used[f"level_{letter}_gini"] = round(float(gini(counts)), 4)
    return used


def collision_rate(codes: np.ndarray) -> float:
    """(items - distinct SIDs) / items."""
    return (len(codes) - len(np.unique(group_numbers(codes)))) / len(codes)


def prefix_counts(codes: np.ndarray) -> np.ndarray:
    """Items per distinct prefix; the prefix is all levels but the last, so one level has one prefix."""
    return np.bincount(group_numbers(codes[:, :-1]))


def squared_errors(book: Codebook, vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(N,) squared distance of each text vector (N, D) from what its codes (N, L) stand for."""
    return np.concatenate(
        [np.zeros(0)]
        + [
            ((vectors[block] - book.reconstruct(codes[block])).astype(np.float64) ** 2).sum(axis=1)
            for block in blocks(len(vectors))
        ]
    )


def relative_error(vectors: np.ndarray, errors: np.ndarray) -> float:
    """Sum of the squared errors (N,) over that of the mean vector of (N, D): 0 exact, 1 useless."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    spread = sum(float(((vectors[block] - mean) ** 2).sum()) for block in blocks(len(vectors)))
    return float(errors.sum()) / spread if spread else 0.0


# -- what prefixes mean -------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How often two items of one group have the same label, and how often any two items have."""

    pairs: int  # of items that share their group, both labelled
    same: float  # share of these pairs with one label
    chance: float  # share of all labelled pairs with one label

    @property
    def lift(self) -> float:
        """1 where groups have nothing to do with labels; at most 1 / chance."""
        return self.same / self.chance


def agreement(groups: np.ndarray, labels: pl.Series) -> Agreement | None:
    """Agreement of groups (N,) with labels (N strings; empty or null ones are left out).

    Pairs are counted, not items: groups of one item, of which a fine prefix has many, say nothing and
    weigh nothing. None where fewer than two labels occur, no label twice, or no labelled pair shares a group.
    """
    named = (labels.fill_null("") != "").to_numpy()
    kinds = labels.filter(pl.Series(named)).cast(pl.Categorical).to_physical().to_numpy().astype(np.int64)
    kinds, groups = np.unique(kinds, return_inverse=True)[1], groups[named]
    pairs, chance = _pairs(groups), _pairs(kinds)
    if not pairs or not chance or kinds.max() == 0:
        return None
    both = _pairs(group_numbers(np.stack([groups, kinds], axis=1)))
    return Agreement(pairs, both / pairs, chance / (len(kinds) * (len(kinds) - 1) // 2))


def _pairs(groups: np.ndarray) -> int:
    """Pairs of entries that are equal."""
    counts = np.unique(groups, return_counts=True)[1].astype(object)  # exact: a million items make 5e11 pairs
    return int((counts * (counts - 1) // 2).sum()) if len(counts) else 0


def agreements(codes: np.ndarray, items: pl.DataFrame) -> dict[tuple[str, str], Agreement]:
    """(column, prefix letters) -> agreement, for category and brand and every prefix shorter than the SID."""
    depths = range(1, max(2, codes.shape[1]))
    agreed = {
        (name, LETTERS[:depth]): agreement(group_numbers(codes[:, :depth]), items[name])
        for name in (CATEGORY, BRAND)
        for depth in depths
    }
    return {key: value for key, value in agreed.items() if value is not None}


def shared_levels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) leading levels in which codes (N, L) and (N, L) are equal."""
    return np.cumprod(first == second, axis=1).sum(axis=1)


def nearest_items(vectors: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """(n, count) rows of the other items whose vectors (N, D) are nearest to those of `rows` (n,)."""
    import faiss

    count = min(count, len(vectors) - 1)
    neighbours = faiss.knn(np.ascontiguousarray(vectors[rows]), vectors, count + 1)[1]
    # an item is not always its own first neighbour: others may have the same vector
    others = neighbours != rows[:, None]
    others[others.all(axis=1), -1] = False
    return neighbours[others].reshape(len(rows), count)


def nearest_shares(codes: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """Share of up to 256 items, spread over the catalogue, whose nearest item by text has their prefix."""
    rows = _spread(len(codes), _SAMPLE)
    if len(codes) < 2:
        return {}
    levels = shared_levels(codes[rows], codes[nearest_items(vectors, rows, 1)[:, 0]])
    depths = range(1, max(2, codes.shape[1]))
    return {f"nearest_shares_{LETTERS[:depth]}": round(float((levels >= depth).mean()), 4) for depth in depths}


def _spread(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


# -- collapse -----------------------------------------------------------------------------------


def collapse(codes: np.ndarray, size: int) -> list[str]:
    """What makes these codes (N, L) useless, one sentence each; none if nothing does.

    They should be the nearest codes, before collisions are resolved: items that are forced apart make
    the codes of a collapsed codebook look even. A few codes per level, or a few prefixes, cannot be
    used evenly enough to judge, so the limits are wider there. A level below the first is not judged where the codes
    tell nearly all items apart: an item that is alone in its cluster has no residual, and all such items have one code.
    """
    faults = []
    levels = codes.T[:1] if collision_rate(codes) <= FEW_COLLISIONS else codes.T
    for letter, column in zip(LETTERS, levels, strict=False):
        counts = np.bincount(column)
        even, least = perplexity(counts), max(1.5, LEAST_PERPLEXITY * min(size, len(codes)))
        share, most = counts.max() / len(codes), max(LARGEST_CODE, 1.5 / size)
        if even < least:
            faults.append(f"level {letter} has a perplexity of {even:.1f}, below {least:.1f}")
        if share > most:
            faults.append(f"{share:.0%} of the items have code <{letter}_{counts.argmax()}>, above {most:.0%}")
    largest = int(prefix_counts(codes).max())
    prefixes = size ** (codes.shape[1] - 1)
    if codes.shape[1] > 1 and largest > max(2, len(codes) * max(LARGEST_PREFIX, 4 / prefixes)):
        faults.append(f"one prefix holds {largest} of {len(codes)} items")
    return faults


# -- what a person looks at ---------------------------------------------------------------------


def level_table(codes: np.ndarray, size: int) -> str:
    """Markdown: use of each level."""
    used, rows = usage(codes, size), []
    for letter in LETTERS[: codes.shape[1]]:
        count, even, uneven = (used[f"level_{letter}_{name}"] for name in ("codes", "perplexity", "gini"))
        rows.append((letter, f"{count:.0f}", str(size), f"{even:.1f}", f"{uneven:.3f}"))
    return markdown_table(("level", "codes in use", "of", "perplexity", "Gini"), rows)


def agreement_table(agreed: dict[tuple[str, str], Agreement]) -> str:
    """Markdown: for each label and prefix, how often two items of one prefix share the label."""
    if not agreed:
        return "The catalogue has neither categories nor brands to compare with."
    rows = [
        (name, prefix, f"{one.pairs:,}", f"{one.same:.2%}", f"{one.chance:.2%}", f"{one.lift:.1f}")
        for (name, prefix), one in agreed.items()
    ]
    return markdown_table(("label", "prefix", "pairs", "same label", "by chance", "lift"), rows, "llr")


def prefix_examples(codes: np.ndarray, items: pl.DataFrame) -> str:
    """Markdown: five items, spread over the catalogue, each with those that share its longest prefix.

    `items` has title and sid, in the order of codes (N, L).
    """
    lines = []
    for row in _spread(len(codes), _EXAMPLES).tolist():
        shared = shared_levels(codes, codes[row][None])
        shared[row] = -1
        nearest = np.argsort(-shared, kind="stable")[:_NEIGHBOURS]
        lines.append(_item_line(items, row))
        lines += [f"  {_item_line(items, m, strong=False)}" for m in nearest.tolist() if shared[m] > 0]
    return "\n".join(lines)


def nearest_examples(codes: np.ndarray, vectors: np.ndarray, items: pl.DataFrame) -> str:
    """Markdown: five items with those nearest by text, and the leading levels that they share."""
    if len(codes) < 2:
        return "There is one item only."
    rows = _spread(len(codes), _EXAMPLES)
    lines = []
    for row, nearest in zip(rows.tolist(), nearest_items(vectors, rows, _NEIGHBOURS).tolist(), strict=True):
        lines.append(_item_line(items, row))
        levels = shared_levels(codes[nearest], codes[row][None]).tolist()
        for other, shared in zip(nearest, levels, strict=True):
            lines.append(f"  {_item_line(items, other, strong=False)} – shares {shared} of {codes.shape[1]} levels")
    return "\n".join(lines)


def _item_line(items: pl.DataFrame, row: int, strong: bool = True) -> str:
    title, sid = markdown_text(items[TITLE][row]), items[SID][row]
    return f"- **{title}** `{sid}`" if strong else f"- `{sid}` {title}"


def plot(codes: np.ndarray, size: int, path: Path) -> None:
    """Draw the items per code of each level, and per prefix, largest first; equal codes give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for letter, column in zip(LETTERS, codes.T, strict=False):
        counts = np.sort(np.bincount(column, minlength=size))[::-1]
        left.step(np.arange(1, len(counts) + 1), counts, where="mid", label=f"level {letter}")
    left.set(xlabel="code, by use", ylabel="items", title="Use of the codes")
    left.legend()
    held = np.sort(prefix_counts(codes))[::-1]
    right.step(np.arange(1, len(held) + 1), held, where="mid")
    right.set(xlabel="prefix, by size", ylabel="items", title=f"{len(held):,} prefixes in use")
    figure.savefig(path, metadata={"Software": None})
