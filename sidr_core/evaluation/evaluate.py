"""The stage `evaluation`: every list scored, with intervals, and models compared on the same rows.

Deviations from the paper's code (docs/method.md, "Decoding and evaluation"): item level is the headline, every number
has an interval from a bootstrap clustered by user, models are compared pairwise on the same rows, and the verdict on a
difference follows its p-value, corrected for all differences of the table. The column `evaluated_at` is the one value
of any output that depends on the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.evaluation import optimal
from sidr_core.evaluation.pages import page, slices_page, titled
from sidr_core.evaluation.protocol import claims, comparisons, headline, list_name, lists_of, protocol_line
from sidr_core.evaluation.remarks import learnt, popularity_ndcg, remarks_table
from sidr_core.evaluation.slices import groups_of, slices_table
from sidr_core.evaluation.verdicts import gap_rows, judge, limits
from sidr_core.metrics.intervals import Floats, differences, draw_means, share_summary
from sidr_core.metrics.lists import COVERAGE, Measured, measure, self_information
from sidr_core.metrics.ranking import HR, LEVELS, NDCG, RANKED, column, per_row
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import leakage
from sidr_core.recommending.rows import chosen_rows
from sidr_core.render import figures
from sidr_core.reviews.sample.shop import simulate
from sidr_core.settings.models import OPTIMAL, split_name
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import EvaluationTable, Paired, Recommendations, Remarks, Slices

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Evaluation

#: What is compared, at the largest headline cut-off alone: the family of differences stays small.
COMPARED = (HR, NDCG)


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

    @property
    def counts(self) -> dict[str, int]:
        """`n_rows` and `n_users`."""
        return {"n_rows": len(self.users), "n_users": len(np.unique(self.users))}


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `evaluation`, `paired`, `margins`, `slices` and `remarks` as Parquet; pages and figures of two of them."""
    settings, names = config.evaluation, config.decoding.models
    needed = [name for name in Recommendations.to_schema().columns if name != "reasoning"]
    lists = tables.read(inputs["recommendations"].path("recommendations.parquet"), needed)
    models = tables.read(inputs["recommendations"].path("models.parquet"))
    thoughts = tables.read(inputs["recommendations"].path("thoughts.parquet"))
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"), [c.ITEM_ID, c.SID])
    train, items = (tables.read(inputs["interactions"].path(f"{name}.parquet")) for name in ("train", "items"))
    all_test = tables.read(inputs["interactions"].path("test.parquet"))
    test = chosen_rows(all_test, config.decoding.max_test_rows)
    left_out = leakage.leaves_one_out(inputs["interactions"])
    leakage.check_rows(test, train, left_out)
    protocol = protocol_line(left_out, inputs["recommendations"].metrics)
    leakage.check_lists(lists, test, models, names, max(settings.ks))
    if generator := optimal.generator_of(config.source):
        shop = simulate(generator)[0]
        best = optimal.optimal_lists(shop, test, codebook, config.decoding.beam_width)
        lists, names = pl.concat([lists, best], how="diagonal"), (*names, f"{OPTIMAL}/{c.DIRECT}")
        models = pl.concat([models, optimal.described(generator, models)])
        test = optimal.with_kinds(shop, test, train, items)

    progress.say(f"{len(names)} lists on {test.height:,} rows; {settings.bootstrap:,} bootstrap draws")
    scored = score(lists, test, codebook, names, settings)
    context = {
        c.DATASET: config.dataset,  # type: ignore[attr-defined]
        c.SNAPSHOT: config.snapshot.key,  # type: ignore[attr-defined]
        c.SPLIT: c.TEST,
    }
    bits = self_information(train, items)
    exposure = {name: exposure_of(name, lists, thoughts, models, codebook, bits, settings) for name in names}
    evaluation = evaluation_table(scored, exposure, models, settings, context)
    floor = popularity_ndcg(train, items, test, codebook, headline(settings.ks)[-1])
    remarks = remarks_table(evaluation, models, floor)
    beside = remarks_by_list(remarks, names, test.height, all_test.height)
    paired = paired_table(scored, models, settings, context, comparisons(names), beside)
    margins = paired_table(scored, models, settings, context, claims(config.decoding.models), beside)
    slices = slices_table(scored.lists, groups_of(test, train, items), settings, context)
    tables.write(evaluation, out_dir / "evaluation.parquet", EvaluationTable)
    tables.write(paired, out_dir / "paired.parquet", Paired)
    tables.write(margins, out_dir / "margins.parquet", Paired)
    tables.write(slices, out_dir / "slices.parquet", Slices)
    tables.write(remarks, out_dir / "remarks.parquet", Remarks)
    pages = {
        "evaluation": page(evaluation, paired, inputs.synthetic, settings, remarks, protocol),
        "slices": slices_page(slices, inputs.synthetic, settings),
    }
    for name, text in pages.items():
        (out_dir / f"{name}.md").write_text(text)
    _draw(evaluation, out_dir / "evaluation.png", inputs.synthetic)
    _draw_slices(slices, out_dir / "slices.png", inputs.synthetic)
    detail = f"{len(names)} lists × {test.height:,} rows of {evaluation['n_users'][0]:,} users"
    metrics = _headline_metrics(evaluation, settings, inputs.synthetic) | {"protocol": protocol}
    return Report(metrics, (Check("complete", True, detail), learnt(evaluation, floor)), pages)


