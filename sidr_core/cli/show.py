"""`sidr show`: the evaluation of a snapshot, in short or whole."""

from __future__ import annotations

from sidr_core.evaluation.pages import render
from sidr_core.evaluation.summary import PLACES, summary
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.status import newest_published
from sidr_core.render.terminal import console
from sidr_core.serving.published import tell_if_stale
from sidr_core.tables import files as tables


def show(dataset: str | None, snapshot: str | None, whole: bool) -> None:
    """Print the evaluation of a snapshot; default: the newest one that has it."""
    profile = load_profile()
    store = open_store(profile)
    dataset = dataset or profile.default_dataset
    snapshot = newest_published(profile, store, dataset, "evaluation", snapshot)
    tell_if_stale(profile, store, dataset, snapshot, "evaluation")
    artifact = store.require(dataset, snapshot, "evaluation")
    evaluation, paired = (tables.read(artifact.path(f"{name}.parquet")) for name in ("evaluation", "paired"))
    if whole:
        console().print(render(evaluation, paired, artifact.synthetic))
        return
    slices = tables.read(artifact.path("slices.parquet"))
    made = store.require(dataset, snapshot, "recommendations")
    thoughts, rows = (tables.read(made.path(f"{name}.parquet")) for name in ("thoughts", "rows"))
    lists = tables.read(made.path("recommendations.parquet"), list(PLACES))
    console().print(summary(evaluation, paired, slices, thoughts, lists, rows, artifact.synthetic))
