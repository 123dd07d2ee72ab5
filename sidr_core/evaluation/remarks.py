"""What a reader has to know of a list beside its numbers: it learnt nothing, or its training kept its start."""

from __future__ import annotations

import polars as pl

from sidr_core.baselines.popularity import Popularity
from sidr_core.evaluation.protocol import POPULARITY, headline, list_name
from sidr_core.metrics.ranking import NDCG, column, per_row
from sidr_core.pipeline.report import Check
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, ITEM_LEVEL, MODE, MODEL, RANK, SCORE, SID, TARGET
from sidr_core.tables.contracts import Remarks

NOT_LEARNT = "not above popularity"


def popularity_ndcg(
    train: pl.DataFrame, items: pl.DataFrame, test: pl.DataFrame, codebook: pl.DataFrame, k: int
) -> float:
    """NDCG@k at item level of the items that are most often a train target, the same list for every test row."""
    counts = train.group_by(pl.col(TARGET).alias(ITEM_ID)).len(SCORE)
    counted = items.select(ITEM_ID).join(counts, on=ITEM_ID, how="left").with_columns(pl.col(SCORE).fill_null(0))
    lists = Popularity(counted).rank(test, min(k, items.height)).join(codebook.select(ITEM_ID, SID), on=ITEM_ID)
    # Every rank has a score of its own, so that items of one SID are not taken for equals.
    lists = lists.with_columns(
        (-pl.col(RANK).cast(pl.Float64)).alias(SCORE), pl.lit("").alias(MODEL), pl.lit("").alias(MODE)
    )
    scored = per_row(lists, test, codebook, [k])
    return float(scored[column(ITEM_LEVEL, NDCG, k)].sum() / test.height)


def remarks_table(evaluation: pl.DataFrame, models: pl.DataFrame, floor: float) -> pl.DataFrame:
    """One row per remark, by the contract `Remarks`, lists in the order of `models`.

    Args:
        evaluation: the contract `EvaluationTable`.
        models: the contract `RecommendedModels`, whose `note` is what was known before the test.
        floor: of :func:`popularity_ndcg`.
    """
    below = {name for name, value in _trained_ndcg(evaluation).items() if value <= floor}
    rows = []
    for row in models.iter_rows(named=True):
        texts = [row["note"]] if row.get("note") else []
        texts += [f"{NOT_LEARNT} on test rows"] if list_name(row) in below else []
        rows += [{MODEL: row[MODEL], MODE: row[MODE], "remark": text} for text in texts]
    return tables.typed(rows, Remarks)


def remark_lines(remarks: pl.DataFrame) -> str:
    """The remarks as a Markdown list, one line per `<model>/<mode>`; "" without any."""
    by_list: dict[str, list[str]] = {}
    for row in remarks.iter_rows(named=True):
        by_list.setdefault(list_name(row), []).append(row["remark"])
    return "\n".join(f"- **{name}: {'; '.join(texts)}**" for name, texts in by_list.items())


def learnt(evaluation: pl.DataFrame, floor: float) -> Check:
    """NDCG of every trained list on test rows is above that of popularity, as it has to be on valid rows."""
    values = _trained_ndcg(evaluation)
    below = ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value <= floor)
    return Check("learnt", not below, f"NDCG of popularity {floor:.4f}; not above it: {below or 'none'}")


def _trained_ndcg(evaluation: pl.DataFrame) -> dict[str, float]:
    """`<model>/<mode>` -> NDCG at the largest headline cut-off, item level, of all lists but popularity's."""
    ndcg = evaluation.filter((pl.col("metric") == NDCG) & (pl.col("level") == ITEM_LEVEL))
    k = headline(ndcg["k"].unique().to_list())[-1]
    trained = ndcg.filter((pl.col("k") == k) & (pl.col(MODEL) != POPULARITY))
    return {list_name(row): row["value"] for row in trained.iter_rows(named=True)}
