"""What was offered to the corpus and stays out of it, for inspection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from sidr_core.tables.columns import ITEM_ID, KIND, REASON, TEXT, USER_ID

_COLUMNS = ("key", KIND, ITEM_ID, USER_ID, REASON, TEXT)


@dataclass(frozen=True)
class Quarantined:
    """A reply of a teacher, or a line of the file of general examples; the fields are the table's columns."""

    key: str
    kind: str
    item_id: str | None
    user_id: str | None
    reason: str
    text: str


def quarantine_table(quarantined: Iterable[Quarantined]) -> pl.DataFrame:
    """A table of the contract `TeacherQuarantine`."""
    rows = [tuple(getattr(entry, name) for name in _COLUMNS) for entry in quarantined]
    return pl.DataFrame(rows, schema=dict.fromkeys(_COLUMNS, pl.String()), orient="row")
