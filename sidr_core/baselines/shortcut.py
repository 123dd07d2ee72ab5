"""The stage `baseline_shortcut`: a counter and the item texts, mixed. It takes seconds, and all else has to pass it.

Score of a candidate c for a history: `share * C(c) / max C + (1 - share) * T(c) / max T`.

- C, the counter: the sum over the items of the history, a places before the last, of `decay ** a * W(item, c)`. W
  counts the train rows with target c and the item in the history, g places before the target (1 = the last): each
  counts `decay ** (g - 1)`, up to `_WINDOW`, and a row with the two in the other order `back` times that. The sum is
  divided by `(1 + train targets of the item) ** norm`.
- T, the texts: the same sum with `text_decay` and the cosine of the TF-IDF vectors of item and candidate.

Valid rows choose decay and norm of the counter alone, then `back`, the decay of the texts alone, then the share; and
whether items of the history may come back. Equal scores go to the more popular item. Many published models do not pass
this: docs/evaluation.md, "The shortcut".

Shapes: R rows, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse

from sidr_core.baselines import training
from sidr_core.baselines.ranking import top_k
from sidr_core.baselines.sequences import Catalogue, Histories
from sidr_core.baselines.tfidf import matrices_in, neighbours, tensors_of, tfidf
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ROW_ID, TARGET

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

#: What is tried on valid rows; at shares 1 and 0 the counter and the texts stand alone.
_DECAYS, _NORMS, _TEXT_DECAYS = (0.4, 0.6, 0.8, 0.9), (0.0, 0.3, 0.5, 0.7), (0.6, 0.8, 0.9)
_BACKS = (0.2, 0.4, 0.7, 1.0)
_SHARES = tuple(step / 10 for step in range(1, 10))
_VALID_ROWS = 5_000
#: Items before a target that are counted with it, and items that are near to one by text.
_WINDOW, _NEIGHBOURS = 10, 300
#: Rows scored at once: 512 rows × 20,000 items × 4 bytes = 40 MB.
_BLOCK = 512
#: Below every score.
_LAST = -1.0


@dataclass(frozen=True)
class Weights:
    """What valid rows choose; `repeats`: whether items of the history may come back."""

    decay: float
    norm: float
    text_decay: float
    share: float
    repeats: bool = True
    back: float = 0.0

    def __str__(self) -> str:
        seen = "may come back" if self.repeats else "left out"
        return (
            f"counter {self.share} (decay {self.decay}, norm {self.norm}, back {self.back}), "
            f"texts {1 - self.share:.1f} (decay {self.text_decay}), items of the history {seen}"
        )


@dataclass(frozen=True, eq=False)
class Pairs:
    """What train rows show of items and the targets after them.

    Attributes:
        at_gap: per gap g from 1: (N, N), train rows with the column as target and the row g places before it.
        targets: (N,) train targets of each item.
    """

    at_gap: Sequence[sparse.csr_array]
    targets: np.ndarray

    @classmethod
    def of(cls, train: pl.DataFrame, catalogue: Catalogue, window: int) -> Pairs:
        """Counted in rows of the contract `Samples`; items outside the catalogue are ignored."""
        known = train.filter(pl.col(TARGET).is_in(catalogue.ids.implode()))
        targets = np.array([catalogue.number[item] for item in known[TARGET]], dtype=np.int32)
        histories, n = Histories.of(known, catalogue), len(catalogue)
        counts = []
        for age in range(window):
            at = histories.age == age
            entries = np.ones(at.sum(), dtype=np.float32), (histories.item[at], targets[histories.row[at]])
            counts.append(sparse.csr_array(entries, shape=(n, n)))
        return cls(counts, np.bincount(targets, minlength=n))

    def weighted(self, weights: Weights) -> sparse.csr_array:
        """(N, N) float32: W of the module's text."""
        total = self.at_gap[0]
        for age, count in enumerate(self.at_gap[1:], start=1):
            total = total + count * np.float32(weights.decay**age)
        if weights.back:
            total = total + total.T * np.float32(weights.back)
        return sparse.csr_array(sparse.diags_array(((1 + self.targets) ** -weights.norm).astype(np.float32)) @ total)


@dataclass(frozen=True, eq=False)
class Shortcut:
    """The mixture, ready to rank.

    Attributes:
        counts: (N, N), W under the chosen decay and norm. texts: (N, N), cosines.
    """

    counts: sparse.csr_array
    texts: sparse.csr_array
    catalogue: Catalogue
    weights: Weights

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """See :class:`~sidr_core.baselines.ranking.Ranker`; items of a history outside the catalogue are ignored."""

        def blocks() -> Iterator[np.ndarray]:
            for histories in _blocks(rows, self.catalogue):
                scores = self.scores(histories)
                if not self.weights.repeats:
                    scores[histories.row, histories.item] = _LAST
                yield scores

        return top_k(blocks(), rows[ROW_ID], self.catalogue.ids, k)

    def scores(self, histories: Histories) -> np.ndarray:
        """(R, N) float32: each part divided by its maximum in the row, times its share."""
        share, scores = self.weights.share, np.zeros(histories.shape, dtype=np.float32)
        for weight, decay, matrix in (
            (share, self.weights.decay, self.counts),
            (1 - share, self.weights.text_decay, self.texts),
        ):
            if weight:
                scores += np.float32(weight) * _over_maximum(histories.weighted(decay) @ matrix)
        return scores


