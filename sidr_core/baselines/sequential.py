"""The stages `baseline_sasrec` and `baseline_gru4rec`: next-item models over item ids.

Both are trained alike: every position of a sequence predicts the next item, cross entropy over the whole catalogue,
item vectors shared between input and output. They differ in the encoder alone: causal self-attention with
positions counted from the start, or a gated recurrent network.

Deviations: SASRec (arXiv 1808.09781) and GRU4Rec (arXiv 1511.06939) train against sampled items; the full
softmax is the stronger variant. Their item vectors start from noise and know no text; here they start from
co-occurrence in train and, in their last quarter, from the words of the items (`start`). Layers are normalised before,
not after, as in later code. Items of the history may be recommended again: people buy things twice.

Shapes: R rows, T positions, N items, H the width of the model, A attention heads, P positions with a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn import functional

from sidr_core.baselines import training
from sidr_core.baselines.ranking import top_k
from sidr_core.baselines.sequences import Catalogue, padded, windows
from sidr_core.baselines.tfidf import tfidf
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.sids.cooccurrence import cooccurrence_vectors, factors
from sidr_core.sids.projection import unit
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ROW_ID

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Gru4Rec, SasRec, Trial

#: Logits held at one time in training, as float32: 32 MiB.
_LOGITS = 8_000_000
#: Rows ranked at once: 512 rows × 20,000 items × 4 bytes = 40 MB.
_BLOCK = 512
#: Standard deviation of the vectors at the start.
_SPREAD = 0.02
#: At the start: length of the part of an item vector that comes from co-occurrence, and of the part from text, which is
#: one of so many.
_LENGTH, _TEXT_LENGTH, _TEXT_PART = 0.5, 0.25, 4


class Encoder(nn.Module):
    """Item vectors (N + 1, H), the last for padding. `forward`: items (R, T), right-padded -> states (R, T, H)."""

    def __init__(self, items: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, hidden, padding_idx=items)
        nn.init.normal_(self.items.weight, std=_SPREAD)
        self.dropout = nn.Dropout(dropout)

    def table(self) -> torch.Tensor:
        """(N, H), without the row for padding."""
        return self.items.weight[:-1]


class Attention(Encoder):
    """SASRec's encoder. Padding stands on the right, so the causal mask hides it as well."""

    def __init__(self, items: int, length: int, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__(items, hidden, dropout)
        self.length = length
        self.places = nn.Embedding(length, hidden)
        nn.init.normal_(self.places.weight, std=_SPREAD)
        self.blocks = nn.ModuleList(_Block(hidden, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        states = self.dropout(self.items(items) + self.places.weight[: items.shape[1]])  # (R, T, H)
        for block in self.blocks:
            states = block(states)
        return self.norm(states)


class _Block(nn.Module):
    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.before, self.between = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.mix, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.feed = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * hidden, hidden)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows, length, hidden = states.shape
        mixed = self.mix(self.before(states)).view(rows, length, 3, self.heads, -1)  # (R, T, 3, A, H / A)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # each (R, A, T, H / A)
        attended = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.rate if self.training else 0.0, is_causal=True
        )
        states = states + self.dropout(self.out(attended.transpose(1, 2).reshape(rows, length, hidden)))
        return states + self.dropout(self.feed(self.between(states)))


class Recurrent(Encoder):
    """GRU4Rec's encoder; a linear layer leads from its states back to the space of the items."""

    def __init__(self, items: int, length: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__(items, hidden, dropout)
        self.length = length
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(self.dropout(self.items(items)))
        return self.out(self.dropout(states))


ENCODERS: dict[str, type[Attention] | type[Recurrent]] = {"sasrec": Attention, "gru4rec": Recurrent}


class ItemRanker:
    """An encoder that can be trained and asked for lists.

    Args:
        module: histories are cut to its last `length` items.
        sequences: item numbers, each of at least two; none where it only ranks.
    """

    def __init__(
        self, module: Attention | Recurrent, catalogue: Catalogue, sequences: Sequence[list[int]] = ()
    ) -> None:
        self.module, self.catalogue, self._sequences = module.to(training.device()), catalogue, sequences

    def lengths(self) -> list[int]:
        return [len(sequence) for sequence in self._sequences]

    def backward(self, rows: list[int]) -> float:
        filler = len(self.catalogue)
        items = torch.from_numpy(padded([self._sequences[row] for row in rows], filler)).to(training.device())  # (R, T)
        targets = items[:, 1:]
        real = targets != filler
        return _backward(self.module(items[:, :-1])[real], targets[real], self.module)

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """See :class:`~sidr_core.baselines.ranking.Ranker`; the score is a logit, ties go to the more popular item."""
        histories = self.catalogue.histories(rows)
        with torch.inference_mode():
            return top_k(self._scores(histories), rows[ROW_ID], self.catalogue.ids, k)

    def _scores(self, histories: list[list[int]]) -> Iterator[np.ndarray]:
        """Logits (R, N) of consecutive rows."""
        self.module.eval()
        for start in range(0, len(histories), _BLOCK):
            recent = [history[-self.module.length :] for history in histories[start : start + _BLOCK]]
            items = torch.from_numpy(padded(recent, len(self.catalogue))).to(training.device())  # (R, T)
            last = torch.tensor([len(history) - 1 for history in recent], device=items.device)  # (R,)
            states = self.module(items)[torch.arange(len(recent), device=items.device), last]  # (R, H)
            yield (states @ self.module.table().T).cpu().numpy()


def _backward(states: torch.Tensor, targets: torch.Tensor, module: Encoder) -> float:
    """Mean cross entropy of states (P, H) with targets (P,) among all items, and its gradients.

    The logits (P, N) are never held at once: a slice of positions is scored, differentiated and dropped.
    """
    leaf = states.detach().requires_grad_()
    total, at_once = 0.0, max(1, _LOGITS // module.table().shape[0])
    for start in range(0, len(targets), at_once):
        part = slice(start, start + at_once)
        loss = functional.cross_entropy(leaf[part] @ module.table().T, targets[part], reduction="sum") / len(targets)
        loss.backward()
        total += loss.item()
    states.backward(leaf.grad)
    return total


def build_sasrec(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Tune and train SASRec."""
    return _build("sasrec", config.sasrec, {"heads": config.sasrec.heads}, inputs, out_dir, progress)


def build_gru4rec(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Tune and train GRU4Rec."""
    return _build("gru4rec", config.gru4rec, {}, inputs, out_dir, progress)


def _build(
    kind: str, settings: SasRec | Gru4Rec, extra: dict[str, int], inputs: Inputs, out_dir: Path, progress: Progress
) -> Report:
    rows = training.Rows.of(inputs, settings.select_rows, settings.seed)
    items = tables.read(inputs["interactions"].path("items.parquet"))
    fitted = train(kind, settings, extra, rows, items, progress)
    shape = _shape(kind, settings.trials[fitted.best["trial"] - 1], settings, extra, fitted.ranker.module.length)
    return training.publish(out_dir, f"baseline_{kind}", shape, fitted, rows, settings.seed, inputs.synthetic)


def train(
    kind: str,
    settings: SasRec | Gru4Rec,
    extra: dict[str, int],
    rows: training.Rows,
    items: pl.DataFrame | None,
    progress: Progress,
) -> training.Fitted[ItemRanker]:
    """The best of the trials.

    Args:
        kind: names an encoder.
        extra: settings that it alone has.
        items: the contract `Items`, from which vectors with text start; None where none do.
    """
    sequences = windows(rows.train, rows.catalogue)
    length = max(len(sequence) for sequence in sequences) - 1
    progress.say(f"{len(sequences):,} sequences of up to {length + 1} items, {len(rows.catalogue):,} items")

    def make(trial: Trial) -> ItemRanker:
        module = _module(_shape(kind, trial, settings, extra, length), rows.catalogue)
        if settings.start != "noise":
            _start_near(module, rows, items if settings.start == "fused" else None, settings.seed)
        return ItemRanker(module, rows.catalogue, sequences)

    return training.fit(make, settings, rows.valid, rows.catalogue.as_codebook, progress)


def _start_near(module: Encoder, rows: training.Rows, items: pl.DataFrame | None, seed: int) -> None:
    """Let items that co-occur with the same items start near each other, and those of the same words, given `items`.

    What nothing is known of stays as it is.
    """
    table = module.table()
    size = table.shape[1] - (table.shape[1] // _TEXT_PART if items is not None else 0)
    known, vectors = cooccurrence_vectors(rows.train, rows.catalogue.ids.to_list(), size, seed)  # (n,), (n, b)
    with torch.no_grad():
        table[known, : vectors.shape[1]] = torch.from_numpy(_LENGTH * vectors)
        if items is not None:
            words = unit(factors(tfidf(items, rows.catalogue), table.shape[1] - size, seed))  # (N, t)
            table[:, size : size + words.shape[1]] = torch.from_numpy(_TEXT_LENGTH * words)


def load_sasrec(inputs: Mapping[str, StageInput], config: DatasetConfig) -> ItemRanker:
    """The published SASRec, ready to rank."""
    return opened(inputs["baseline_sasrec"].folder())


def load_gru4rec(inputs: Mapping[str, StageInput], config: DatasetConfig) -> ItemRanker:
    """The published GRU4Rec, ready to rank."""
    return opened(inputs["baseline_gru4rec"].folder())


def opened(folder: Path) -> ItemRanker:
    """The model in a folder of either stage, ready to rank."""
    meta, catalogue = training.read(folder)
    module = _module(meta["model"], catalogue)
    training.load_weights(module, folder)
    return ItemRanker(module, catalogue)


def _shape(kind: str, trial: Trial, settings: SasRec | Gru4Rec, extra: dict[str, int], length: int) -> dict[str, Any]:
    """What a module is built from."""
    plain = {"kind": kind, "hidden": trial.hidden_size, "dropout": trial.dropout, "layers": settings.layers}
    return {**plain, "length": length, **extra}


def _module(shape: dict[str, Any], catalogue: Catalogue) -> Attention | Recurrent:
    make = partial(ENCODERS[shape["kind"]], len(catalogue))
    return make(**{name: value for name, value in shape.items() if name != "kind"})
