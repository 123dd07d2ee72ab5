"""The stage `baseline_popularity`: how often each item is a target in train.

Only targets count: a user's very first item is nobody's target, so what is counted is what the other
models are trained to predict. Items that are no target at all are kept with score 0, so that a list
can always be filled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import polars as pl

from sidr_core.baselines.ranking import by_popularity, top_k
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.render.text import markdown_text
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, ROW_ID, SCORE
from sidr_core.tables.contracts import Popularity

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

_COUNT = """
    SELECT i.item_id, count(t.target_item_id)::DOUBLE AS score, any_value(i.title) AS title
    FROM read_parquet($items) i LEFT JOIN read_parquet($train) t ON t.target_item_id = i.item_id
    GROUP BY i.item_id ORDER BY score DESC, i.item_id
"""


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Count, and write `baseline_popularity.parquet`."""
    source = inputs["interactions"]
    with duckdb.connect() as db:
        paths = {"train": str(source.path("train.parquet")), "items": str(source.path("items.parquet"))}
        counted = pl.DataFrame(db.sql(_COUNT, params=paths).to_arrow_table())
    tables.write(counted.select(ITEM_ID, SCORE), out_dir / "baseline_popularity.parquet", Popularity)
    total = float(counted[SCORE].sum())
    rows = [f"| {markdown_text(title)} | {int(score):,} |" for _, score, title in counted.head(10).iter_rows()]
    return Report(
        metrics={
            "items": counted.height,
            "targets": int(total),
            "never_a_target": counted.filter(pl.col(SCORE) == 0).height,
            "top_10_share": round(float(counted.head(10)[SCORE].sum()) / max(total, 1.0), 4),
        },
        markdown={"Most popular": "\n".join(["| item | train targets |", "| --- | ---: |", *rows])},
    )


def rank(popularity: pl.DataFrame, samples: pl.DataFrame, k: int) -> pl.DataFrame:
    """The same k items for every sample: row_id, rank, item_id, score (the count).

    Raises:
        InputError: the catalogue holds fewer than k items.
    """
    ordered = by_popularity(popularity)
    scores = np.broadcast_to(ordered[SCORE].to_numpy()[:k], (samples.height, min(k, ordered.height)))
    best = ordered[ITEM_ID].head(k) if k <= ordered.height else ordered[ITEM_ID]
    return top_k([scores], samples[ROW_ID], best, k)
