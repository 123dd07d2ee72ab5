"""What the trained models are compared with: the count model and the trained baselines.

The defaults fit two cores and a few thousand items. `trials` is the whole search: each is trained with the same
budget, and the best valid NDCG@10 wins.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from sidr_core.settings.base import Section


class ItemItem(Section):
    """Decayed item-item counter: co-occurrence weight `decay ** gap`, history weight `decay ** age`.

    Gaps and ages count from 0. 0.6 had the best valid NDCG@10 of 0.3 … 0.9 on the published Office rows.
    """

    decay: float = Field(default=0.6, gt=0, le=1)
    window: int = Field(default=10, ge=1)
    popularity_prior: float = Field(default=1e-3, ge=0)


class TextKnn(Section):
    """Nearest neighbours of the decayed mean of the history's text vectors; the best of `decays` is kept."""

    decays: tuple[float, ...] = Field(default=(0.3, 0.5, 0.7, 0.85, 1.0), min_length=1)
    select_rows: int = Field(default=2000, ge=1)


class Trial(Section):
    """One setting that is tried."""

    hidden_size: int = Field(default=64, ge=4)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class TrainedBaseline(Section):
    """Common to the trained baselines.

    Args:
        trials: the settings tried on valid rows.
        epochs: at most so many for each trial; it ends early after `patience` epochs without a better NDCG@10.
        batch_size: sequences per optimizer step.
        select_rows: valid rows on which NDCG@10 is measured after each epoch.
    """

    trials: tuple[Trial, ...] = Field(default=(Trial(dropout=0.3), Trial(dropout=0.5)), min_length=1)
    layers: int = Field(default=2, ge=1)
    epochs: int = Field(default=20, ge=1)
    patience: int = Field(default=3, ge=1)
    batch_size: int = Field(default=128, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    select_rows: int = Field(default=2000, ge=1)
    seed: int = 42


class SasRec(TrainedBaseline):
    """Causal self-attention over item ids."""

    heads: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> SasRec:
        return _heads_divide(self)


class Gru4Rec(TrainedBaseline):
    """A recurrent network over item ids."""

    layers: int = Field(default=1, ge=1)


class Tiger(TrainedBaseline):
    """An encoder-decoder from the SIDs of the history to the SID of the next item.

    `layers` on each side; the feed-forward layers are `feed_forward` times as wide as `hidden_size`.
    """

    trials: tuple[Trial, ...] = Field(default=(Trial(hidden_size=96, dropout=0.1),), min_length=1)
    heads: int = Field(default=4, ge=1)
    feed_forward: int = Field(default=4, ge=1)
    select_rows: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> Tiger:
        return _heads_divide(self)


def _heads_divide(settings: Any) -> Any:
    if odd := [trial.hidden_size for trial in settings.trials if trial.hidden_size % settings.heads]:
        raise ValueError(f"hidden_size {odd[0]} is no multiple of heads {settings.heads}")
    return settings
