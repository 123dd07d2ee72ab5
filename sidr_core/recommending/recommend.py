"""The stage `recommendations`: lists of every model and mode on the test rows, and the thoughts behind them.

The lists of each model are a part of their own in the store: an unchanged checkpoint is not decoded again, and
variants of a dataset share its lists. Test rows are opened here, in `evaluation` and in `reevaluation` only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.baselines.ranking import Ranker, not_met, rankings
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.decoding.lists import CLOSED, N_TOKENS, RANKING, Lists, counted
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput, load_object
from sidr_core.recommending import leakage, mixture, truth
from sidr_core.recommending import merged as merging
from sidr_core.recommending.adaptive import Threshold, adaptive, choose_threshold
from sidr_core.recommending.fresh import with_catalogue
from sidr_core.recommending.lists import THOUGHTS, checkpoint_lists
from sidr_core.recommending.rows import choice_rows, chosen_rows, history_sids, lists_repeat
from sidr_core.render.grid import markdown_table
from sidr_core.render.text import markdown_text
from sidr_core.settings.models import MODEL_NAMED, is_mixed, language_model, models_behind, producers, split_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import (
    DATASET,
    DIRECT,
    ITEM_ID,
    MERGED,
    MODE,
    MODEL,
    RANK,
    REASONING,
    ROW_ID,
    SCORE,
    SID,
    SNAPSHOT,
    SPLIT,
    TARGET,
    TARGET_TIME,
    TEST,
    THINKING,
    TRACE,
    USER_ID,
)
from sidr_core.tables.contracts import Recommendations, RecommendedModels, Samples, Thoughts

if TYPE_CHECKING:
    from sidr_core.pipeline.store import Artifact
    from sidr_core.settings import DatasetConfig

#: Raise when the same checkpoint and rows should give other lists.
DECODED_VERSION = "3"

_LEAST_CLOSED = 0.95
#: What was chosen on valid rows for an adaptive model or a mixture, and its NDCG there.
_CHOICE = "choice.json"
#: Rows of a mixture that are combined at once.
_BLOCK = 4096
_LISTS, _THOUGHTS = "places.parquet", "thoughts.parquet"


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Decode what is not decoded yet; write `recommendations`, `models`, `thoughts` and `rows` as Parquet."""
    rows = chosen_rows(tables.read(inputs["interactions"].path("test.parquet")), config.decoding.max_test_rows)
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    leakage.check_checkpoints(inputs, config.decoding.models, rows, codebook)
    history_sids(rows, codebook)  # rows that cannot be prompted are refused before hours of decoding
    parts: dict[str, Artifact] = {}
    for name in config.decoding.models:
        parts[name] = part_of(name, inputs, config, rows, codebook, progress.named(name))
    joined = joined_lists(parts, rows, config)  # type: ignore[arg-type]
    models, written = _models(parts, inputs, config), thoughts_of(parts)
    items, train = (tables.read(inputs["interactions"].path(f"{name}.parquet")) for name in ("items", "train"))
    thoughts = truth.judged(written, rows, items, codebook, train)
    tables.write(joined, out_dir / "recommendations.parquet", Recommendations)
    tables.write(models, out_dir / "models.parquet", RecommendedModels)
    tables.write(thoughts, out_dir / "thoughts.parquet", Thoughts)
    tables.write(rows, out_dir / "rows.parquet", Samples)
    metrics: dict[str, Any] = {
        "test_rows": rows.height,
        "test_users": rows[USER_ID].n_unique(),
        "items_of_the_history": "may be listed" if lists_repeat(inputs, config.decoding) else "left out",
        "items_of_the_history_by": "valid rows" if config.decoding.seen == "choose" else "the profile",
    }
    for name, part in parts.items():
        metrics[f"{name.replace('/', '_')}_seconds"] = part.manifest["seconds"]
        if _CHOICE in part.files:
            choice = json.loads(part.path(_CHOICE).read_text())
            chosen = {key: value for key, value in choice.items() if not isinstance(value, dict | list)}
            metrics |= {f"{split_name(name)[0]}_valid_{key}": value for key, value in chosen.items()}
    for row in models.filter(pl.col("close_rate").is_not_null()).iter_rows(named=True):
        metrics[f"{row[MODEL]}_close_rate"] = row["close_rate"]
        metrics[f"{row[MODEL]}_thought_tokens"] = row["mean_thought_tokens"]
    for model, of_model in truth.shares(thoughts).items():
        metrics |= {f"{model}_{name}": round(share, 4) for name, share in of_model.items()}
    return Report(
        metrics=metrics,
        checks=(
            only_real_items(joined, codebook),
            distinct(joined, rows, codebook, config.decoding.models, config.decoding.beam_width),
            close_rate(models),
        ),
        markdown={"Example lists": _examples(joined)},
    )


