"""All stages, in the order in which data flows: this file is the graph of the pipeline.

Only `recommendations`, `evaluation` and `reevaluation` declare `test.parquet`; a test asserts it. The complete
interaction log (`interactions.parquet`) and `raw_reviews` contain test rows too, and no training stage declares
them either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidr_core.pipeline.stage import CheckSpec, Stage
from sidr_core.settings.models import LANGUAGE_MODELS, MODEL_NAMED, MODELS, language_model, producers, split_name
from sidr_core.tables.columns import THINKING

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

_ALL = ("*",)
_TRAINED = (
    CheckSpec("loads_plain", "The checkpoint loads with AutoModelForCausalLM, without remote code."),
    CheckSpec("token_map", "Every SID token is one vocabulary entry and the map equals the codebook's."),
)

#: Sections that lists of some model depend on, besides `decoding`.
_LIST_SECTIONS = tuple(dict.fromkeys(section for model in MODELS for section in model.sections))
_COUNTED = CheckSpec("every_line_counted", "Each record that came in is in the output or was left out for one reason.")
_WEAK_BASELINE = "train it longer or on more rows, or leave it out of `decoding.models`; figures of it mean little"
_LEARNT = (
    CheckSpec("learnt", "NDCG@10 on valid rows is above that of popularity.", blocking=False, fix=_WEAK_BASELINE),
)
_CHOSEN = {
    "interactions": ("train.parquet", "valid.parquet"),
    "baseline_popularity": ("baseline_popularity.parquet",),
}

STAGES: tuple[Stage, ...] = (
    Stage(
        name="raw_reviews",
        run="sidr_core.reviews.raw:build_reviews",
        inputs={},
        sections=("source", "snapshot", "filters"),
        sources="sidr_core.reviews.source_files:review_files",
        code_version="5",
        tables={"raw_reviews": "RawReviews", "quarantine": "Quarantine"},
        kinds=("duckdb", "parquet"),
        plots=("rows", "quarantine_share", "quarantined", "exact_duplicates", "damaged_files"),
        description="Every accepted review known by the end of the snapshot, typed, without exact duplicates; "
        "refused lines in `quarantine` with file, line and reason.",
        checks=(
            CheckSpec(
                "quarantine_share",
                "The share of refused lines is within `filters`.",
                fix="mend the files, see `raw_reviews_quarantine`; or raise `filters.max_quarantine_share`",
            ),
            _COUNTED,
            CheckSpec(
                "duplicate_share",
                "The share of exact duplicates is within `filters`.",
                blocking=False,
                fix="if they are two purchases, set `filters.keep_duplicates: true`; else look for files named twice",
            ),
        ),
    ),
    Stage(
        name="raw_items",
        run="sidr_core.reviews.items:build",
        inputs={},
        sections=("source", "filters"),
        sources="sidr_core.reviews.source_files:item_files",
        code_version="5",
        tables={"raw_items": "RawItems", "quarantine": "Quarantine"},
        kinds=("duckdb", "parquet"),
        plots=("rows", "quarantined", "described_share"),
        description="Every accepted item record, typed and cleaned; refused ones in `quarantine`.",
        checks=(CheckSpec("unique_items", "No item id occurs twice."), _COUNTED),
    ),
    Stage(
        name="interactions",
        run="sidr_core.reviews.interactions:build",
        inputs={"raw_reviews": ("raw_reviews.parquet",), "raw_items": ("raw_items.parquet",)},
        sections=("filters", "split"),
        code_version="4",
        tables={
            "interactions": "Interactions",
            "items": "Items",
            "train": "Samples",
            "valid": "Samples",
            "test": "Samples",
        },
        kinds=("duckdb", "parquet"),
        plots=(
            "interactions",
            "users",
            "items",
            "mean_history",
            "cold_target_share",
            "repeat_target_share",
            "test_rows",
        ),
        description="k-core users and items, ordered histories, and train/valid/test samples cut by "
        "the time of their target.",
        checks=(
            CheckSpec("k_core", "Every user and item has at least k interactions."),
            CheckSpec("history_before_target", "No history reaches past its target."),
            CheckSpec("split_order", "No train target is later than a valid one, no valid later than a test one."),
            CheckSpec("splits_disjoint", "No (user, position) is in two splits."),
            CheckSpec("train_only_past", "No test row is in train, no train target is later than the first test one."),
            _COUNTED,
            CheckSpec(
                "known_items",
                "The share of reviews of unknown items is within `filters`.",
                blocking=False,
                fix="write the ids of both tables alike, or complete the catalogue; or raise "
                "`filters.max_unknown_item_share`",
            ),
            CheckSpec(
                "core_share",
                "At least half of the reviews are of users and items with `filters.k_core` reviews each.",
                blocking=False,
                fix="lower `filters.k_core` (1 keeps all), or add reviews; what is left may be too few to learn from",
            ),
        ),
    ),
    Stage(
        name="baseline_popularity",
        run="sidr_core.baselines.popularity:build",
        inputs={"interactions": ("train.parquet", "items.parquet")},
        sections=(),
        code_version="1",
        tables={"baseline_popularity": "Popularity"},
        kinds=("duckdb",),
        plots=("items", "top_10_share", "never_a_target"),
        description="How often each item is a target in train.",
    ),
    Stage(
        name="baseline_item_item",
        run="sidr_core.baselines.item_item:build",
        inputs={"interactions": ("train.parquet", "items.parquet")},
        sections=("item_item",),
        code_version="1",
        tables={"baseline_item_item": "ItemItem"},
        kinds=("duckdb",),
        plots=("pairs", "items_with_neighbours"),
        description="Decayed item-to-item co-occurrence in train: the count model to beat.",
    ),
    Stage(
        name="baseline_shortcut",
        run="sidr_core.baselines.shortcut:build",
        inputs={**_CHOSEN, "interactions": (*_CHOSEN["interactions"], "items.parquet")},
        sections=(),
        code_version="2",
        tables={"baseline_shortcut": "ChoiceLog", "items": "BaselineItems"},
        kinds=("scipy",),
        description="Co-occurrence in train and TF-IDF of the item texts, mixed as valid rows choose: the bar for "
        "every model.",
        checks=_LEARNT,
    ),
    Stage(
        name="item_embeddings",
        run="sidr_core.items.embeddings:build",
        inputs={"interactions": ("items.parquet",)},
        sections=("encoder",),
        code_version="2",
        tables={"item_embeddings": "Embeddings"},
        kinds=("pytorch", "parquet"),
        plots=("items", "encoded", "items_per_second"),
        description="One text vector per item of the catalogue; a text that was encoded before comes from the cache.",
        checks=(
            CheckSpec(
                "finite", "Every vector is finite and not zero.", fix="try another `encoder.model`, or `encoder.dtype`"
            ),
        ),
    ),
    Stage(
        name="sid_codebook",
        run="sidr_core.sids.codebook:build",
        inputs={"item_embeddings": ("item_embeddings.parquet",), "interactions": ("items.parquet", "train.parquet")},
        sections=("quantizer", "snapshot"),
        code_version="3",
        warm=True,
        tables={"sid_codebook": "Codebook", "retired": "RetiredSids"},
        kinds=("faiss", "parquet"),
        plots=(
            "distinct_sids",
            "collision_rate",
            "churned_items",
            "reconstruction_error",
            "level_a_perplexity",
            "nearest_shares_ab",
            "placed_since_fit",
        ),
        description="The codebook, the item -> SID table and a quality report. A known, unchanged item "
        "keeps its SID from the previous snapshot; train rows are read for fused vectors only.",
        checks=(
            CheckSpec("no_collisions", "No two items share a SID, unless the profile allows it."),
            CheckSpec(
                "no_collapse",
                "No level has a few codes that hold nearly everything, no prefix too many items.",
                fix="look for items that share one text (a placeholder, an empty title), which no codes can tell "
                "apart; otherwise set `quantizer.kind: balanced_kmeans`, or raise `quantizer.size`",
            ),
            CheckSpec("sids_last", "An unchanged item has the SID that it had, unless the codebook was fitted anew."),
        ),
    ),
    Stage(
        name="baseline_text_knn",
        run="sidr_core.baselines.text_knn:build",
        inputs={
            **_CHOSEN,
            "interactions": (*_CHOSEN["interactions"], "items.parquet"),
            "item_embeddings": ("item_embeddings.parquet",),
        },
        sections=("text_knn",),
        code_version="2",
        tables={"baseline_text_knn": "ChoiceLog", "items": "BaselineItems"},
        kinds=("parquet",),
        plots=("valid_ndcg@10", "valid_hr@10"),
        description="Items whose text is nearest to the texts of the history; the weights of the history are chosen "
        "on valid rows.",
        checks=_LEARNT,
    ),
    Stage(
        name="baseline_gru4rec",
        run="sidr_core.baselines.sequential:build_gru4rec",
        inputs={**_CHOSEN, "interactions": (*_CHOSEN["interactions"], "items.parquet")},
        sections=("gru4rec",),
        code_version="3",
        tables={"baseline_gru4rec": "BaselineLog", "items": "BaselineItems"},
        kinds=("pytorch",),
        plots=("valid_ndcg@10", "valid_hr@10", "epochs"),
        description="GRU4Rec over item ids, whole softmax, tuned and stopped on valid rows.",
        checks=_LEARNT,
    ),
    Stage(
        name="baseline_sasrec",
        run="sidr_core.baselines.sequential:build_sasrec",
        inputs={**_CHOSEN, "interactions": (*_CHOSEN["interactions"], "items.parquet")},
        sections=("sasrec",),
        code_version="3",
        tables={"baseline_sasrec": "BaselineLog", "items": "BaselineItems"},
        kinds=("pytorch",),
        plots=("valid_ndcg@10", "valid_hr@10", "epochs"),
        description="SASRec over item ids, whole softmax, tuned and stopped on valid rows.",
        checks=_LEARNT,
    ),
    Stage(
        name="baseline_tiger",
        run="sidr_core.baselines.tiger:build",
        inputs={**_CHOSEN, "sid_codebook": ("sid_codebook.parquet",)},
        sections=("tiger",),
        code_version="1",
        tables={"baseline_tiger": "BaselineLog", "items": "BaselineItems"},
        kinds=("pytorch", "transformers"),
        plots=("valid_ndcg@10", "valid_hr@10", "epochs"),
        description="TIGER: an encoder-decoder over the SIDs of this codebook, tuned and stopped on valid rows.",
        checks=_LEARNT,
    ),
    Stage(
        name="synthetic_corpus",
        run="sidr_core.corpus.build:build",
        inputs={"interactions": ("train.parquet", "items.parquet"), "sid_codebook": ("sid_codebook.parquet",)},
        sections=("teacher", "unread_tasks"),
        sources="sidr_core.corpus.general_file:files",
        code_version="3",
        tables={"synthetic_corpus": "Corpus", "teacher_quarantine": "TeacherQuarantine"},
        kinds=("parquet",),
        plots=(
            "sid_coverage",
            "thoughts_with_target",
            "thoughts_open",
            "thought_words_mean",
            "thought_restating",
            "titles_ambiguous",
            "words",
        ),
        description="What ties SIDs to language: the alignment tasks that a training reads, narratives and reasoning "
        "traces, from train rows only.",
        checks=(
            CheckSpec("train_rows_only", "Every example with a user comes from a train row."),
            CheckSpec("no_leak", "No thought holds its target; no translation prompt holds its answer."),
            CheckSpec("known_sids", "Every SID in the corpus is in the codebook."),
        ),
    ),
    Stage(
        name="sft_checkpoint",
        run="sidr_core.training.sft:build_alignment",
        inputs={
            "synthetic_corpus": ("synthetic_corpus.parquet",),
            "sid_codebook": ("sid_codebook.parquet",),
            "interactions": ("train.parquet", "valid.parquet", "items.parquet"),
        },
        sections=("base_model", "sft"),
        sources="sidr_core.models.sources:files",
        code_version="4",
        kinds=("pytorch", "transformers"),
        plots=("valid direct ndcg@10", "valid direct hr@10", "last eval_loss", "last loss", "steps"),
        description="Stage 1: the base model learns the SID vocabulary through the alignment tasks.",
        checks=_TRAINED,
    ),
    Stage(
        name="activation_checkpoint",
        run="sidr_core.training.sft:build_activation",
        inputs={
            "sft_checkpoint": _ALL,
            "synthetic_corpus": ("synthetic_corpus.parquet",),
            "sid_codebook": ("sid_codebook.parquet",),
            "interactions": ("train.parquet", "valid.parquet", "items.parquet"),
        },
        sections=("activation", "decoding.max_thought_tokens"),
        code_version="4",
        kinds=("pytorch", "transformers"),
        plots=(
            "valid thinking ndcg@10",
            "valid direct ndcg@10",
            "valid thinking hr@10",
            "last eval_loss",
            "last loss",
            "steps",
        ),
        description="Stage 2: the model learns to think before it answers.",
        checks=_TRAINED,
    ),
    Stage(
        name="grpo_checkpoint",
        run="sidr_core.training.grpo:build",
        inputs={
            "activation_checkpoint": _ALL,
            "sid_codebook": ("sid_codebook.parquet",),
            "interactions": ("train.parquet", "valid.parquet", "items.parquet"),
        },
        sections=("grpo", "decoding.max_thought_tokens"),
        code_version="5",
        kinds=("pytorch", "transformers"),
        plots=(
            "valid thinking ndcg@10",
            "valid direct ndcg@10",
            "last reward",
            "last close_rate",
            "last kl",
            "last thought_tokens",
            "steps",
        ),
        description="Stage 3: GRPO on thinking rollouts, rewarded by how much of the target SID they hit.",
        checks=_TRAINED,
    ),
    Stage(
        name="grounding",
        run="sidr_core.evaluation.grounding:build",
        inputs={
            "interactions": ("train.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
            **{model.stage: model.files for model in MODELS if model.is_language_model},
        },
        sections=(
            "evaluation.grounding_items",
            "evaluation.grounding_floor",
            "evaluation.seed",
            "decoding.batch_size",
            "decoding.scoring",
            "dataset",
            "snapshot",
        ),
        unused="sidr_core.pipeline.graph:untrained_checkpoints",
        code_version="1",
        tables={"grounding": "Grounding"},
        kinds=("pytorch", "parquet"),
        plots=("*_grounded", "*_sid_to_title_f1", "*_title_to_sid_hr@1"),
        description="What each trained checkpoint knows of its SIDs: title from SID, SID from title, stated facts from "
        "SID; apart for items that training has met as targets, in histories, and never.",
        checks=(
            CheckSpec(
                "grounded",
                "Every checkpoint names the titles of SIDs up to the floor.",
                blocking=False,
                fix="train longer (`sft.epochs`) or on more alignment tasks; below it, thoughts mean little",
            ),
        ),
    ),
    Stage(
        name="recommendations",
        run="sidr_core.recommending.recommend:build",
        inputs={
            "interactions": ("train.parquet", "valid.parquet", "test.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
            **{model.stage: model.files for model in MODELS},
        },
        sections=("decoding", *_LIST_SECTIONS, "dataset", "snapshot"),
        unused="sidr_core.pipeline.graph:unused_producers",
        code_version="4",
        tables={
            "recommendations": "Recommendations",
            "models": "RecommendedModels",
            "thoughts": "Thoughts",
            "rows": "Samples",
        },
        kinds=("pytorch", "parquet"),
        plots=("*_close_rate", "*_thoughts_true", "*_facts_right", "test_rows"),
        description="Top-k items per test row, per model and mode, with the thought that led there.",
        checks=(
            CheckSpec("only_real_items", "Every recommended SID is an item of the catalogue."),
            CheckSpec("distinct", "No list holds an item twice, and every list is full."),
            CheckSpec(
                "close_rate",
                "At least 95 % of thoughts were closed by the model itself.",
                blocking=False,
                fix="raise `decoding.max_thought_tokens`, or train the activation longer",
            ),
        ),
    ),
    Stage(
        name="evaluation",
        run="sidr_core.evaluation.evaluate:build",
        inputs={
            "recommendations": ("recommendations.parquet", "models.parquet", "thoughts.parquet"),
            "interactions": ("train.parquet", "test.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
        },
        sections=("source", "evaluation", "decoding", "dataset", "snapshot"),
        code_version="6",
        tables={
            "evaluation": "EvaluationTable",
            "paired": "Paired",
            "margins": "Paired",
            "slices": "Slices",
            "remarks": "Remarks",
        },
        kinds=("duckdb", "parquet"),
        plots=("grpo_*_ndcg@10", "item_item_direct_ndcg@10", "sasrec_direct_ndcg@10", "*_ndcg@10", "*_ndcg@*"),
        description="HR, NDCG and MRR at item and SID level, coverage, Gini and novelty, with intervals clustered by "
        "user; paired differences, corrected for being many; slices of the test rows.",
        checks=(
            CheckSpec("complete", "Every model was scored on every test row."),
            CheckSpec(
                "learnt",
                "NDCG of every trained list on test rows is above that of popularity.",
                blocking=False,
                fix="the table marks these lists: train longer, on more rows, or with a higher learning rate",
            ),
        ),
    ),
    Stage(
        name="leaderboard",
        run="sidr_core.evaluation.leaderboard:build",
        inputs={"evaluation": ("evaluation.parquet", "margins.parquet", "remarks.parquet")},
        sections=("source",),
        code_version="4",
        tables={"leaderboard": "Leaderboard"},
        kinds=("parquet",),
        plots=("lists",),
        description="Every list placed by NDCG, with interval, seed and checkpoint, and a card of what is claimed of "
        "it; published figures of the same test rows beside, marked and without a place.",
    ),
    Stage(
        name="reasoning_report",
        run="sidr_core.evaluation.reasoning:build",
        inputs={
            "recommendations": ("recommendations.parquet", "thoughts.parquet", "rows.parquet"),
            "interactions": ("items.parquet",),
            "sid_codebook": ("sid_codebook.parquet",),
        },
        sections=("evaluation", "dataset", "snapshot"),
        code_version="3",
        tables={"cases": "Cases"},
        kinds=("parquet",),
        plots=("*_thoughts_true", "*_helped", "*_harmed", "*_names_target"),
        description="What the thoughts say, how often they name what was recommended or bought, how long they are, "
        "and cases: at random, most helped and most harmed by thinking.",
    ),
    Stage(
        name="interventions",
        run="sidr_core.evaluation.interventions:build",
        inputs={
            "recommendations": ("recommendations.parquet", "rows.parquet"),
            "interactions": ("train.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
            **{model.stage: model.files for model in MODELS if model.is_language_model},
        },
        sections=("evaluation", "decoding", "dataset", "snapshot"),
        unused="sidr_core.pipeline.graph:checkpoints_that_do_not_think",
        code_version="2",
        tables={"interventions": "Interventions"},
        kinds=("pytorch", "parquet"),
        plots=("own_ndcg", "placebo_ndcg", "shuffled_ndcg", "blank_ndcg", "corrupted_ndcg", "true_ndcg"),
        description="Lists after a thinking model's own thoughts against those after another user's, shuffled, blank, "
        "corrupted and true ones, paired.",
        checks=(
            CheckSpec(
                "thoughts_matter",
                "NDCG@10 after the own thought is above that after another user's.",
                blocking=False,
                fix="do not say that thinking helps here: the lists do not depend on what the thoughts say",
            ),
        ),
    ),
    Stage(
        name="reevaluation",
        run="sidr_core.evaluation.reevaluate:build",
        inputs={"interactions": ("train.parquet", "valid.parquet", "test.parquet")},
        warm=True,
        from_earlier={
            "interactions": ("train.parquet", "valid.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
            **{model.stage: model.files for model in MODELS if model.is_language_model or model.is_counted},
            # part of combined lists
            MODEL_NAMED["sasrec"].stage: MODEL_NAMED["sasrec"].files,
            "recommendations": ("models.parquet", "rows.parquet"),
            "evaluation": ("evaluation.parquet",),
        },
        unused="sidr_core.pipeline.graph:unused_producers",
        sections=("decoding", *_LIST_SECTIONS, "evaluation", "dataset", "snapshot"),
        code_version="3",
        tables={"reevaluation": "Reevaluation"},
        kinds=("pytorch", "parquet"),
        plots=("*_ndcg@*", "apart", "outside", "unreachable_share", "history_rows"),
        description="The newest earlier checkpoints again, on rows of this snapshot that are newer than all they were "
        "judged on; a history over snapshots.",
        checks=(
            CheckSpec("append_only", "Every row of the history before is kept as it was."),
            CheckSpec(
                "drift",
                "No HR or NDCG has an interval apart from that of its evaluation.",
                blocking=False,
                fix="train on the newer snapshot; docs/operations.md says how to read it",
            ),
        ),
    ),
)

#: Stages that a dataset has only where its profile has the section of their name.
OPTIONAL: tuple[Stage, ...] = (
    Stage(
        name="recommendations_all",
        run="sidr_core.recommending.everyone:build",
        inputs={
            "interactions": ("interactions.parquet", "train.parquet", "valid.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
            **{model.stage: model.files for model in MODELS},
        },
        from_live={model.stage: model.files for model in MODELS if model.is_language_model},
        sections=(
            "recommendations_all",
            "decoding",
            "split.max_history",
            *_LIST_SECTIONS,
            "dataset",
            "snapshot",
        ),
        unused="sidr_core.pipeline.graph:unused_for_everyone",
        code_version="1",
        tables={"recommendations_all": "ScoredParts", "lists": "EveryonesLists"},
        kinds=("pytorch", "parquet"),
        description="The lists of one model for every user of the snapshot, after all that they did until its end; in "
        "parts of so many users, each kept when it is finished.",
        checks=(
            CheckSpec("everyone", "Every user of the snapshot has a list."),
            CheckSpec("full_lists", "No list holds an item twice, and every list is full of real items."),
        ),
    ),
    Stage(
        name="promotion",
        run="sidr_core.serving.challenge:build",
        inputs={
            "recommendations": ("recommendations.parquet", "models.parquet", "rows.parquet"),
            "evaluation": ("evaluation.parquet",),
            "interactions": ("train.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
        },
        from_live={
            "interactions": ("train.parquet", "valid.parquet", "items.parquet"),
            "sid_codebook": ("sid_codebook.parquet",),
            **{model.stage: model.files for model in MODELS},
            "recommendations": ("recommendations.parquet", "models.parquet", "rows.parquet"),
        },
        sections=("promotion", "evaluation", "dataset", "snapshot"),
        code_version="1",
        tables={"promotion": "Promotion"},
        kinds=("pytorch", "parquet"),
        description="The evaluated lists of this snapshot against what is live, on the same test rows: not worse "
        "by the profile's margins, or not. It changes nothing: `sidr promote` does.",
        checks=(
            CheckSpec("same_rows", "Both sides have a list for every test row."),
            CheckSpec("not_worse", "Every rule of the gate holds.", blocking=False),
        ),
    ),
)


#: Stages that a dataset has only where another one of it reads them: what makes lists, and what that is trained on.
#: The bar for every model, the shortcut, is there always.
_FOR_LISTS = {model.stage for model in MODELS if model.name != "shortcut"} | {"synthetic_corpus"}


def stages_of(config: DatasetConfig, stages: tuple[Stage, ...] = (*STAGES, *OPTIONAL)) -> tuple[Stage, ...]:
    """The stages that a dataset has, out of `stages`, in the order in which data flows."""
    absent = {stage.name for stage in OPTIONAL if getattr(config, stage.name) is None}
    needed: set[str] = set()
    for stage in reversed((*STAGES, *OPTIONAL)):
        if stage.name not in absent and (stage.name in needed or stage.name not in _FOR_LISTS):
            needed |= {stage.name, *stage.reads(config)}
    return tuple(stage for stage in stages if stage.name in needed or stage.name not in _FOR_LISTS | absent)


def unused_producers(config: DatasetConfig) -> set[str]:
    """Checkpoints and baselines that no model of `decoding.models` needs; they are not built."""
    used = {stage for name in config.decoding.models for stage in producers(split_name(name)[0])}
    return {model.stage for model in MODELS} - used


def unused_for_everyone(config: DatasetConfig) -> set[str]:
    """What `recommendations_all` does not need: all but its own model, of the snapshot or of what is live."""
    settings = config.recommendations_all
    stages = {model.stage for model in MODELS}
    if settings is None:
        return stages
    needed = set(producers(split_name(settings.model)[0]))
    live = {f"live/{stage}" for stage in stages}
    if settings.checkpoint == "live":
        return stages | (live - {f"live/{stage}" for stage in needed})
    return live | (stages - needed)


def untrained_checkpoints(config: DatasetConfig) -> set[str]:
    """Checkpoints that the dataset does not train: those after the last one that makes lists."""
    stages = [language_model(split_name(name)[0]) for name in config.decoding.models]
    last = max((LANGUAGE_MODELS.index(stage) for stage in stages if stage), default=-1)
    return {f"{stage}_checkpoint" for stage in LANGUAGE_MODELS[last + 1 :]}


def thinking_model(models: tuple[str, ...]) -> str | None:
    """The last language model that `decoding.models` lists with thinking; None without one.

    >>> thinking_model(("sft/direct", "activation/thinking", "grpo/thinking", "grpo/direct"))
    'grpo'
    """
    thinking = [model for model in LANGUAGE_MODELS if f"{model}/{THINKING}" in models]
    return thinking[-1] if thinking else None


def checkpoints_that_do_not_think(config: DatasetConfig) -> set[str]:
    """All checkpoints but that of :func:`thinking_model`."""
    thinking = thinking_model(config.decoding.models)
    return {f"{stage}_checkpoint" for stage in LANGUAGE_MODELS if stage != thinking}


def stage_named(name: str) -> Stage:
    """The stage called `name`."""
    return next(stage for stage in (*STAGES, *OPTIONAL) if stage.name == name)
