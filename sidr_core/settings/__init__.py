"""The typed sections of a dataset: what each step can be told. Every field is checked, none is ignored.

Lengths are in tokens, batch sizes in examples, times in unix seconds; defaults are modest, `profiles/`
says what to use. The figures of the paper: docs/method.md.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from sidr_core.settings.base import Endpoint, Section
from sidr_core.settings.baselines import Gru4Rec, ItemItem, SasRec, TextKnn, Tiger, TrainedBaseline, Trial
from sidr_core.settings.corpus import (
    GENERAL_TASK,
    NEXT_ITEM_TASK,
    REASONING_TASK,
    TASKS,
    Budget,
    General,
    Price,
    Teacher,
)
from sidr_core.settings.data import Encoder, Filters, Quantizer, Refit, Snapshots, Split, Window
from sidr_core.settings.evaluation import Decoding, Evaluation, RecommendationsAll
from sidr_core.settings.launch import Launch
from sidr_core.settings.operation import Operation, Promotion
from sidr_core.settings.sources import (
    Amazon2014Source,
    Amazon2018Source,
    Amazon2023Source,
    MiniOneRecSource,
    MixSource,
    RatingsCsvSource,
    SampleSource,
    SequencesSource,
    Source,
    TablesSource,
    single_sources,
)
from sidr_core.settings.store import StoreSection
from sidr_core.settings.training import (
    CHOSEN_TOGETHER,
    OF_A_TINY_MODEL,
    Activation,
    BaseModelConfig,
    Grpo,
    Lora,
    PackagedModel,
    PretrainedModel,
    Sft,
    TinyModel,
    Training,
    even_part,
)

__all__ = [
    "GENERAL_TASK",
    "NEXT_ITEM_TASK",
    "REASONING_TASK",
    "TASKS",
    "Activation",
    "Amazon2014Source",
    "Amazon2018Source",
    "Amazon2023Source",
    "BaseModelConfig",
    "Budget",
    "DatasetConfig",
    "Decoding",
    "Encoder",
    "Endpoint",
    "Evaluation",
    "Filters",
    "General",
    "Grpo",
    "Gru4Rec",
    "ItemItem",
    "Launch",
    "Lora",
    "MiniOneRecSource",
    "MixSource",
    "Operation",
    "PackagedModel",
    "PretrainedModel",
    "Price",
    "Promotion",
    "Quantizer",
    "RatingsCsvSource",
    "RecommendationsAll",
    "Refit",
    "SampleSource",
    "SasRec",
    "Section",
    "SequencesSource",
    "Sft",
    "Snapshots",
    "Source",
    "Split",
    "StoreSection",
    "TablesSource",
    "Teacher",
    "TextKnn",
    "Tiger",
    "TinyModel",
    "TrainedBaseline",
    "Training",
    "Trial",
    "Window",
]


class DatasetConfig(Section):
    """Everything about one dataset; each stage reads some of the sections."""

    source: Source
    """Where reviews and items come from."""
    snapshots: Snapshots
    """The windows of time that are built."""
    filters: Filters = Filters()
    """Which reviews and items are used."""
    split: Split = Split()
    """How rows become train, valid and test."""
    encoder: Encoder = Encoder()
    """Text to vectors."""
    quantizer: Quantizer = Quantizer()
    """Vectors to Semantic IDs."""
    teacher: Teacher = Teacher()
    """Who writes the corpus."""
    base_model: BaseModelConfig = TinyModel(kind="tiny")
    """The language model that training starts from."""
    sft: Sft = Sft()
    """Stage 1."""
    activation: Activation = Activation()
    """Stage 2."""
    grpo: Grpo = Grpo()
    """Stage 3."""
    decoding: Decoding = Decoding()
    """How lists are made."""
    evaluation: Evaluation = Evaluation()
    """How lists are judged."""
    item_item: ItemItem = ItemItem()
    """The item-item counter."""
    launch: Launch = Launch()
    """Where stages run; part of no fingerprint."""
    operation: Operation = Operation()
    """What runs by itself; part of no fingerprint."""
    recommendations_all: RecommendationsAll | None = None
    """Lists for every user; null for none."""
    promotion: Promotion | None = None
    """What has to be shown before something goes live; null for no gate."""
    text_knn: TextKnn = TextKnn()
    """The nearest neighbours of texts."""
    gru4rec: Gru4Rec = Gru4Rec()
    """The baseline GRU4Rec."""
    sasrec: SasRec = SasRec()
    """The baseline SASRec."""
    tiger: Tiger = Tiger()
    """The baseline TIGER."""
    seeds: int = Field(default=1, ge=1, le=20)
    """How often everything is trained, with other seeds: 3 adds the datasets `<name>_seed2` and `<name>_seed3`, which
    share all that is not trained; `sidr compare` gives mean, spread and an interval over them. Part of no fingerprint.
    """

    @property
    def unread_tasks(self) -> list[str] | None:
        """Tasks that neither stage of SFT gives a weight, so that the corpus leaves them out; None without any.

        A list, as the manifests hold it, with which it is compared.
        """
        read = {task for task in TASKS if self.sft.tasks.get(task, 1.0) or self.activation.tasks.get(task)}
        read |= {NEXT_ITEM_TASK} if self.activation.replay else set()
        return [task for task in TASKS if task not in read] or None

    @property
    def asked_teacher(self) -> Teacher:
        """The teacher as the corpus asks it: for nothing that no training reads."""
        return self.teacher.without(self.unread_tasks or ())

    @model_validator(mode="before")
    @classmethod
    def _suit_a_tiny_model(cls, raw: object) -> object:
        """What the profile leaves out of the sections of training follows the base model."""
        if not isinstance(raw, dict):
            return raw
        base = raw.get("base_model", {})
        if not isinstance(base, dict) or base.get("kind", "tiny") != "tiny":
            return raw
        suited = {}
        for name, fields in OF_A_TINY_MODEL.items():
            given = raw.get(name, {})
            if isinstance(given, dict):
                apart = CHOSEN_TOGETHER if CHOSEN_TOGETHER & given.keys() else frozenset()
                suited[name] = {field: value for field, value in fields.items() if field not in apart} | given
                size = given.get("batch_size")
                if "batch_size" in fields and isinstance(size, int) and size > 0 and "micro_batch" not in given:
                    suited[name]["micro_batch"] = even_part(size, fields["micro_batch"])
        return raw | suited

    @model_validator(mode="after")
    def _members(self) -> DatasetConfig:
        """Members are named only where there are any."""
        known = tuple(self.source.sources) if isinstance(self.source, MixSource) else ()
        for field, named in (("split.train_only", self.split.train_only), ("grpo.train_only", self.grpo.train_only)):
            if unknown := [name for name in named if name not in known]:
                raise ValueError(
                    f"{field} names {unknown[0]!r}; members of the source: {', '.join(known) or 'none, it is no mix'}"
                )
        if known and self.quantizer.kind == "published":
            raise ValueError("published SIDs of several sources are not one SID space: choose another quantizer.kind")
        return self

    @model_validator(mode="after")
    def _promoted(self) -> DatasetConfig:
        if self.promotion is not None and self.promotion.model not in self.decoding.models:
            raise ValueError(
                f"promotion.model is {self.promotion.model!r}, which is none of decoding.models: "
                f"{', '.join(self.decoding.models)}"
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> DatasetConfig:
        """Sequences without times cannot be cut by time."""
        if any(source.kind == "sequences" for source in single_sources(self.source)) and self.split.kind == "time":
            raise ValueError("sequences carry no times: set split.kind to leave_one_out")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> DatasetConfig:
        if max(self.evaluation.ks) > self.decoding.beam_width:
            raise ValueError(
                f"evaluation.ks goes to {max(self.evaluation.ks)}, decoding.beam_width is only "
                f"{self.decoding.beam_width}: raise the beam or lower k"
            )
        return self
