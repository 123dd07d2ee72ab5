"""One module per `source.kind`, all with the same four functions.

`review_files(source)` and `item_files(source)` give name -> local path; `reviews(inputs, source, filters,
progress)` the stored parts of the reviews; `items(inputs, source, filters, progress)` the item records.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def module_of(kind: str) -> ModuleType:
    """The module that reads sources of a kind (one of `sidr_core.settings.Source`)."""
    return importlib.import_module(f"sidr_core.reviews.sources.{kind}")
