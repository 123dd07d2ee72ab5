"""Where stages run. No stage reads this section, so it is part of no fingerprint: another launcher reuses."""

from __future__ import annotations

import difflib
from typing import Literal

from pydantic import Field, model_validator

from sidr_core.graph import STAGES
from sidr_core.settings.base import Section

#: The stages that can be spread over several processes.
TRAINING_STAGES = ("sft_checkpoint", "activation_checkpoint", "grpo_checkpoint")
Kind = Literal["process", "subprocess", "accelerate"]


class Launch(Section):
    """Which stages leave the Dagster process, and how.

    Args:
        kind: `process`: none does. `subprocess`: each in one of its own, whose memory goes with it.
            `accelerate`: under `accelerate launch`, training stages only. Batch sizes stay those of an
            optimizer step, whatever the number of processes.
        processes: how many of them under `accelerate`; on GPUs one for each.
        stages: those that do; the others run in the Dagster process.
    """

    kind: Kind = "process"
    processes: int = Field(default=2, ge=1, le=1024)
    stages: tuple[str, ...] = TRAINING_STAGES

    def of(self, stage: str) -> Kind:
        """How a stage is run."""
        return self.kind if stage in self.stages else "process"

    @model_validator(mode="after")
    def _known(self) -> Launch:
        names = [stage.name for stage in STAGES]
        for name in self.stages:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"launch.stages: unknown stage {name!r}{hint}; known: {', '.join(names)}")
            if self.kind == "accelerate" and name not in TRAINING_STAGES:
                raise ValueError(
                    f"launch.stages: {name!r} cannot be spread over processes; accelerate is for "
                    f"{', '.join(TRAINING_STAGES)}"
                )
        return self
