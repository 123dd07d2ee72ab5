"""The stage `baseline_popularity`: how often each item is a target in train.

Only targets count: the first item of a user is never a target, so what is counted is what the other models are
trained to predict. Items that are never a target have score 0, so that a list can always be filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import polars as pl

from sidr_core.baselines.ranking import by_popularity, top_k
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.render.grid import markdown_table
from sidr_core.render.text import markdown_text
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, ROW_ID, SCORE

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

_COUNT = """
    SELECT i.item_id, count(t.target_item_id)::DOUBLE AS score, any_value(i.title) AS title
    FROM read_parquet($items) i LEFT JOIN read_parquet($train) t ON t.target_item_id = i.item_id
    GROUP BY i.item_id ORDER BY score DESC, i.item_id
"""


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Count, and write `baseline_popularity.parquet`."""
    from sidr_core.tables.contracts import (
        Popularity as PopularityTable,  # a second or two to import, which a server spares
    )

    source = inputs["interactions"]
    with duckdb.connect() as db:
        paths = {"train": str(source.path("train.parquet")), "items": str(source.path("items.parquet"))}
        counted = pl.DataFrame(db.sql(_COUNT, params=paths).to_arrow_table())
    tables.write(counted.select(ITEM_ID, SCORE), out_dir / "baseline_popularity.parquet", PopularityTable)
    total = float(counted[SCORE].sum())
    rows = [(markdown_text(title), f"{int(score):,}") for _, score, title in counted.head(10).iter_rows()]
    return Report(
        metrics={
            "items": counted.height,
            "targets": int(total),
            "never_a_target": counted.filter(pl.col(SCORE) == 0).height,
            "top_10_share": round(float(counted.head(10)[SCORE].sum()) / max(total, 1.0), 4),
        },
        markdown={"Most popular": markdown_table(("item", "train targets"), rows)},
    )


class Popularity:
    """The most popular items, the same list for every row; the score is the count.

    Args:
        counts: the table of `baseline_popularity`.
    """

    def __init__(self, counts: pl.DataFrame) -> None:
        self._ordered = by_popularity(counts)

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """See :class:`~sidr_core.baselines.ranking.Ranker`. Raises InputError if the catalogue is smaller than k."""
        first = self._ordered.head(k)
        scores = np.broadcast_to(first[SCORE].to_numpy(), (rows.height, first.height))  # (R, k)
        return top_k([scores], rows[ROW_ID], first[ITEM_ID], k)


def load(inputs: Mapping[str, StageInput], config: DatasetConfig) -> Popularity:
    """The published counts, ready to rank."""
    return Popularity(tables.read(inputs["baseline_popularity"].path("baseline_popularity.parquet")))
