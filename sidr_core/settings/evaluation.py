"""Decoding and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from sidr_core.settings.base import Section, Seed
from sidr_core.settings.models import LANGUAGE_MODELS, list_names, split_name
from sidr_core.tables.columns import DIRECT, MERGED


class Decoding(Section):
    """How lists are made (docs/decoding.md)."""

    beam_width: int = Field(default=20, ge=1)
    """SIDs kept at every level, and the length of a list; time and memory grow with it."""
    batch_size: int = Field(default=64, ge=1)
    """Rows decoded at once; memory grows with it, results do not depend on it."""
    max_thought_tokens: int = Field(default=1024, ge=1)
    """Longest thought, in tokens; a longer one is closed by force and counted."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Test rows ranked at most, of a fixed set of whole users; null ranks all."""
    scoring: Literal["exact", "sliced"] = "exact"
    """Log-probabilities under the whole vocabulary (`exact`), or among the SID tokens of the level (`sliced`: faster,
    another ranking).
    """
    traces: int = Field(default=1, ge=1)
    """Thoughts per row; 1 is one greedy thought, more are sampled and their distributions averaged, which costs as many
    times more.
    """
    trace_temperature: float = Field(default=1.0, gt=0)
    """Temperature at which several thoughts are sampled."""
    choice_rows: int = Field(default=500, ge=1)
    """Valid rows, decoded both ways, on which the threshold of an adaptive model (`grpo_adaptive/thinking`) and the
    weights of a combined list (`sft_mixed/direct`) are chosen.
    """
    seen: Literal["keep", "drop", "choose"] = "keep"
    """Whether items of the history may be listed: `keep`; `drop` leaves their SIDs out of every list, of baselines and
    checkpoints alike; `choose` does what the shortcut chose on valid rows.
    """
    models: tuple[str, ...] = (
        "sft/direct",
        "activation/thinking",
        "grpo/direct",
        "grpo/thinking",
        "popularity/direct",
        "item_item/direct",
        "shortcut/direct",
    )
    """The lists to make, as `<model>/<mode>`, in the order of the tables. A baseline or training that no list needs is
    no asset of the dataset.
    """

    @field_validator("models")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in list_names()]:
            raise ValueError(f"unknown model {unknown[0]!r}; known: {', '.join(list_names())}")
        return value

    @model_validator(mode="after")
    def _who_chooses(self) -> Decoding:
        if self.seen == "choose" and f"shortcut/{DIRECT}" not in self.models:
            raise ValueError(f"`seen: choose` asks the shortcut: put shortcut/{DIRECT} into `models`")
        return self


class RecommendationsAll(Section):
    """Lists for every user (docs/operations.md). A section without fields (`recommendations_all: {}`) asks for them.

    They are decoded as `decoding` says, `decoding.beam_width` long.
    """

    model: str = "grpo/direct"
    """The lists to make, as `<model>/<mode>`."""
    checkpoint: Literal["snapshot", "live"] = "snapshot"
    """Whose checkpoint makes them: this snapshot's, or the live one over this snapshot's items, without training; then
    `model` is `<language model>/direct` or `/thinking`.
    """
    users_per_part: int = Field(default=5000, ge=1)
    """Users of one part: a file, and what a killed run loses at most."""

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in list_names():
            raise ValueError(f"unknown model {value!r}; known: {', '.join(list_names())}")
        return value

    @model_validator(mode="after")
    def _live(self) -> RecommendationsAll:
        model, mode = split_name(self.model)
        if self.checkpoint == "live" and (model not in LANGUAGE_MODELS or mode == MERGED):
            raise ValueError(f"what is live makes the direct or thinking lists of a checkpoint, not {self.model!r}")
        return self


class Evaluation(Section):
    """Metrics with intervals, and differences corrected for being many (docs/evaluation.md)."""

    ks: tuple[int, ...] = (1, 3, 5, 10, 20)
    """Cut-offs of the metrics, up to the beam width."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Draws of users behind each interval. At 95 % a family of n differences needs 40 n draws or more to tell any from
    0.
    """
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of the draws inside an interval, and 1 less the level of the tests."""
    seed: Seed = 42
    """Of the draws."""
    grounding_items: int = Field(default=500, ge=1)
    """Items about which each checkpoint is asked what their SIDs mean, at most, of each group (targets of train rows,
    items of histories alone, items never met).
    """
    grounding_floor: float = Field(default=0.95, ge=0, le=1)
    """Share of titles that a checkpoint has to name from their SIDs; fewer is a warning."""
    intervention_rows: int = Field(default=300, ge=2)
    """Test rows, at most, whose thoughts are exchanged, shuffled, emptied, corrupted and replaced."""
    margin: float = Field(default=0.005, gt=0, lt=1)
    """Differences in HR and NDCG below it, either way, count as none: two lists whose difference surely lies within it
    are called so.
    """
    least_users: int = Field(default=50, ge=2)
    """A verdict from fewer users says how many they are."""

    @field_validator("ks")
    @classmethod
    def _cut_offs(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value, default=0) < 1 or len(set(value)) < len(value):
            raise ValueError("cut-offs are one or more different whole numbers from 1")
        return tuple(sorted(value))
