"""`sidr show`: the evaluation table of a snapshot."""

from __future__ import annotations

from sidr_core.evaluation.pages import render
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.status import newest_published
from sidr_core.render.terminal import console
from sidr_core.tables import files as tables


def show(dataset: str | None, snapshot: str | None) -> None:
    """Print the evaluation of a snapshot; default: the newest one that has it."""
    profile = load_profile()
    store = open_store(profile)
    dataset = dataset or profile.default_dataset
    snapshot = newest_published(profile, store, dataset, "evaluation", snapshot)
    artifact = store.require(dataset, snapshot, "evaluation")
    evaluation, paired = (tables.read(artifact.path(f"{name}.parquet")) for name in ("evaluation", "paired"))
    console().print(render(evaluation, paired, artifact.synthetic))
