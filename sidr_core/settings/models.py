"""The list of models: everything that makes ranked lists, and the stages that its lists need.

A new baseline is an entry here, a stage in `sidr_core/pipeline/graph.py` and a module that fits it and ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidr_core.tables.columns import ADAPTIVE, DIRECT, MERGED, MIXED, THINKING


@dataclass(frozen=True)
class Model:
    """One model of the graph.

    Args:
        name: as it stands in `decoding.models` and in the column `model`.
        stage: the stage whose output makes its lists.
        files: what `recommendations` may open of that output.
        is_language_model: a checkpoint of this codebook, with direct and thinking lists; else a baseline.
        ranker: `"module:function"`, `(inputs, config) -> sidr_core.baselines.ranking.Ranker`: opens a baseline.
        also_reads: other models whose stages its lists need.
        sections: sections of the profile, besides `decoding`, that its lists depend on.
        is_counted: a baseline of counts, which can be asked for rows of later snapshots (`reevaluation`).
        is_reference: language models are compared with it, pair by pair.
    """

    name: str
    stage: str
    files: tuple[str, ...] = ("*",)
    is_language_model: bool = False
    ranker: str = ""
    also_reads: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    is_counted: bool = False
    is_reference: bool = False


#: Language models stand in the order of training, each after the one that it starts from.
MODELS = (
    Model("sft", "sft_checkpoint", is_language_model=True),
    Model("activation", "activation_checkpoint", is_language_model=True),
    Model("grpo", "grpo_checkpoint", is_language_model=True),
    Model(
        "popularity",
        "baseline_popularity",
        files=("baseline_popularity.parquet",),
        ranker="sidr_core.baselines.popularity:load",
        is_counted=True,
    ),
    Model(
        "item_item",
        "baseline_item_item",
        files=("baseline_item_item.parquet",),
        ranker="sidr_core.baselines.item_item:load",
        also_reads=("popularity",),
        sections=("item_item",),
        is_counted=True,
        is_reference=True,
    ),
    Model(
        "shortcut",
        "baseline_shortcut",
        ranker="sidr_core.baselines.shortcut:load",
        is_counted=True,
        is_reference=True,
    ),
    Model("text_knn", "baseline_text_knn", ranker="sidr_core.baselines.text_knn:load"),
    Model("gru4rec", "baseline_gru4rec", ranker="sidr_core.baselines.sequential:load_gru4rec"),
    Model("sasrec", "baseline_sasrec", ranker="sidr_core.baselines.sequential:load_sasrec", is_reference=True),
    Model("tiger", "baseline_tiger", ranker="sidr_core.baselines.tiger:load", is_reference=True),
)
#: The sample's own generator: the line of what could be known at best, no model.
OPTIMAL = "optimal"
MODEL_NAMED = {model.name: model for model in MODELS}
LANGUAGE_MODELS = tuple(model.name for model in MODELS if model.is_language_model)
#: The shortcut with SASRec: what a combined list has without a language model.
SASREC_MIXED = f"sasrec_{MIXED}/{DIRECT}"
#: The stages that train a language model: those that can be spread over several processes.
TRAINING_STAGES = tuple(model.stage for model in MODELS if model.is_language_model)


def list_names() -> list[str]:
    """Every `<model>/<mode>` that a profile can ask for."""
    names = [f"{model}/{mode}" for model in LANGUAGE_MODELS for mode in (DIRECT, THINKING, MERGED)]
    names += [
        f"{model}_{kind}" for model in LANGUAGE_MODELS for kind in (f"{ADAPTIVE}/{THINKING}", f"{MIXED}/{DIRECT}")
    ]
    return names + [f"{model.name}/{DIRECT}" for model in MODELS if not model.is_language_model] + [SASREC_MIXED]


def split_name(name: str) -> tuple[str, str]:
    """Model and mode of `<model>/<mode>`."""
    model, _, mode = name.partition("/")
    return model, mode


def language_model(name: str) -> str | None:
    """The language model behind a list's model; None for a baseline.

    >>> language_model("grpo"), language_model("grpo_adaptive"), language_model("sasrec")
    ('grpo', 'grpo', None)
    """
    base = name.removesuffix(f"_{ADAPTIVE}").removesuffix(f"_{MIXED}")
    return base if base in LANGUAGE_MODELS else None


def models_behind(name: str) -> tuple[Model, ...]:
    """The models whose output makes the lists of `name`; the first is the model itself."""
    base = language_model(name)
    model = MODEL_NAMED[base or name.removesuffix(f"_{MIXED}")]
    also_reads = model.also_reads
    if is_mixed(name):
        also_reads = ("shortcut", *(("sasrec",) if base else ()))
    return (model, *(behind for other in also_reads for behind in models_behind(other)))


def is_mixed(name: str) -> bool:
    """Whether a model's lists combine the shortcut's with others."""
    return name.endswith(f"_{MIXED}")


def producers(name: str) -> tuple[str, ...]:
    """The stages whose output makes a model's lists; the first is that of the model itself.

    >>> producers("grpo_adaptive"), producers("sasrec"), producers("item_item")
    (('grpo_checkpoint',), ('baseline_sasrec',), ('baseline_item_item', 'baseline_popularity'))
    >>> producers("sft_mixed"), producers("sasrec_mixed")
    (('sft_checkpoint', 'baseline_shortcut', 'baseline_sasrec'), ('baseline_sasrec', 'baseline_shortcut'))
    """
    return tuple(model.stage for model in models_behind(name))
