"""`sidr compare`: the same test rows, several datasets of a profile."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sidr_core.cli.published import tell_if_stale
from sidr_core.errors import InputError
from sidr_core.evaluation import compare as report
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.status import newest_published


def compare(names: Sequence[str], snapshot: str | None, k: int, form: str) -> None:
    """Print the comparison of `<dataset>/<model>/<mode>` names with the first of them.

    Args:
        names: at least two, all different.
        snapshot: default: the newest that has recommendations of the first dataset.
        k: cut-off of HR and NDCG.
        form: `markdown`, or `csv` with full precision.
    """
    parsed = [report.Name.parse(name) for name in names]
    if len(parsed) < 2 or len(set(parsed)) < len(parsed):
        raise InputError(
            "there is nothing to compare",
            expected="at least two different models",
            found=", ".join(names) or "none",
            fix="for example: sidr compare office/sft/direct office/item_item/direct",
        )
    profile = load_profile()
    store = open_store(profile)
    first = profile.dataset(parsed[0].dataset)
    snapshot = newest_published(profile, store, parsed[0].dataset, "recommendations", snapshot)
    for name in parsed:
        profile.dataset(name.dataset)
    entries = [report.read(store, name, snapshot, k) for name in parsed]
    for dataset in dict.fromkeys(name.dataset for name in parsed):
        tell_if_stale(profile, store, dataset, snapshot, "recommendations")
    comparison = report.table(entries, k, first.evaluation)
    if form == "csv":
        typer.echo(comparison.write_csv(), nl=False)
    else:
        recipes = {name.dataset: report.recipe(profile.dataset(name.dataset)) for name in parsed}
        synthetic = any(entry.synthetic for entry in entries)
        typer.echo(report.page(comparison, snapshot, first.evaluation, synthetic, recipes), nl=False)
