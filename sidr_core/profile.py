"""Profiles: what to build, typed and frozen. One YAML file in `profiles/`, or any path.

A profile names datasets; each has one section per step. A dataset may `extends:` another and
override single fields, so an ablation is a few lines. Unknown keys are errors that name the nearest
known key. `${NAME:-default}` in a path is taken from the environment.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sidr_core.errors import ProfileError

PROFILES = Path(__file__).resolve().parent.parent / "profiles"


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# -- source -------------------------------------------------------------------------------------


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


# -- snapshots ----------------------------------------------------------------------------------

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


# -- data ---------------------------------------------------------------------------------------


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


# -- models -------------------------------------------------------------------------------------


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


# -- inference and evaluation ---------------------------------------------------------------------


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


# -- dataset and profile --------------------------------------------------------------------------

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


class StageConfig:
    """The sections that a stage declared, and no others: reading one more is an error.

    It stands in for a :class:`DatasetConfig` in the body of a stage, with two context sections:
    `dataset` (the name) and `snapshot` (a :class:`Window`).
    """

    def __init__(self, config: DatasetConfig, sections: tuple[str, ...], dataset: str, window: Window) -> None:
        context = {"dataset": dataset, "snapshot": window}
        self._values = {name: context[name] if name in context else getattr(config, name) for name in sections}

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"section {name!r} is not declared by this stage; declared: {sorted(values)}")
        return values[name]

    def key(self) -> dict[str, Any]:
        """JSON-able form, for the fingerprint."""
        return {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in self._values.items()
        }


@dataclass(frozen=True)
class Profile:
    """A set of datasets. Iterating gives their names."""

    name: str
    default_dataset: str
    datasets: Mapping[str, DatasetConfig]
    raw: Mapping[str, Any]

    def __iter__(self) -> Iterator[str]:
        return iter(self.datasets)

    def dataset(self, name: str) -> DatasetConfig:
        """The dataset called `name`."""
        if name not in self.datasets:
            near = difflib.get_close_matches(name, self.datasets, n=1)
            raise ProfileError(
                f"profile {self.name!r} has no dataset {name!r}",
                expected=f"one of {', '.join(self.datasets)}",
                found=repr(name),
                do=f"did you mean {near[0]!r}?" if near else "name one of these, or set SIDR_PROFILE",
            )
        return self.datasets[name]

    def newest(self, dataset: str | None = None) -> str:
        """Key of the newest snapshot of a dataset (of the default one, if none is named)."""
        return self.dataset(dataset or self.default_dataset).snapshots.keys()[-1]


def home() -> Path:
    """The working folder: `SIDR_HOME`, default `.sidr`."""
    return Path(os.environ.get("SIDR_HOME") or ".sidr").absolute()


def load_profile(name: str | None = None) -> Profile:
    """Read a profile by name (in `profiles/`) or path; default: `SIDR_PROFILE`, else `quickstart`.

    Raises:
        ProfileError: no such profile, not YAML, an unknown or impossible field.
    """
    name = name or os.environ.get("SIDR_PROFILE") or "quickstart"
    path = Path(name) if name.endswith((".yaml", ".yml")) or "/" in name else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ProfileError(
            f"there is no profile {name!r}",
            expected=f"one of {known}, or a path to a YAML file",
            found=f"no file {path}",
            do="set SIDR_PROFILE to one of these",
        )
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ProfileError(
            f"{path} is not valid YAML", expected="a mapping", found=str(error).replace("\n", " "), do="mend the file"
        ) from None
    return parse_profile(path.stem, raw)


_TOP = ("default_dataset", "datasets", "description")


def parse_profile(name: str, raw: Any) -> Profile:
    """Build a profile from parsed YAML. Raises ProfileError on anything unknown or impossible."""
    if not isinstance(raw, dict) or not isinstance(raw.get("datasets"), dict) or not raw["datasets"]:
        raise ProfileError(
            f"profile {name!r} names no dataset",
            expected="a mapping with a non-empty `datasets:`",
            found=type(raw).__name__ if not isinstance(raw, dict) else f"keys {sorted(map(str, raw))}",
            do="see profiles/quickstart.yaml for the form",
        )
    for key in raw:
        if key not in _TOP:
            raise _unknown(f"profile {name!r}", str(key), _TOP)
    datasets: dict[str, DatasetConfig] = {}
    for dataset in raw["datasets"]:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(dataset)):
            raise ProfileError(
                f"profile {name!r}: {dataset!r} cannot name a dataset",
                expected="letters, digits and underscores, beginning with a letter",
                found=repr(dataset),
                do="rename it",
            )
        datasets[dataset] = _dataset(name, dataset, _merged(name, raw["datasets"], dataset, ()))
    default = raw.get("default_dataset") or next(iter(datasets))
    profile = Profile(name=name, default_dataset=default, datasets=datasets, raw=raw)
    profile.dataset(default)
    return profile


def _merged(profile: str, datasets: Mapping[str, Any], name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The dataset's fields over those of the one it extends."""
    if name not in datasets:
        raise _unknown(f"profile {profile!r}, dataset {seen[-1]!r}, `extends`", name, tuple(datasets))
    if name in seen:
        raise ProfileError(
            f"profile {profile!r}: datasets extend each other in a circle",
            expected="a chain that ends",
            found=" -> ".join((*seen, name)),
            do="remove one `extends`",
        )
    own = dict(datasets[name] or {})
    parent = own.pop("extends", None)
    return _overlay(_merged(profile, datasets, parent, (*seen, name)), own) if parent else own


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping; another `kind` replaces its section whole."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            merged[key] = _overlay(old, value)
        else:
            merged[key] = value
    return merged


def _dataset(profile: str, name: str, fields: Mapping[str, Any]) -> DatasetConfig:
    try:
        return DatasetConfig.model_validate(_expand(fields))
    except ValidationError as error:
        # A misspelt required key is also a missing one: the misspelling is what helps.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where = f"profile {profile!r}, dataset {name!r}, {'.'.join(str(p) for p in first['loc']) or 'fields'}"
        if first["type"] == "extra_forbidden":
            raise _unknown(where, str(first["loc"][-1]), _siblings(first["loc"][:-1])) from None
        raise ProfileError(
            where, expected=first["msg"], found=repr(first.get("input"))[:200], do="correct this field of the profile"
        ) from None


def _siblings(location: tuple[Any, ...]) -> tuple[str, ...]:
    """Known keys at a place in the dataset's fields."""
    model: Any = DatasetConfig
    unions = {"source": Source, "base_model": BaseModelConfig}
    for depth, part in enumerate(location):
        if depth == 0 and part in unions:
            kinds = {m.model_fields["kind"].annotation.__args__[0]: m for m in get_args(get_args(unions[part])[0])}
            model = kinds[location[1]] if len(location) > 1 else next(iter(kinds.values()))
        elif depth == 0:
            model = DatasetConfig.model_fields[part].annotation
    return tuple(model.model_fields) + (("extends",) if model is DatasetConfig else ())


def _unknown(where: str, key: str, known: tuple[str, ...]) -> ProfileError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return ProfileError(
        f"{where}: unknown key",
        expected=f"one of {', '.join(known)}",
        found=repr(key),
        do=f"did you mean {near[0]!r}?" if near else "remove it or use one of the known keys",
    )


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any) -> Any:
    """Replace `${NAME:-default}` in every string."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: os.environ.get(m[1]) or m[2] or "", value)
    if isinstance(value, dict):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expand(item) for item in value]
    return value