# -- one model's lists -------------------------------------------------------------------------------


def part_of(
    name: str,
    inputs: Inputs,
    config: DatasetConfig,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    progress: Progress,
    also: Mapping[str, Any] | None = None,
) -> Artifact:
    """Lists of one model and mode: decoded now, or reused from the store.

    Args:
        rows: the rows to decode: the test rows of `inputs`, unless `also` says which.
        also: more entries of the part's key.
    """
    model, mode = split_name(name)
    decoding = config.decoding
    key: dict[str, Any] = {
        "name": name,
        "made_by": {source: inputs[source].digest for source in producers(model)},
        "interactions": inputs["interactions"].digest,
        "codebook": inputs["sid_codebook"].digest,
        "beam_width": decoding.beam_width,
        "max_test_rows": decoding.max_test_rows,
        **(also or {}),
    }
    if not (repeats := lists_repeat(inputs, config.decoding)):
        key["repeats"] = False
    if language_model(model):
        key["batch_size"] = decoding.batch_size  # padding differs, and with it the last bits of a score
        key["scoring"] = decoding.scoring
    if mode in (THINKING, MERGED):
        key |= decoding.model_dump(include={"max_thought_tokens", "traces", "trace_temperature"})
    if _combined(model, mode):
        key["choice_rows"] = decoding.choice_rows
    if is_mixed(model):
        key |= {"parts": _own_lists(model, config), "weights": "by route"}  # as the choice is written
    for section in (section for behind in models_behind(model) for section in behind.sections):
        key[section] = getattr(config, section).model_dump(mode="json")

    def build_part(folder: Path) -> None:
        progress.say(f"{rows.height:,} rows")
        if is_mixed(model):
            lists = _mixture(model, inputs, config, rows, codebook, folder, progress, also)
        elif _combined(model, mode):
            lists = _combination(model, mode, inputs, config, rows, codebook, folder, progress, also)
        elif language_model(model):
            lists = _from_checkpoint(model, mode, inputs, config, rows, codebook, progress)
        else:
            lists = Lists(rankings(_open(model, inputs, config), rows, codebook, decoding.beam_width, repeats))
        tables.write_table(lists.rankings.sort(ROW_ID, RANK), folder / _LISTS)
        if lists.thoughts is not None:
            tables.write_table(lists.thoughts.sort(ROW_ID, TRACE), folder / _THOUGHTS)

    return inputs.part("decoded", DECODED_VERSION, key, build_part)


def _from_checkpoint(
    model: str,
    mode: str,
    inputs: Inputs,
    config: DatasetConfig,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    progress: Progress,
) -> Lists:
    """Lists of a checkpoint, over the items of `codebook`, which may be a later one than it was trained with."""
    from sidr_core.models import checkpoint

    loaded = checkpoint.load(inputs[f"{model}_checkpoint"].folder())
    row_ids, histories = rows[ROW_ID].to_list(), history_sids(rows, codebook)
    if checkpoint.codebook_digest(codebook) != loaded.meta["codebook_digest"]:
        loaded = with_catalogue(loaded, codebook).loaded
    repeats = lists_repeat(inputs, config.decoding)
    return checkpoint_lists(loaded, row_ids, histories, mode, config.decoding, progress, repeats=repeats)


def _combined(model: str, mode: str) -> bool:
    """Whether lists of a model and mode are made of other lists, by something that is chosen on valid rows."""
    return mode == MERGED or language_model(model) not in (model, None)


