"""Everything below `defs/`: two assets of our own, and the graph that `defs/sidr/defs.yaml` asks for."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """The assets of the shop; SIDR's stages expect to run one after another in one process."""
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(found, dg.Definitions(executor=dg.in_process_executor))