def score(
    lists: pl.DataFrame, test: pl.DataFrame, codebook: pl.DataFrame, names: tuple[str, ...], settings: Evaluation
) -> Scored:
    """Score every list row by row and resample all of them at once."""
    rows = per_row(lists, test, codebook, settings.ks)
    by_name = {name: lists_of(rows, name).sort(c.ROW_ID) for name in names}
    columns = tuple((level, metric, k) for level in LEVELS for k in settings.ks for metric in RANKED)
    values = {name: part.select(column(*key) for key in columns).to_numpy() for name, part in by_name.items()}
    users = by_name[names[0]][c.USER_ID].to_numpy()
    drawn = draw_means(np.hstack(list(values.values())), users, draws=settings.bootstrap, seed=settings.seed)
    means = dict(zip(names, np.split(drawn, len(names), axis=1), strict=True))
    return Scored(by_name, columns, values, means, users)


def evaluation_table(
    scored: Scored,
    exposure: Mapping[str, list[Measured]],
    models: pl.DataFrame,
    settings: Evaluation,
    context: Mapping[str, Any],
) -> pl.DataFrame:
    """Each metric of each list with its interval, by the contract `EvaluationTable`.

    Args:
        scored: see :func:`score`.
        exposure: `<model>/<mode>` -> its metrics of :mod:`~sidr_core.metrics.lists`.
        models: the contract `RecommendedModels`.
        settings: cut-offs and bootstrap.
        context: dataset, snapshot and split.
    """
    produced_by = _models_by_name(models)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[dict[str, Any]] = []
    for name in scored.lists:
        producer = {
            key: produced_by[name][key] for key in (c.MODEL, c.MODE, "beam_width", "seed", "checkpoint", "seen_until")
        }
        shared = {**context, **producer, **scored.counts, "evaluated_at": now}
        interval = share_summary(scored.values[name], scored.means[name], shared["n_users"], settings.confidence)
        numbers = [
            (metric, k, level, interval.value[n], interval.low[n], interval.high[n])
            for n, (level, metric, k) in enumerate(scored.columns)
        ]
        numbers += [(of.metric, of.k, c.ITEM_LEVEL, of.value, of.low, of.high) for of in exposure[name]]
        keys = ("metric", "k", "level", "value", "ci_low", "ci_high")
        rows += [shared | dict(zip(keys, line, strict=True)) for line in numbers]
    return tables.typed(rows, EvaluationTable)


def paired_table(
    scored: Scored,
    models: pl.DataFrame,
    settings: Evaluation,
    context: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    remarks: Mapping[str, list[str]] | None = None,
) -> pl.DataFrame:
    """The differences a - b of `pairs` (a, b), by the contract `Paired`; one family.

    Args:
        remarks: as in :func:`~sidr_core.evaluation.verdicts.limits`.
    """
    k, produced_by = headline(settings.ks)[-1], _models_by_name(models)
    columns = [scored.columns.index((c.ITEM_LEVEL, metric, k)) for metric in COMPARED]
    shared = {**context, "k": k, "level": c.ITEM_LEVEL, "seed": settings.seed, "margin": settings.margin}
    shared |= scored.counts
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        gap, means = ((arrays[a] - arrays[b])[:, columns] for arrays in (scored.values, scored.means))
        sides = {
            f"{key}_{side}": produced_by[name][key]
            for side, name in (("a", a), ("b", b))
            for key in (c.MODEL, c.MODE, "seen_until")
        }
        sides["remarks"] = limits((a, b), (sides["seen_until_a"], sides["seen_until_b"]), remarks)
        numbers = gap_rows(differences(gap, means, scored.users, settings.confidence, settings.margin))
        rows += [shared | sides | {"metric": metric} | row for metric, row in zip(COMPARED, numbers, strict=True)]
    judge(rows, settings)
    return tables.typed(rows, Paired)


