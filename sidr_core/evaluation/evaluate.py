"""The stage `evaluation`: every list scored, with intervals, and models compared on the same rows.

Deviations from the paper's code: item level is the headline, every number has an interval from a
bootstrap clustered by user, models are compared pairwise on the same rows, and the words about a difference
follow its p-value, corrected for all differences of the table (METHOD.md 8.3). The column `evaluated_at` is the
one value of any output that depends on the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.evaluation.pages import page, slices_page
from sidr_core.evaluation.protocol import comparisons, headline, with_horizons
from sidr_core.evaluation.slices import groups_of, slices_table
from sidr_core.metrics import lists as exposure
from sidr_core.metrics.intervals import Floats, differences, draw_means, judge, summary
from sidr_core.metrics.ranking import HR, LEVELS, NDCG, RANKED, column, per_row
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import leakage as refusals
from sidr_core.recommending.rows import chosen_rows
from sidr_core.render import figures as plots
from sidr_core.render.grid import SYNTHETIC_LABEL
from sidr_core.settings.models import split_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import (
    DATASET,
    ITEM_ID,
    ITEM_LEVEL,
    MODE,
    MODEL,
    RANK,
    ROW_ID,
    SID,
    SNAPSHOT,
    SPLIT,
    TEST,
    THINKING,
    USER_ID,
)
from sidr_core.tables.contracts import EvaluationTable, Paired, Recommendations, Slices

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Evaluation

#: What is compared, at the largest headline cut-off alone: the family of differences stays small.
_COMPARED = (HR, NDCG)


@dataclass(frozen=True)
class Scored:
    """Per-row metrics of every list, and their means in every draw of users: one resampling for all numbers.

    Attributes:
        lists: `<model>/<mode>` -> its rows, see :func:`~sidr_core.metrics.ranking.per_row`, sorted by row_id.
        columns: (level, metric, k) of each of the M columns of `values` and `means`.
        values: `<model>/<mode>` -> (R, M).
        means: `<model>/<mode>` -> (D, M).
        users: (R,) the user of each row.
    """

    lists: Mapping[str, pl.DataFrame]
    columns: tuple[tuple[str, str, int], ...]
    values: Mapping[str, Floats]
    means: Mapping[str, Floats]
    users: np.ndarray


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `evaluation`, `paired` and `slices` as Parquet; a page and a figure of the first and of the last."""
    settings, names = config.evaluation, config.decoding.models
    needed = [c for c in Recommendations.to_schema().columns if c != "reasoning"]
    lists = tables.read(inputs["recommendations"].path("recommendations.parquet"), needed)
    models = tables.read(inputs["recommendations"].path("models.parquet"))
    thoughts = tables.read(inputs["recommendations"].path("thoughts.parquet"))
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"), [ITEM_ID, SID])
    train, items = (tables.read(inputs["interactions"].path(f"{name}.parquet")) for name in ("train", "items"))
    test = chosen_rows(tables.read(inputs["interactions"].path("test.parquet")), config.decoding.max_test_rows)
    refusals.of_rows(test, train)
    refusals.of_lists(lists, test, models, names, max(settings.ks))

    progress.say(f"{len(names)} models on {test.height:,} rows; {settings.bootstrap:,} bootstrap draws")
    scored = score(lists, test, codebook, names, settings)
    context = {
        DATASET: config.dataset,  # type: ignore[attr-defined]
        SNAPSHOT: config.snapshot.key,  # type: ignore[attr-defined]
        SPLIT: TEST,
    }
    bits = exposure.self_information(train, items)
    shown = {name: shown_of(name, lists, thoughts, models, codebook, bits, settings) for name in names}
    table = evaluation_table(scored, shown, models, settings, context)
    gaps = paired_table(scored, models, settings, context)
    parts = slices_table(scored.lists, groups_of(test, train, items), settings, context)
    tables.write(table, out_dir / "evaluation.parquet", EvaluationTable)
    tables.write(gaps, out_dir / "paired.parquet", Paired)
    tables.write(parts, out_dir / "slices.parquet", Slices)
    pages = {
        "evaluation": page(table, gaps, inputs.synthetic, settings),
        "slices": slices_page(parts, inputs.synthetic, settings),
    }
    for name, text in pages.items():
        (out_dir / f"{name}.md").write_text(text)
    _forest(table, out_dir / "evaluation.png", inputs.synthetic)
    _slices_forest(parts, out_dir / "slices.png", inputs.synthetic)
    done = Check("complete", True, f"{len(names)} models × {test.height:,} rows of {table['n_users'][0]:,} users")
    return Report(_headline_metrics(table, settings, inputs.synthetic), (done,), pages)


