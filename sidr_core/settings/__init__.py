"""The typed sections of a dataset: what each step can be told. Every field is checked, none is ignored.

Lengths are in tokens, batch sizes in examples, times in unix seconds; defaults are modest, `profiles/`
says what to use. METHOD figures: arXiv 2603.23183 and its code.
"""

from __future__ import annotations

from pydantic import model_validator

from sidr_core.settings.base import Endpoint, Section
from sidr_core.settings.baselines import Gru4Rec, ItemItem, SasRec, TextKnn, Tiger, TrainedBaseline, Trial
from sidr_core.settings.corpus import GENERAL_TASK, REASONING_TASK, TASKS, Budget, General, Price, Teacher
from sidr_core.settings.data import Encoder, Filters, Quantizer, Refit, Snapshots, Split, Window
from sidr_core.settings.evaluation import Decoding, Evaluation
from sidr_core.settings.launch import Launch
from sidr_core.settings.operation import Operation
from sidr_core.settings.sources import (
    Amazon2014Source,
    Amazon2018Source,
    Amazon2023Source,
    MiniOneRecSource,
    MixSource,
    RatingsCsvSource,
    SampleSource,
    Source,
    TablesSource,
)
from sidr_core.settings.training import (
    Activation,
    BaseModelConfig,
    Grpo,
    Lora,
    PackagedModel,
    PretrainedModel,
    Sft,
    TinyModel,
    Training,
)

__all__ = [
    "GENERAL_TASK",
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
    "Quantizer",
    "RatingsCsvSource",
    "Refit",
    "SampleSource",
    "SasRec",
    "Section",
    "Sft",
    "Snapshots",
    "Source",
    "Split",
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
    launch: Launch = Launch()
    operation: Operation = Operation()
    text_knn: TextKnn = TextKnn()
    gru4rec: Gru4Rec = Gru4Rec()
    sasrec: SasRec = SasRec()
    tiger: Tiger = Tiger()

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
    def _consistent(self) -> DatasetConfig:
        if max(self.evaluation.ks) > self.decoding.beam_width:
            raise ValueError(
                f"evaluation.ks goes to {max(self.evaluation.ks)}, decoding.beam_width is only "
                f"{self.decoding.beam_width}: raise the beam or lower k"
            )
        return self
