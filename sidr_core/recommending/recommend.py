"""The stage `recommendations`: lists of every model and mode on the test rows, and the thoughts behind them.

Each model's lists are one piece of work, published on its own: an unchanged checkpoint is not decoded
again, and variants of a dataset share it. Test rows are opened here and in `evaluation` only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq

from sidr_core.decoding.lists import CLOSED, N_TOKENS, RANKING, Lists, counted
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import leakage as refusals
from sidr_core.recommending import mixture
from sidr_core.recommending.lists import Threshold, adaptive, choice_rows, choose_threshold, neural
from sidr_core.recommending.rows import chosen_rows, history_sids
from sidr_core.render.text import markdown_text
from sidr_core.settings.models import language_model, producers, split_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import (
    DATASET,
    DIRECT,
    ITEM_ID,
    MIXED,
    MODE,
    MODEL,
    RANK,
    REASONING,
    ROW_ID,
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
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.pipeline.store import Artifact
    from sidr_core.settings import DatasetConfig

#: Raise when the same checkpoint and rows should give other lists.
DECODED_VERSION = "2"

_LEAST_CLOSED = 0.95
#: What was chosen on valid rows for an adaptive model or a mixture, and by what.
_CHOICE = "choice.json"


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Decode what is not decoded yet; write `recommendations`, `models`, `thoughts` and `rows` as Parquet."""
    rows = chosen_rows(tables.read(inputs["interactions"].path("test.parquet")), config.decoding.max_test_rows)
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    refusals.of_checkpoints(inputs, config.decoding.models, rows, codebook)
    history_sids(rows, codebook)  # refuses rows that cannot be prompted, before anything costs time
    parts: dict[str, Artifact] = {}
    for name in config.decoding.models:
        parts[name] = part_of(name, inputs, config, rows, codebook, progress.named(name))
    joined = joined_lists(parts, rows, config)  # type: ignore[arg-type]
    models, thoughts = _models(parts, inputs, config), thoughts_of(parts)
    tables.write(joined, out_dir / "recommendations.parquet", Recommendations)
    tables.write(models, out_dir / "models.parquet", RecommendedModels)
    tables.write(thoughts, out_dir / "thoughts.parquet", Thoughts)
    tables.write(rows, out_dir / "rows.parquet", Samples)
    metrics: dict[str, Any] = {"test_rows": rows.height, "test_users": rows[USER_ID].n_unique()}
    for name, part in parts.items():
        metrics[f"{name.replace('/', '_')}_seconds"] = part.manifest["seconds"]
        if _CHOICE in part.files:
            choice = json.loads(part.path(_CHOICE).read_text())
            metrics |= {f"{split_name(name)[0]}_valid_{key}": value for key, value in choice.items()}
    for row in models.filter(pl.col("close_rate").is_not_null()).iter_rows(named=True):
        metrics[f"{row[MODEL]}_close_rate"] = row["close_rate"]
        metrics[f"{row[MODEL]}_thought_tokens"] = row["mean_thought_tokens"]
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
    """Lists of one model and mode, decoded or found in the store.

    Args:
        rows: what to decode; the test rows of `inputs`, unless `also` says what they are.
        also: joins the key of what is stored.
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
    if language_model(model):
        key["batch_size"] = decoding.batch_size  # padding differs, and with it the last bits of a score
        key["scoring"] = decoding.scoring
    if mode == THINKING:
        key |= decoding.model_dump(include={"max_thought_tokens", "traces", "trace_temperature"})
    if language_model(model) not in (model, None):
        key["choice_rows"] = decoding.choice_rows
    if "baseline_item_item" in producers(model):
        key["item_item"] = config.item_item.model_dump(mode="json")

    def build_part(folder: Path) -> None:
        progress.say(f"{rows.height:,} test rows")
        if model.endswith(f"_{MIXED}"):
            lists = _mixture(model, inputs, config, rows, codebook, folder, progress, also)
        elif language_model(model):
            lists = _from_checkpoint(model, mode, inputs, config, rows, codebook, folder, progress)
        else:
            lists = _from_baseline(model, inputs, config, rows, codebook)
        pq.write_table(lists.rankings.sort(ROW_ID, RANK).to_arrow(), folder / "places.parquet", compression="zstd")
        if lists.thoughts is not None:
            pq.write_table(
                lists.thoughts.sort(ROW_ID, TRACE).to_arrow(), folder / "thoughts.parquet", compression="zstd"
            )

    return inputs.part("decoded", DECODED_VERSION, key, build_part)


def _from_checkpoint(
    model: str,
    mode: str,
    inputs: Inputs,
    config: DatasetConfig,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    folder: Path,
    progress: Progress,
) -> Lists:
    """Lists of a trained stage. An adaptive one chooses on valid rows when it thinks, and writes that to `folder`."""
    from sidr_core.models import checkpoint

    stage = language_model(model)
    loaded = checkpoint.load(inputs[f"{stage}_checkpoint"].folder())
    row_ids, histories = rows[ROW_ID].to_list(), history_sids(rows, codebook)
    if stage == model:
        return neural(loaded, row_ids, histories, mode, config.decoding, progress)
    valid = _valid(inputs, config, loaded)
    choice = choose_threshold(loaded, valid, codebook, config.decoding, progress.named("valid rows"))
    _keep_choice(folder, choice)
    return adaptive(loaded, row_ids, histories, choice.margin, config.decoding, progress)


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
    """A checkpoint's direct lists, decoded once for this and for themselves, mixed with the counter's.

    The share is chosen on valid rows and written to `folder`.
    """
    from sidr_core.models import checkpoint

    stage, width = language_model(model), config.decoding.beam_width
    loaded = checkpoint.load(inputs[f"{stage}_checkpoint"].folder())
    valid = _valid(inputs, config, loaded)
    row_ids, histories = valid[ROW_ID].to_list(), history_sids(valid, codebook)
    own = neural(loaded, row_ids, histories, DIRECT, config.decoding, progress.named("valid rows")).rankings

    def counts(samples: pl.DataFrame) -> pl.DataFrame:
        return _ranked("item_item", inputs, config, samples, _length(codebook, width))

    share = mixture.choose_share(own, counts(valid), valid, codebook, width)
    _keep_choice(folder, share)
    direct = part_of(f"{stage}/{DIRECT}", inputs, config, rows, codebook, progress, also)
    return mixture.mixed(
        tables.read(direct.path("places.parquet"), RANKING), counts(rows), share.share, codebook, width
    )


def _valid(inputs: Inputs, config: DatasetConfig, loaded: Loaded) -> pl.DataFrame:
    """The valid rows on which something about a checkpoint's lists is chosen."""
    return choice_rows(tables.read(inputs["interactions"].path("valid.parquet")), config.decoding, loaded)


