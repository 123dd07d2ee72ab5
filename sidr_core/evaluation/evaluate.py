"""The stage `evaluation`: every list scored, with intervals, and models compared on the same rows.

Deviations from the paper's code: item level is the headline, every number has an interval from a
bootstrap clustered by user, and models are compared pairwise on the same rows (METHOD.md 8.3). The
column `evaluated_at` is the one value of any output that depends on the clock.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core import tables
from sidr_core.columns import DATASET, ITEM_ID, ITEM_LEVEL, MODE, MODEL, ROW_ID, SID, SNAPSHOT, SPLIT, TEST, USER_ID
from sidr_core.contracts import EvaluationTable, Paired, Recommendations
from sidr_core.errors import InputError
from sidr_core.evaluation.intervals import bootstrap, paired
from sidr_core.evaluation.metrics import HR, LEVELS, NDCG, column, per_row
from sidr_core.evaluation.protocol import chosen_rows, comparisons, headline, split_name
from sidr_core.report import plots
from sidr_core.report.tables import SYNTHETIC_LABEL, page
from sidr_core.stage import Check, Inputs, Progress, Report

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Evaluation

_METRICS = (HR, NDCG)


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `evaluation.parquet`, `paired.parquet`, `evaluation.md` and `evaluation.png`."""
    settings = config.evaluation
    needed = [c for c in Recommendations.to_schema().columns if c != "reasoning"]
    lists = tables.read(inputs["recommendations"].path("recommendations.parquet"), needed)
    models = tables.read(inputs["recommendations"].path("models.parquet"))
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"), [ITEM_ID, SID])
    test = chosen_rows(tables.read(inputs["interactions"].path("test.parquet")), config.decoding.max_test_rows)
    names = config.decoding.models
    _refuse(lists, test, names, max(settings.ks), config.decoding.beam_width)

    scores = per_row(lists, test, codebook, settings.ks)
    by_name = {name: _of(scores, name) for name in names}
    progress.say(f"{len(names)} models scored on {test.height:,} rows; {settings.bootstrap:,} bootstrap draws")
    context = {
        DATASET: config.dataset,  # type: ignore[attr-defined]
        SNAPSHOT: config.snapshot.key,  # type: ignore[attr-defined]
        SPLIT: TEST,
        "n_rows": test.height,
        "n_users": test[USER_ID].n_unique(),
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    table = evaluation_table(by_name, models, settings, context)
    gaps = paired_table(by_name, settings, context)
    tables.write(table, out_dir / "evaluation.parquet", EvaluationTable)
    tables.write(gaps, out_dir / "paired.parquet", Paired)
    text = page(table, gaps, inputs.synthetic, settings.confidence)
    (out_dir / "evaluation.md").write_text(text)
    _forest(table, out_dir / "evaluation.png", inputs.synthetic)
    done = Check("complete", True, f"{len(names)} models × {test.height:,} rows of {context['n_users']:,} users")
    return Report(_headline_metrics(table, settings, inputs.synthetic), (done,), {"evaluation": text})


def evaluation_table(
    scores: dict[str, pl.DataFrame], models: pl.DataFrame, settings: Evaluation, context: dict[str, Any]
) -> pl.DataFrame:
    """Each metric of each model with its interval, by the contract `EvaluationTable`.

    Args:
        scores: per-row metrics of each `<model>/<mode>`, see :func:`~sidr_core.evaluation.metrics.per_row`.
        models: the contract `RecommendedModels`.
        settings: cut-offs and bootstrap.
        context: values that are the same on every row.
    """
    wanted = [(level, metric, k) for level in LEVELS for k in settings.ks for metric in _METRICS]
    behind = {(row[MODEL], row[MODE]): row for row in models.iter_rows(named=True)}
    found = []
    for name, frame in scores.items():
        values = frame.select(column(*one) for one in wanted).to_numpy()
        intervals = bootstrap(values, frame[USER_ID].to_numpy(), **_options(settings))
        meta = behind[split_name(name)]
        for place, (level, metric, k) in enumerate(wanted):
            found.append(
                {
                    **context,
                    **{key: meta[key] for key in (MODEL, MODE, "beam_width", "seed", "checkpoint", "seen_until")},
                    "metric": metric,
                    "k": k,
                    "level": level,
                    "value": intervals.value[place],
                    "ci_low": intervals.low[place],
                    "ci_high": intervals.high[place],
                }
            )
    return pl.DataFrame(found, schema_overrides={"k": pl.Int32, "beam_width": pl.Int32})


def paired_table(scores: dict[str, pl.DataFrame], settings: Evaluation, context: dict[str, Any]) -> pl.DataFrame:
    """Differences of :func:`~sidr_core.evaluation.protocol.comparisons`, by the contract `Paired`."""
    wanted = [(ITEM_LEVEL, metric, k) for k in headline(settings.ks) for metric in _METRICS]
    columns = [column(*one) for one in wanted]
    kept = {key: context[key] for key in (DATASET, SNAPSHOT, SPLIT, "n_rows", "n_users")}
    found = []
    for a, b in comparisons(tuple(scores)):
        left, right = scores[a].select(columns).to_numpy(), scores[b].select(columns).to_numpy()
        gap = paired(left, right, scores[a][USER_ID].to_numpy(), **_options(settings))
        (model_a, mode_a), (model_b, mode_b) = split_name(a), split_name(b)
        for place, (level, metric, k) in enumerate(wanted):
            found.append(
                {
                    **kept,
                    **{"model_a": model_a, "mode_a": mode_a, "model_b": model_b, "mode_b": mode_b},
                    **{"metric": metric, "k": k, "level": level, "seed": settings.seed},
                    "difference": gap.interval.value[place],
                    "ci_low": gap.interval.low[place],
                    "ci_high": gap.interval.high[place],
                    "helped": gap.helped[place],
                    "harmed": gap.harmed[place],
                    "same": gap.same[place],
                    "verdict": gap.verdict[place],
                }
            )
    types: dict[str, Any] = {name: kind.dtype.type for name, kind in Paired.to_schema().columns.items()}  # type: ignore[union-attr]
    return pl.DataFrame(found, schema=types)


def _of(scores: pl.DataFrame, name: str) -> pl.DataFrame:
    """Per-row metrics of one model, in the order of row_id."""
    model, mode = split_name(name)
    return scores.filter((pl.col(MODEL) == model) & (pl.col(MODE) == mode)).sort(ROW_ID)


def _options(settings: Evaluation) -> dict[str, Any]:
    return {"draws": settings.bootstrap, "confidence": settings.confidence, "seed": settings.seed}


def _refuse(lists: pl.DataFrame, test: pl.DataFrame, names: tuple[str, ...], k: int, beam_width: int) -> None:
    """Raise where a number would be wrong or could not have an interval."""
    if k > beam_width:
        raise InputError(
            f"metrics at {k} need lists of {k} places",
            expected=f"evaluation.ks up to decoding.beam_width, {beam_width}",
            found=f"k = {k}",
            do="raise the beam width or lower k",
        )
    if (users := test[USER_ID].n_unique()) < 2:
        raise InputError(
            "an interval over users cannot be computed",
            expected="test rows of at least 2 users",
            found=f"{test.height} rows of {users} user",
            do="widen the snapshot, loosen `filters` or raise decoding.max_test_rows",
        )
    wanted = set(test[ROW_ID])
    made: dict[tuple[Any, ...], set[str]] = {}
    for model, mode, row in lists.select(MODEL, MODE, ROW_ID).unique().iter_rows():
        made.setdefault((model, mode), set()).add(row)
    for name in names:
        if absent := wanted - made.get(split_name(name), set()):
            raise InputError(
                f"{name} has no list for {len(absent):,} of {len(wanted):,} test rows",
                expected="a list of every model for every test row",
                found=f"none for {', '.join(sorted(absent)[:3])}",
                do="materialize recommendations again",
            )


def _headline_metrics(table: pl.DataFrame, settings: Evaluation, synthetic: bool) -> dict[str, Any]:
    """Item-level numbers under names like `grpo_thinking_ndcg@10`."""
    shown = table.filter((pl.col("level") == ITEM_LEVEL) & pl.col("k").is_in(headline(settings.ks)))
    numbers: dict[str, Any] = {
        f"{row[MODEL]}_{row[MODE]}_{row['metric']}@{row['k']}": round(row["value"], 6)
        for row in shown.iter_rows(named=True)
    }
    return {**numbers, "rows": table["n_rows"][0], "users": table["n_users"][0], "synthetic": synthetic}


def _forest(table: pl.DataFrame, path: Path, synthetic: bool) -> None:
    k = headline(table["k"].unique().to_list())[-1]
    shown = table.filter((pl.col("level") == ITEM_LEVEL) & (pl.col("metric") == NDCG) & (pl.col("k") == k))
    first = shown.row(0, named=True)
    label = f" ({SYNTHETIC_LABEL})" if synthetic else ""
    plots.forest(
        [f"{model}/{mode}" for model, mode in shown.select(MODEL, MODE).iter_rows()],
        np.asarray(shown["value"]).tolist(),
        np.asarray(shown["ci_low"]).tolist(),
        np.asarray(shown["ci_high"]).tolist(),
        path,
        f"{first[DATASET]}, snapshot {first[SNAPSHOT]}{label}",
        f"NDCG@{k}, item level, with interval over users",
    )
