"""Is it the thought? What a merged list gains, beside two lists put together without what the thought names.

    .venv/bin/python scripts/merged_controls.py --home HOME [--dataset games] [--snapshot 2018-10]

Reads published lists alone and chooses nothing but the better of the two direct lists, the harder one to pass.
`two direct` is that of SFT and that of activation, `direct and thinking` both of activation; an item's worth is the sum
of its shares of the two lists' probability. Differences in HR@10 and NDCG@10, 95 % intervals of 10,000 draws of users.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from sidr_core.metrics.intervals import draw_means
from sidr_core.pipeline.store import Store
from sidr_core.tables.columns import ITEM_ID, MODE, MODEL, RANK, ROW_ID, SCORE, TARGET, USER_ID

TOP = 10
SHARE = "share"


def together(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """Two lists per row as one, by the sum of each item's share of its list's probability; ties by item id."""
    probability = pl.col(SCORE).exp()
    shares = [one.with_columns((probability / probability.sum().over(ROW_ID)).alias(SHARE)) for one in (first, second)]
    joined = pl.concat(shares).group_by(ROW_ID, ITEM_ID, TARGET).agg(pl.col(SHARE).sum())
    joined = joined.sort(ROW_ID, SHARE, ITEM_ID, descending=[False, True, False])
    return joined.with_columns(pl.int_range(1, pl.len() + 1).over(ROW_ID).alias(RANK))


def gains(lists: pl.DataFrame, rows: pl.DataFrame) -> np.ndarray:
    """HR@10 and NDCG@10 of each of `rows`, of shape (N, 2)."""
    hits = lists.filter((pl.col(ITEM_ID) == pl.col(TARGET)) & (pl.col(RANK) <= TOP))
    hits = hits.select(ROW_ID, hr=pl.lit(1.0), ndcg=1 / (pl.col(RANK) + 1).log(2))
    return rows.join(hits, on=ROW_ID, how="left", maintain_order="left").select("hr", "ndcg").fill_null(0.0).to_numpy()


def main() -> None:
    """Print the differences as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--dataset", default="games")
    parser.add_argument("--snapshot", default="2018-10")
    args = parser.parse_args()
    published_lists = Store(args.home / "store").require(args.dataset, args.snapshot, "recommendations")
    lists = pl.read_parquet(published_lists.path("recommendations.parquet"))
    rows = lists.select(ROW_ID, USER_ID).unique(maintain_order=True)

    def published(model: str, mode: str) -> pl.DataFrame:
        return lists.filter((pl.col(MODEL) == model) & (pl.col(MODE) == mode))

    sft, direct = published("sft", "direct"), published("activation", "direct")
    thinking, merged = published("activation", "thinking"), published("activation", "merged")
    best = max(gains(sft, rows), gains(direct, rows), key=lambda values: values[:, 0].mean())
    made = {
        "merged": gains(merged, rows),
        "two direct": gains(together(sft, direct), rows),
        "direct and thinking": gains(together(direct, thinking), rows),
        "thinking": gains(thinking, rows),
    }
    print("| less the best direct list | HR@10 | NDCG@10 |\n| --- | ---: | ---: |")
    for name, values in made.items():
        difference = values - best
        draws = draw_means(difference, rows[USER_ID].to_numpy(), draws=10_000, seed=42)
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        cells = [f"{d:+.4f} [{a:+.4f}, {b:+.4f}]" for d, a, b in zip(difference.mean(0), low, high, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
