"""How good a codebook is: use of the codes, prefixes, and what they have to do with the items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from sidr_core.columns import BRAND, CATEGORY, CODES, SID, TITLE
from sidr_core.items.text import markdown_text

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EXAMPLES, _NEIGHBOURS = 5, 4


def usage(codes: np.ndarray, size: int) -> dict[str, float]:
    """Per level of codes (N, L): how many codes are in use, their perplexity, and Gini over all `size`.

    Perplexity is exp of the entropy in nats: the number of equally used codes that would be as even.
    """
    found: dict[str, float] = {}
    for level in range(codes.shape[1]):
        counts = np.bincount(codes[:, level], minlength=size)
        share = counts[counts > 0] / counts.sum()
        found[f"level_{_LETTERS[level]}_codes"] = int((counts > 0).sum())
        found[f"level_{_LETTERS[level]}_perplexity"] = round(float(np.exp(-(share * np.log(share)).sum())), 2)
        found[f"level_{_LETTERS[level]}_gini"] = round(gini(counts), 4)
    return found


def gini(counts: np.ndarray) -> float:
    """Gini coefficient: 0 where all counts are equal, (n - 1) / n where one has everything."""
    ordered = np.sort(counts).astype(float)
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def collision_rate(codes: np.ndarray) -> float:
    """(items - distinct SIDs) / items, as in METHOD.md 3.2."""
    return (len(codes) - len(np.unique(codes, axis=0))) / len(codes)


def prefix_counts(codes: np.ndarray) -> np.ndarray:
    """Items per distinct prefix; the prefix is all levels but the last, so one level has one prefix."""
    return np.unique(codes[:, :-1], axis=0, return_counts=True)[1] if codes.shape[1] > 1 else np.array([len(codes)])


def relative_error(vectors: np.ndarray, decoded: np.ndarray) -> float:
    """Squared error of the decoded vectors (N, D) over that of the mean vector: 0 exact, 1 useless."""
    spread = float(((vectors - vectors.mean(axis=0)) ** 2).sum())
    return float(((vectors - decoded) ** 2).sum()) / spread if spread else 0.0


def purity_lift(codes: np.ndarray, labels: Sequence[str], seed: int = 0) -> float | None:
    """How much more often two items of one first-level code share a label than random items would.

    Purity is the share of items that carry the commonest label of their code; it is divided by the
    mean purity of five shuffles of the labels (1 = no relation). None where fewer than two labels occur.
    """
    known = [n for n, label in enumerate(labels) if label]
    names, numbers = np.unique([labels[n] for n in known], return_inverse=True)
    if len(names) < 2:
        return None
    groups = codes[known, 0]
    rng = np.random.default_rng(seed)
    chance = np.mean([_purity(groups, rng.permutation(numbers)) for _ in range(5)])
    return float(_purity(groups, numbers) / chance)


def _purity(groups: np.ndarray, labels: np.ndarray) -> float:
    best: Counter[int] = Counter()
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    for group, count in zip(pairs[0].tolist(), counts.tolist(), strict=True):
        best[group] = max(best[group], count)
    return sum(best.values()) / len(groups)


def label_metrics(codes: np.ndarray, items: pl.DataFrame) -> dict[str, float]:
    """Purity lift of first-level codes for category and brand, where the catalogue has them."""
    found = {name: purity_lift(codes, items[name].to_list()) for name in (CATEGORY, BRAND)}
    return {f"{name}_purity_lift": round(lift, 3) for name, lift in found.items() if lift is not None}


def neighbours(frame: pl.DataFrame) -> str:
    """Markdown: five items, spread over the catalogue, each with those that share its longest prefix.

    `frame` has title, sid and codes.
    """
    codes = np.array(frame[CODES].to_list())
    titles, sids = frame[TITLE].to_list(), frame[SID].to_list()
    lines = []
    for n in np.unique(np.linspace(0, len(codes) - 1, min(_EXAMPLES, len(codes))).astype(int)):
        shared = np.cumprod(codes == codes[n], axis=1).sum(axis=1)
        shared[n] = -1
        lines.append(f"- **{markdown_text(titles[n])}** `{sids[n]}`")
        nearest = np.argsort(-shared, kind="stable")[:_NEIGHBOURS]
        lines += [f"  - `{sids[m]}` {markdown_text(titles[m])}" for m in nearest if shared[m] > 0]
    return "\n".join(lines)


def plot_usage(codes: np.ndarray, size: int, path: Path) -> None:
    """Items per code, codes from the most to the least used, one line per level. Same codes, same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for level in range(codes.shape[1]):
        counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
        axes.step(np.arange(1, len(counts) + 1), counts, where="mid", label=f"level {_LETTERS[level]}")
    axes.set(xlabel="code, by use", ylabel="items", title="Use of the codes")
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
