"""Runs the datasets of `profiles/transfer.yaml` and prints the matrix train domain × test domain as Markdown.

    .venv/bin/python scripts/transfer.py                       # all, two at a time with one thread each
    .venv/bin/python scripts/transfer.py --only games,office   # some
    .venv/bin/python scripts/transfer.py --tables              # nothing is run

SFT on one domain is compared with the model trained on the domain it is tested on, and with the item-item counter;
GRPO on one domain with the checkpoint that it started from. It may be stopped and started again.
"""

from __future__ import annotations

import sys

import transfer_matrix as transfer
from run_datasets import parse, run_all

from sidr_core.evaluation.compare import Name, Scored, read
from sidr_core.pipeline.profile import Profile, home, load_profile
from sidr_core.pipeline.store import Store
from sidr_core.settings import Evaluation

DOMAINS = ("games", "office", "industrial")
ALL = "all"
K = 10


def tables(profile: Profile) -> None:
    """Print both matrices, of the datasets that are published."""
    store, settings = Store(home() / "store"), profile.dataset(ALL).evaluation
    snapshot = profile.newest(ALL)
    ready = {name for name in profile if store.current(name, snapshot, "recommendations")}

    def scored(dataset: str, model: str, mode: str) -> list[Scored]:
        return [read(store, Name(dataset, model, mode), snapshot, K)] if dataset in ready else []

    sft = {name: scored(name, "sft", "direct") for name in (*DOMAINS, ALL)}
    # Members share no user, so what the counter of all rows says about a domain comes from that domain.
    counter = scored(ALL, "item_item", "direct")
    _print(
        "Stage 1 on one domain",
        [entry for group in (*sft.values(), counter) for entry in group],
        {name: [*counter, *sft[name]] for name in DOMAINS},
        settings,
    )
    before = scored(ALL, "activation", "thinking")
    rl = [
        entry for name in (*(f"rl_{domain}" for domain in DOMAINS), ALL) for entry in scored(name, "grpo", "thinking")
    ]
    _print(
        "GRPO on one domain",
        [*before, *rl, *counter],
        {name: [*counter, *before] for name in DOMAINS},
        settings,
    )


def _print(title: str, entries: list[Scored], references: dict[str, list[Scored]], settings: Evaluation) -> None:
    if len(entries) < 2:
        print(f"# {title}\n\npublished: {', '.join(str(entry.name) for entry in entries) or 'none'}\n")
        return
    matrix = transfer.matrix(entries, references, K, settings)
    print(transfer.page(title, matrix, settings, any(entry.synthetic for entry in entries)))


def main() -> None:
    """Run what is asked for, then print the matrices; exit code 1 where a dataset failed."""
    profile = load_profile("transfer")
    arguments = parse(__doc__, list(profile))
    failed = run_all(profile, arguments)
    tables(profile)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
