"""What a source module returns: accepted records, refused ones, and how many were read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

#: Longest raw text kept of a refused record, in characters.
TEXT_LIMIT = 500

QUARANTINE_SCHEMA = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "text": pl.String}


@dataclass(frozen=True)
class Parsed:
    """Records of one or more files.

    Args:
        records: accepted ones, in file and line order, with columns `file` and `line`.
        refused: columns of :class:`sidr_core.tables.contracts.Quarantine`.
        lines: records read, blank lines not counted.
        metrics: further numbers for the report.
    """

    records: pl.DataFrame
    refused: pl.DataFrame
    lines: int
    metrics: Mapping[str, int | float | str] = field(default_factory=dict)


def reason_counts(refused: pl.DataFrame) -> dict[str, int]:
    """How many records were refused for each reason, most frequent first."""
    return dict(sorted(Counter(refused["reason"].to_list()).items(), key=lambda pair: (-pair[1], pair[0])))
