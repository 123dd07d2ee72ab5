"""Where the files of a source lie, for every `source.kind`.

Every run asks for them, also one in which nothing changed, so this module imports no reader: pandera, polars and
DuckDB would cost such a run two seconds of processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sidr_core.reviews.files import one, resolve
from sidr_core.settings import Source
from sidr_core.settings.sources import (
    MiniOneRecSource,
    MixSource,
    RatingsCsvSource,
    SampleSource,
    SequencesSource,
    TablesSource,
)

#: Ends of the names of tables, of which a folder may hold many.
TABLE_SUFFIXES = (".parquet", ".pq", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
#: The parts of MiniOneRec's split, each a file.
MINIONEREC_SPLITS = ("train", "valid", "test")


def review_files(source: Source) -> dict[str, Path]:
    """Name -> local path of each file with reviews (none for the sample, which is generated).

    A mix has the files of its domains as `<domain>/<name>`, MiniOneRec's split has `<role>/<file name>`.

    Raises:
        InputError: a file is missing or empty, a glob matches nothing, a download fails.
    """
    match source:
        case SampleSource():
            return {}
        case MixSource():
            return _of_domains({name: review_files(single) for name, single in source.sources.items()})
        case MiniOneRecSource():
            return _by_role({split: getattr(source, split) for split in MINIONEREC_SPLITS} | {"info": source.info})
        case RatingsCsvSource():
            return resolve(source.ratings, "ratings")
        case SequencesSource():
            return resolve(source.sequences, "sequences")
        case TablesSource():
            return resolve(source.reviews, "reviews", TABLE_SUFFIXES)
        case _:
            return resolve(source.reviews, "reviews")


def item_files(source: Source) -> dict[str, Path]:
    """Name -> local path of each file that the catalogue is made of: metadata, or else the reviews.

    Raises:
        InputError: as :func:`review_files`.
    """
    if without_metadata(source):
        return review_files(source)
    match source:
        case SampleSource():
            return {}
        case MixSource():
            return _of_domains({name: item_files(single) for name, single in source.sources.items()})
        case MiniOneRecSource():
            return _by_role({"info": source.info} | ({"items": source.items} if source.items else {}))
        case TablesSource():
            return resolve(source.items, "items", TABLE_SUFFIXES)
        case _:
            return resolve(source.items, "items")


def without_metadata(source: Source) -> bool:
    """Whether the source names no metadata, so that its items are those that its reviews name."""
    return getattr(source, "items", None) == ()


def _of_domains(files: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    return {f"{domain}/{name}": path for domain in sorted(files) for name, path in files[domain].items()}


def _by_role(roles: Mapping[str, str]) -> dict[str, Path]:
    paths = {role: one(pattern, role) for role, pattern in roles.items()}
    return {f"{role}/{path.name}": path for role, path in paths.items()}
