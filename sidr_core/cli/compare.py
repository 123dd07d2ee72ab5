"""`sidr compare`: the same test rows, several datasets of a profile."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sidr_core.errors import InputError
from sidr_core.evaluation import compare as report
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile, repeats
from sidr_core.pipeline.status import newest_published
from sidr_core.serving.published import tell_if_stale


def compare(names: Sequence[str], snapshot: str | None, k: int, form: str) -> None:
    """Print the comparison of `<dataset>/<model>/<mode>` names with the first of them.

    Args:
        names: all different; at least two, or one of a dataset with several `seeds`.
        snapshot: default: the newest that has recommendations of the first dataset.
        k: cut-off of HR and NDCG.
        form: `markdown`, or `csv` with full precision.
    """
    profile = load_profile()
    store = open_store(profile)
    parsed = []
    for name in map(report.Name.parse, names):  # with each its repeats with other seeds (`seeds` of the profile)
        datasets = (name.dataset, *repeats(name.dataset, profile.dataset(name.dataset).seeds))
        parsed += [report.Name(one, name.model, name.mode) for one in datasets if one in profile.datasets]
    if len(parsed) < 2 or len(set(parsed)) < len(parsed):
        raise InputError(
            "there is nothing to compare",
            expected="at least two different models",
            found=", ".join(names) or "none",
            fix="for example: sidr compare office/sft/direct office/item_item/direct",
        )
    first = profile.dataset(parsed[0].dataset)
    snapshot = newest_published(profile, store, parsed[0].dataset, "recommendations", snapshot)
    for name in parsed:
        profile.dataset(name.dataset)
    entries = [report.read(store, name, snapshot, k) for name in parsed]
    # A repeat of a model that has no seed has the same lists again.
    named = {entry.checkpoint for entry in entries if str(entry.name) in names}
    entries = [entry for entry in entries if str(entry.name) in names or entry.checkpoint not in named]
    for dataset in dict.fromkeys(name.dataset for name in parsed):
        tell_if_stale(profile, store, dataset, snapshot, "recommendations")
    comparison = report.table(entries, k, first.evaluation)
    if form == "csv":
        typer.echo(comparison.write_csv(), nl=False)
    else:
        recipes = {entry.name.dataset: report.recipe(profile.dataset(entry.name.dataset)) for entry in entries}
        seeds = report.over_seeds(entries, recipes, k, first.evaluation)
        synthetic = any(entry.synthetic for entry in entries)
        typer.echo(report.page(comparison, snapshot, first.evaluation, synthetic, seeds), nl=False)
