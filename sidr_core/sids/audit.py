"""An audit of any table of SIDs, ours or another's: what its prefixes have to do with what people take next.

The quality report of `sid_codebook` judges a codebook by the texts it was made from. The audit needs no vectors: items,
SIDs and train rows are enough, so a published index can be put beside our own.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from sidr_core.errors import InputError
from sidr_core.sids.collisions import group_numbers
from sidr_core.sids.quality import LETTERS, collision_rate, perplexity
from sidr_core.sids.tokens import parse_sids
from sidr_core.tables import files as tables
from sidr_core.tables.columns import HISTORY, ITEM_ID, SID, TARGET

#: How often SIDs are dealt out anew among the items, for what chance gives.
SHUFFLES, _SEED = 20, 42
_MOST_BYTES = 200_000_000


@dataclass(frozen=True)
class Level:
    """The SIDs down to one level.

    Args:
        prefix: letters of its levels, `ab`.
        codes: codes of the level in use.
        evenness: perplexity of the items over them.
        popular: perplexity of the train targets over them: lower where a few codes hold what people take.
        top: share of the train targets under the level's most frequent code.
        prefixes: distinct prefixes in use.
        largest: items under the largest one.
        fan_out: mean and most prefixes of this length under one a level shorter.
        together: share of train pairs whose two items have the same prefix.
        shuffled: mean and most of that share over :data:`SHUFFLES` shuffles of the SIDs among the items.
        changed: share of the items of the previous snapshot whose prefix is another now; None without one.
    """

    prefix: str
    codes: int
    evenness: float
    popular: float
    top: float
    prefixes: int
    largest: int
    fan_out: tuple[float, int]
    together: float
    shuffled: tuple[float, float]
    changed: float | None = None


@dataclass(frozen=True)
class Audit:
    """An audited table.

    Args:
        items: N items with a SID.
        pairs: train pairs of two different items, both with a SID.
        without_sid: targets of train rows that have none, of all distinct ones.
        collisions: share of the items that have no SID of their own, and the most items of one SID.
        levels: one per level.
    """

    items: int
    pairs: int
    without_sid: tuple[int, int]
    collisions: tuple[float, int]
    levels: tuple[Level, ...]


def audit(table: pl.DataFrame, train: pl.DataFrame, previous: pl.DataFrame | None = None) -> Audit:
    """Audit a table of SIDs against train rows.

    Args:
        table: item_id, sid.
        train: the contract `Samples`; the last item of a history and the target are a pair.
        previous: item_id, sid of an earlier snapshot.

    Raises:
        InputError: a SID is malformed, SIDs have unequal lengths, an item occurs twice, or no pair has SIDs.
    """
    table = table.sort(ITEM_ID)
    codes = _codes(table)
    row_of = table.select(ITEM_ID).with_row_index("row")
    targets = train[TARGET].value_counts(name="n").join(row_of, left_on=TARGET, right_on=ITEM_ID, how="left")
    taken = np.zeros(len(codes), dtype=np.int64)
    known = targets.drop_nulls("row")
    taken[known["row"].to_numpy()] = known["n"].to_numpy()
    pairs = _pairs(train, row_of)
    if not len(pairs):
        raise InputError(
            "the SIDs cannot be audited against these train rows",
            expected="train rows whose last item and target are two different items of the table",
            found=f"none in {train.height:,} rows; the table has {table.height:,} items",
            fix="name the dataset whose items the table is of",
        )
    orders = [np.random.default_rng([_SEED, n]).permutation(len(codes)) for n in range(SHUFFLES)]
    before = None if previous is None else previous.join(table, on=ITEM_ID, suffix="_now")
    levels = []
    for depth in range(1, codes.shape[1] + 1):
        prefix, above = (group_numbers(codes[:, :d]) if d else np.zeros(len(codes), int) for d in (depth, depth - 1))
        children = np.unique(np.stack([above, prefix], axis=1), axis=0)[:, 0]
        fan_out = np.bincount(children)
        column = codes[:, depth - 1]
        by_code = np.bincount(column, weights=taken)
        shares = [_together(prefix[order], pairs) for order in orders]
        levels.append(
            Level(
                prefix=LETTERS[:depth],
                codes=len(np.unique(column)),
                evenness=perplexity(np.bincount(column)),
                popular=perplexity(by_code),
                top=float(by_code.max() / by_code.sum()),
                prefixes=len(children),
                largest=int(np.bincount(prefix).max()),
                fan_out=(float(fan_out.mean()), int(fan_out.max())),
                together=_together(prefix, pairs),
                shuffled=(float(np.mean(shares)), max(shares)),
                changed=None if before is None else _changed(before, depth),
            )
        )
    own = np.bincount(group_numbers(codes))
    without = (targets["row"].null_count(), targets.height)
    return Audit(len(codes), len(pairs), without, (collision_rate(codes), int(own.max())), tuple(levels))


def read_index(path: Path) -> pl.DataFrame:
    """item_id, sid of a published index: JSON (also gzipped) as MiniOneRec has it, `{item: ["<a_3>", "<b_17>"]}`, or
    Parquet with these two columns.

    Raises:
        InputError: the file is anything else.
    """
    try:
        if path.suffix == ".parquet":
            return tables.read(path, [ITEM_ID, SID]).cast(pl.String)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        index = json.loads(content) if len(content) <= _MOST_BYTES else None
        if isinstance(index, Mapping) and all(isinstance(tokens, list) for tokens in index.values()):
            sids = ["".join(map(str, tokens)) for tokens in index.values()]
            return pl.DataFrame({ITEM_ID: list(index), SID: sids}, schema={ITEM_ID: pl.String, SID: pl.String})
        found = "other JSON" if len(content) <= _MOST_BYTES else f"more than {_MOST_BYTES:,} bytes"
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, KeyError, pl.exceptions.PolarsError) as error:
        found = str(error).splitlines()[0][:200]
    raise InputError(
        f"{path.name} is not an index of SIDs",
        expected='JSON such as {"item": ["<a_3>", "<b_17>", "<c_200>"]}, or Parquet with item_id and sid',
        found=found,
        fix="name such a file",
    )


def _codes(table: pl.DataFrame) -> np.ndarray:
    """(N, L) codes of the column sid."""
    try:
        if table.is_empty() or table[ITEM_ID].is_duplicated().any():
            raise ValueError("no item" if table.is_empty() else "an item twice")
        return parse_sids(table[ITEM_ID], table[SID])
    except ValueError as error:
        raise InputError(
            "the SIDs cannot be audited",
            expected="every item once, each with a SID such as <a_3><b_17><c_200>, all of as many levels",
            found=str(error),
            fix="correct the table",
        ) from None


def _pairs(train: pl.DataFrame, row_of: pl.DataFrame) -> np.ndarray:
    """(P, 2) rows of the last item of a history and of the target, where both have a SID and are two items."""
    last = train.select(last=pl.col(HISTORY).list.last(), target=TARGET).filter(pl.col("last") != pl.col("target"))
    joined = last.join(row_of.rename({"row": "a"}), left_on="last", right_on=ITEM_ID)
    return joined.join(row_of.rename({"row": "b"}), left_on="target", right_on=ITEM_ID).select("a", "b").to_numpy()


def _together(prefix: np.ndarray, pairs: np.ndarray) -> float:
    return float((prefix[pairs[:, 0]] == prefix[pairs[:, 1]]).mean())


def _changed(before: pl.DataFrame, depth: int) -> float:
    """Share of the items of two tables whose prefix of `depth` levels differs."""
    cut = [pl.col(name).str.split("<").list.head(depth + 1) for name in (SID, f"{SID}_now")]
    return float(before.select((cut[0] != cut[1]).mean()).item() or 0.0)


HEADER = (
    *("prefix", "codes", "even / by targets", "top code of targets", "prefixes", "largest", "fan-out mean / most"),
    *("pairs together", "shuffled mean / most", "lift", "changed"),
)


def lines(audited: Audit) -> list[tuple[str, ...]]:
    """The levels as cells under :data:`HEADER`."""
    return [
        (
            one.prefix,
            f"{one.codes:,}",
            f"{one.evenness:.0f} / {one.popular:.0f}",
            f"{one.top:.1%}",
            f"{one.prefixes:,}",
            f"{one.largest:,}",
            f"{one.fan_out[0]:.1f} / {one.fan_out[1]:,}",
            f"{one.together:.2%}",
            f"{one.shuffled[0]:.2%} / {one.shuffled[1]:.2%}",
            f"{one.together / one.shuffled[0]:.1f}" if one.shuffled[0] else "–",
            "–" if one.changed is None else f"{one.changed:.1%}",
        )
        for one in audited.levels
    ]