def score(
    lists: pl.DataFrame, test: pl.DataFrame, codebook: pl.DataFrame, names: tuple[str, ...], settings: Evaluation
) -> Scored:
    """Score every list row by row and resample all of them at once."""
    rows = per_row(lists, test, codebook, settings.ks)
    by_name = {name: _of(rows, name).sort(ROW_ID) for name in names}
    columns = tuple((level, metric, k) for level in LEVELS for k in settings.ks for metric in RANKED)
    values = {name: own.select(column(*one) for one in columns).to_numpy() for name, own in by_name.items()}
    users = by_name[names[0]][USER_ID].to_numpy()
    drawn = draw_means(np.hstack(list(values.values())), users, draws=settings.bootstrap, seed=settings.seed)
    means = dict(zip(names, np.split(drawn, len(names), axis=1), strict=True))
    return Scored(by_name, columns, values, means, users)


def evaluation_table(
    scored: Scored,
    shown: Mapping[str, list[exposure.Measured]],
    models: pl.DataFrame,
    settings: Evaluation,
    context: Mapping[str, Any],
) -> pl.DataFrame:
    """Each metric of each list with its interval, by the contract `EvaluationTable`.

    Args:
        scored: see :func:`score`.
        shown: `<model>/<mode>` -> its metrics of :mod:`~sidr_core.metrics.lists`.
        models: the contract `RecommendedModels`.
        settings: cut-offs and bootstrap.
        context: dataset, snapshot and split.
    """
    behind = _behind(models)
    when = {"evaluated_at": datetime.now(UTC).isoformat(timespec="seconds")}
    found: list[dict[str, Any]] = []
    for name in scored.lists:
        meta = {key: behind[name][key] for key in (MODEL, MODE, "beam_width", "seed", "checkpoint", "seen_until")}
        told = {**context, **meta, "n_rows": len(scored.users), "n_users": len(np.unique(scored.users)), **when}
        interval = summary(scored.values[name], scored.means[name], settings.confidence)
        for place, (level, metric, k) in enumerate(scored.columns):
            ends = {"ci_low": interval.low[place], "ci_high": interval.high[place]}
            found.append(told | {"metric": metric, "k": k, "level": level, "value": interval.value[place]} | ends)
        for one in shown[name]:
            ends = {"ci_low": one.low, "ci_high": one.high}
            found.append(told | {"metric": one.metric, "k": one.k, "level": ITEM_LEVEL, "value": one.value} | ends)
    return pl.DataFrame(found, schema_overrides={"k": pl.Int32, "beam_width": pl.Int32})


def paired_table(
    scored: Scored, models: pl.DataFrame, settings: Evaluation, context: Mapping[str, Any]
) -> pl.DataFrame:
    """Differences of :func:`~sidr_core.evaluation.protocol.comparisons`, by the contract `Paired`; one family."""
    k, behind = headline(settings.ks)[-1], _behind(models)
    places = [scored.columns.index((ITEM_LEVEL, metric, k)) for metric in _COMPARED]
    told = {**context, "k": k, "level": ITEM_LEVEL, "seed": settings.seed}
    told |= {"n_rows": len(scored.users), "n_users": len(np.unique(scored.users))}
    found: list[dict[str, Any]] = []
    for a, b in comparisons(tuple(scored.lists)):
        gap, means = ((held[a] - held[b])[:, places] for held in (scored.values, scored.means))
        said = differences(gap, means, settings.confidence)
        who = {f"{key}_{side}": behind[name][key] for side, name in (("a", a), ("b", b)) for key in _WHO}
        for place, metric in enumerate(_COMPARED):
            numbers = {
                "difference": said.interval.value[place],
                "ci_low": said.interval.low[place],
                "ci_high": said.interval.high[place],
                "helped": said.helped[place],
                "harmed": said.harmed[place],
                "same": said.same[place],
                "p": said.p[place],
            }
            found.append(told | who | {"metric": metric} | numbers)
    verdicts = judge([row["difference"] for row in found], [row["p"] for row in found], settings.confidence)
    for row, verdict in zip(found, verdicts, strict=True):
        word = with_horizons(verdict.word, row["seen_until_a"], row["seen_until_b"])
        row |= {"p_holm": verdict.p_holm, "verdict": word}
    types: dict[str, Any] = {name: kind.dtype.type for name, kind in Paired.to_schema().columns.items()}  # type: ignore[union-attr]
    return pl.DataFrame(found, schema=types)


