"""`sidr explain`: one published list with its history, its thought and the truth."""

from __future__ import annotations

import polars as pl

from sidr_core.evaluation import cases
from sidr_core.serving.published import Published, unknown_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import HISTORY, ITEM_ID, MODE, MODEL, POSITION, RANK, REASONING, ROW_ID, TARGET, USER_ID


def explain(dataset: str | None, snapshot: str | None, user: str, row: str | None, model: str, k: int) -> None:
    """Print a published list with its history, its thought, the truth, and where every model ranked it."""
    published = Published.of(dataset, snapshot, "recommendations")
    path = published.file("recommendations", "recommendations.parquet")
    lists = pl.scan_parquet(path).filter(pl.col(USER_ID) == user).collect()
    if lists.is_empty():
        users = pl.scan_parquet(path).select(USER_ID).unique().collect()[USER_ID].to_list()
        raise unknown_name("user", user, users, f"the recommendations of {published.dataset}/{published.snapshot}")
    test = tables.read(published.file("interactions", "test.parquet"))
    rows = test.filter(pl.col(ROW_ID).is_in(lists[ROW_ID].unique().to_list())).sort(POSITION)
    row = rows[ROW_ID][-1] if row is None else row
    if row not in rows[ROW_ID]:
        raise unknown_name("row", str(row), rows[ROW_ID].to_list(), f"the test rows of user {user}")
    name = pl.concat_str(MODEL, MODE, separator="/")
    lists = lists.filter(pl.col(ROW_ID) == row).with_columns(name.alias("name"))
    ranking = lists.filter(pl.col("name") == model).sort(RANK)
    if ranking.is_empty():
        raise unknown_name("model", model, lists["name"].unique().sort().to_list(), "the recommendations")
    sample = rows.filter(pl.col(ROW_ID) == row).row(0, named=True)
    target_ranks = dict(lists.filter(pl.col(ITEM_ID) == sample[TARGET]).select("name", RANK).iter_rows())
    lengths = lists.group_by("name", maintain_order=True).len().iter_rows()
    thoughts = tables.read(published.file("recommendations", "thoughts.parquet"))
    thoughts = thoughts.filter((pl.col(ROW_ID) == row) & (pl.col(MODEL) == model.partition("/")[0]))
    thought = ranking[REASONING][0]
    case = cases.Case(
        published.heading("recommendations", f"{model} for user {user}, row {row}"),
        sample[HISTORY],
        ranking.head(k),
        thought=thought,
        unclosed=thought is not None and not thoughts["closed"][0],
        target=sample[TARGET],
        ranks={name: str(target_ranks.get(name, f"not among {length}")) for name, length in lengths},
    )
    cases.show(case, published.titles())
