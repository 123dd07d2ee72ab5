"""What was offered to the corpus and stays out of it, kept for a look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from sidr_core.tables.columns import ITEM_ID, KIND, REASON, TEXT, USER_ID

_COLUMNS = ("key", KIND, ITEM_ID, USER_ID, REASON, TEXT)


@dataclass(frozen=True)
class Refused:
    """One reply of a teacher, or one line of the file of general examples; the fields are the table's columns."""

    key: str
    kind: str
    item_id: str | None
    user_id: str | None
    reason: str
    text: str


def table(refused: Iterable[Refused]) -> pl.DataFrame:
    """The refused as a table of the contract `TeacherQuarantine`."""
    rows = [tuple(getattr(one, name) for name in _COLUMNS) for one in refused]
    return pl.DataFrame(rows, schema=dict.fromkeys(_COLUMNS, pl.String()), orient="row")
