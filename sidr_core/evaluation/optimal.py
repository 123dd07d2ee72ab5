"""What could be known at best: on sample data, the generator's own list for every test row, and the kind of each row.

The generator knows the probability of every next item, given all that a user bought before. A list in that order is
the best that can be expected, so what a model misses is either not learned yet or chance. The list stands in the tables
as `optimal/direct`: it is no model, has no place, and nothing is trained or chosen by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from sidr_core.baselines.ranking import list_length, top_k
from sidr_core.decoding.lists import counted
from sidr_core.errors import InputError
from sidr_core.reviews.sample.optimal import Optimal
from sidr_core.reviews.sample.rows import row_kinds, steps
from sidr_core.reviews.sample.shop import Shop
from sidr_core.settings import SampleSource
from sidr_core.settings.models import OPTIMAL
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DIRECT, ITEM_ID, KIND, MODE, MODEL, ROW_ID, TARGET, USER_ID
from sidr_core.tables.contracts import RecommendedModels

if TYPE_CHECKING:
    from sidr_core.settings import Source


def generator_of(source: Source) -> SampleSource | None:
    """The sample whose generator can say what follows; None for other data, and where items trade their parts."""
    return source if isinstance(source, SampleSource) and not source.shift else None


def with_kinds(shop: Shop, test: pl.DataFrame, train: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Test rows with the column `kind`: what it takes to know the target (`reviews.sample.rows.KINDS`)."""
    kinds = row_kinds(shop, test, train, items[ITEM_ID].to_list())
    return test.with_columns(pl.Series(KIND, kinds, dtype=pl.String))


def optimal_lists(shop: Shop, test: pl.DataFrame, codebook: pl.DataFrame, width: int) -> pl.DataFrame:
    """The generator's ranking of the catalogue for each test row: lists of `optimal/direct` of `width` SIDs, and users.

    Args:
        test: the contract `Samples`.
        codebook: item_id -> sid; what the k-core removed cannot be recommended by anybody.

    Raises:
        InputError: a row is not a purchase of this source.
    """
    optimal, item_ids = Optimal(shop), codebook[ITEM_ID].sort()
    purchases = steps(shop, test, item_ids.to_list())
    wrong = [row for row, step in zip(test[TARGET], purchases, strict=True) if shop.ids[step.thing] != row]
    if wrong:
        raise InputError(
            f"{len(wrong):,} of {test.height:,} test rows have other targets than the sample's generator",
            expected="rows of this source, each with its place in the user's purchases",
            found=f"target {wrong[0]}",
            fix="materialize interactions again from this source",
        )
    place = {shop.ids[thing]: n for n, thing in enumerate(optimal.things)}
    columns = [place[item] for item in item_ids]
    ranked = top_k(
        (optimal.next_item(step)[None, columns] for step in purchases),
        test[ROW_ID],
        item_ids,
        list_length(codebook, width),
    )
    lists = counted(ranked, codebook, width).rankings.join(test.select(ROW_ID, USER_ID), on=ROW_ID)
    return lists.with_columns(pl.lit(OPTIMAL).alias(MODEL), pl.lit(DIRECT).alias(MODE))


def described(source: SampleSource, models: pl.DataFrame) -> pl.DataFrame:
    """What is behind `optimal/direct`: a line for `models`, by the contract `RecommendedModels`.

    It stands beside lists of this beam width and this horizon, though the generator itself has none.
    """
    alike = {name: models[name].max() for name in ("beam_width", "seen_until")}
    behind = {MODEL: OPTIMAL, MODE: DIRECT, "checkpoint": "the sample's generator", "seed": source.seed}
    return tables.typed([alike | behind], RecommendedModels)
