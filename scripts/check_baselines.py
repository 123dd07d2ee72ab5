"""Whether SASRec and GRU4Rec are trained well: the stages' own code on a complete public log, leave-one-out.

    .venv/bin/python scripts/check_baselines.py                               # all users: hours on one thread
    .venv/bin/python scripts/check_baselines.py --users 5000 --epochs 12 --dropout 0.2 --batch-size 32   # minutes

The log is `video_games_2018` of the folder SIDR_REAL_DATA (default ../shared/data): Amazon Video Games 2018,
5-core, 50,546 users, 16,859 items, in time order without times. The last item of each user is the test
target, the last but one the valid target, the rest is learnt from; every list ranks the whole catalogue. All
models see the same rows and are scored by `sidr_core.evaluation`; intervals come from users drawn with
replacement. With fewer users the catalogue shrinks to what they bought, so figures of different --users do
not compare. METHOD.md quotes no figures for this protocol ([J20] has it with other items and users, and a
model that does not compare): what is checked is the order of the models and the size of the gaps.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from sidr_core.pipeline.stage import Progress
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DIRECT, ITEM_LEVEL, MODE, MODEL, USER_ID
from sidr_core.tables.contracts import Items, Samples

_LONGEST = 50
_K = 10
_DRAWS = 2000
_BUDGET = ("epochs", "patience", "batch_size")


def main() -> None:
    """Read, train, rank, print."""
    arguments = _arguments()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    root = Path(os.environ.get("SIDR_REAL_DATA", "../shared/data")) / "video_games_2018"
    sequences = _sequences(root / "Games.sequences.tsv.gz", arguments.users)
    train, valid, test = _leave_one_out(sequences)
    items = sorted({item for sequence in sequences.values() for item in sequence})
    print(f"{len(sequences):,} users, {len(items):,} items, {sum(map(len, sequences.values())):,} interactions\n")
    print("| model | seconds | chosen | HR@10 | NDCG@10 |\n| --- | ---: | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for line in _rows(arguments, Path(folder), items, train, valid, test):
            print(line, flush=True)


def _rows(
    arguments: argparse.Namespace,
    folder: Path,
    items: list[str],
    train: pl.DataFrame,
    valid: pl.DataFrame,
    test: pl.DataFrame,
) -> Any:
    """A Markdown row per model, as soon as it is measured."""
    from sidr_core.baselines import item_item, popularity, sequential, training
    from sidr_core.baselines.sequences import Catalogue
    from sidr_core.settings import Gru4Rec, ItemItem, SasRec, Trial
    from sidr_core.tables.samples import subset

    config: Any = SimpleNamespace(item_item=ItemItem())
    quiet, inputs = Progress(lambda text: None), _inputs(folder, items, train)
    popularity.build(inputs, config, folder, quiet)
    counts = tables.read(folder / "baseline_popularity.parquet")
    yield _measured("popularity", 0.0, "", popularity.Popularity(counts).rank(test, _K), test, items)
    start = time.perf_counter()
    item_item.build(inputs, config, folder, quiet)
    counter = item_item.ItemItem(tables.read(folder / "baseline_item_item.parquet"), counts, config.item_item)
    yield _measured("item_item", time.perf_counter() - start, "", counter.rank(test, _K), test, items)

    trials = tuple(
        Trial(hidden_size=hidden, dropout=dropout, learning_rate=arguments.learning_rate)
        for hidden in arguments.hidden
        for dropout in arguments.dropout
    )
    chosen = subset(valid, arguments.select_rows, 42)
    rows = training.Rows(train, chosen, counts, Catalogue.of(counts))
    budget: dict[str, Any] = {
        "trials": trials,
        "start": "cooccurrence",
        **{name: getattr(arguments, name) for name in _BUDGET},
    }
    for kind, settings, extra in (
        ("gru4rec", Gru4Rec(**budget), {}),
        ("sasrec", SasRec(**budget), {"heads": 2}),
    ):
        start = time.perf_counter()
        fitted = sequential.train(kind, settings, extra, rows, None, Progress().named(kind))
        seconds = time.perf_counter() - start
        best = fitted.best
        said = f"hidden {best['hidden_size']}, dropout {best['dropout']}, epoch {best['epoch']}"
        yield _measured(kind, seconds, said, fitted.ranker.rank(test, _K), test, items)


def _measured(name: str, seconds: float, said: str, ranked: pl.DataFrame, test: pl.DataFrame, items: list[str]) -> str:
    from sidr_core.decoding.lists import counted
    from sidr_core.metrics.intervals import bootstrap
    from sidr_core.metrics.ranking import HR, NDCG, column, per_row

    own = pl.DataFrame({"item_id": items, "sid": items})
    places = counted(ranked, own, _K).rankings.with_columns(pl.lit(name).alias(MODEL), pl.lit(DIRECT).alias(MODE))
    scores = per_row(places, test, own, (_K,))
    values = scores.select(column(ITEM_LEVEL, HR, _K), column(ITEM_LEVEL, NDCG, _K)).to_numpy()
    found = bootstrap(values, scores[USER_ID].to_numpy(), draws=_DRAWS, confidence=0.95, seed=42)
    cells = [
        f"{value:.4f} [{low:.4f}, {high:.4f}]"
        for value, low, high in zip(found.value, found.low, found.high, strict=True)
    ]
    return f"| {name} | {seconds:,.0f} | {said} | {' | '.join(cells)} |"


def _sequences(path: Path, users: int | None) -> dict[str, list[str]]:
    """Items of each user in time order; of all users, or of a seeded draw of `users` of them."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as handle:
        found = {row["user_id"]: row["item_ids"].split() for row in csv.DictReader(handle, delimiter="\t")}
    found = {user: items for user, items in found.items() if len(items) >= 4}
    if users is None or users >= len(found):
        return found
    names = sorted(found)
    drawn = np.random.default_rng(42).permutation(len(names))[:users]
    return {names[n]: found[names[n]] for n in sorted(drawn.tolist())}


def _leave_one_out(sequences: dict[str, list[str]]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Train rows (one per position), and one valid and one test row per user; histories of at most 50 items."""
    train = _samples((user, end, items) for user, items in sequences.items() for end in range(1, len(items) - 2))
    valid = _samples((user, len(items) - 2, items) for user, items in sequences.items())
    test = _samples((user, len(items) - 1, items) for user, items in sequences.items())
    return train, valid, test


def _samples(rows: Any) -> pl.DataFrame:
    made = [
        (f"{user}:{end}", user, end, items[max(0, end - _LONGEST) : end], items[end], None) for user, end, items in rows
    ]
    schema = {name: column.dtype.type for name, column in Samples.to_schema().columns.items()}
    return pl.DataFrame(made, schema=schema, orient="row")


def _inputs(folder: Path, items: list[str], train: pl.DataFrame) -> Any:
    """What the counters read, as their stages would find it."""
    catalogue = pl.DataFrame({"item_id": items, "title": items}).with_columns(
        *(pl.lit("").alias(name) for name in ("description", "brand", "category")),
        pl.lit(None, pl.String).alias("published_sid"),
        pl.lit(False).alias("synthetic"),
    )
    tables.write(catalogue, folder / "items.parquet", Items)
    tables.write(train, folder / "train.parquet", Samples)
    return {"interactions": SimpleNamespace(path=lambda name: folder / name)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, help="a seeded draw of so many users (default: all)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128, help="users per step; 32 for a few thousand users")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--select-rows", type=int, default=5000, help="valid rows that choose")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64])
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
