"""Models of different datasets of a profile, compared on the same test rows: what an ablation is read from.

Per-row metrics, intervals and paired differences are those of the stage `evaluation`; what is new is the
comparison across codebooks, corpora and seeds. Lists are scored against their own codebook, since a SID means
an item only there; at item level that is a fair comparison. Each model is compared with the first one named,
and verdicts are corrected for the number of comparisons made at once (Holm).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.errors import InputError
from sidr_core.evaluation.pages import too_few
from sidr_core.evaluation.protocol import with_horizons
from sidr_core.metrics.intervals import bootstrap, judge, paired
from sidr_core.metrics.ranking import HR, NDCG, column, per_row
from sidr_core.render.grid import SYNTHETIC_LABEL, Grid
from sidr_core.tables import files as tables
from sidr_core.tables.columns import (
    DATASET,
    ITEM_ID,
    ITEM_LEVEL,
    MODE,
    MODEL,
    RANK,
    ROW_ID,
    SCORE,
    SID,
    TARGET,
    USER_ID,
)

if TYPE_CHECKING:
    from sidr_core.pipeline.store import Store
    from sidr_core.settings import DatasetConfig, Evaluation

METRICS = (HR, NDCG)

_NOTES = """\
Values are means over test rows at item level, with {percent} % intervals from a bootstrap over users ({draws:,}
draws, seed {seed}). Differences are paired: the same rows, minus the first model. Their intervals stand alone; p is
corrected for all {family} differences of this page (Holm), and a verdict other than "not distinguishable" needs
p < {alpha:g}.{few} Each model was trained once, with the seed shown: what another seed would change is not in the
intervals; models that differ in their seed alone are put together under "Over seeds", with the lowest and the highest
value."""


@dataclass(frozen=True)
class Name:
    """Which lists: `<dataset>/<model>/<mode>`."""

    dataset: str
    model: str
    mode: str

    @classmethod
    def parse(cls, text: str) -> Name:
        """Read `<dataset>/<model>/<mode>`. Raises InputError."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise InputError(
                f"{text!r} does not name a model of a dataset",
                expected="<dataset>/<model>/<mode>",
                found=f"{len(parts)} parts",
                fix="write it like office/sft/direct",
            )
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.dataset}/{self.model}/{self.mode}"


@dataclass(frozen=True)
class Scored:
    """Published lists of one model with their per-row metrics.

    Attributes:
        rows: row_id, user_id, target_item_id, and the metrics' columns, sorted by row_id.
        items: the catalogue that was ranked.
        seed, checkpoint, beam_width, seen_until: as in `models.parquet`.
    """

    name: Name
    rows: pl.DataFrame
    items: frozenset[str]
    seed: int
    checkpoint: str
    beam_width: int
    seen_until: str
    synthetic: bool


def read(store: Store, name: Name, snapshot: str, k: int) -> Scored:
    """Score the published lists of `name` at cut-off `k`.

    Raises:
        NotMaterialized: the dataset has no recommendations for the snapshot.
        InputError: they do not hold this model, or its lists are shorter than `k`.
    """
    artifact = store.require(name.dataset, snapshot, "recommendations")
    models = tables.read(artifact.path("models.parquet"))
    own = models.filter((pl.col(MODEL) == name.model) & (pl.col(MODE) == name.mode))
    if own.is_empty():
        known = ", ".join(f"{name.dataset}/{model}/{mode}" for model, mode in models.select(MODEL, MODE).iter_rows())
        raise InputError(
            f"{name} has no published lists for {snapshot}",
            expected=f"one of {known}",
            found=str(name),
            fix="name one of these, or add it to decoding.models and materialize recommendations",
        )
    meta = own.row(0, named=True)
    if k > meta["beam_width"]:
        raise InputError(
            f"{name} cannot be scored at {k}",
            expected=f"k up to its beam width, {meta['beam_width']}",
            found=f"k = {k}",
            fix="lower k, or raise decoding.beam_width and materialize recommendations",
        )
    lists = tables.read(artifact.path("recommendations.parquet"), [MODEL, MODE, ROW_ID, RANK, ITEM_ID, SID, SCORE])
    lists = lists.filter((pl.col(MODEL) == name.model) & (pl.col(MODE) == name.mode))
    test = tables.read(store.require(name.dataset, snapshot, "interactions").path("test.parquet"))
    codebook = tables.read(
        store.require(name.dataset, snapshot, "sid_codebook").path("sid_codebook.parquet"), [ITEM_ID, SID]
    )
    scores = per_row(lists, test, codebook, [k])
    rows = scores.join(test.select(ROW_ID, TARGET), on=ROW_ID).select(
        ROW_ID, USER_ID, TARGET, *(column(ITEM_LEVEL, metric, k) for metric in METRICS)
    )
    return Scored(
        name,
        rows.sort(ROW_ID),
        frozenset(codebook[ITEM_ID]),
        meta["seed"],
        meta["checkpoint"],
        meta["beam_width"],
        meta["seen_until"],
        artifact.synthetic,
    )


