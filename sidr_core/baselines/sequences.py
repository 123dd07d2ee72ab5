"""Train rows as sequences of item numbers: the same material for every trained baseline.

A row's history holds earlier purchases only, so a model may learn to predict every item of it from those before.
Where a split has one row per position this adds nothing, since each item is the target of a row of its own; where
rows are missing, as in an incomplete published train file, it does. A step (user, item before, target) counts once,
however many histories repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import polars as pl
from scipy import sparse

from sidr_core.baselines.ranking import by_popularity
from sidr_core.errors import InputError
from sidr_core.tables.columns import HISTORY, ITEM_ID, POSITION, SID, TARGET, USER_ID


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items in the order that breaks ties, most popular first; N of them, numbered from 0."""

    ids: pl.Series

    @classmethod
    def of(cls, popularity: pl.DataFrame) -> Catalogue:
        """From the table of `baseline_popularity`, which names every item."""
        return cls(by_popularity(popularity)[ITEM_ID])

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def number(self) -> dict[str, int]:
        """item_id -> number."""
        return {item: n for n, item in enumerate(self.ids)}

    @cached_property
    def as_codebook(self) -> pl.DataFrame:
        """item_id -> sid where each item id is its own SID: models over item ids know no others."""
        return pl.DataFrame({ITEM_ID: self.ids, SID: self.ids})

    def in_order(self, table: pl.DataFrame, what: str, fix: str) -> pl.DataFrame:
        """The rows of a table with one row per item, in the catalogue's order.

        Args:
            what: what the table gives of an item, for the error. fix: how to make it whole.

        Raises:
            InputError: an item is missing.
        """
        ordered = pl.DataFrame({ITEM_ID: self.ids}).join(table, on=ITEM_ID, how="inner", maintain_order="left")
        if ordered.height < len(self):
            raise InputError(
                f"{len(self) - ordered.height} items have no {what}",
                expected=f"one {what} for every item of the catalogue",
                found=f"{ordered.height} of {len(self)}",
                fix=fix,
            )
        return ordered

    def histories(self, samples: pl.DataFrame) -> list[list[int]]:
        """The history of each sample as item numbers, oldest first.

        Raises:
            InputError: a history holds an item that is not in the catalogue.
        """
        histories = samples[HISTORY].to_list()
        if unknown := sorted({item for history in histories for item in history} - self.number.keys()):
            raise InputError(
                f"{len(unknown)} items of histories are not in the catalogue",
                expected="every item of a history in items.parquet",
                found=", ".join(unknown[:5]),
                fix="materialize interactions again; it writes samples and items together",
            )
        return [[self.number[item] for item in history] for history in histories]


@dataclass(frozen=True, eq=False)
class Histories:
    """The items of R histories as one entry each: its row, its age (0 is the last of its history), its number."""

    row: np.ndarray
    age: np.ndarray
    item: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, rows: pl.DataFrame, catalogue: Catalogue) -> Histories:
        """Of rows of the contract `Samples`; items outside the catalogue are ignored."""
        numbers = pl.DataFrame({ITEM_ID: catalogue.ids, "item": np.arange(len(catalogue), dtype=np.int32)})
        entries = (
            rows.select(pl.col(HISTORY).list.reverse().alias(ITEM_ID))
            .with_row_index("row")
            .explode(ITEM_ID)
            .with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("row").alias("age"))
            .join(numbers, on=ITEM_ID, how="inner", maintain_order="left")
        )
        row, age, item = (entries[name].to_numpy() for name in ("row", "age", "item"))
        return cls(row, age, item, (rows.height, len(catalogue)))

    def weighted(self, decay: float) -> sparse.csr_array:
        """(R, N) float32: `decay ** age`; an item that occurs twice has the sum."""
        weights = (decay**self.age).astype(np.float32)
        return sparse.csr_array((weights, (self.row, self.item)), shape=self.shape)


def windows(train: pl.DataFrame, catalogue: Catalogue) -> list[list[int]]:
    """The fewest sequences (history and target) that hold the last step of every row.

    The newest row of a user is taken, then the newest whose last step is in no sequence taken before.
    """
    sequences: list[list[int]] = []
    covered: set[tuple[str, int, int]] = set()
    for user, sequence in _newest_first(train, catalogue):
        if (user, sequence[-2], sequence[-1]) not in covered:
            sequences.append(sequence)
            covered.update((user, *step) for step in pairwise(sequence))
    return sequences


def steps(train: pl.DataFrame, catalogue: Catalogue) -> list[list[int]]:
    """One sequence per step, cut after its target, with the longest history that any row has before it."""
    longest: dict[tuple[str, int, int], list[int]] = {}
    for user, sequence in _newest_first(train, catalogue):
        for end in range(2, len(sequence) + 1):
            key = (user, sequence[end - 2], sequence[end - 1])
            if end > len(longest.get(key, ())):
                longest[key] = sequence[:end]
    return list(longest.values())


def _newest_first(train: pl.DataFrame, catalogue: Catalogue) -> list[tuple[str, list[int]]]:
    """(user, history + target) of each row with a history, users by name, newest rows first."""
    ordered = train.sort([USER_ID, POSITION], descending=[False, True])
    ordered = ordered.filter((pl.col(HISTORY).list.len() > 0) & pl.col(TARGET).is_in(catalogue.ids.implode()))
    targets = [catalogue.number[item] for item in ordered[TARGET]]
    histories = catalogue.histories(ordered)
    return [
        (user, [*history, target]) for user, history, target in zip(ordered[USER_ID], histories, targets, strict=True)
    ]


def padded(sequences: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """Sequences (R, T) padded on the right with `filler` to the longest, of 1 at least."""
    longest = max(1, *(len(sequence) for sequence in sequences))
    rows = np.full((len(sequences), longest), filler, dtype=np.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows
