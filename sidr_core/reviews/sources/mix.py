"""Several sources as one, each a domain: it is read by its own reader, then its ids get the prefix `<domain>:`.

Users and items of two domains never meet, so the k-core of the union is the union of the domains' k-cores
under the dataset's one `filters`. The split is not: it cuts the union at one pair of moments, so that no
domain trains on what lies after the test rows of another, and a domain's shares differ from
`split.ratios`. Lines, refused records and cleaning add up; `filters.max_quarantine_share` holds for the sum.
Domains come in the order of their names, whatever the order in the profile.
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
from sidr_core.reviews.records import ENCODING, ReviewPart, ReviewParts
from sidr_core.reviews.sources import reader_of
from sidr_core.reviews.sources.item_records import ItemRecords

if TYPE_CHECKING:
    from sidr_core.settings import Filters, MixSource

#: Raise it when the same domain's part should give other rows.
MIX_VERSION = "1"

_IDS = ("user_id", "item_id")


def review_files(source: MixSource) -> dict[str, Path]:
    """The domains' files as `<domain>/<name>`."""
    return _labelled({domain: reader_of(one.kind).review_files(one) for domain, one in sorted(source.sources.items())})


def item_files(source: MixSource) -> dict[str, Path]:
    """The files of the domains' catalogues as `<domain>/<name>`."""
    return _labelled({domain: catalogue.item_files(one) for domain, one in sorted(source.sources.items())})


def _labelled(files: dict[str, dict[str, Path]]) -> dict[str, Path]:
    return {f"{domain}/{name}": path for domain, of in files.items() for name, path in of.items()}


def reviews(inputs: Inputs, source: MixSource, filters: Filters, progress: Progress) -> ReviewParts:
    """The domains' parts with prefixed ids; a part that was prefixed before is taken over."""
    parts = []
    for domain, single in sorted(source.sources.items()):
        single_parts = reader_of(single.kind).reviews(inputs, single, filters, progress.named(domain))
        parts += [_prefixed(inputs, domain, part) for part in single_parts.parts]
    return ReviewParts(tuple(parts))


def items(inputs: Inputs, source: MixSource, filters: Filters, progress: Progress) -> ItemRecords:
    """The domains' records with prefixed ids. SIDs that a domain brings are left behind: they are its own space."""
    catalogues = {
        domain: catalogue.parsed(inputs, single, filters, progress.named(domain))
        for domain, single in sorted(source.sources.items())
    }
    cleaned: Counter[str] = Counter()
    for parsed in catalogues.values():
        cleaned.update({name: value for name, value in parsed.metrics.items() if isinstance(value, int)})
    return ItemRecords(
        pl.concat([_named(domain, parsed.records) for domain, parsed in catalogues.items()], how="diagonal"),
        pl.concat([_named(domain, parsed.refused) for domain, parsed in catalogues.items()], how="diagonal"),
        sum(parsed.lines for parsed in catalogues.values()),
        dict(cleaned),
    )


def _named(domain: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the domain in ids and file names."""
    changed = [pl.format("{}/{}", pl.lit(domain), "file").alias("file")]
    if "item_id" in rows.columns:
        changed.append((pl.lit(prefix_of(domain)) + pl.col("item_id")).alias("item_id"))
    if "published_sid" in rows.columns:
        changed.append(pl.lit(None, dtype=pl.String).alias("published_sid"))
    return rows.with_columns(changed)


def _prefixed(inputs: Inputs, domain: str, part: ReviewPart) -> ReviewPart:
    """The stored part of a domain's part: other ids, the same lines, refused records and repeats."""

    def build(folder: Path) -> Report:
        for name in ("quarantine.parquet", "repeats.parquet"):
            shutil.copyfile(part.artifact.path(name), folder / name)
        file = pq.ParquetFile(part.artifact.path("records.parquet"))
        schema = file.schema_arrow
        with pq.ParquetWriter(folder / "records.parquet", schema, **ENCODING) as writer:
            for number in range(file.num_row_groups):
                writer.write_table(_with_prefix(domain, file.read_row_group(number)).cast(schema))
        return Report(metrics=part.artifact.manifest["metrics"])

    key = {"member": domain, "part": part.artifact.digest}
    return ReviewPart(f"{domain}/{part.name}", inputs.part("mixed_reviews", MIX_VERSION, key, build))


def _with_prefix(domain: str, rows: pa.Table) -> pa.Table:
    """Ids with the prefix, and digests that no equal line of another domain has."""
    prefix = pl.lit(prefix_of(domain))
    salt = int.from_bytes(hashlib.sha256(domain.encode()).digest()[:8])
    changed = [(prefix + pl.col(name)).alias(name) for name in _IDS]
    changed.append((pl.col("digest") ^ pl.lit(salt, dtype=pl.UInt64)).alias("digest"))
    if "history_item_ids" in rows.column_names:
        changed.append(pl.col("history_item_ids").list.eval(prefix + pl.element()))
    return pl.DataFrame(rows).with_columns(changed).to_arrow()
