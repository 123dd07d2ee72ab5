"""The stage `leaderboard`: one table per dataset of what was measured, and, apart from it, of what was published.

Measured lists are placed by NDCG at the largest headline cut-off, item level. Published figures stand below, as
their sources give them, without a place: other train rows, other model sizes, no interval (docs/evaluation.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.evaluation import claims
from sidr_core.evaluation.pages import caption, differences, joined, titled
from sidr_core.evaluation.protocol import headline, list_name
from sidr_core.metrics.ranking import HR, NDCG
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending.published import Published, of_split
from sidr_core.render import figures
from sidr_core.render.grid import Grid, ranged
from sidr_core.settings.models import OPTIMAL
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DATASET, ITEM_LEVEL, MODE, MODEL, SID_LEVEL, SNAPSHOT
from sidr_core.tables.contracts import Leaderboard, Remarks

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

MEASURED, PUBLISHED = "measured", "published"
METRICS = (HR, NDCG)

_MEASURED_NOTE = """\
Places are by NDCG@{k}; lists whose intervals overlap may still differ, or not, when paired: see `evaluation`."""
_OPTIMAL_NOTE = """
`optimal/direct` has no place: it is the order of the sample's own generator, the best that could be known."""
_PUBLISHED_NOTE = """\
Published figures on the same test rows, as their sources give them: SID level, without interval or seed, from models
that trained on all train rows of the split. They have no place here: it is not a comparison at equal data. Where a
reference says that @5 and @10 contradict each other, no ranking has all four figures of its line."""
_CLAIMS_NOTE = """\
Paired on the same rows; verdicts are corrected for all {family} differences (Holm). Each list has a card with all that
it rests on in `claims/`; `sidr verify` checks it."""
_CONTRADICTS = " (its @5 and @10 contradict each other)"


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `leaderboard` as Parquet, as a page and as a figure, and a card of each measured list into `claims/`."""
    evaluation = tables.read(inputs["evaluation"].path("evaluation.parquet"))
    others = of_split(config.source.kind, evaluation["n_rows"][0], evaluation["n_users"][0])
    margins, remarks = (tables.read(inputs["evaluation"].path(f"{name}.parquet")) for name in ("margins", "remarks"))
    table = leaderboard(evaluation, others, remarks)
    tables.write(table, out_dir / "leaderboard.parquet", Leaderboard)
    (out_dir / "claims").mkdir()
    for card in claims.cards(inputs.manifests("evaluation"), evaluation, margins, remarks):
        (out_dir / "claims" / f"{claims.file_name(card)}.json").write_text(card.model_dump_json(indent=1) + "\n")
        (out_dir / "claims" / f"{claims.file_name(card)}.md").write_text(claims.page(card))
    text = page(table, inputs.synthetic, margins, inputs["evaluation"].metrics.get("protocol", ""))
    (out_dir / "leaderboard.md").write_text(text)
    _draw(table, out_dir / "leaderboard.png", inputs.synthetic)
    first = table.filter(pl.col("place") == 1).row(0, named=True)
    lists = table.filter(pl.col("origin") == MEASURED).select(MODEL, MODE).n_unique()
    metrics = {"lists": lists, "published": len(others), "first": list_name(first)}
    return Report(metrics | {"synthetic": inputs.synthetic}, (), {"leaderboard": text})


def leaderboard(
    evaluation: pl.DataFrame, others: tuple[Published, ...] = (), remarks: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Measured lists in the order of their places, the optimum, then published ones, by the contract `Leaderboard`.

    Args:
        evaluation: the contract `EvaluationTable` of one snapshot.
        others: published on the same rows.
        remarks: the contract `Remarks`.
    """
    ks = headline(evaluation.filter(pl.col("metric") == NDCG)["k"].unique().to_list())
    in_headline = (pl.col("level") == ITEM_LEVEL) & pl.col("metric").is_in(METRICS) & pl.col("k").is_in(ks)
    origin = pl.when(pl.col(MODEL) == OPTIMAL).then(pl.lit(OPTIMAL)).otherwise(pl.lit(MEASURED))
    part = evaluation.filter(in_headline).with_columns(origin=origin, reference=pl.lit(None, pl.String))
    best = part.filter((pl.col("metric") == NDCG) & (pl.col("k") == ks[-1]) & (pl.col("origin") == MEASURED))
    # Equal values share a place.
    places = best.select(MODEL, MODE, pl.col("value").rank("min", descending=True).cast(pl.Int32).alias("place"))
    placed = part.join(places, on=[MODEL, MODE], how="left", maintain_order="left")
    measured = placed.sort("place", nulls_last=True, maintain_order=True)
    remarks = Remarks.empty() if remarks is None else remarks
    texts = remarks.group_by(MODEL, MODE, maintain_order=True).agg(pl.col("remark").str.join("; ").alias("remarks"))
    measured = measured.join(texts, on=[MODEL, MODE], how="left", maintain_order="left")
    first = evaluation.row(0, named=True)
    shared = {key: first[key] for key in (DATASET, SNAPSHOT, "split", "n_rows")} | {"origin": PUBLISHED}
    published = [
        shared
        | {MODEL: line.model, "metric": metric, "k": k, "level": SID_LEVEL, "value": value}
        | {"reference": line.reference + ("" if line.consistent else _CONTRADICTS)}
        for line in others
        for metric, k, value in line.figures
        if k in ks
    ]
    table = tables.typed(published, Leaderboard)
    return pl.concat([measured.select(table.columns), table])


