"""One reader per `source.kind`, all with the same two functions.

`reviews(inputs, source, filters, progress)` gives the stored parts of the reviews; `items(inputs, source, filters,
progress)` the item records. Where the files lie says `sidr_core/reviews/source_files.py`.
"""

from __future__ import annotations

import importlib
from typing import Any


def reader_of(kind: str) -> Any:
    """What reads sources of a kind (one of `sidr_core.settings.Source`): a module, or a release of Amazon's."""
    if kind.startswith("amazon_"):
        from sidr_core.reviews.sources.amazon import RELEASES

        return RELEASES[kind]
    return importlib.import_module(f"sidr_core.reviews.sources.{kind}")
