"""Dagster over `sidr_core`: adapters, no machine learning. `defs` is the code location's one Definitions."""

from sidr_assets.component import SidrDatasets
from sidr_assets.definitions import defs

__all__ = ["SidrDatasets", "defs"]
