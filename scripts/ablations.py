"""Runs the datasets of `profiles/ablations.yaml` and compares `sft/direct` on their common test rows.

    .venv/bin/python scripts/ablations.py                             # all, two at a time with one thread each
    .venv/bin/python scripts/ablations.py --only office_base,office_rkmeans
    .venv/bin/python scripts/ablations.py --tables                    # nothing is run

Prints Markdown for docs/log.md. It may be stopped and started again (`run_datasets`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from local_teacher import CORPUS
from run_datasets import parse, run_all

from sidr_core.evaluation import compare
from sidr_core.pipeline.profile import Profile, home, load_profile
from sidr_core.pipeline.store import Store
from sidr_core.render.grid import markdown_table

#: Tables, each compared with its first dataset.
FAMILIES = {
    "Quantizers": (
        "office_base",
        "office_rkmeans",
        "office_rkmeans_256",
        "office_balanced",
        "office_rqvae",
        "office_whitened",
        "office_fused",
    ),
    "Collision policies": ("office_rkmeans", "office_suffix", "office_share"),
    "Teachers": ("office_tasks_only", "office_base", "office_llm"),
}
#: Figures of a stage that a family is about, by how their names begin.
FIGURES = {
    "Quantizers": {"sid_codebook": ("",)},
    "Collision policies": {"sid_codebook": ("",)},
    "Teachers": {CORPUS: ("teacher_", "quarantined_", "examples_item_narrative", "examples_user_narrative")},
}
K = 10


def tables(profile: Profile) -> None:
    """Print each family's datasets that are published: costs and codebooks, then the comparison."""
    store = Store(home() / "store")
    for title, datasets in FAMILIES.items():
        snapshot = profile.newest(datasets[0])
        ready = [name for name in datasets if store.current(name, snapshot, "recommendations")]
        print(f"\n# {title}\n")
        if len(ready) < 2:
            print(f"published: {', '.join(ready) or 'none'}; a comparison needs two")
            continue
        print(figures(store, ready, snapshot, FIGURES[title]))
        names = [compare.Name(name, "sft", "direct") for name in ready]
        # The counter is the same for all datasets: it sees items, not SIDs.
        names.append(compare.Name(ready[0], "item_item", "direct"))
        entries = [compare.read(store, name, snapshot, K) for name in names]
        settings = profile.dataset(ready[0]).evaluation
        compared = compare.table(entries, K, settings)
        print(compare.page(compared, snapshot, settings, any(entry.synthetic for entry in entries)))


def figures(store: Store, datasets: Sequence[str], snapshot: str, chosen: Mapping[str, tuple[str, ...]]) -> str:
    """Seconds of the stages that differ and the figures of `chosen`: one row per figure, one column per dataset.

    Args:
        chosen: stage -> how the names of its figures begin.
    """
    columns = []
    for dataset in datasets:
        column: dict[str, object] = {}
        for stage in ("sid_codebook", CORPUS, "sft_checkpoint"):
            manifest = store.require(dataset, snapshot, stage).manifest
            column[f"{stage} seconds"] = round(manifest["seconds"], 1)
            column |= {
                name: value for name, value in manifest["metrics"].items() if name.startswith(chosen.get(stage, ()))
            }
        columns.append(column)
    rows = list(dict.fromkeys(name for column in columns for name in column))
    cells = [(name, *(_short(column.get(name)) for column in columns)) for name in rows]
    return markdown_table(("figure", *datasets), cells) + "\n"


def _short(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run what is asked for, then print the tables; exit code 1 where a dataset failed."""
    everything = list(dict.fromkeys(name for datasets in FAMILIES.values() for name in datasets))
    arguments = parse(__doc__, everything)
    profile = load_profile("ablations")
    failed = run_all(profile, arguments)
    tables(profile)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
