"""Popularity and item-item: counts, weights and lists by hand, and the published Office rows."""

import ast
import csv
import gzip
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from builders.stage import Folder, stage_config
from sidr_core.baselines import item_item, popularity
from sidr_core.baselines.item_item import ItemItem as Counter
from sidr_core.baselines.popularity import Popularity
from sidr_core.baselines.ranking import top_k
from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import ItemItem
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Items, Samples

QUIET = Progress(lambda line: None)


def samples(*rows: tuple[str, str]) -> pl.DataFrame:
    """One sample per (history, target), items being single letters."""
    return pl.DataFrame(
        {
            "row_id": [f"r{n}" for n in range(len(rows))],
            "user_id": [f"u{n}" for n in range(len(rows))],
            "position": pl.Series([len(history) for history, _ in rows], dtype=pl.Int32),
            "history_item_ids": [list(history) for history, _ in rows],
            "target_item_id": [target for _, target in rows],
            "target_timestamp": pl.Series([None] * len(rows), dtype=pl.Int64),
        }
    )


def write(folder: Path, catalogue: list[str], train: pl.DataFrame) -> dict[str, Folder]:
    items = {
        "item_id": catalogue,
        "title": catalogue,
        "description": "",
        "brand": "",
        "category": "",
        "published_sid": pl.Series([None] * len(catalogue), dtype=pl.String),
        "synthetic": False,
    }
    tables.write(pl.DataFrame(items), folder / "items.parquet", Items)
    tables.write(train, folder / "train.parquet", Samples)
    return {"interactions": Folder(folder)}