def _keep_choice(folder: Path, choice: Threshold | mixture.Share) -> None:
    (folder / _CHOICE).write_text(json.dumps(asdict(choice), sort_keys=True, indent=2) + "\n")


def _from_baseline(
    model: str, inputs: Inputs, config: DatasetConfig, rows: pl.DataFrame, codebook: pl.DataFrame
) -> Lists:
    width = config.decoding.beam_width
    if model == "tiger":
        from sidr_core.baselines import tiger

        return Lists(tiger.load(inputs["baseline_tiger"].folder(), codebook).places(rows, width))
    return counted(_ranked(model, inputs, config, rows, _length(codebook, width)), codebook, width)


def _length(codebook: pl.DataFrame, width: int) -> int:
    """Items of a baseline's list that surely hold `width` distinct SIDs, or all of them where there are fewer."""
    sharing = codebook.height - codebook[SID].n_unique()  # at most so many places repeat a SID
    return min(width + sharing, codebook.height)


def _ranked(model: str, inputs: Inputs, config: DatasetConfig, rows: pl.DataFrame, k: int) -> pl.DataFrame:
    """The k best items of a baseline over item ids: row_id, rank, item_id, score."""
    from sidr_core.baselines import item_item, popularity, sequential, text_knn

    if model in ("popularity", "item_item"):
        counts = tables.read(inputs["baseline_popularity"].path("baseline_popularity.parquet"))
        if model == "popularity":
            return popularity.rank(counts, rows, k)
        weights = tables.read(inputs["baseline_item_item"].path("baseline_item_item.parquet"))
        return item_item.rank(weights, counts, rows, k, config.item_item)
    load: Callable[[Path], Any] = text_knn.load if model == "text_knn" else sequential.load
    return load(inputs[f"baseline_{model}"].folder()).rank(rows, k)


