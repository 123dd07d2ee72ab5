"""An evaluation in 25 lines: the lists in order, what thinking gave, how true the thoughts are, two of them in full.

The rest is in the pages of the stage, and `sidr show --all` prints the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.evaluation.pages import caption
from sidr_core.evaluation.protocol import headline, list_name, lists_of, thinking_pairs
from sidr_core.metrics.ranking import HR, NDCG
from sidr_core.recommending import truth
from sidr_core.render.grid import Grid, ranged
from sidr_core.settings.models import OPTIMAL, split_name
from sidr_core.tables import columns as c

if TYPE_CHECKING:
    from rich.console import Group

#: Lists that are shown; the last line of them stands for those behind.
_LISTS = 8
_THOUGHTS = 2
#: Columns of `recommendations` that are read.
PLACES = (c.ROW_ID, c.USER_ID, c.MODEL, c.MODE, c.RANK, c.ITEM_ID, c.REASONING)


def summary(
    evaluation: pl.DataFrame,
    paired: pl.DataFrame,
    slices: pl.DataFrame,
    thoughts: pl.DataFrame,
    lists: pl.DataFrame,
    rows: pl.DataFrame,
    synthetic: bool,
) -> Group:
    """The summary of one snapshot for a terminal.

    Args:
        evaluation, paired, slices: what the stage `evaluation` published, by their contracts.
        thoughts, rows: of the stage `recommendations`. lists: its table of that name, the columns `PLACES`.
        synthetic: whether the data are made up; it is said.
    """
    from rich.console import Group
    from rich.text import Text

    k = headline(evaluation.filter(pl.col("metric") == NDCG)["k"].unique().to_list())[-1]
    names = evaluation.select(c.MODEL, c.MODE).unique(maintain_order=True).iter_rows(named=True)
    pairs = thinking_pairs([list_name(row) for row in names])
    parts: list[Any] = [Text(caption(evaluation, synthetic), style="bold"), _places(evaluation, k).rich(bare=True)]
    if pairs:
        thinking, direct = pairs[-1]
        parts.append(_gains(paired, slices, k, thinking, direct).rich(bare=True))
        model = split_name(thinking)[0]
        if shares := truth.shares(thoughts).get(model):
            tokens = thoughts.filter(pl.col(c.MODEL) == model)["n_tokens"].mean()
            of_each = ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in shares.items())
            parts.append(Text(f"Thoughts of {model}: {of_each}; {tokens:.0f} tokens on average."))
        parts += [Text(line) for line in _thoughts(lists, rows, thinking)]
    return Group(*parts)


def _places(evaluation: pl.DataFrame, k: int) -> Grid:
    """The first lists by NDCG, and what could be known at best where that is known."""
    at_k = evaluation.filter((pl.col("level") == c.ITEM_LEVEL) & (pl.col("k") == k))
    ndcg = at_k.filter(pl.col("metric") == NDCG).sort("value", descending=True, maintain_order=True)
    hits = {list_name(row): ranged(row) for row in at_k.filter(pl.col("metric") == HR).iter_rows(named=True)}
    best = lists_of(ndcg, f"{OPTIMAL}/{c.DIRECT}")
    lines = []
    for row in ndcg.join(best, on=[c.MODEL, c.MODE], how="anti", maintain_order="left").iter_rows(named=True):
        of_best = f"{row['value'] / best['value'][0]:.0%}" if best.height and best["value"][0] else ""
        lines.append((f"{len(lines) + 1:>2} {list_name(row)}", hits[list_name(row)], ranged(row), of_best))
    if len(lines) > _LISTS:
        more = len(lines) - _LISTS + 1
        lines = [*lines[: _LISTS - 1], (f"   and {more} below (sidr show --all)", "", "", "")]
    lines += [
        (f"   {list_name(row)}: what could be known", hits[list_name(row)], ranged(row), "100%")
        for row in best.iter_rows(named=True)
    ]
    header = ("list", f"HR@{k}", f"NDCG@{k}", "of what could be known" if best.height else "")
    return Grid("Lists in order", header, tuple(lines))


def _gains(paired: pl.DataFrame, slices: pl.DataFrame, k: int, a: str, b: str) -> Grid:
    """What thinking gave on all rows and on each kind, or on rows whose target train knows and does not."""
    other, plain = split_name(b)
    whole = lists_of(paired.rename({"model_a": c.MODEL, "mode_a": c.MODE}), a).filter(
        (pl.col("model_b") == other) & (pl.col("mode_b") == plain) & (pl.col("k") == k)
    )
    by = c.KIND if c.KIND in slices["slice"] else "seen_pair"
    parts = lists_of(slices, a).filter((pl.col("slice") == by) & (pl.col("minus") == b))
    groups = [("all", whole.rename({"difference": "value"}))]
    groups += [(str(group), part) for (group,), part in parts.group_by("group", maintain_order=True)]
    lines = []
    for group, part in groups:
        gaps = {row["metric"]: row for row in part.iter_rows(named=True)}
        if gaps.keys() >= {HR, NDCG}:
            verdict = gaps[NDCG]["verdict"] or ""
            lines.append(
                (f"   {group}", f"{gaps[HR]['n_rows']:,}", ranged(gaps[HR], "+"), ranged(gaps[NDCG], "+"), verdict)
            )
    return Grid("What thinking gave", (f"{a} − {b}", "rows", f"HR@{k}", f"NDCG@{k}", ""), tuple(lines))


def _thoughts(lists: pl.DataFrame, rows: pl.DataFrame, name: str) -> list[str]:
    """The thoughts behind the lists of the first rows, and where the item that was bought stands in them."""
    of_list = lists_of(lists, name)
    lines = []
    of_users = of_list.filter(pl.col(c.REASONING).is_not_null()).sort(c.ROW_ID, c.RANK).unique(c.USER_ID, keep="first")
    for row_id in of_users[c.ROW_ID].sort().head(_THOUGHTS):
        places = of_list.filter(pl.col(c.ROW_ID) == row_id)
        target = rows.filter(pl.col(c.ROW_ID) == row_id)[c.TARGET][0]
        place = places.filter(pl.col(c.ITEM_ID) == target)[c.RANK].min()
        thought = " ".join(places[c.REASONING].drop_nulls()[0].split())
        lines.append(
            f"{row_id} thought: {thought} The item bought is {f'at place {place}' if place else 'not listed'}."
        )
    return lines