def _combination(
    model: str,
    mode: str,
    inputs: Inputs,
    config: DatasetConfig,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    folder: Path,
    progress: Progress,
    also: Mapping[str, Any] | None,
) -> Lists:
    """Lists made of a checkpoint's own, which are parts of their own, on `rows` and on valid rows.

    What is chosen on the valid rows is written to `folder`.
    """
    own, valid = _own(model, inputs, config, rows, codebook, progress, also)
    width, (direct_before, direct) = config.decoding.beam_width, own(DIRECT)
    thinking_before, thinking = own(THINKING)
    if mode == MERGED:
        catalogue = Catalogue.read(tables.read(inputs["interactions"].path("items.parquet")), codebook)
        weights = merging.choose_weights(direct_before, thinking_before, catalogue, valid, codebook, width)
        _write_choice(folder, weights)
        if lists_repeat(inputs, config.decoding):
            return merging.merged(direct, thinking, catalogue, weights, codebook, width)
        longer = merging.merged(direct, thinking, catalogue, weights, codebook, 3 * width)  # thoughts name what was met
        fresh = counted(not_met(longer.rankings.drop(SID), rows, codebook), codebook, width)
        return Lists(fresh.rankings, longer.thoughts)
    threshold = choose_threshold(direct_before, thinking_before, valid, codebook, width)
    _write_choice(folder, threshold)
    return adaptive(direct, thinking, threshold.margin)


def _own(
    model: str,
    inputs: Inputs,
    config: DatasetConfig,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    progress: Progress,
    also: Mapping[str, Any] | None,
) -> tuple[Callable[[str], tuple[Lists, Lists]], pl.DataFrame]:
    """What gives a checkpoint's lists of a mode on the valid rows and on `rows`; and the valid rows, which choose."""
    decoding, stage = config.decoding, language_model(model)
    meta = json.loads(inputs[producers(model)[0]].path("meta.json").read_text())
    valid = choice_rows(tables.read(inputs["interactions"].path("valid.parquet")), decoding, meta["seed"])
    on_valid = {"valid_rows": decoding.choice_rows, "seed": meta["seed"]}
    of_valid = progress.named("valid rows")

    def own(mode: str) -> tuple[Lists, Lists]:
        name = f"{stage}/{mode}"
        before = part_of(name, inputs, config, valid, codebook, of_valid, on_valid)
        return _lists(before), _lists(part_of(name, inputs, config, rows, codebook, progress, also))

    return own, valid


def _own_lists(model: str, config: DatasetConfig) -> list[str]:
    """The modes of a checkpoint whose lists its mixture combines: direct, and what the profile has after thinking."""
    stage = language_model(model)
    after = [mode for mode in (MERGED, THINKING) if f"{stage}/{mode}" in config.decoding.models]
    return [DIRECT, *after[:1]] if stage else []


def _mixture(
    model: str,
    inputs: Inputs,
    config: DatasetConfig,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    folder: Path,
    progress: Progress,
    also: Mapping[str, Any] | None,
) -> Lists:
    """The shortcut, SASRec and a checkpoint's own lists in one; what valid rows chose is written to `folder`."""
    width, repeats = config.decoding.beam_width, lists_repeat(inputs, config.decoding)
    own, valid = _own(model, inputs, config, rows, codebook, progress, also)
    modes = {f"{language_model(model)}/{mode}": own(mode) for mode in _own_lists(model, config)}
    rankers = {name: _open(name, inputs, config) for name in mixture.RANKERS}
    deep = mixture.depth(width, codebook)
    met = mixture.met_in(tables.read(inputs["interactions"].path("train.parquet")))

    def part(name: str, some: pl.DataFrame, side: int) -> pl.DataFrame:
        """Lists of some rows, valid ones (side 0) or of `rows` (side 1)."""
        if name in rankers:
            return rankings(rankers[name], some, codebook, deep, repeats)
        return modes[name][side].rankings.join(some.select(ROW_ID), on=ROW_ID, how="semi")

    before = {name: part(name, valid, 0) for name in (*rankers, *modes)}
    candidates = mixture.Candidates.of(before, valid[ROW_ID])
    choice = mixture.choose(candidates, valid, mixture.routes(valid, met), tuple(before))
    progress.say(f"{choice}: NDCG@10 {choice.ndcg:.4f} on valid rows, the shortcut {choice.shortcut:.4f}")
    _write_choice(folder, choice)
    blocks = []
    for block in rows.iter_slices(_BLOCK):
        parts = {name: part(name, block, 1) for name in choice.needed}
        blocks.append(mixture.listed(parts, choice, block, met, codebook, width).rankings)
    return Lists(pl.concat(blocks))


