"""The rewards of fixed policies that do not think: the table of docs/rewards.md.

    .venv/bin/python scripts/reward_table.py --home /tmp/rewards                    # the sample
    SIDR_REAL_DATA=… .venv/bin/python scripts/reward_table.py --home /tmp/rewards \
        --profile real --dataset office_published

Train rows only. A policy names at most one item per row. It *honestly* deserves the reward of that item, answered in
the right form, which is computed here without the reward's parser. The script fails if a policy earns more than that
on any row.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Store
from sidr_core.render.grid import markdown_table
from sidr_core.sids.tokens import format_sid, parse_sid
from sidr_core.tables import files as tables
from sidr_core.tables.columns import CODES, HISTORY, ITEM_ID, PUBLISHED_SID, TARGET
from sidr_core.training.rewards import CLOSE, REWARDS, VALID_BONUS, Completion

Codes = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One train row: SIDs of the history, oldest first, and of the target; and what policies may know besides."""

    history: Sequence[Codes]
    target: Codes
    popular: Codes
    drawn: Codes


def answered(*answer: Codes) -> str:
    """A closed thought and an answer of these SIDs."""
    return f"a thought\n{CLOSE}\n\n" + "".join(map(format_sid, answer))


#: Name -> what is written for a row, and the one item that it names, if any.
POLICIES: dict[str, Callable[[Row], tuple[str, Codes | None]]] = {
    "copy the history": lambda row: (answered(*row.history, row.history[-1]), row.history[-1]),
    "last item": lambda row: (answered(row.history[-1]), row.history[-1]),
    "most popular": lambda row: (answered(row.popular), row.popular),
    "repeated SID": lambda row: (answered(*[row.history[-1]] * 3), row.history[-1]),
    "SID only inside the thought": lambda row: (format_sid(row.history[-1]) + f"\n{CLOSE}\n\n", row.history[-1]),
    "unclosed thought": lambda row: (format_sid(row.history[-1]), row.history[-1]),
    "empty": lambda row: ("", None),
    "random legal": lambda row: (answered(row.drawn), row.drawn),
}


def honest(reward: str, named: Codes | None, target: Codes) -> float:
    """The rule applied to the item that is named; for `rank` and `named`, to a list that holds this item alone."""
    if named is None:
        return 0.0
    if reward != "step_rule":
        return float(named == target)
    matched = next((n for n, (a, b) in enumerate(zip(named, target, strict=True)) if a != b), len(target))
    return (0.0, *(0.5 ** (len(target) - n) for n in range(1, len(target) + 1)))[matched] + VALID_BONUS


def earned(reward: str, text: str, named: Codes | None, target: Codes, catalogue: set[Codes]) -> float:
    """What the reward gives; the target is first in the list of one item, or nowhere."""
    place = 0 if named == target else None
    return REWARDS[reward](Completion(text, target, place, place), catalogue).reward


def rows_of(train: pl.DataFrame, codes: dict[str, Codes], seed: int) -> list[Row]:
    """The rows with what policies may know: the most frequent target, and an item drawn for each row."""
    (popular, _), *_ = Counter(train[TARGET].to_list()).most_common(1)
    draw, items = random.Random(seed), sorted(codes)
    return [
        Row([codes[item] for item in history], codes[target], codes[popular], codes[draw.choice(items)])
        for history, target in train.select(HISTORY, TARGET).iter_rows()
    ]


def load(profile_name: str, dataset: str | None, home: Path) -> tuple[str, pl.DataFrame, dict[str, Codes]]:
    """Build or reuse what is needed: name, train rows, and codes of each item (published ones where there are)."""
    profile, store = load_profile(profile_name), Store(home / "store")
    dataset = dataset or profile.default_dataset
    snapshot = profile.newest(dataset)

    def built(*names: str) -> Path:
        for name in names:
            outcome = run_stage(profile, dataset, snapshot, stage_named(name), store, Progress().named(name))
        return outcome.artifact.verified_folder()

    interactions = built("raw_reviews", "raw_items", "interactions")
    train = tables.read(interactions / "train.parquet", [HISTORY, TARGET])
    items = tables.read(interactions / "items.parquet", [ITEM_ID, PUBLISHED_SID])
    name = f"{dataset} {snapshot}"
    if not items[PUBLISHED_SID].null_count():
        return name, train, {item: tuple(parse_sid(sid)) for item, sid in items.iter_rows()}
    codebook = tables.read(built("item_embeddings", "sid_codebook") / "sid_codebook.parquet", [ITEM_ID, CODES])
    return name, train, {item: tuple(codes) for item, codes in codebook.iter_rows()}


def main() -> int:
    """Print the table; 1 if a policy earns more than it honestly deserves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--profile", default="quickstart")
    parser.add_argument("--dataset", help="default: that of the profile")
    parser.add_argument("--home", type=Path, required=True, help="working folder; what is there is reused")
    parser.add_argument("--rows", type=int, help="only the first so many train rows")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    name, train, codes = load(args.profile, args.dataset, args.home)
    rows = rows_of(train.head(args.rows) if args.rows else train, codes, args.seed)
    catalogue = set(codes.values())
    print(
        f"{name}: {len(rows):,} train rows, {len(catalogue):,} SIDs. Mean reward, and in brackets the honest reward.\n"
    )
    lines, cheats = [], []
    for policy, write in POLICIES.items():
        written = [write(row) for row in rows]
        hits = np.mean([named == row.target for (_, named), row in zip(written, rows, strict=True)])
        cells = []
        for reward in REWARDS:
            got = np.array(
                [
                    earned(reward, text, named, row.target, catalogue)
                    for (text, named), row in zip(written, rows, strict=True)
                ]
            )
            due = np.array([honest(reward, named, row.target) for (_, named), row in zip(written, rows, strict=True)])
            cells.append(f"{got.mean():.4f} ({due.mean():.4f})")
            if (got > due + 1e-9).any():
                cheats.append(f"{policy} by {reward} on {(got > due + 1e-9).sum()} rows")
        lines.append((policy, f"{hits:.4f}", *cells))
    best = [
        REWARDS[reward](Completion(answered(rows[0].target), rows[0].target, 0), catalogue).reward for reward in REWARDS
    ]
    lines.append(("the target itself", "1.0000", *(f"{value:.4f} ({value:.4f})" for value in best)))
    print(markdown_table(("policy", "names the target", *REWARDS), lines))
    if cheats:
        print("earns more than it deserves: " + "; ".join(cheats), file=sys.stderr)
    return bool(cheats)


if __name__ == "__main__":
    sys.exit(main())