def remarks_by_list(remarks: pl.DataFrame, names: Sequence[str], rows: int, of_rows: int) -> dict[str, list[str]]:
    """What verdicts have to say beside, as :func:`~sidr_core.evaluation.verdicts.limits` takes it.

    Args:
        remarks: the contract `Remarks`.
        names: `<model>/<mode>` of all lists.
        rows: test rows that were evaluated.
        of_rows: all test rows.
    """
    by_list = {name: lists_of(remarks, name)["remark"].to_list() for name in names}
    return by_list | {"": [f"{rows:,} of {of_rows:,} test rows"] if rows < of_rows else []}


def exposure_of(
    name: str,
    lists: pl.DataFrame,
    thoughts: pl.DataFrame,
    models: pl.DataFrame,
    codebook: pl.DataFrame,
    bits: pl.DataFrame,
    settings: Evaluation,
) -> list[Measured]:
    """The metrics of one model's lists as a whole; arguments as in :func:`~sidr_core.metrics.lists.measure`."""
    model, mode = split_name(name)
    return measure(
        lists_of(lists, name).select(c.ROW_ID, c.USER_ID, c.RANK, c.ITEM_ID, c.SID),
        thoughts.filter(pl.col(c.MODEL) == model) if mode != c.DIRECT else None,
        codebook,
        bits,
        headline(settings.ks),
        _models_by_name(models)[name]["beam_width"],
        {"draws": settings.bootstrap, "confidence": settings.confidence, "seed": settings.seed},
    )


def _models_by_name(models: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {list_name(row): row for row in models.iter_rows(named=True)}


def _headline_metrics(evaluation: pl.DataFrame, settings: Evaluation, synthetic: bool) -> dict[str, Any]:
    """Item-level numbers under names like `grpo_thinking_ndcg@10`."""
    in_headline = pl.col("metric").is_in([HR, NDCG, COVERAGE]) & pl.col("k").is_in(headline(settings.ks))
    numbers: dict[str, Any] = {
        f"{row[c.MODEL]}_{row[c.MODE]}_{row['metric']}@{row['k']}": round(row["value"], 6)
        for row in evaluation.filter((pl.col("level") == c.ITEM_LEVEL) & in_headline).iter_rows(named=True)
    }
    return {**numbers, "rows": evaluation["n_rows"][0], "users": evaluation["n_users"][0], "synthetic": synthetic}


def _draw(evaluation: pl.DataFrame, path: Path, synthetic: bool) -> None:
    """NDCG at the largest headline cut-off of every list."""
    ndcg = evaluation.filter((pl.col("level") == c.ITEM_LEVEL) & (pl.col("metric") == NDCG))
    k = headline(ndcg["k"].unique().to_list())[-1]
    points = ndcg.filter(pl.col("k") == k)
    labels = [list_name(row) for row in points.iter_rows(named=True)]
    axis = f"NDCG@{k}, item level, with interval over users"
    figures.forest(labels, *_ends(points), path, _figure_title(points, synthetic), axis)


def _draw_slices(slices: pl.DataFrame, path: Path, synthetic: bool) -> None:
    """Thinking minus direct of the last checkpoint that has both, else the first list's value, on each slice."""
    gaps = slices.filter(pl.col("minus").is_not_null())
    drawn = gaps.row(-1, named=True) if gaps.height else slices.row(0, named=True)
    same = [pl.col(key).eq_missing(pl.lit(drawn[key], pl.String)) for key in (c.MODEL, c.MODE, "minus")]
    points = slices.filter(*same, pl.col("metric") == NDCG, pl.col("ci_low").is_not_null())
    labels = [f"{row['slice']}: {row['group']} ({row['n_rows']:,})" for row in points.iter_rows(named=True)]
    name = list_name(drawn) + (f" − {drawn['minus']}" if drawn["minus"] else "")
    axis = f"NDCG@{drawn['k']} of {name}, with interval over users"
    zero = 0.0 if drawn["minus"] else None
    figures.forest(labels, *_ends(points), path, _figure_title(slices, synthetic), axis, zero)


def _ends(points: pl.DataFrame) -> tuple[list[float], list[float], list[float]]:
    return points["value"].to_list(), points["ci_low"].to_list(), points["ci_high"].to_list()


def _figure_title(table: pl.DataFrame, synthetic: bool) -> str:
    return titled(f"{table[c.DATASET][0]}, snapshot {table[c.SNAPSHOT][0]}", synthetic)