def _lists(part: Artifact) -> Lists:
    """The lists of a part, with the thoughts behind them."""
    thoughts = tables.read(part.path(_THOUGHTS)) if _THOUGHTS in part.files else None
    return Lists(tables.read(part.path(_LISTS), RANKING), thoughts)


def _write_choice(folder: Path, choice: Threshold | mixture.Choice | merging.Weights) -> None:
    also = {"in_words": str(choice), "is_shortcut": choice.is_shortcut} if isinstance(choice, mixture.Choice) else {}
    (folder / _CHOICE).write_text(json.dumps(asdict(choice) | also, sort_keys=True, indent=2) + "\n")


def _open(model: str, inputs: Inputs, config: DatasetConfig) -> Ranker:
    """A baseline, ready to rank."""
    return load_object(MODEL_NAMED[model].ranker)(inputs, config)


# -- joining -----------------------------------------------------------------------------------------


def joined_lists(parts: Mapping[str, Artifact], rows: pl.DataFrame, config: Any) -> pl.DataFrame:
    """All lists under one contract, in the order of the profile's models, then row_id and rank."""
    targets = rows.select(ROW_ID, USER_ID, TARGET)
    frames = []
    for name, part in parts.items():
        model, mode = split_name(name)
        lists = tables.read(part.path(_LISTS), RANKING).join(targets, on=ROW_ID, how="inner")
        reasoning = pl.lit(None, pl.String).alias(REASONING)
        if _THOUGHTS in part.files:
            thoughts = tables.read(part.path(_THOUGHTS), [ROW_ID, TRACE, REASONING])
            lists = lists.join(thoughts.filter(pl.col(TRACE) == 0).drop(TRACE), on=ROW_ID, how="left")
            reasoning = pl.col(REASONING)
        frames.append(
            lists.sort(ROW_ID, RANK).with_columns(
                reasoning,
                pl.lit(config.dataset).alias(DATASET),
                pl.lit(config.snapshot.key).alias(SNAPSHOT),
                pl.lit(TEST).alias(SPLIT),
                pl.lit(model).alias(MODEL),
                pl.lit(mode).alias(MODE),
            )
        )
    return pl.concat(frames, how="diagonal")


def _models(parts: dict[str, Artifact], inputs: Inputs, config: DatasetConfig) -> pl.DataFrame:
    """What is behind each list, by the contract `RecommendedModels`."""
    train = tables.read(inputs["interactions"].path("train.parquet"), [TARGET_TIME])
    counted_until = tables.iso_date(train[TARGET_TIME].max())  # type: ignore[arg-type]
    records = []
    for name, part in parts.items():
        model, mode = split_name(name)
        source = inputs[producers(model)[0]]
        meta = json.loads(source.path("meta.json").read_text()) if "meta.json" in source.files else {}
        rate, length = None, None
        if _THOUGHTS in part.files:
            thoughts = tables.read(part.path(_THOUGHTS), [CLOSED, N_TOKENS])
            rate, length = thoughts[CLOSED].mean(), thoughts[N_TOKENS].mean()
        records.append(
            {
                MODEL: model,
                MODE: mode,
                "checkpoint": source.digest,
                "seen_until": meta.get("seen_until", counted_until),
                "beam_width": config.decoding.beam_width,
                "seed": meta.get("seed", 0),
                "close_rate": rate,
                "mean_thought_tokens": length,
                "note": _note(source, meta, part),
            }
        )
    return tables.typed(records, RecommendedModels)


