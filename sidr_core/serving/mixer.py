"""The mixed lists of a release: the shortcut, SASRec and the checkpoint's own lists in one, by the release's weights.

Without a filter they are those of `recommendations`. With one, each part is asked twice: for its list, which says what
its first item is worth, and for the best of what the filter lets through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import polars as pl

from sidr_core.baselines.ranking import Ranker, rankings
from sidr_core.decoding.lists import Lists, counted
from sidr_core.recommending import mixture
from sidr_core.serving.release import Release
from sidr_core.settings.models import split_name
from sidr_core.sids.index import SidIndex
from sidr_core.tables.columns import ITEM_ID, MIXED, RANK, ROW_ID, SCORE, SID

#: What opens the rankers; they take seconds to import, and only mixed lists need them.
RANKER_MODULES = ("sidr_core.baselines.shortcut", "sidr_core.baselines.sequential")


@dataclass(frozen=True, eq=False)
class Reach:
    """What may be listed for R rows.

    Attributes:
        mask: (R, S) bool over the SIDs of the index; None: all.
        own: gives the checkpoint's lists of a mode, of the best that may be listed.
    """

    mask: np.ndarray | None
    own: Callable[[str], Lists]


@dataclass(frozen=True, eq=False)
class Mixer:
    """What valid rows chose, and the rankers beside the checkpoint.

    Attributes:
        met: the items of train histories. codebook: item_id -> sid. index: of the checkpoint.
    """

    choice: mixture.Choice
    rankers: Mapping[str, Ranker]
    met: pl.Series
    codebook: pl.DataFrame
    index: SidIndex

    @classmethod
    def of(cls, release: Release, train: pl.DataFrame, codebook: pl.DataFrame, index: SidIndex) -> Mixer | None:
        """The mixer of a release; None where it has no mixed lists."""
        if MIXED not in release.names:
            return None
        written = release.choices[release.names[MIXED]]
        weights = {route: tuple(of_route) for route, of_route in written["weights"].items()}
        numbers = (written[name] for name in ("rule", "ndcg", "shortcut", "rows"))
        choice = mixture.Choice(tuple(written["parts"]), weights, *numbers)
        rankers = {
            name: import_module(module).opened(release.outputs[f"baseline_{name}"].verified_folder())
            for name, module in zip(mixture.RANKERS, RANKER_MODULES, strict=True)
        }
        return cls(choice, rankers, mixture.met_in(train), codebook, index)

    def lists(self, rows: pl.DataFrame, whole: Reach, narrow: Reach | None, width: int) -> Lists:
        """Lists of all that some part lists, the best first.

        Args:
            rows: row_id (`0`, `1`, ...) and history.
            whole: without a filter. narrow: with one; None: there is none.
            width: distinct SIDs of a list.
        """
        parts = self._parts(rows, whole, width)
        if narrow is not None:
            within = self._parts(rows, narrow, width)
            parts = {name: _joined(lists, within[name]) for name, lists in parts.items()}
        return mixture.listed(parts, self.choice, rows, self.met, self.codebook, len(self.index))

    def _parts(self, rows: pl.DataFrame, reach: Reach, width: int) -> dict[str, pl.DataFrame]:
        """The lists of each part."""
        deep, mask = mixture.depth(width, self.codebook), reach.mask
        parts = {}
        for name in self.choice.needed:
            if name in self.rankers:
                length, longest = deep, deep if mask is None else len(self.index)
                lists = rankings(self.rankers[name], rows, self.codebook, longest)
            else:
                length, lists = width, reach.own(split_name(name)[1]).rankings
            if mask is not None:
                leaf = lists[SID].replace_strict(self.index.leaf_of, return_dtype=pl.Int64).to_numpy()
                lists = lists.filter(mask[lists[ROW_ID].cast(pl.Int64).to_numpy(), leaf])
            parts[name] = counted(lists.drop(SID), self.codebook, length).rankings
        return parts


def _joined(whole: pl.DataFrame, within: pl.DataFrame) -> pl.DataFrame:
    """Two lists of a part as one, in the order of their scores."""
    lists = pl.concat([whole, within]).unique([ROW_ID, ITEM_ID], keep="first", maintain_order=True)
    ordered = lists.sort(ROW_ID, SCORE, descending=[False, True], maintain_order=True)
    return ordered.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(ROW_ID).alias(RANK))
