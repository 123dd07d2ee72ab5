"""Members of a mix: ids are `<member>:<id>`, so that nothing of two sources collides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

_MARK = ":"


def prefix_of(member: str) -> str:
    """What stands before every id of a member; no member's prefix begins another's."""
    return member + _MARK


def of_members(samples: pl.DataFrame, members: Sequence[str]) -> pl.DataFrame:
    """The rows of users of these members, in their order; all rows where none is named.

    Args:
        samples: any table with a `user_id` of a mix.
        members: names in `source.sources`.
    """
    import polars as pl

    from sidr_core.tables.columns import USER_ID

    if not members:
        return samples
    return samples.filter(pl.any_horizontal([pl.col(USER_ID).str.starts_with(prefix_of(member)) for member in members]))
