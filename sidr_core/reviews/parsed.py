"""What a source module returns: accepted records, refused ones, and how many were read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from sidr_core import tables
from sidr_core.store import Artifact

#: Longest raw text kept of a refused record, in characters.
TEXT_LIMIT = 500

QUARANTINE_SCHEMA = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "text": pl.String}


@dataclass(frozen=True)
class Parsed:
    """Records of one or more files.

    Args:
        records: accepted ones, in file and line order, with columns `file` and `line`.
        refused: columns of :class:`sidr_core.contracts.Quarantine`.
        lines: records read, blank lines not counted.
        metrics: further numbers for the report.
    """

    records: pl.DataFrame
    refused: pl.DataFrame
    lines: int
    metrics: Mapping[str, int | float | str] = field(default_factory=dict)


def combined(pieces: Sequence[tuple[str, Parsed]]) -> Parsed:
    """Pieces that were parsed file by file, in order, each labelled with its file's name."""

    def labelled(frame: pl.DataFrame, name: str) -> pl.DataFrame:
        return frame.with_columns(pl.lit(name, dtype=pl.String).alias("file"))

    refused = [labelled(piece.refused, name).select(list(QUARANTINE_SCHEMA)) for name, piece in pieces]
    metrics: dict[str, int | float | str] = {}
    for _, piece in pieces:
        for key, value in piece.metrics.items():
            metrics[key] = metrics.get(key, 0) + value  # type: ignore[operator]
    return Parsed(
        records=pl.concat([labelled(piece.records, name) for name, piece in pieces]),
        refused=pl.concat(refused),
        lines=sum(piece.lines for _, piece in pieces),
        metrics=metrics,
    )


def load_part(part: Artifact) -> Parsed:
    """What a parser left in its part: `records.parquet` and `quarantine.parquet`, without file names."""
    metrics = dict(part.manifest["metrics"])
    lines = metrics.pop("lines")
    return Parsed(
        records=tables.read(part.path("records.parquet")),
        refused=tables.read(part.path("quarantine.parquet")),
        lines=lines,
        metrics=metrics,
    )


def reason_counts(refused: pl.DataFrame) -> dict[str, int]:
    """How many records were refused for each reason, most frequent first."""
    return dict(sorted(Counter(refused["reason"].to_list()).items(), key=lambda pair: (-pair[1], pair[0])))
