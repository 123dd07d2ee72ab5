"""Domains of a dataset of several sources (`kind: mix`): ids are `<domain>:<id>`, so that nothing of two collides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidr_core.tables.columns import USER_ID

if TYPE_CHECKING:
    import polars as pl


def prefix_of(domain: str) -> str:
    """What stands before every id of a domain; no domain's prefix begins another's."""
    return f"{domain}:"


def of_domains(samples: pl.DataFrame, domains: Sequence[str]) -> pl.DataFrame:
    """The rows of users of these domains, in their order; all rows where none is named.

    Args:
        samples: any table with a `user_id`.
        domains: names in `source.sources`.
    """
    import polars as pl

    if not domains:
        return samples
    return samples.filter(pl.any_horizontal([pl.col(USER_ID).str.starts_with(prefix_of(domain)) for domain in domains]))
