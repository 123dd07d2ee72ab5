"""The one bridge from a DuckDB result to a polars frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import polars as pl


def frame(db: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Rows of a query, with its `$name` parameters bound to `values`."""
    return pl.DataFrame(db.sql(query, params=dict(values or {})).to_arrow_table())