def built(folder: Path, inputs, config: ItemItem) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(popularity, weights) as the stages write them."""
    settings = stage_config(item_item=config)
    popularity.build(inputs, settings, folder, QUIET)  # type: ignore[arg-type]
    item_item.build(inputs, settings, folder, QUIET)  # type: ignore[arg-type]
    return tuple(tables.read(folder / f"baseline_{name}.parquet") for name in ("popularity", "item_item"))  # type: ignore[return-value]


TRAIN = samples(("ab", "c"), ("abc", "a"), ("b", "c"), ("aa", "b"))
HALF = ItemItem(decay=0.5, window=2, popularity_prior=0.0)


@pytest.fixture
def counted(tmp_path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return built(tmp_path, write(tmp_path, list("edcba"), TRAIN), HALF)


def lists(frame: pl.DataFrame) -> list[str]:
    groups = frame.group_by("row_id", maintain_order=True).agg(pl.col("item_id").sort_by("rank"))
    return ["".join(items) for items in groups["item_id"].to_list()]


def test_popularity_counts_targets_and_keeps_the_rest(counted):
    assert counted[0].rows() == [("c", 2.0), ("a", 1.0), ("b", 1.0), ("d", 0.0), ("e", 0.0)]


def test_weights_by_hand(counted):
    # window 2: ab->c, bc->a, b->c, aa->b, decay 0.5 per further gap
    assert {(i, j): s for i, j, s in counted[1].rows()} == {
        ("b", "c"): 2.0,
        ("a", "c"): 0.5,
        ("c", "a"): 1.0,
        ("b", "a"): 0.5,
        ("a", "b"): 1.5,
    }
    assert counted[1].rows() == sorted(counted[1].rows(), key=lambda r: (r[0], -r[2], r[1]))


def test_popularity_list_is_the_same_for_all(counted):
    frame = Popularity(counted[0]).rank(TRAIN, 4)
    assert lists(frame) == ["cabd"] * 4
    assert frame["rank"].to_list()[:4] == [1, 2, 3, 4] and frame["score"].to_list()[:4] == [2, 1, 1, 0]
    assert frame.schema["rank"] == pl.Int32


def test_item_item_scores_by_hand(counted):
    # history "ab", b last: c = 2 + .5 × .5, a = .5, b = .5 × 1.5; d and e tie at 0
    frame = Counter(counted[1], counted[0], HALF).rank(samples(("ab", "c")), 5)
    assert lists(frame) == ["cbade"]
    assert frame["score"].to_list() == [2.25, 0.75, 0.5, 0.0, 0.0]


def test_repeated_history_item_adds_up_and_only_the_window_counts(counted):
    frame = Counter(counted[1], counted[0], HALF).rank(samples(("aa", "b"), ("caa", "b"), ("aca", "b")), 1)
    assert frame["item_id"].to_list()[:2] == ["b", "b"] and frame["score"].to_list()[:2] == [2.25, 2.25]
    assert frame["score"].to_list()[2] == 1.5  # a = 0.5 (from c) loses to b = 1.5 (from the last a)


def test_nothing_known_falls_back_to_popularity(counted):
    prior = ItemItem(decay=0.5, window=2, popularity_prior=0.1)
    frame = Counter(counted[1], counted[0], prior).rank(samples(("z", "a"), ("d", "a")), 5)
    assert lists(frame) == ["cabde"] * 2
    assert frame["score"].to_list()[0] == pytest.approx(0.1 * 2 / 4)
    silent = Counter(counted[1], counted[0], HALF).rank(samples(("z", "a")), 5)
    assert lists(silent) == ["cabde"]  # ties: popularity, then item id


def test_lists_are_full_and_distinct_over_many_blocks(counted, monkeypatch):
    monkeypatch.setattr(item_item, "_BLOCK", 3)
    rows = samples(*[("abcde"[n % 5] + "ab", "c") for n in range(10)])
    frame = Counter(counted[1], counted[0], HALF).rank(rows, 5)
    assert frame["row_id"].to_list() == [f"r{n}" for n in range(10) for _ in range(5)]
    assert all(sorted(items) == list("abcde") for items in lists(frame))
    alone = Counter(counted[1], counted[0], HALF).rank(rows.slice(7, 1), 5)
    assert frame.filter(pl.col("row_id") == "r7").equals(alone)


def test_no_samples_give_no_lists(counted):
    assert Counter(counted[1], counted[0], HALF).rank(TRAIN.head(0), 3).height == 0
    assert Popularity(counted[0]).rank(TRAIN.head(0), 3).height == 0


def test_a_catalogue_smaller_than_the_list_is_refused(counted):
    with pytest.raises(InputError, match="smaller than a list"):
        Counter(counted[1], counted[0], HALF).rank(TRAIN, 6)
    with pytest.raises(InputError, match="smaller than a list"):
        Popularity(counted[0]).rank(TRAIN, 6)


def test_ties_keep_the_order_of_the_columns():
    frame = top_k([np.array([[1.0, 3.0, 1.0, 3.0]])], pl.Series(["r"]), pl.Series(list("wxyz")), 4)
    assert frame["item_id"].to_list() == list("xzwy")


def test_two_builds_write_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnop")
    train = samples(*[("".join(rng.choice(letters, 6)), str(rng.choice(letters))) for _ in range(3000)])
    inputs = write(tmp_path, letters, train)
    for out in ("1", "2"):
        (tmp_path / out).mkdir()
        built(tmp_path / out, inputs, ItemItem())
    for name in ("baseline_popularity.parquet", "baseline_item_item.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_path_with_a_quote_is_only_a_path(tmp_path):
    folder = tmp_path / "it's; DROP"
    folder.mkdir()
    table, _ = built(folder, write(folder, list("abc"), TRAIN), HALF)
    assert table.height == 3


def published_rows(root: Path, split: str) -> pl.DataFrame:
    path = next((root / "minionerec" / split).glob("Office_Products*.csv.gz"))
    with gzip.open(path, "rt", encoding="utf-8", newline="") as handle:
        rows = [(ast.literal_eval(r["history_item_id"]), r["item_id"]) for r in csv.DictReader(handle)]
    frame = samples(*[("x", target) for _, target in rows])
    return frame.with_columns(history_item_ids=pl.Series([[str(i) for i in history] for history, _ in rows]))


def test_published_office_rows(real_data, tmp_path):
    """Item-item lands where the data's README says: HR@10 about 0.12 on the published test rows."""
    inputs = write(tmp_path, [str(n) for n in range(3459)], published_rows(real_data, "train"))
    config = ItemItem()
    table, weights = built(tmp_path, inputs, config)
    test = published_rows(real_data, "test")

    def score(frame: pl.DataFrame) -> tuple[float, float]:
        hits = frame.join(test, on="row_id").filter(pl.col("item_id") == pl.col("target_item_id"))["rank"]
        return len(hits) / test.height, sum(1 / math.log2(rank + 1) for rank in hits) / test.height

    hr, ndcg = score(Counter(weights, table, config).rank(test, 10))
    assert test.height == 4866 and 0.12 < hr < 0.135 and 0.095 < ndcg < 0.105
    hr, ndcg = score(Popularity(table).rank(test, 10))
    assert 0.03 < hr < 0.045 and 0.015 < ndcg < 0.025
