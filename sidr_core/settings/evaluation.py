"""Decoding and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sidr_core.settings.base import Section
from sidr_core.settings.models import list_names


class Decoding(Section):
    """How lists are made. `models` are `<model>/<mode>` pairs, in the order of the tables.

    `scoring`: log-probabilities under the whole vocabulary (`exact`), or among the SID tokens of the level
    (`sliced`: faster, another ranking; docs/decoding.md). `traces`: thoughts per row; 1 is one greedy thought,
    more are sampled at `trace_temperature` and their distributions averaged, which costs as many times more.
    `choice_rows`: valid rows, decoded both ways, on which the threshold of an adaptive model (`grpo_adaptive/thinking`)
    and the share of a mixture with the item-item counter (`sft_mixed/direct`) are chosen.
    """

    beam_width: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=1)
    max_thought_tokens: int = Field(default=1024, ge=1)
    max_test_rows: int | None = Field(default=None, ge=1)
    scoring: Literal["exact", "sliced"] = "exact"
    traces: int = Field(default=1, ge=1)
    trace_temperature: float = Field(default=1.0, gt=0)
    choice_rows: int = Field(default=500, ge=1)
    models: tuple[str, ...] = (
        "sft/direct",
        "activation/thinking",
        "grpo/direct",
        "grpo/thinking",
        "popularity/direct",
        "item_item/direct",
    )

    @field_validator("models")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in list_names()]:
            raise ValueError(f"unknown model {unknown[0]!r}; known: {', '.join(list_names())}")
        return value


class Evaluation(Section):
    """Metrics at each of `ks`, up to the beam width, with intervals from `bootstrap` draws of users.

    Differences are corrected for being many, so at 95 % a family of n needs 40 n draws or more to tell any from 0.
    """

    ks: tuple[int, ...] = (1, 3, 5, 10, 20)
    bootstrap: int = Field(default=10_000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: int = 42

    @field_validator("ks")
    @classmethod
    def _cut_offs(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value, default=0) < 1 or len(set(value)) < len(value):
            raise ValueError("cut-offs are one or more different whole numbers from 1")
        return tuple(sorted(value))
