"""The typed sections of a dataset: what each step can be told. Every field is checked, none is ignored.

Lengths are in tokens, batch sizes in examples, times in unix seconds; defaults are modest, `profiles/`
says what to use. METHOD figures: arXiv 2603.23183 and its code.
"""

from __future__ import annotations

import difflib
import re
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sidr_core.errors import ProfileError


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleSource(Section):
    """A seeded generator of Amazon-layout files with learnable tastes. Its data are synthetic."""

    PATHS: ClassVar[tuple[str, ...]] = ()
    kind: Literal["sample"]
    category: Literal["games", "office", "industrial"]
    items: int = Field(default=800, ge=50)
    users: int = Field(default=2500, ge=50)
    seed: int = 7


class Amazon2018Source(Section):
    """Amazon Reviews 2018 (UCSD v2): JSON lines, gzip or plain. Paths, globs or http(s) URLs."""

    PATHS: ClassVar[tuple[str, ...]] = ("reviews", "items")  # fields that name files
    kind: Literal["amazon_2018"]
    reviews: tuple[str, ...] = Field(min_length=1)
    items: tuple[str, ...] = Field(min_length=1)


class MiniOneRecSource(Section):
    """MiniOneRec's published CSV split: its rows, items and SIDs are kept as they are."""

    PATHS: ClassVar[tuple[str, ...]] = ("train", "valid", "test", "info", "items")
    kind: Literal["minionerec"]
    train: str
    valid: str
    test: str
    info: str
    items: str | None = None  # <category>.item.json with descriptions


Source = Annotated[SampleSource | Amazon2018Source | MiniOneRecSource, Field(discriminator="kind")]


_MONTHS = {"monthly": 1, "quarterly": 3, "yearly": 12}


class Snapshots(Section):
    """Windows of a dataset. A snapshot is all that was known by the end of its window.

    Args:
        cadence: length of a window.
        start, end: first and last window, each named by its first month, `YYYY-MM`.
    """

    cadence: Literal["monthly", "quarterly", "yearly"] = "monthly"
    start: str
    end: str

    @field_validator("start", "end")
    @classmethod
    def _month(cls, value: str) -> str:
        if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", value):
            raise ValueError(f"expected YYYY-MM, found {value!r}")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Snapshots:
        if self.end < self.start:
            raise ValueError(f"end {self.end} lies before start {self.start}")
        if (_month_number(self.end) - _month_number(self.start)) % _MONTHS[self.cadence]:
            raise ValueError(f"end {self.end} is no {self.cadence} step from start {self.start}")
        return self

    def keys(self) -> list[str]:
        """All snapshot keys, oldest first."""
        step = _MONTHS[self.cadence]
        months = range(_month_number(self.start), _month_number(self.end) + 1, step)
        return [f"{month // 12:04d}-{month % 12 + 1:02d}" for month in months]

    def window(self, key: str) -> Window:
        """The window called `key`."""
        if key not in self.keys():
            raise ProfileError(
                f"there is no snapshot {key!r}",
                expected=f"one of {self.start} … {self.end} ({self.cadence})",
                found=repr(key),
                do="name one of these, or widen `snapshots` in the profile",
            )
        month = _month_number(key) + _MONTHS[self.cadence]
        cutoff = datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)
        return Window(key=key, cutoff=int(cutoff.timestamp()))

    def previous(self, key: str) -> str | None:
        """The key before `key`, or None at the start."""
        keys = self.keys()
        index = keys.index(key)
        return keys[index - 1] if index else None


def _month_number(key: str) -> int:
    year, month = key.split("-")
    return int(year) * 12 + int(month) - 1


class Window(Section):
    """One snapshot: everything with `timestamp < cutoff` (unix seconds, UTC) is known."""

    key: str
    cutoff: int


class Filters(Section):
    """METHOD 1.2. `since` (YYYY-MM) drops earlier reviews; `min_rating` drops lower ones."""

    k_core: int = Field(default=5, ge=1)
    max_title_words: int = Field(default=20, ge=1)
    since: str | None = None
    min_rating: float | None = None
    keep_repeats: bool = True
    max_quarantine_share: float = Field(default=0.01, ge=0, le=1)


class Split(Section):
    """METHOD 1.3: one sample per position, cut by target time into train/valid/test."""

    max_history: int = Field(default=10, ge=1)
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)

    @field_validator("ratios")
    @classmethod
    def _sums_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0 or abs(sum(value) - 1) > 1e-9:
            raise ValueError(f"expected three positive shares that sum to 1, found {value}")
        return value