# -- joining -----------------------------------------------------------------------------------------


def joined_lists(parts: Mapping[str, Artifact], rows: pl.DataFrame, config: Any) -> pl.DataFrame:
    """All lists under one contract, in the order of the profile's models, then row_id and rank."""
    truth = rows.select(ROW_ID, USER_ID, TARGET)
    frames = []
    for name, part in parts.items():
        model, mode = split_name(name)
        places = tables.read(part.path("places.parquet"), RANKING).join(truth, on=ROW_ID, how="inner")
        reasoning = pl.lit(None, pl.String).alias(REASONING)
        if "thoughts.parquet" in part.files:
            said = tables.read(part.path("thoughts.parquet"), [ROW_ID, TRACE, REASONING]).filter(pl.col(TRACE) == 0)
            places = places.join(said.drop(TRACE), on=ROW_ID, how="left")
            reasoning = pl.col(REASONING)
        frames.append(
            places.sort(ROW_ID, RANK).with_columns(
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
    found = []
    for name, part in parts.items():
        model, mode = split_name(name)
        source = inputs[producers(model)[0]]
        meta = json.loads(source.path("meta.json").read_text()) if "meta.json" in source.files else {}
        rate, length = None, None
        if "thoughts.parquet" in part.files:
            thoughts = tables.read(part.path("thoughts.parquet"), [CLOSED, N_TOKENS])
            rate, length = thoughts[CLOSED].mean(), thoughts[N_TOKENS].mean()
        found.append(
            {
                MODEL: model,
                MODE: mode,
                "checkpoint": source.digest,
                "seen_until": meta.get("seen_until", counted_until),
                "beam_width": config.decoding.beam_width,
                "seed": meta.get("seed", 0),
                "close_rate": rate,
                "mean_thought_tokens": length,
            }
        )
    types = {"beam_width": pl.Int32, "seed": pl.Int64, "close_rate": pl.Float64, "mean_thought_tokens": pl.Float64}
    return pl.DataFrame(found, schema_overrides=types)


def thoughts_of(parts: Mapping[str, Artifact]) -> pl.DataFrame:
    """How each thought ended, by the contract `Thoughts`."""
    types = {ROW_ID: pl.String, TRACE: pl.Int32, CLOSED: pl.Boolean, N_TOKENS: pl.Int32, MODEL: pl.String}
    empty = pl.DataFrame(schema=types)
    frames = [
        tables.read(part.path("thoughts.parquet"), [ROW_ID, TRACE, CLOSED, N_TOKENS]).with_columns(
            pl.lit(split_name(name)[0]).alias(MODEL)
        )
        for name, part in parts.items()
        if "thoughts.parquet" in part.files
    ]
    return pl.concat([empty, *frames]).sort(MODEL, ROW_ID, TRACE)


def only_real_items(recommendations: pl.DataFrame, codebook: pl.DataFrame) -> Check:
    """Every (item, SID) of a list is one of the codebook's."""
    invalid = recommendations.join(codebook.select(ITEM_ID, SID), on=[ITEM_ID, SID], how="anti").height
    return Check("only_real_items", invalid == 0, f"{invalid:,} of {recommendations.height:,} places are no real item")


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


def _examples(recommendations: pl.DataFrame, rows: int = 2, places: int = 3) -> str:
    """The first places of a few rows, as a Markdown table."""
    some = recommendations[ROW_ID].unique().sort().head(rows).to_list()
    shown = recommendations.filter(pl.col(ROW_ID).is_in(some) & (pl.col(RANK) <= places))
    lines = ["| row | model | rank | item | SID | score | thought |", "| --- | --- | --: | --- | --- | --: | --- |"]
    for row in shown.sort(ROW_ID, maintain_order=True).iter_rows(named=True):
        thought = row[REASONING] if row[RANK] == 1 and row[REASONING] else ""
        cells = [row[ROW_ID], f"{row[MODEL]}/{row[MODE]}", str(row[RANK]), row[ITEM_ID], row[SID]]
        cells += [f"{row['score']:.3f}", thought]
        lines.append(f"| {' | '.join(markdown_text(text, 160) for text in cells)} |")
    return "\n".join(lines)
