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
from sidr_core.evaluation.pages import joined, titled
from sidr_core.evaluation.protocol import list_name, lists_of
from sidr_core.evaluation.verdicts import GAP_BESIDE_VALUE, GAP_HEADER, gap_cells, gap_rows, horizons, judge, notes
from sidr_core.metrics.intervals import differences, draw_means, share_summary
from sidr_core.metrics.ranking import HR, NDCG, column, per_row
from sidr_core.render.grid import Grid, ranged
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables

if TYPE_CHECKING:
    from sidr_core.pipeline.store import Store
    from sidr_core.settings import DatasetConfig, Evaluation

METRICS = (HR, NDCG)

_NOTES = """\
Values are means over test rows at item level, with {percent} % intervals from a bootstrap over users ({draws:,}
draws, seed {seed}). Differences are paired: the same rows, minus the first model. Their intervals stand alone.
{verdicts} Each model was trained once, with the seed shown: what another seed would change is in none of these
intervals. It is in that of the mean under "Over seeds", where models that differ in their seed alone are put together;
the spread is the standard deviation between them."""


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

    @property
    def list(self) -> str:
        """`<model>/<mode>`."""
        return f"{self.model}/{self.mode}"

    def __str__(self) -> str:
        return f"{self.dataset}/{self.list}"


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
    produced_by = lists_of(models, name.list)
    if produced_by.is_empty():
        known = ", ".join(f"{name.dataset}/{list_name(row)}" for row in models.iter_rows(named=True))
        raise InputError(
            f"{name} has no published lists for {snapshot}",
            expected=f"one of {known}",
            found=str(name),
            fix="name one of these, or add it to decoding.models and materialize recommendations",
        )
    meta = produced_by.row(0, named=True)
    if k > meta["beam_width"]:
        raise InputError(
            f"{name} cannot be scored at {k}",
            expected=f"k up to its beam width, {meta['beam_width']}",
            found=f"k = {k}",
            fix="lower k, or raise decoding.beam_width and materialize recommendations",
        )
    lists = tables.read(
        artifact.path("recommendations.parquet"), [c.MODEL, c.MODE, c.ROW_ID, c.RANK, c.ITEM_ID, c.SID, c.SCORE]
    )
    test = tables.read(store.require(name.dataset, snapshot, "interactions").path("test.parquet"))
    codebook = tables.read(
        store.require(name.dataset, snapshot, "sid_codebook").path("sid_codebook.parquet"), [c.ITEM_ID, c.SID]
    )
    scores = per_row(lists_of(lists, name.list), test, codebook, [k])
    rows = scores.join(test.select(c.ROW_ID, c.TARGET), on=c.ROW_ID).select(
        c.ROW_ID, c.USER_ID, c.TARGET, *(column(c.ITEM_LEVEL, metric, k) for metric in METRICS)
    )
    return Scored(
        name,
        rows.sort(c.ROW_ID),
        frozenset(codebook[c.ITEM_ID]),
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
        helped, harmed, same, se, detectable, p, p_holm, p_within, p_within_holm, verdict (all null for the first),
        n_rows, n_users, beam_width,
        seed, checkpoint, seen_until.

    Raises:
        InputError: the models were not tested on the same rows of the same users and targets, or did not rank the
            same items.
    """
    for entry in entries[1:]:
        refuse_other_rows(entries[0], entry)
    columns = [column(c.ITEM_LEVEL, metric, k) for metric in METRICS]
    users = entries[0].rows[c.USER_ID].to_numpy()
    first, drawn_first = None, None
    rows: list[dict[str, Any]] = []
    for entry in entries:
        values = entry.rows.select(columns).to_numpy()
        drawn = draw_means(values, users, draws=settings.bootstrap, seed=settings.seed)
        interval = share_summary(values, drawn, len(np.unique(users)), settings.confidence)
        shared = {
            **{c.DATASET: entry.name.dataset, c.MODEL: entry.name.model, c.MODE: entry.name.mode, "k": k},
            **{"n_rows": len(users), "n_users": len(np.unique(users)), "beam_width": entry.beam_width},
            **{"seed": entry.seed, "checkpoint": entry.checkpoint, "seen_until": entry.seen_until},
            "remarks": horizons(entry.seen_until, entries[0].seen_until),
        }
        gaps: list[dict[str, Any]] = [{} for _ in METRICS]
        if first is None or drawn_first is None:
            first, drawn_first = values, drawn
        else:
            gap = differences(values - first, drawn - drawn_first, users, settings.confidence, settings.margin)
            gaps = gap_rows(gap, GAP_BESIDE_VALUE)
        for n, metric in enumerate(METRICS):
            value = {"value": interval.value[n], "ci_low": interval.low[n], "ci_high": interval.high[n]}
            rows.append(shared | {"metric": metric} | value | gaps[n])
    judge(rows, settings)
    return pl.DataFrame(rows, schema=_SCHEMA)


_SCHEMA: dict[str, Any] = {
    **dict.fromkeys((c.DATASET, c.MODEL, c.MODE, "metric"), pl.String),
    "k": pl.Int32,
    **dict.fromkeys(("value", "ci_low", "ci_high", *GAP_BESIDE_VALUE), pl.Float64),
    **dict.fromkeys(("helped", "harmed", "same"), pl.Int64),
    **dict.fromkeys(("se", "detectable", "p", "p_holm", "p_within", "p_within_holm"), pl.Float64),
    "verdict": pl.String,
    **dict.fromkeys(("n_rows", "n_users", "beam_width", "seed"), pl.Int64),
    **dict.fromkeys(("checkpoint", "seen_until"), pl.String),
}


def refuse_other_rows(first: Scored, other: Scored) -> None:
    """Raise unless both were tested on the same rows and ranked the same items."""
    keys = [c.ROW_ID, c.USER_ID, c.TARGET]
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


def grids(compared: pl.DataFrame) -> tuple[Grid, Grid]:
    """The models with their values, and each one's differences from the first."""
    labels = [f"{metric.upper()}@{compared['k'][0]}" for metric in METRICS]
    models, gaps = [], []
    for _, rows in compared.group_by([c.DATASET, c.MODEL, c.MODE], maintain_order=True):
        by_metric = rows.rows(named=True)
        name, row = full_name(by_metric[0]), by_metric[0]
        values = [ranged(row) for row in by_metric]
        models.append((name, *values, str(row["seed"]), row["seen_until"], row["checkpoint"][:12]))
        if row["difference"] is not None:
            cells = (gap_cells(row, GAP_BESIDE_VALUE) for row in by_metric)
            gaps += [(name, label, *line) for label, line in zip(labels, cells, strict=True)]
    title = f"Paired differences from {models[0][0]}"
    return (
        Grid("Item level", ("model", *labels, "seed", "seen until", "checkpoint"), tuple(models)),
        Grid(title, ("model", "metric", *GAP_HEADER, "the model is"), tuple(gaps)),
    )


def full_name(row: Mapping[str, Any]) -> str:
    """`<dataset>/<model>/<mode>` of a row with these columns."""
    return f"{row[c.DATASET]}/{list_name(row)}"


def recipe(config: DatasetConfig) -> str:
    """What a dataset asks for, less its seeds: the same text for runs that differ in their seed alone."""

    def without_seeds(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_seeds(item) for key, item in value.items() if key != "seed"}
        return [without_seeds(item) for item in value] if isinstance(value, list) else value

    return json.dumps(without_seeds(config.model_dump(mode="json")), sort_keys=True)


def over_seeds(entries: Sequence[Scored], recipes: Mapping[str, str], k: int, settings: Evaluation) -> Grid:
    """Models that differ in their seed alone, put together: mean, spread and range; no row where there is none.

    The interval of the mean holds both what other users and what other seeds would change. With S seeds its half is
    the root of (z · standard error over users of the rows' means over seeds)² + (t of S - 1 · spread / √S)².

    Args:
        entries: as in :func:`table`.
        recipes: dataset -> :func:`recipe`.
        k: cut-off.
        settings: bootstrap and confidence.
    """
    from scipy.stats import norm, t

    groups: dict[tuple[str, str], list[Scored]] = {}
    for entry in entries:
        groups.setdefault((recipes[entry.name.dataset], entry.name.list), []).append(entry)
    tail, rows = (1 + settings.confidence) / 2, []
    for runs in groups.values():
        if len({run.seed for run in runs}) < len(runs) or len(runs) < 2:
            continue
        users, seeds = runs[0].rows[c.USER_ID].to_numpy(), ", ".join(str(run.seed) for run in runs)
        for metric in METRICS:
            values = np.stack([run.rows[column(c.ITEM_LEVEL, metric, k)].to_numpy() for run in runs])  # (S, R)
            drawn = draw_means(values.mean(axis=0)[:, None], users, draws=settings.bootstrap, seed=settings.seed)
            of_seeds = values.mean(axis=1)
            spread = float(of_seeds.std(ddof=1))
            half = np.hypot(norm.ppf(tail) * drawn.std(ddof=1), t.ppf(tail, len(runs) - 1) * spread / len(runs) ** 0.5)
            mean = float(of_seeds.mean())
            ends = {"value": mean, "ci_low": max(0.0, mean - half), "ci_high": min(1.0, mean + half)}
            extremes = f"{of_seeds.min():.4f} to {of_seeds.max():.4f}"
            rows.append((str(runs[0].name), f"{metric.upper()}@{k}", seeds, ranged(ends), f"{spread:.4f}", extremes))
    return Grid("Over seeds", ("model", "metric", "seeds", "mean", "spread", "range"), tuple(rows))


def page(
    compared: pl.DataFrame,
    snapshot: str,
    settings: Evaluation,
    synthetic: bool,
    seeds: Grid | None = None,
) -> str:
    """The comparison as Markdown; with `seeds`, of :func:`over_seeds`, if it has rows."""
    first = compared.row(0, named=True)
    widths = "/".join(str(width) for width in compared["beam_width"].unique().sort())
    rows = f"{first['n_rows']:,} test rows of {first['n_users']:,} users, beam width {widths}"
    models, gaps = grids(compared)
    return joined(
        titled("# Comparison", synthetic),
        f"{titled(f'Snapshot {snapshot}', synthetic)}: {rows}",
        *(grid.markdown() for grid in (models, seeds, gaps) if grid and grid.rows),
        notes(_NOTES, settings, len(gaps.rows)),
    )