def grids(table: pl.DataFrame) -> tuple[Grid, ...]:
    """What was measured, and what was published where there is any, as two tables."""
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in table.iter_rows(named=True):
        cells = lines.setdefault(tuple(row[key] for key in _LINE), {})
        cells[f"{row['metric'].upper()}@{row['k']}"] = ranged(row)
    measured, published = [], []
    for key, cells in lines.items():
        line: dict[str, Any] = dict(zip(_LINE, key, strict=True))
        rows = f"{line['n_rows']:,}"
        if line["origin"] != PUBLISHED:
            producer = (str(line["beam_width"]), str(line["seed"]), line["seen_until"], line["checkpoint"][:12])
            remarks = line["remarks"] or ""
            measured.append((str(line["place"] or ""), list_name(line), *cells.values(), rows, *producer, remarks))
        else:
            published.append((line[MODEL], *cells.values(), rows, line["reference"], PUBLISHED))
    labels = tuple(next(iter(lines.values())))
    header = ("place", "model", *labels, "rows", "beam", "seed", "seen until", "checkpoint", "remarks")
    boards = [Grid("Measured, item level", header, tuple(measured))]
    if published:
        header = ("model", *labels, "rows", "reference", "origin")
        boards.append(Grid("Published, SID level, not ranked", header, tuple(published)))
    return tuple(boards)


#: What is the same for all metrics of one line.
_LINE = (
    *("origin", "place", MODEL, MODE, "n_rows", "beam_width", "seed"),
    *("seen_until", "checkpoint", "remarks", "reference"),
)


def page(table: pl.DataFrame, synthetic: bool, margins: pl.DataFrame | None = None, protocol: str = "") -> str:
    """The leaderboard as Markdown.

    Args:
        margins: those over the best counting baseline, by the contract `Paired`.
        protocol: how rows were split and ranked.
    """
    measured = table.filter(pl.col("origin") != PUBLISHED)
    known = _OPTIMAL_NOTE if OPTIMAL in table["origin"] else ""
    notes = (_MEASURED_NOTE.format(k=measured["k"].max()) + known, _PUBLISHED_NOTE)
    boards = [(grid.markdown(), note) for grid, note in zip(grids(table), notes, strict=False)]
    heading = titled("# Leaderboard", synthetic)
    claimed = []
    if margins is not None and margins.height:
        title = f"Margin over {margins['model_b'][0]}/{margins['mode_b'][0]}, the counting baseline"
        claimed = [replace(differences(margins), title=title).markdown(), _CLAIMS_NOTE.format(family=margins.height)]
    first, *others = boards
    parts = (*first, *claimed, *(part for board in others for part in board))
    return joined(heading, caption(measured, synthetic), protocol, *parts)


def _draw(table: pl.DataFrame, path: Path, synthetic: bool) -> None:
    """Measured lists with their intervals, published figures as bare points."""
    k = table["k"].max()
    points = table.filter((pl.col("metric") == NDCG) & (pl.col("k") == k))
    labels, lows, highs = [], [], []
    for row in points.iter_rows(named=True):
        measured = row["origin"] != PUBLISHED
        labels.append(list_name(row) if measured else f"published: {row[MODEL]}, {row['reference']}")
        lows.append(row["ci_low"] if measured else row["value"])
        highs.append(row["ci_high"] if measured else row["value"])
    title = titled(f"{points[DATASET][0]}, snapshot {points[SNAPSHOT][0]}", synthetic)
    axis = f"NDCG@{k}, item level; published figures: SID level" if PUBLISHED in points["origin"] else f"NDCG@{k}"
    figures.forest(labels, points["value"].to_list(), lows, highs, path, title, axis)
