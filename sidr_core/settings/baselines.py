"""What the trained models are compared with: the count model and the trained baselines.

The defaults fit two cores and a few thousand items. `trials` is the whole search: each is trained with the same
budget, and the best valid NDCG@10 wins.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sidr_core.settings.base import Layers, Section, Seed, Size


class ItemItem(Section):
    """Decayed item-item counter: co-occurrence weight `decay ** gap`, history weight `decay ** age`, both counted from
    0.
    """

    decay: float = Field(default=0.6, gt=0, le=1)
    """0.6 had the best valid NDCG@10 of 0.3 … 0.9 on the published Office rows."""
    window: int = Field(default=10, ge=1)
    """Newest items of a history that count, and the largest gap."""
    popularity_prior: float = Field(default=1e-3, ge=0)
    """Weight of popularity, which orders what was never seen together."""


class TextKnn(Section):
    """Nearest neighbours of the decayed mean of the history's text vectors."""

    vectors: Literal["encoder", "tfidf"] = "encoder"
    """Vectors of the dataset's `encoder`, or TF-IDF of title, brand and category."""
    decays: tuple[float, ...] = Field(default=(0.3, 0.5, 0.7, 0.85, 1.0), min_length=1)
    """Decays tried; the best on valid rows is kept."""
    select_rows: int = Field(default=2000, ge=1)
    """Valid rows on which they are tried."""


class Trial(Section):
    """One setting that a trained baseline is tried with."""

    hidden_size: int = Field(default=64, ge=4, le=2**20)
    """Width of the model."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of units dropped in training."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size."""


class TrainedBaseline(Section):
    """Common to the trained baselines."""

    trials: tuple[Trial, ...] = Field(default=(Trial(dropout=0.3), Trial(dropout=0.5)), min_length=1)
    """The settings tried: the whole search, each with the same budget; the best valid NDCG@10 wins."""
    layers: Layers = 2
    """Layers of the network."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the train sequences at most, for each trial."""
    patience: int = Field(default=3, ge=1)
    """Epochs without a better NDCG@10 after which a trial ends."""
    batch_size: int = Field(default=128, ge=1)
    """Sequences per optimizer step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of the weights per step, times the step size."""
    select_rows: int = Field(default=2000, ge=1)
    """Valid rows on which NDCG@10 is measured after each epoch."""
    seed: Seed = 42
    """Of weights, order and dropout."""


def _heads_divide(settings: Any) -> Any:
    if odd := [trial.hidden_size for trial in settings.trials if trial.hidden_size % settings.heads]:
        raise ValueError(f"hidden_size {odd[0]} is no multiple of heads {settings.heads}")
    return settings


class Sequential(TrainedBaseline):
    """Common to the models over item ids."""

    start: Literal["fused", "cooccurrence", "noise"] = "fused"
    """Item vectors before the first epoch: `cooccurrence`, factors of what is bought together in train; `fused`, these
    and, in the last quarter, factors of the words of title, brand and category; `noise`, random numbers. On 16,859
    items one epoch from co-occurrence ranks better than twelve from noise, and with text better still (docs/log.md)."""


class SasRec(Sequential):
    """Causal self-attention over item ids."""

    heads: Size = 2
    """Attention heads; they divide every `hidden_size`."""

    _divides = model_validator(mode="after")(_heads_divide)


class Gru4Rec(Sequential):
    """A recurrent network over item ids."""

    layers: Layers = 1
    """Layers of the network."""


class Tiger(TrainedBaseline):
    """An encoder-decoder from the SIDs of the history to the SID of the next item."""

    trials: tuple[Trial, ...] = Field(default=(Trial(hidden_size=96, dropout=0.1),), min_length=1)
    """The settings tried: the whole search, each with the same budget; the best valid NDCG@10 wins."""
    heads: Size = 4
    """Attention heads; they divide every `hidden_size`."""
    feed_forward: int = Field(default=4, ge=1)
    """Width of the feed-forward layers over `hidden_size`."""
    select_rows: int = Field(default=500, ge=1)
    """Valid rows on which NDCG@10 is measured after each epoch."""

    _divides = model_validator(mode="after")(_heads_divide)
