"""Records that cannot be used: how they are kept, counted and bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from sidr_core.errors import InputError
from sidr_core.render.grid import markdown_table

#: Longest raw text kept of a refused record, in characters.
TEXT_LIMIT = 500

QUARANTINE_SCHEMA = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "text": pl.String}
#: The same within one file.
REFUSED_SCHEMA = {name: QUARANTINE_SCHEMA[name] for name in ("line", "reason", "text")}

#: What to do where most refused records have one reason.
_ADVICE = {
    "bad_encoding": "save the file as UTF-8 (`iconv -f LATIN1 -t UTF-8 old > new`)",
    "rating_out_of_range": "ratings are read from 0 to 5: set `source.rating_scale` (`tables`, `ratings_csv`), or "
    "leave them out (`review_columns: {rating: null}` of `tables`)",
    "wrong_type": "times are read as unix times or ISO 8601 dates (2018-06-01T09:30:00Z), ratings as numbers: write "
    "the columns so, or map others",
    "bad_time": "times are read from 1970 to 2100, in one unit per file: mend the column, or map another",
    "wrong_columns": "each line needs as many cells as the first one: quote cells that hold the separator",
}


def quotable(raw: str) -> str:
    """The raw text as far as it is kept; lone surrogates, which cannot be written, become `?`."""
    return raw[:TEXT_LIMIT].encode(errors="replace").decode()


def reason_counts(refused: pl.DataFrame) -> dict[str, int]:
    """How many records were refused for each reason, most frequent first."""
    return dict(sorted(Counter(refused["reason"].to_list()).items(), key=lambda pair: (-pair[1], pair[0])))


def listed(counts: Mapping[str, int]) -> str:
    """The counts as `reason 3, other reason 1`."""
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "none"


def require_clean(
    records: str, counts: Mapping[str, int], lines: int, allowed: float, first: Mapping[str, Any] | None
) -> float:
    """The share of refused records.

    Args:
        records: what they are, in plural, for the message.
        counts: refused records by reason.
        lines: records read.
        allowed: `filters.max_quarantine_share`.
        first: the first refused record, with the columns of :data:`QUARANTINE_SCHEMA`.

    Raises:
        InputError: the share is above `allowed`.
    """
    refused = sum(counts.values())
    share = refused / max(lines, 1)
    if share > allowed:
        assert first is not None
        raise InputError(
            f"too many {records} cannot be read: {refused:,} of {lines:,} ({share:.1%})",
            expected=f"at most {allowed:.2%} (`filters.max_quarantine_share`)",
            found=f"{listed(counts)}; first in {first['file']}, line {first['line']} "
            f"({first['reason']}): {first['text'][:120]!r}",
            fix=_ADVICE.get(next(iter(counts)), "mend the file")
            + "; or raise `filters.max_quarantine_share` if these lines may go",
        )
    return share


def counts_table(header: tuple[str, str], rows: Mapping[str, Any]) -> str:
    """A Markdown table of names and their numbers or texts; `None.` without any."""
    if not rows:
        return "None."
    cells = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows.items()]
    return markdown_table(header, cells)