def _note(source: StageInput, meta: Mapping[str, Any], part: Artifact) -> str | None:
    """What is to be known of a list before it is tested: RL or a mixture that helped nothing, a baseline likewise."""
    if _CHOICE in part.files and json.loads(part.path(_CHOICE).read_text()).get("is_shortcut"):
        return "is the shortcut: no mixture was above it on valid rows"
    if "not_trained" in meta:
        return f"kept its start: {meta['not_trained']}"
    first, best = (source.metrics.get(f"{name} eval_ndcg@10") for name in ("first", "best"))
    if meta.get("stage") == "grpo" and best is not None and first == best:
        return "kept its start"
    chosen, popular = (meta.get(name, {}).get("ndcg@10") for name in ("chosen", "popularity"))
    return "not above popularity on valid rows" if popular is not None and chosen <= popular else None


def thoughts_of(parts: Mapping[str, Artifact]) -> pl.DataFrame:
    """Each thought with its text, and how it ended."""
    empty = pl.DataFrame(schema=THOUGHTS | {MODEL: pl.String})
    frames = [
        tables.read(part.path(_THOUGHTS), list(THOUGHTS)).with_columns(pl.lit(split_name(name)[0]).alias(MODEL))
        for name, part in parts.items()
        if _THOUGHTS in part.files
    ]
    lines = pl.concat([empty, *frames]).unique()  # thinking and merged lists of a model share their thoughts
    return lines.sort(MODEL, ROW_ID, TRACE)


def only_real_items(recommendations: pl.DataFrame, codebook: pl.DataFrame) -> Check:
    """Every (item, SID) of a list is one of the codebook's."""
    invalid = recommendations.join(codebook.select(ITEM_ID, SID), on=[ITEM_ID, SID], how="anti").height
    return Check(
        "only_real_items", invalid == 0, f"{invalid:,} of {recommendations.height:,} entries of lists are no real item"
    )


def distinct(
    recommendations: pl.DataFrame,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    models: tuple[str, ...],
    beam_width: int,
) -> Check:
    """Every model has a list for every row, of `beam_width` distinct SIDs and without a repeated item."""
    full = min(beam_width, codebook[SID].n_unique())
    lists = recommendations.group_by(MODEL, MODE, ROW_ID).agg(
        (pl.col(ITEM_ID).n_unique() < pl.len()).alias("repeats"), (pl.col(SID).n_unique() < full).alias("short")
    )
    missing = len(models) * rows.height - lists.height
    repeats, short = int(lists["repeats"].sum()), int(lists["short"].sum())
    detail = (
        f"{lists.height:,} lists: {repeats:,} repeat an item, {short:,} are short of {full} SIDs, {missing:,} missing"
    )
    return Check("distinct", not (repeats or short or missing), detail)


def close_rate(models: pl.DataFrame) -> Check:
    """Thoughts that the model closed itself, of each thinking model."""
    rates = models.filter(pl.col("close_rate").is_not_null()).select(MODEL, "close_rate").rows()
    detail = ", ".join(f"{model} {rate:.1%}" for model, rate in rates) or "no model thinks"
    return Check("close_rate", all(rate >= _LEAST_CLOSED for _, rate in rates), detail)


def _examples(recommendations: pl.DataFrame, rows: int = 2, k: int = 3) -> str:
    """The first `k` items of each list of a few rows, as a Markdown table."""
    row_ids = recommendations[ROW_ID].unique().sort().head(rows).to_list()
    first = recommendations.filter(pl.col(ROW_ID).is_in(row_ids) & (pl.col(RANK) <= k))
    lines = [
        (
            row[ROW_ID],
            f"{row[MODEL]}/{row[MODE]}",
            str(row[RANK]),
            row[ITEM_ID],
            row[SID],
            f"{row[SCORE]:.3f}",
            row[REASONING] if row[RANK] == 1 and row[REASONING] else "",
        )
        for row in first.sort(ROW_ID, maintain_order=True).iter_rows(named=True)
    ]
    cells = [[markdown_text(text, 160) for text in line] for line in lines]
    return markdown_table(("row", "model", "rank", "item", "SID", "score", "thought"), cells, "llrllrl")
