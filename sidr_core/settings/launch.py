"""Where stages run. No stage reads this section, so it is part of no fingerprint: another launcher reuses."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sidr_core.settings.base import Section
from sidr_core.settings.models import TRAINING_STAGES

Kind = Literal["process", "subprocess", "accelerate", "ray"]


class Launch(Section):
    """Which stages leave the Dagster process, and how."""

    kind: Kind = "process"
    """`process`: none does. `subprocess`: each in one of its own, whose memory is freed at its end. `accelerate`: under
    `accelerate launch`, training stages only; batch sizes stay those of an optimizer step. `ray`: each as a job of a
    Ray cluster, trainings by processes on any of its nodes (docs/scale.md).
    """
    processes: int = Field(default=2, ge=1, le=1024)
    """Processes of a training under `accelerate` or `ray`; one per GPU."""
    address: str = "http://127.0.0.1:8265"
    """Of the Ray cluster's job server, for `ray`. A token comes from `RAY_AUTH_TOKEN`, never from here."""
    resources: dict[str, float] = Field(default_factory=lambda: {"CPU": 1.0})
    """What each process takes of a node, for `ray`: `CPU`, `GPU`, `memory` in bytes, or a name given to nodes."""
    patience_minutes: float = Field(default=30, gt=0)
    """Longest wait of one process for another within a training, in minutes, before both fail. It has to last for what
    the first does alone: writing a resume point and its digests.
    """
    stages: tuple[str, ...] = TRAINING_STAGES
    """The stages that leave; the others run in the Dagster process."""

    def of(self, stage: str) -> Kind:
        """How a stage is run."""
        return self.kind if stage in self.stages else "process"

    @field_validator("address")
    @classmethod
    def _without_keys(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s@?#]+", value):
            raise ValueError("expected http:// or https:// and host:port, without user, password or query")
        return value

    @field_validator("resources")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if wrong := [name for name, amount in value.items() if not name or not 0 < amount < float("inf")]:
            raise ValueError(f"launch.resources: {wrong[0]!r} needs an amount above 0")
        return value

    @model_validator(mode="after")
    def _can_be_spread(self) -> Launch:
        for name in self.stages:
            if self.kind == "accelerate" and name not in TRAINING_STAGES:
                raise ValueError(
                    f"launch.stages: {name!r} cannot be spread over processes; accelerate is for "
                    f"{', '.join(TRAINING_STAGES)}"
                )
        return self