#: What the paired table tells of each side.
_WHO = (MODEL, MODE, "seen_until")


def _behind(models: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {f"{row[MODEL]}/{row[MODE]}": row for row in models.iter_rows(named=True)}


def _of(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    model, mode = split_name(name)
    return frame.filter((pl.col(MODEL) == model) & (pl.col(MODE) == mode))


def shown_of(
    name: str,
    lists: pl.DataFrame,
    thoughts: pl.DataFrame,
    models: pl.DataFrame,
    codebook: pl.DataFrame,
    bits: pl.DataFrame,
    settings: Evaluation,
) -> list[exposure.Measured]:
    """What the lists of one model look like as a whole."""
    model, mode = split_name(name)
    own = _of(lists, name).select(ROW_ID, USER_ID, RANK, ITEM_ID, SID)
    thought = thoughts.filter(pl.col(MODEL) == model) if mode == THINKING else None
    options = {"draws": settings.bootstrap, "confidence": settings.confidence, "seed": settings.seed}
    width = _behind(models)[name]["beam_width"]
    return exposure.measure(own, thought, codebook, bits, headline(settings.ks), width, options)


def _headline_metrics(table: pl.DataFrame, settings: Evaluation, synthetic: bool) -> dict[str, Any]:
    """Item-level numbers under names like `grpo_thinking_ndcg@10`."""
    wanted = pl.col("metric").is_in([HR, NDCG, exposure.COVERAGE]) & pl.col("k").is_in(headline(settings.ks))
    shown = table.filter((pl.col("level") == ITEM_LEVEL) & wanted)
    numbers: dict[str, Any] = {
        f"{row[MODEL]}_{row[MODE]}_{row['metric']}@{row['k']}": round(row["value"], 6)
        for row in shown.iter_rows(named=True)
    }
    return {**numbers, "rows": table["n_rows"][0], "users": table["n_users"][0], "synthetic": synthetic}


def _forest(table: pl.DataFrame, path: Path, synthetic: bool) -> None:
    ranked = table.filter((pl.col("level") == ITEM_LEVEL) & (pl.col("metric") == NDCG))
    k = headline(ranked["k"].unique().to_list())[-1]
    shown = ranked.filter(pl.col("k") == k)
    names = [f"{model}/{mode}" for model, mode in shown.select(MODEL, MODE).iter_rows()]
    plots.forest(
        names, *_ends(shown), path, _title(shown, synthetic), f"NDCG@{k}, item level, with interval over users"
    )


def _slices_forest(parts: pl.DataFrame, path: Path, synthetic: bool) -> None:
    """Thinking minus direct of the last checkpoint that has both, else the first list's value, on each slice."""
    gaps = parts.filter(pl.col("minus").is_not_null())
    last = (gaps if gaps.height else parts).row(-1 if gaps.height else 0, named=True)
    same = [pl.col(key).eq_missing(pl.lit(last[key], pl.String)) for key in (MODEL, MODE, "minus")]
    shown = parts.filter(*same, pl.col("metric") == NDCG, pl.col("ci_low").is_not_null())
    labels = [f"{row['slice']}: {row['group']} ({row['n_rows']:,})" for row in shown.iter_rows(named=True)]
    name = f"{last[MODEL]}/{last[MODE]}" + (f" − {last['minus']}" if last["minus"] else "")
    axis = f"NDCG@{last['k']} of {name}, with interval over users"
    zero = 0.0 if last["minus"] else None
    plots.forest(labels, *_ends(shown), path, _title(parts, synthetic), axis, zero)


def _ends(shown: pl.DataFrame) -> tuple[list[float], list[float], list[float]]:
    return shown["value"].to_list(), shown["ci_low"].to_list(), shown["ci_high"].to_list()


def _title(table: pl.DataFrame, synthetic: bool) -> str:
    label = f" ({SYNTHETIC_LABEL})" if synthetic else ""
    return f"{table[DATASET][0]}, snapshot {table[SNAPSHOT][0]}{label}"
