"""Samples of a log (docs/method.md, "Data"): one per position, the history before it and the next item, by time.

The log lies in three arrays of numbers, 16 bytes an interaction, sorted by user and position; histories
are slices of it and become text only in the batch that is being written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from sidr_core.reviews.domains import prefix_of


@dataclass(frozen=True)
class Log:
    """Interactions sorted by user and position; N of them, U users, I items.

    Args:
        user: (N,) int32 number of the user, not falling.
        item: (N,) int32 number of the item.
        time: (N,) int64 unix seconds; None where the source has none.
        users: (U,) ids by number. items: (I,) ids by number.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None
    users: pa.Array
    items: pa.Array

    def starts(self) -> np.ndarray:
        """(U,) place of each user's first interaction, for a user without any where it would be."""
        return np.searchsorted(self.user, np.arange(len(self.users)))

    def of_domains(self, domains: Sequence[str]) -> np.ndarray:
        """(N,) bool: which interactions are of users of these domains."""
        users = pl.Series(self.users)
        chosen = np.zeros(len(users), dtype=bool)
        for domain in domains:
            chosen |= users.str.starts_with(prefix_of(domain)).to_numpy()
        return chosen[self.user]


class Samples:
    """Turns places of targets in the log into rows, and counts what the rows promise.

    Args:
        log: what the samples are cut from.
        longest: most items of a history.

    Attributes:
        rows: samples made.
        history_items: items in all their histories.
        misplaced: history items of another user, at or behind their target, or later than it.
        repeated_targets: samples whose history holds the target.
    """

    def __init__(self, log: Log, longest: int) -> None:
        self._log, self._longest = log, longest
        self._starts = log.starts()
        self._used = np.zeros(len(log.user), dtype=bool)
        self.rows = self.history_items = self.misplaced = self.repeated_targets = 0

    @property
    def repeated_places(self) -> int:
        """How many samples are of a place that has one already."""
        return self.rows - int(np.count_nonzero(self._used))

    def tables(self, places: Iterable[np.ndarray]) -> Iterator[pa.Table]:
        """A table of :class:`sidr_core.tables.contracts.Samples` for each array of places (each int64, any length)."""
        for at in places:
            if len(at):
                yield self._table(at)

    def _table(self, at: np.ndarray) -> pa.Table:
        log = self._log
        user = log.user[at]
        position = at - self._starts[user]
        length = np.minimum(position, self._longest)
        ends = np.cumsum(length)
        target = np.repeat(np.arange(len(at)), length)
        # The k-th item of a history of n lies n - k places before the target.
        source = np.arange(len(target)) - (ends - length)[target] + (at - length)[target]
        self._count(at, source, target, length)
        row_ids = pl.select(
            pl.concat_str(pl.Series(log.users.take(pa.array(user))), pl.Series(position), separator=":")
        ).to_series()
        offsets = pa.array(np.concatenate([[0], ends]), pa.int64())
        return pa.table(
            {
                "row_id": row_ids.to_arrow(),
                "user_id": log.users.take(pa.array(user)),
                "position": pa.array(position, pa.int32()),
                "history_item_ids": pa.LargeListArray.from_arrays(offsets, log.items.take(pa.array(log.item[source]))),
                "target_item_id": log.items.take(pa.array(log.item[at])),
                "target_timestamp": pa.nulls(len(at), pa.int64()) if log.time is None else pa.array(log.time[at]),
            }
        )

    def _count(self, at: np.ndarray, source: np.ndarray, target: np.ndarray, length: np.ndarray) -> None:
        log = self._log
        behind = (log.user[source] != log.user[at][target]) | (source >= at[target])
        if log.time is not None:
            behind |= log.time[source] > log.time[at][target]
        self.misplaced += int(behind.sum())
        holds = np.bincount(target, log.item[source] == log.item[at][target], len(at))
        self.repeated_targets += int((holds > 0).sum())
        self._used[at] = True
        self.rows += len(at)
        self.history_items += int(length.sum())
