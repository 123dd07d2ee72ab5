"""Where stages run. No stage reads this section, so it is part of no fingerprint: another launcher reuses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sidr_core.settings.base import Section
from sidr_core.settings.models import TRAINING_STAGES

Kind = Literal["process", "subprocess", "accelerate"]


class Launch(Section):
    """Which stages leave the Dagster process, and how."""

    kind: Kind = "process"
    """`process`: none does. `subprocess`: each in one of its own, whose memory is freed at its end. `accelerate`: under
    `accelerate launch`, training stages only; batch sizes stay those of an optimizer step.
    """
    processes: int = Field(default=2, ge=1, le=1024)
    """Processes under `accelerate`; one per GPU."""
    stages: tuple[str, ...] = TRAINING_STAGES
    """The stages that leave; the others run in the Dagster process."""

    def of(self, stage: str) -> Kind:
        """How a stage is run."""
        return self.kind if stage in self.stages else "process"

    @model_validator(mode="after")
    def _can_be_spread(self) -> Launch:
        for name in self.stages:
            if self.kind == "accelerate" and name not in TRAINING_STAGES:
                raise ValueError(
                    f"launch.stages: {name!r} cannot be spread over processes; accelerate is for "
                    f"{', '.join(TRAINING_STAGES)}"
                )
        return self
