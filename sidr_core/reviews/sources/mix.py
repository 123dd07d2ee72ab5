"""Several sources as one: each member is read by its own module, then its ids get the prefix `<member>:`.

Users and items of two members never meet, so the k-core of the union is the union of the members' k-cores
under the dataset's one `filters`. The split is not: it cuts the union at one pair of moments, so that no
member trains on what lies after the test rows of another, and a member's own shares differ from
`split.ratios`. Lines, refused records and cleaning add up; `filters.max_quarantine_share` holds for the sum.
Members come in the order of their names, whatever the order in the profile.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews import items as catalogue
from sidr_core.reviews.domains import prefix_of
from sidr_core.reviews.parsed import Parsed
from sidr_core.reviews.records import ENCODING, ReviewPart, ReviewParts
from sidr_core.reviews.sources import module_of

if TYPE_CHECKING:
    from sidr_core.settings import Filters, MixSource

#: Raise it when the same member's part should give other rows.
MIX_VERSION = "1"

_IDS = ("user_id", "item_id")


def review_files(source: MixSource) -> dict[str, Path]:
    """The members' files as `<member>/<name>`."""
    return {
        f"{member}/{name}": path
        for member, single in sorted(source.sources.items())
        for name, path in module_of(single.kind).review_files(single).items()
    }


def item_files(source: MixSource) -> dict[str, Path]:
    """The files of the members' catalogues as `<member>/<name>`."""
    return {
        f"{member}/{name}": path
        for member, single in sorted(source.sources.items())
        for name, path in catalogue.item_files(single).items()
    }


def reviews(inputs: Inputs, source: MixSource, filters: Filters, progress: Progress) -> ReviewParts:
    """The members' parts with prefixed ids; a part that was prefixed before is taken over."""
    parts = []
    for member, single in sorted(source.sources.items()):
        found = module_of(single.kind).reviews(inputs, single, filters, progress.named(member))
        parts += [_prefixed(inputs, member, part) for part in found.parts]
    return ReviewParts(tuple(parts))


def items(inputs: Inputs, source: MixSource, filters: Filters, progress: Progress) -> Parsed:
    """The members' records with prefixed ids. SIDs that a member brings are left behind: they are its own space."""
    found = {
        member: catalogue.parsed(inputs, single, filters, progress.named(member))
        for member, single in sorted(source.sources.items())
    }
    cleaned: Counter[str] = Counter()
    for parsed in found.values():
        cleaned.update({name: value for name, value in parsed.metrics.items() if isinstance(value, int)})
    return Parsed(
        pl.concat([_named(member, parsed.records) for member, parsed in found.items()], how="diagonal"),
        pl.concat([_named(member, parsed.refused) for member, parsed in found.items()], how="diagonal"),
        sum(parsed.lines for parsed in found.values()),
        dict(cleaned),
    )


def _named(member: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the member in ids and file names."""
    changed = [pl.format("{}/{}", pl.lit(member), "file").alias("file")]
    if "item_id" in rows.columns:
        changed.append((pl.lit(prefix_of(member)) + pl.col("item_id")).alias("item_id"))
    if "published_sid" in rows.columns:
        changed.append(pl.lit(None, dtype=pl.String).alias("published_sid"))
    return rows.with_columns(changed)


def _prefixed(inputs: Inputs, member: str, part: ReviewPart) -> ReviewPart:
    """The stored part of a member's part: other ids, the same lines, refused records and repeats."""

    def build(folder: Path) -> Report:
        for name in ("quarantine.parquet", "repeats.parquet"):
            shutil.copyfile(part.artifact.path(name), folder / name)
        file = pq.ParquetFile(part.artifact.path("records.parquet"))
        schema = file.schema_arrow
        with pq.ParquetWriter(folder / "records.parquet", schema, **ENCODING) as writer:
            for number in range(file.num_row_groups):
                writer.write_table(_with_prefix(member, file.read_row_group(number)).cast(schema))
        return Report(metrics={"lines": part.lines} | ({"damage": part.damage} if part.damage else {}))

    key = {"member": member, "part": part.artifact.digest}
    return ReviewPart(f"{member}/{part.name}", inputs.part("mixed_reviews", MIX_VERSION, key, build))


def _with_prefix(member: str, rows: pa.Table) -> pa.Table:
    """Ids with the prefix, and digests that no equal line of another member has."""
    prefix = pl.lit(prefix_of(member))
    salt = int.from_bytes(hashlib.sha256(member.encode()).digest()[:8])
    changed = [(prefix + pl.col(name)).alias(name) for name in _IDS]
    changed.append((pl.col("digest") ^ pl.lit(salt, dtype=pl.UInt64)).alias("digest"))
    if "history_item_ids" in rows.column_names:
        changed.append(pl.col("history_item_ids").list.eval(prefix + pl.element()))
    return pl.DataFrame(rows).with_columns(changed).to_arrow()