def _over_maximum(evidence: sparse.csr_array) -> np.ndarray:
    """Evidence (R, N), not negative, each row divided by its maximum."""
    dense = evidence.toarray()
    top = dense.max(axis=1, keepdims=True)
    return dense / np.where(top > 0, top, 1)


def _blocks(rows: pl.DataFrame, catalogue: Catalogue) -> Iterator[Histories]:
    for start in range(0, rows.height, _BLOCK):
        yield Histories.of(rows.slice(start, _BLOCK), catalogue)


# -- choosing on valid rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """Weights, and HR@10 and NDCG@10 of their lists on valid rows."""

    weights: Weights
    hr: float
    ndcg: float


def choose(
    pairs: Pairs, texts: sparse.csr_array, valid: pl.DataFrame, catalogue: Catalogue
) -> tuple[Shortcut, list[Tried]]:
    """The shortcut with the best weights by NDCG@10 on valid rows, never test rows; and all that was tried.

    Args:
        texts: of :func:`~sidr_core.baselines.tfidf.neighbours`.
    """
    targets = np.array([catalogue.number.get(item, -1) for item in valid[TARGET]])
    log: list[Tried] = []

    def best(several: Sequence[Weights]) -> Weights:
        tried = []
        for weights in several:
            ranker = Shortcut(pairs.weighted(weights), texts, catalogue, weights)
            tried += _measured(ranker, valid, targets)
        log.extend(tried)
        return max(tried, key=lambda one: one.ndcg).weights

    counter = best([Weights(decay, norm, 1.0, 1.0) for decay in _DECAYS for norm in _NORMS])
    best([replace(counter, back=back) for back in _BACKS])
    counter = max(log, key=lambda one: one.ndcg).weights
    text = best([replace(counter, text_decay=decay, share=0.0) for decay in _TEXT_DECAYS])
    best([replace(text, share=share) for share in _SHARES])
    weights = max(log, key=lambda one: one.ndcg).weights
    return Shortcut(pairs.weighted(weights), texts, catalogue, weights), log


def _measured(ranker: Shortcut, valid: pl.DataFrame, targets: np.ndarray) -> list[Tried]:
    """The ranker's weights, with items of the history in the lists and without them."""
    ranks: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for number, histories in enumerate(_blocks(valid, ranker.catalogue)):
        of_block = targets[number * _BLOCK :][: histories.shape[0]]
        for repeats, places in target_ranks(ranker.scores(histories), histories, of_block).items():
            ranks[repeats].append(places)
    tried = []
    for repeats, parts in ranks.items():
        places = np.concatenate(parts)
        hits = places < training.K
        gains = np.where(hits, 1 / np.log2(places + 2.0), 0.0)
        tried.append(Tried(replace(ranker.weights, repeats=repeats), float(hits.mean()), float(gains.mean())))
    return tried


def target_ranks(scores: np.ndarray, histories: Histories, targets: np.ndarray) -> dict[bool, np.ndarray]:
    """Places (R,) from 0 of the targets in lists by scores (R, N), with (True) and without items of the history.

    A target outside the catalogue (-1), or left out with its history, has the place N.
    """
    rows, n = np.arange(len(targets)), scores.shape[1]
    target = scores[rows, targets][:, None]
    ahead = (scores > target) | ((scores == target) & (np.arange(n) < targets[:, None]))  # (R, N)
    places = np.where(targets < 0, n, ahead.sum(axis=1))
    seen = np.zeros(scores.shape, dtype=bool)
    seen[histories.row, histories.item] = True
    left_out = seen[rows, targets] | (targets < 0)
    return {True: places, False: np.where(left_out, n, places - (ahead & seen).sum(axis=1))}


# -- the stage -------------------------------------------------------------------------------------------


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Count, choose on valid rows, and publish the two matrices."""
    from sidr_core.tables.contracts import ChoiceLog  # a second or two to import, which a server spares

    rows = training.Rows.of(inputs, _VALID_ROWS, seed=0)
    items = tables.read(inputs["interactions"].path("items.parquet"))
    texts = neighbours(tfidf(items, rows.catalogue), _NEIGHBOURS)
    pairs = Pairs.of(rows.train, rows.catalogue, _WINDOW)
    progress.say(f"{sum(map(sparse.csr_array.sum, pairs.at_gap)):,.0f} pairs counted, {texts.nnz:,} near by text")
    ranker, log = choose(pairs, texts, rows.valid, rows.catalogue)
    best = max(log, key=lambda one: one.ndcg)
    progress.say(f"{best.weights}: valid NDCG@10 {best.ndcg:.4f}")
    table = training.choice_log([(str(one.weights), one.ndcg, one.hr) for one in log])
    tensors = tensors_of({"counts": ranker.counts, "texts": ranker.texts})
    fitted = training.Fitted(ranker, tensors, {"ndcg@10": best.ndcg, "hr@10": best.hr}, table)
    return training.publish(
        out_dir, "baseline_shortcut", vars(best.weights), fitted, rows, 0, inputs.synthetic, ChoiceLog
    )


def load(inputs: Mapping[str, StageInput], config: DatasetConfig) -> Shortcut:
    """The published shortcut, ready to rank."""
    return opened(inputs["baseline_shortcut"].folder())


def opened(folder: Path) -> Shortcut:
    """The matrices in a folder of the stage with the weights that were chosen, ready to rank."""
    meta, catalogue = training.read(folder)
    counts, texts = matrices_in(folder / training.WEIGHTS, "counts", "texts")
    return Shortcut(counts, texts, catalogue, Weights(**meta["model"]))
