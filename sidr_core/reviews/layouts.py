"""Names the layout of a file from its first lines, so that the wrong file is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from sidr_core.errors import InputError

#: How many non-blank lines are looked at.
SNIFFED = 20

# The first layout whose keys are all there wins, so the more telling ones come first.
_JSON_LAYOUTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("Amazon 2014/2018 reviews", frozenset({"reviewerID", "asin"})),
    ("Amazon 2023 reviews", frozenset({"user_id", "parent_asin"})),
    ("Amazon 2023 metadata", frozenset({"parent_asin", "title"})),
    ("Amazon 2014/2018 metadata", frozenset({"asin", "title"})),
    ("Amazon 2014/2018 metadata", frozenset({"asin", "description"})),
)
_CSV_HEADERS = (
    ("MiniOneRec's published CSV split", "user_id,history_item_title"),
    ("an Amazon 2023 benchmark CSV", "user_id,parent_asin"),
)


def identify(lines: Iterable[str]) -> str:
    """What the lines look like: a layout's name, or a description of what they hold."""
    first, other = "", ""
    for line in lines:
        first = first or line.strip()
        for name, start in _CSV_HEADERS:
            if line.startswith(start):
                return name
        keys = json_keys(line)
        for name, wanted in _JSON_LAYOUTS:
            if keys is not None and wanted <= keys:
                return name
        if keys is not None:
            other = other or f"JSON objects with the keys {', '.join(sorted(keys)[:8]) or '(none)'}"
    if other:
        return other
    if first.startswith("{'"):
        return "Python-dict lines, not JSON (as in Amazon 2014 metadata)"
    if first.count(",") == 3 and not first.startswith(("{", "[")):
        return "a ratings-only CSV of four columns"
    return f"a first line that begins with {first[:60]!r}"


def json_keys(line: str) -> frozenset[str] | None:
    """Keys of the JSON object on a line; None if it holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return frozenset(value) if isinstance(value, dict) else None


def require_json(path: Path, lines: Sequence[str], wanted: tuple[str, ...], layout: str, role: str) -> None:
    """Check that the first lines are of the layout; damaged ones among them are passed over.

    Args:
        wanted: keys that a record of the layout has, for the message.
        layout, role: its name, and what the profile calls the file (`reviews` or `items`).

    Raises:
        InputError: the file is empty or of another layout, which is named.
    """
    lines = [line for line in lines if line.strip()][:SNIFFED]
    if not lines:
        raise InputError(
            f"{path} holds no records",
            expected=f"{layout}: one JSON object per line with {', '.join(wanted)}",
            found="an empty file",
            do="fetch the file again",
        )
    found = identify(lines)
    if found == layout:
        return
    raise InputError(
        f"{path} is of another layout than `{role}` of this source",
        expected=f"{layout}: one JSON object per line with {', '.join(wanted)}",
        found=found,
        do=f"name the right file under `source.{role}`, or the right `source.kind`",
    )
