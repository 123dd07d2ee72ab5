"""Writes docs/results.md from published leaderboards, with the command line and the digests behind every table.

    .venv/bin/python scripts/results_doc.py --home .sidr --dataset office_published:2018-10 --dataset office

A `--dataset` is looked up in the store of the `--home` before it; without a snapshot it is the newest one that has a
leaderboard. Nothing is computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from sidr_core.errors import NotMaterialized, SidrError
from sidr_core.evaluation.leaderboard import grids
from sidr_core.evaluation.pages import caption, differences, joined, titled
from sidr_core.pipeline.profile import home
from sidr_core.pipeline.store import Store
from sidr_core.tables import files as tables

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Results

Made by `scripts/results_doc.py` from the asset `leaderboard` of each dataset; do not edit. How the numbers are made
and what may be concluded from them: [evaluation](evaluation.md).

```
{command}
```
"""


def text(command: str, chosen: Sequence[tuple[Path, str]]) -> str:
    """The whole page; `chosen` are (home, `<dataset>[:<snapshot>]`). Raises NotMaterialized."""
    return "\n".join([HEAD.format(command=command), *(_section(folder, name) for folder, name in chosen)])


def _section(folder: Path, name: str) -> str:
    dataset, _, snapshot = name.partition(":")
    store = Store(folder / "store")
    snapshot = snapshot or max(
        (s for d, s, stage in store.refs() if (d, stage) == (dataset, "leaderboard")), default=""
    )
    board = store.require(dataset, snapshot or "(none)", "leaderboard")
    # The evaluation that the leaderboard was made of, also where a newer one is current.
    fingerprint = board.manifest["lineage"]["evaluation"]
    evaluation = store.open("evaluation", fingerprint)
    if evaluation is None or not evaluation.hold():
        raise NotMaterialized(
            f"the evaluation behind {dataset}/leaderboard, snapshot {snapshot}, is no longer in the store",
            expected=f"fingerprint {fingerprint[:12]}",
            found="none: it was collected",
            fix="materialize leaderboard again",
        )
    table = tables.read(board.path("leaderboard.parquet"))
    paired = tables.read(evaluation.path("paired.parquet"))
    sections = [*grids(table), *([differences(paired)] if paired.height else [])]
    sources = [
        f"`{of.stage}`: content {of.digest[:12]}, fingerprint {of.fingerprint[:12]}" for of in (board, evaluation)
    ]
    return joined(
        titled(f"## {dataset}, snapshot {snapshot}", board.synthetic),
        caption(table.filter(pl.col("origin") == "measured"), board.synthetic) + ".",
        *(grid.markdown().replace("## ", "### ", 1) for grid in sections),
        f"Read from {'; '.join(sources)}.",
    )


class _Dataset(argparse.Action):
    """Keeps each `--dataset` with the `--home` that stands before it."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.chosen = [*(namespace.chosen or []), (Path(namespace.home or home()), values)]


def main(argv: Sequence[str]) -> int:
    """Write the page; 1 where a leaderboard is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", help="working folder; default SIDR_HOME, else .sidr")
    parser.add_argument("--dataset", action=_Dataset, dest="chosen", required=True, metavar="NAME[:SNAPSHOT]")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args(argv)
    # Folders by their name: where they lie differs from machine to machine.
    options = " ".join(f"--home {folder.name} --dataset {name}" for folder, name in arguments.chosen)
    try:
        page = text(f".venv/bin/python scripts/results_doc.py {options}", arguments.chosen)
    except (NotMaterialized, SidrError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.out.write_text(page)
    print(f"{arguments.out.name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