def table(entries: Sequence[Scored], k: int, settings: Evaluation) -> pl.DataFrame:
    """One row per model and metric, in the order named; differences are `model - first`.

    Returns:
        dataset, model, mode, metric, k, value, ci_low, ci_high, difference, difference_low, difference_high,
        helped, harmed, same, p, p_holm, verdict (these nine null for the first), n_rows, n_users, beam_width,
        seed, checkpoint, seen_until.

    Raises:
        InputError: the models were not tested on the same rows of the same users and targets, or did not rank the
            same items.
    """
    for entry in entries[1:]:
        _refuse(entries[0], entry)
    options: dict[str, Any] = {"draws": settings.bootstrap, "seed": settings.seed}
    columns = [column(ITEM_LEVEL, metric, k) for metric in METRICS]
    users = entries[0].rows[USER_ID].to_numpy()
    values = [entry.rows.select(columns).to_numpy() for entry in entries]
    context = {"k": k, "n_rows": len(users), "n_users": len(np.unique(users))}
    found: list[dict[str, Any]] = []
    for entry, own in zip(entries, values, strict=True):
        interval = bootstrap(own, users, confidence=settings.confidence, **options)
        gap = paired(own, values[0], users, confidence=settings.confidence, **options)
        for place, metric in enumerate(METRICS):
            row: dict[str, Any] = {
                **{DATASET: entry.name.dataset, MODEL: entry.name.model, MODE: entry.name.mode, "metric": metric},
                **{"value": interval.value[place], "ci_low": interval.low[place], "ci_high": interval.high[place]},
                **{"seed": entry.seed, "checkpoint": entry.checkpoint, "beam_width": entry.beam_width, **context},
                "seen_until": entry.seen_until,
            }
            if entry is not entries[0]:
                row |= {
                    "difference": gap.interval.value[place],
                    "difference_low": gap.interval.low[place],
                    "difference_high": gap.interval.high[place],
                    **{"helped": gap.helped[place], "harmed": gap.harmed[place], "same": gap.same[place]},
                    "p": gap.p[place],
                }
            found.append(row)
    family = [row for row in found if "p" in row]
    words = judge([row["difference"] for row in family], [row["p"] for row in family], settings.confidence)
    for row, verdict in zip(family, words, strict=True):
        word = with_horizons(verdict.word, row["seen_until"], entries[0].seen_until)
        row |= {"p_holm": verdict.p_holm, "verdict": word}
    return pl.DataFrame(found, schema=_SCHEMA)


_SCHEMA: dict[str, Any] = {
    **dict.fromkeys((DATASET, MODEL, MODE, "metric"), pl.String),
    "k": pl.Int32,
    **dict.fromkeys(("value", "ci_low", "ci_high", "difference", "difference_low", "difference_high"), pl.Float64),
    **dict.fromkeys(("helped", "harmed", "same"), pl.Int64),
    **dict.fromkeys(("p", "p_holm"), pl.Float64),
    "verdict": pl.String,
    **dict.fromkeys(("n_rows", "n_users", "beam_width", "seed"), pl.Int64),
    **dict.fromkeys(("checkpoint", "seen_until"), pl.String),
}


def _refuse(first: Scored, other: Scored) -> None:
    """Raise unless both were tested on the same rows and ranked the same items."""
    keys = [ROW_ID, USER_ID, TARGET]
    left, right = first.rows.select(keys), other.rows.select(keys)
    if not left.equals(right):
        shared = left.join(right, on=keys, how="inner").height
        raise InputError(
            f"{first.name} and {other.name} were not tested on the same rows",
            expected=f"the {left.height:,} rows of {first.name}: the same row, user and target",
            found=f"{right.height:,} rows, of which {shared:,} are the same",
            fix="give both the same source, filters, split and decoding.max_test_rows",
        )
    if first.items != other.items:
        raise InputError(
            f"{first.name} and {other.name} did not rank the same catalogue",
            expected=f"the {len(first.items):,} items of {first.name}",
            found=f"{len(other.items):,} items, {len(first.items & other.items):,} of them the same",
            fix="give both the same source and filters",
        )


