"""Where every record went: nothing that came in leaves a stage uncounted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from sidr_core.pipeline.report import Check
from sidr_core.tables.sql import frame

#: What an id may differ in from one of the catalogue -> SQL that makes both alike; the first that helps counts.
_FORMS = {
    "leading zeros": "ltrim({}, '0')",
    "a decimal point": "regexp_replace({}, '[.]0+$', '')",
    "upper and lower case": "lower({})",
}
_UNKNOWN = """
CREATE TABLE unknown AS
    SELECT item_id, count(*) AS reviews FROM reviews ANTI JOIN catalogue USING (item_id) GROUP BY item_id
"""


def all_counted(records: str, total: int, fates: Mapping[str, int]) -> Check:
    """The check that each record has one fate; its detail says where all of them went.

    Args:
        records: what they are, in plural.
        total: how many came in.
        fates: what became of them -> how many; those that stay come first.

    >>> all_counted("lines", 5, {"accepted": 3, "refused": 2, "exact duplicates": 0}).detail
    '5 lines = 3 accepted + 2 refused'
    """
    parts = [f"{count:,} {fate}" for fate, count in fates.items() if count] or ["0"]
    return Check("every_line_counted", total == sum(fates.values()), f"{total:,} {records} = {' + '.join(parts)}")


def unknown_items(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Reviews whose item is not in the catalogue, by what the ids differ in ("" where no id is near); makes `unknown`.

    Args:
        db: has `reviews` and `catalogue`, each with `item_id`.
    """
    db.execute(_UNKNOWN)
    cases = " ".join(
        f"WHEN {form.format('item_id')} IN (SELECT {form.format('item_id')} FROM catalogue) THEN '{name}'"
        for name, form in _FORMS.items()
    )
    form = f"CASE {cases} ELSE '' END AS form"
    query = f"SELECT {form}, sum(reviews)::BIGINT AS n FROM unknown GROUP BY form ORDER BY form"
    return dict(frame(db, query).iter_rows())


def known_items(
    db: duckdb.DuckDBPyConnection,
    unknown: Mapping[str, int],
    total: int,
    allowed: float,
    item_metrics: Mapping[str, Any],
) -> Check:
    """The check that few reviews name an unknown item; its detail names some and says what may be wrong.

    Args:
        unknown: see :func:`unknown_items`, which made the table of them.
        allowed: `filters.max_unknown_item_share`.
        item_metrics: what `raw_items` reported.
    """
    reviews = sum(unknown.values())
    detail = f"{reviews:,} of {total:,} reviews name an item that is not in the catalogue, {allowed:.0%} allowed"
    if reviews:
        ids = frame(db, "SELECT item_id FROM unknown ORDER BY reviews DESC, item_id LIMIT 3")["item_id"]
        detail += f"; such as {', '.join(repr(item_id[:40]) for item_id in ids)}"
    detail += "".join(
        f"; {n:,} differ from an item of the catalogue in {form} alone: write the ids of both tables alike, as text"
        for form, n in unknown.items()
        if form
    )
    refused = {name: n for name, n in item_metrics.items() if name.startswith("refused_") and n}
    if reviews and refused:
        reasons = ", ".join(f"{name.removeprefix('refused_')} {n:,}" for name, n in refused.items())
        detail += f"; `raw_items` refused records ({reasons}), see its `quarantine`"
    return Check("known_items", reviews <= allowed * total, detail)


def core_share(k: int, fates: Mapping[str, int], left: str) -> Check:
    """The check that the k-core keeps at least half of the reviews that reach it.

    Args:
        fates: what became of the reviews, as `all_counted` takes it.
        left: what is in the k-core, in words.

    >>> core_share(2, {"in the 2-core": 8, "of unknown items": 7, "outside the 2-core": 9}, "8 of 2 users").detail
    '9 of 17 reviews are outside the 2-core, half allowed; left are 8 of 2 users'
    """
    inside, outside = fates[f"in the {k}-core"], fates[f"outside the {k}-core"]
    detail = f"{outside:,} of {inside + outside:,} reviews are outside the {k}-core, half allowed; left are {left}"
    return Check("core_share", outside <= inside, detail)
