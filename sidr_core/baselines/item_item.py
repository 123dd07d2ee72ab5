"""The stage `baseline_item_item`: decayed item-to-item co-occurrence in train, the count model to beat.

Weight of `neighbour` after `item`: the sum over train rows with target `neighbour` and `item` in the
history, g places before the target (1 = the last), of `decay ** (g - 1)`, for g up to `window`. Pairs
count at every place and in every row, in the direction of time only, and are not normalised. Score
of a candidate for a history: the sum over its items, a places from its end (0 = the last), of
`decay ** a` × weight, plus `popularity_prior` × the candidate's share of the train targets, which
orders what the history says nothing about. Items of the history may come back: people buy again.

On the valid rows of the published Office split, counting its partial train rows, this form reached
HR@10 0.191 / NDCG@10 0.155 with decay 0.6, its default. Counting both directions and dividing by the root of an
item's total reached 0.196 / 0.156, dividing by the total or by popularity 0.173–0.192 / 0.130–0.148:
the plain form was kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import polars as pl
from scipy import sparse

from sidr_core.baselines.ranking import by_popularity, top_k
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.tables import files as tables
from sidr_core.tables.columns import HISTORY, ITEM_ID, ROW_ID, SCORE

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig
    from sidr_core.settings import ItemItem as ItemItemSettings

NEIGHBOUR = "neighbour_id"
# Rows scored at once: 512 rows × 20,000 items × 8 bytes = 80 MB.
_BLOCK = 512

# Pairs are counted before they are weighted, and summed in a fixed order, so that the result has the same bits
# with any number of threads.
_WEIGH = """
    WITH recent AS (
        SELECT target_item_id AS neighbour_id, list_reverse(history_item_ids)[1:$window] AS history
        FROM read_parquet($train) SEMI JOIN read_parquet($items) i ON target_item_id = i.item_id
    ), pairs AS (
        SELECT neighbour_id, unnest(history) AS item_id, generate_subscripts(history, 1) AS gap FROM recent
    ), counted AS (
        SELECT item_id, neighbour_id, gap, count(*) AS times FROM pairs GROUP BY ALL
    )
    SELECT item_id, neighbour_id, sum(times * pow($decay, gap - 1) ORDER BY gap)::DOUBLE AS score
    FROM counted GROUP BY item_id, neighbour_id
    ORDER BY item_id, score DESC, neighbour_id
"""


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Count, and write `baseline_item_item.parquet`."""
    from sidr_core.tables.contracts import ItemItem as ItemItemTable  # a second or two to import, which a server spares

    source, settings = inputs["interactions"], config.item_item
    parameters = {
        "train": str(source.path("train.parquet")),
        "items": str(source.path("items.parquet")),
        "window": settings.window,
        "decay": settings.decay,
    }
    with duckdb.connect() as db:
        weights = pl.DataFrame(db.sql(_WEIGH, params=parameters).to_arrow_table())
    tables.write(weights, out_dir / "baseline_item_item.parquet", ItemItemTable)
    return Report(
        metrics={
            "pairs": weights.height,
            "items_with_neighbours": weights[ITEM_ID].n_unique(),
            "decay": settings.decay,
            "window": settings.window,
        }
    )


class ItemItem:
    """The counter, ready to rank; equal scores go to the more popular item, then by item id.

    Args:
        weights: item_id, neighbour_id, score, as the stage writes it.
        counts: the table of `baseline_popularity`; it names every item and breaks ties.
    """

    def __init__(self, weights: pl.DataFrame, counts: pl.DataFrame, settings: ItemItemSettings) -> None:
        ordered, self._settings = by_popularity(counts), settings
        self._item_ids = ordered[ITEM_ID]
        self._column = {item: n for n, item in enumerate(self._item_ids)}
        total = max(float(ordered[SCORE].sum()), 1.0)
        self._prior = ordered[SCORE].to_numpy() / total * settings.popularity_prior  # (N,)
        rows, columns, values = [], [], []
        for item, neighbour, score in weights.select(ITEM_ID, NEIGHBOUR, SCORE).iter_rows():
            if item in self._column and neighbour in self._column:
                rows.append(self._column[item])
                columns.append(self._column[neighbour])
                values.append(score)
        # (N, N): row = item of the history, column = candidate
        self._weights = self._matrix(values, rows, columns, len(self._column))

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """See :class:`~sidr_core.baselines.ranking.Ranker`; items of a history outside the catalogue are ignored.

        Raises:
            InputError: the catalogue holds fewer than k items.
        """
        histories = rows[HISTORY].to_list()

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, len(histories), _BLOCK):
                recent = self._recent(histories[start : start + _BLOCK])  # (R, N)
                yield sparse.csr_array(recent @ self._weights).toarray() + self._prior

        return top_k(blocks(), rows[ROW_ID], self._item_ids, k)

    def _recent(self, histories: list[list[str]]) -> sparse.csr_array:
        """(R, N): `decay ** age` of each history item; one that occurs twice has the sum."""
        rows, columns, values = [], [], []
        for row, history in enumerate(histories):
            for age, item in enumerate(reversed(history[-self._settings.window :])):
                if item in self._column:
                    rows.append(row)
                    columns.append(self._column[item])
                    values.append(self._settings.decay**age)
        return self._matrix(values, rows, columns, len(histories))

    def _matrix(self, values: list[float], rows: list[int], columns: list[int], height: int) -> sparse.csr_array:
        return sparse.csr_array((np.array(values, dtype=float), (rows, columns)), shape=(height, len(self._column)))


def load(inputs: Mapping[str, StageInput], config: DatasetConfig) -> ItemItem:
    """The published weights, ready to rank."""
    weights, counts = (
        tables.read(inputs[stage].path(f"{stage}.parquet")) for stage in ("baseline_item_item", "baseline_popularity")
    )
    return ItemItem(weights, counts, config.item_item)
