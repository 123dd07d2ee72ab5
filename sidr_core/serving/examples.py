"""Test rows to look at on the page: what came next, and where the published lists have it.

As `sidr explain` shows them, so nothing here is chosen by them or changes a list.
"""

from __future__ import annotations

import polars as pl
from pydantic import BaseModel

from sidr_core.serving.messages import Named
from sidr_core.serving.served import Served
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DIRECT, HISTORY, ITEM_ID, MODE, MODEL, RANK, ROW_ID, TARGET, THINKING, USER_ID

#: Places that count as found; examples of a kind.
_TOP, _EACH = 10, 3


class Example(BaseModel):
    """A test row.

    Attributes:
        kind: `hit`, `miss`, or `changed by thought`: found after the thought and not without it, or the reverse.
        history: item ids, oldest first. target: what came next.
        places: mode -> its place in the published list, from 1; None where it is not in it.
    """

    kind: str
    row_id: str
    user_id: str
    history: list[str]
    target: Named
    places: dict[str, int | None]


def examples(served: Served) -> list[Example]:
    """The first test rows of each kind, a user each, with a target of the catalogue; those changed by thought first."""
    release, catalogue = served.release, served.shelf.catalogue
    columns = [ROW_ID, MODEL, MODE, ITEM_ID, RANK]
    lists = tables.read(release.lists.path("recommendations.parquet"), columns)
    named = lists.with_columns(pl.concat_str(MODEL, MODE, separator="/").alias("name"))
    listed = set(named["name"].unique())
    modes = {mode: name for mode, name in release.names.items() if name in listed}
    rows = tables.read(release.lists.path("rows.parquet"), [ROW_ID, USER_ID, HISTORY, TARGET])
    for mode, published in modes.items():
        of_mode = named.filter(name=published).select(ROW_ID, pl.col(ITEM_ID).alias(TARGET), pl.col(RANK).alias(mode))
        rows = rows.join(of_mode, on=[ROW_ID, TARGET], how="left", maintain_order="left")
    chosen: dict[str, list[Example]] = {"changed by thought": [], "hit": [], "miss": []}
    for row in rows.iter_rows(named=True):
        places = {mode: row[mode] for mode in modes}
        of_kind = chosen[_kind(places)]
        if len(of_kind) < _EACH and row[USER_ID] not in {one.user_id for one in of_kind} and row[TARGET] in catalogue:
            item = catalogue[row[TARGET]]
            target = Named(item_id=item.item_id, title=item.title, sid=item.sid)
            of_kind.append(
                Example(
                    kind=_kind(places),
                    row_id=row[ROW_ID],
                    user_id=row[USER_ID],
                    history=row[HISTORY],
                    target=target,
                    places=places,
                )
            )
    return [example for of_kind in chosen.values() for example in of_kind]


def _kind(places: dict[str, int | None]) -> str:
    """What a row shows.

    >>> [_kind({"direct": 3, "thinking": place}) for place in (1, 11, None)], _kind({"direct": None, "thinking": 12})
    (['hit', 'changed by thought', 'changed by thought'], 'miss')
    """
    in_top = {mode: place is not None and place <= _TOP for mode, place in places.items()}
    if len({in_top[mode] for mode in in_top if mode in (DIRECT, THINKING)}) == 2:
        return "changed by thought"
    return "hit" if any(in_top.values()) else "miss"
