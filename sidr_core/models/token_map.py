"""The contract of `sid_index.parquet`, apart: its library takes a second to import, which only a writer needs."""

import pandera.polars as pa
import polars as pl

from sidr_core.tables.contracts import Contract


class TokenMap(Contract):
    """One item with its SID and the vocabulary ids of the SID's tokens, sorted by item_id."""

    item_id: str = pa.Field(unique=True)
    sid: str
    codes: pl.List(pl.Int32)  # type: ignore[valid-type]
    token_ids: pl.List(pl.Int32)  # type: ignore[valid-type]