def grids(found: pl.DataFrame) -> tuple[Grid, Grid]:
    """The models with their values, and each one's differences from the first."""
    labels = [f"{metric.upper()}@{found['k'][0]}" for metric in METRICS]
    models, gaps = [], []
    for _, pair in found.group_by([DATASET, MODEL, MODE], maintain_order=True):
        rows = pair.rows(named=True)
        name = f"{rows[0][DATASET]}/{rows[0][MODEL]}/{rows[0][MODE]}"
        values = [f"{row['value']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]" for row in rows]
        models.append((name, *values, str(rows[0]["seed"]), rows[0]["seen_until"], rows[0]["checkpoint"][:12]))
        for label, row in zip(labels, rows, strict=True):
            if row["difference"] is not None:
                gaps.append(
                    (
                        name,
                        label,
                        f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]",
                        f"{row['helped']:,} / {row['harmed']:,} / {row['same']:,}",
                        f"{row['p_holm']:.4f}",
                        row["verdict"],
                    )
                )
    first = models[0][0]
    return (
        Grid("Item level", ("model", *labels, "seed", "seen until", "checkpoint"), tuple(models)),
        Grid(
            f"Paired differences from {first}",
            ("model", "metric", "difference", "rows better / worse / same", "p (Holm)", "the model is"),
            tuple(gaps),
        ),
    )


def recipe(config: DatasetConfig) -> str:
    """What a dataset asks for, less its seeds: the same text for runs that differ in their seed alone."""
    return json.dumps(_seedless(config.model_dump(mode="json")), sort_keys=True)


def _seedless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _seedless(item) for key, item in value.items() if key != "seed"}
    return [_seedless(item) for item in value] if isinstance(value, list) else value


def over_seeds(found: pl.DataFrame, recipes: Mapping[str, str]) -> Grid:
    """Mean and range of models that differ in their seed alone; no row where there is none.

    Args:
        found: see :func:`table`.
        recipes: dataset -> :func:`recipe`.
    """
    named = found.with_columns(pl.col(DATASET).replace_strict(recipes).alias("recipe"))
    rows = []
    for _, runs in named.group_by(["recipe", MODEL, MODE, "metric"], maintain_order=True):
        if runs["seed"].n_unique() > 1:
            first, values = runs.row(0, named=True), runs["value"]
            name = f"{first[DATASET]}/{first[MODEL]}/{first[MODE]}"
            seeds = ", ".join(str(seed) for seed in runs["seed"])
            label = f"{first['metric'].upper()}@{first['k']}"
            rows.append((name, label, seeds, f"{values.mean():.4f}", f"{values.min():.4f} to {values.max():.4f}"))
    return Grid("Over seeds", ("model", "metric", "seeds", "mean", "range"), tuple(rows))


def page(
    found: pl.DataFrame, snapshot: str, settings: Evaluation, synthetic: bool, recipes: Mapping[str, str] | None = None
) -> str:
    """The comparison as Markdown; with `recipes` (dataset -> :func:`recipe`) also over seeds."""
    first = found.row(0, named=True)
    label = f" ({SYNTHETIC_LABEL})" if synthetic else ""
    widths = "/".join(str(width) for width in found["beam_width"].unique().sort())
    caption = (
        f"Snapshot {snapshot}{label}: {first['n_rows']:,} test rows of {first['n_users']:,} users, beam width {widths}"
    )
    models, gaps = grids(found)
    seeds = over_seeds(found, recipes) if recipes else None
    shown = [grid for grid in (models, seeds, gaps) if grid and grid.rows]
    notes = _NOTES.format(
        percent=f"{100 * settings.confidence:g}",
        draws=settings.bootstrap,
        seed=settings.seed,
        family=len(gaps.rows),
        alpha=round(1 - settings.confidence, 12),
        few=too_few(settings, len(gaps.rows)),
    )
    return "\n\n".join(["# Comparison" + label, caption, *(grid.markdown() for grid in shown), notes]) + "\n"