class Encoder(Section):
    """Sentence encoder. `minilm` is the all-MiniLM-L6-v2 that ships in a package; else an HF id or folder."""

    model: str = "minilm"
    pooling: Literal["default", "masked_mean"] = "default"
    max_tokens: int = Field(default=256, ge=8)
    batch_size: int = Field(default=64, ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    normalize: bool = True


class Quantizer(Section):
    """Semantic IDs. `published` keeps the SIDs that came with the source.

    Args:
        size: codes per level. collisions: `reassign` gives every item its own SID by optimal
            assignment at the last level; `share` lets items share one.
    """

    kind: Literal["residual_kmeans", "published"] = "residual_kmeans"
    levels: int = Field(default=3, ge=1, le=26)
    size: int = Field(default=256, ge=2)
    iterations: int = Field(default=50, ge=1)
    collisions: Literal["reassign", "share"] = "reassign"
    seed: int = 42


class Teacher(Section):
    """Who writes the corpus. `rules` needs no key.

    Args:
        item_narratives, user_narratives: whether these kinds are written.
        traces_per_user: most reasoning traces of one user (the newest train rows); 0 = all.
    """

    kind: Literal["rules"] = "rules"
    item_narratives: bool = True
    user_narratives: bool = True
    traces_per_user: int = Field(default=0, ge=0)
    seed: int = 42


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
    seed: int = 42


class PretrainedModel(Section):
    """A Hugging Face id or a local folder; `trust_remote_code` does not exist here."""

    kind: Literal["pretrained"]
    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 42


BaseModelConfig = Annotated[TinyModel | PretrainedModel, Field(discriminator="kind")]


class Training(Section):
    """Common to both SFT stages. Lengths in tokens, `batch_size` in examples per optimizer step.

    Args:
        micro_batch: examples per forward pass; `batch_size` must be a multiple of it.
        select_rows: valid rows on which NDCG@10 is measured after each epoch; the best epoch is kept.
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
    bf16: bool = False
    gradient_checkpointing: bool = False
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


class Grpo(Section):
    """Stage 3, METHOD 7.1. Batches count prompts; each gets `generations` rollouts.

    Args:
        select_every: steps between two measurements of valid NDCG@10 (0: only at the end).
    """

    steps: int = Field(default=100, ge=1)
    prompts_per_step: int = Field(default=256, ge=1)
    generations: int = Field(default=16, ge=2)
    micro_batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=5e-7, gt=0)
    weight_decay: float = 0.01
    beta: float = Field(default=1e-3, ge=0)
    epsilon: float = Field(default=0.2, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    max_thought_tokens: int = Field(default=1024, ge=4)
    bf16: bool = False
    gradient_checkpointing: bool = False
    select_rows: int = Field(default=300, ge=0)
    select_every: int = Field(default=0, ge=0)
    seed: int = 42


class Decoding(Section):
    """How lists are made. `models` are `<model>/<mode>` pairs, in the order of the tables."""

    beam_width: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=1)
    max_thought_tokens: int = Field(default=1024, ge=1)
    max_test_rows: int | None = Field(default=None, ge=1)
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
        neural, counted = ("sft", "activation", "grpo"), ("popularity", "item_item")
        known = [f"{m}/{mode}" for m in neural for mode in ("direct", "thinking")]
        known += [f"{m}/direct" for m in counted]
        if unknown := [name for name in value if name not in known]:
            raise ValueError(f"unknown model {unknown[0]!r}; known: {', '.join(known)}")
        return value


class Evaluation(Section):
    """Metrics at every k up to the beam width, with bootstrap intervals clustered by user."""

    ks: tuple[int, ...] = (1, 3, 5, 10, 20)
    bootstrap: int = Field(default=2000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: int = 42


class ItemItem(Section):
    """Decayed item-item counter: co-occurrence weight `decay ** gap`, history weight `decay ** age`.

    Gaps and ages count from 0. 0.6 had the best valid NDCG@10 of 0.3 … 0.9 on the published Office rows.
    """

    decay: float = Field(default=0.6, gt=0, le=1)
    window: int = Field(default=10, ge=1)
    popularity_prior: float = Field(default=1e-3, ge=0)


#: The eight alignment tasks (METHOD 5.1, numbers 1-5, 7, 8; number 2 counts as two) and the trace task.
TASKS = (
    "sids_to_sid",
    "sid_to_title",
    "title_to_sid",
    "sids_to_title",
    "titles_to_title",
    "titles_to_sid",
    "item_narrative",
    "user_narrative",
)
REASONING_TASK = "reasoning"


class DatasetConfig(Section):
    """Everything about one dataset; each stage reads some of the sections."""

    source: Source
    snapshots: Snapshots
    filters: Filters = Filters()
    split: Split = Split()
    encoder: Encoder = Encoder()
    quantizer: Quantizer = Quantizer()
    teacher: Teacher = Teacher()
    base_model: BaseModelConfig = TinyModel(kind="tiny")
    sft: Sft = Sft()
    activation: Activation = Activation()
    grpo: Grpo = Grpo()
    decoding: Decoding = Decoding()
    evaluation: Evaluation = Evaluation()
    item_item: ItemItem = ItemItem()

    @model_validator(mode="after")
    def _consistent(self) -> DatasetConfig:
        if max(self.evaluation.ks) > self.decoding.beam_width:
            raise ValueError(
                f"evaluation.ks goes to {max(self.evaluation.ks)}, decoding.beam_width is only "
                f"{self.decoding.beam_width}: raise the beam or lower k"
            )
        return self
