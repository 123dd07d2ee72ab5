"""Warm start: SIDs that stay the same from one snapshot to the next, and when they are given up.

The paper indexes one catalogue once. Here a catalogue changes every month, and every checkpoint,
corpus and list that was made with a SID goes on meaning it. So, until a refit:

- an item with the text (and encoder) that it had keeps its SID;
- new and changed items are coded by the old codebook and take SIDs that are free;
- a SID is never given to another item. That of an item that left, or whose text changed, is retired
  (`retired.parquet`); the item gets it back if it returns with the text that it had.

A codebook ages. :class:`Fit` keeps what is needed to see it: how well the codebook coded items that it
had not seen when it was fitted, and how it fares with those that came since. Past a limit of
`quantizer.refit` it is fitted anew on the present catalogue: all SIDs are free again, and may change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.sids.collisions import Policy, group_numbers, resolve
from sidr_core.tables import files as tables
from sidr_core.tables.columns import CODES, ITEM_ID, SID, TEXT_DIGEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidr_core.pipeline.stage import StageInput
    from sidr_core.settings.data import Quantizer, Refit
    from sidr_core.sids.quantize import Codebook

TABLE, RETIRED, QUALITY = "sid_codebook.parquet", "retired.parquet", "quality.json"
STATE, LAST = "state", "last_snapshot"
#: What became of an item since the snapshot before: the text that it had, another text, a text and SID
#: that it had earlier, never seen.
UNCHANGED, CHANGED, RETURNED, NEW = "unchanged", "changed", "returned", "new"


@dataclass(frozen=True)
class Fit:
    """A codebook's fit, and how it has done since.

    Args:
        snapshot: in which it was fitted.
        items: that it was fitted on.
        error: mean squared error that an item unseen at the fit had, in units of the text vectors.
        taken: share of such items whose nearest codes were the SID of another item.
        placed: new and changed items that it has coded since the fit.
        placed_error: sum of their squared errors under their nearest codes.
        moved: those of them that have other codes than the nearest, because the SID was not free.
    """

    snapshot: str
    items: int
    error: float
    taken: float = 0.0
    placed: int = 0
    placed_error: float = 0.0
    moved: int = 0

    def with_placed(self, errors: np.ndarray, moved: int) -> Fit:
        """The fit after more items, with squared errors (n,), were placed."""
        total = self.placed_error + float(errors.sum())
        return replace(self, placed=self.placed + len(errors), placed_error=total, moved=self.moved + moved)

    def ratios(self, items: int) -> dict[str, float]:
        """The three measures of ageing for a catalogue of so many items, by their names in `quantizer.refit`.

        What a new codebook would not do better is no ageing: the error is compared with that of items
        unseen at the fit, and of the moved items those are left out that would have been moved then.
        """
        mean = self.placed_error / self.placed if self.placed else self.error
        # after a fit without error, the smallest error of a new item would count as infinitely worse
        least = 1e-9
        share = self.moved / self.placed if self.placed else self.taken
        return {
            "error_ratio": max(mean, least) / max(self.error, least),
            "moved_share": max(0.0, share - self.taken) / (1 - self.taken) if self.taken < 1 else 0.0,
            "growth": items / self.items,
        }

    def aged(self, items: int, limits: Refit) -> str | None:
        """Why the codebook should be fitted anew; None while it need not."""
        ratios = self.ratios(items)
        if ratios["growth"] > limits.growth:
            return f"the catalogue is {ratios['growth']:.2f} times what it was at the fit, above {limits.growth:g}"
        if self.placed < limits.least_new:
            return None
        if ratios["error_ratio"] > limits.error_ratio:
            return (
                f"items placed since the fit have {ratios['error_ratio']:.2f} times the error expected then, "
                f"above {limits.error_ratio:g}"
            )
        if ratios["moved_share"] > limits.moved_share:
            return (
                f"{self.moved} of {self.placed} items placed since the fit found their SID taken, which is "
                f"{ratios['moved_share']:.0%} of those that would not have then, above {limits.moved_share:.0%}"
            )
        return None


@dataclass(frozen=True)
class Previous:
    """The output of the snapshot before. `retired` and `fit` are empty for a published index."""

    snapshot: str
    table: pl.DataFrame
    retired: pl.DataFrame
    quantizer: Mapping[str, Any]
    fit: Fit | None
    folder: StageInput


def load(folder: StageInput | None) -> Previous | None:
    """What the snapshot before left."""
    if folder is None:
        return None
    about = json.loads(folder.path(QUALITY).read_text())
    fit = Fit(**about["fit"]) if about["fit"] else None
    table = tables.read(folder.path(TABLE))
    retired = tables.read(folder.path(RETIRED)) if fit else no_retired()
    return Previous(about["snapshot"], table, retired, about["quantizer"], fit, folder)


def summary(snapshot: str, quantizer: Quantizer, fit: Fit | None, metrics: Mapping[str, Any]) -> str:
    """The text of `quality.json`, from which :func:`load` starts in the next snapshot."""
    about = {
        "snapshot": snapshot,
        "quantizer": settings(quantizer),
        "fit": asdict(fit) if fit else None,
        "metrics": dict(metrics),
    }
    return json.dumps(about, indent=1, sort_keys=True) + "\n"


def settings(quantizer: Quantizer) -> dict[str, Any]:
    """The settings that a codebook depends on. The limits of the refit are none: to change them costs no SIDs."""
    return quantizer.model_dump(mode="json", exclude={"refit"})


def no_retired() -> pl.DataFrame:
    """An empty `retired.parquet`."""
    text = pl.String()
    return pl.DataFrame(schema={ITEM_ID: text, SID: text, CODES: pl.List(pl.Int32), TEXT_DIGEST: text, LAST: text})


def compare(items: pl.DataFrame, previous: Previous) -> pl.DataFrame:
    """The catalogue's items (`item_id`, `text_digest`), in their order, with `state` and the `codes` they had.

    `codes` are null for new items, and those of the older text for changed ones.
    """
    old = previous.table.select(ITEM_ID, old_digest=TEXT_DIGEST, old_codes=CODES)
    retired = previous.retired.select(ITEM_ID, TEXT_DIGEST, retired_codes=CODES)
    both = (
        items.select(ITEM_ID, TEXT_DIGEST)
        .join(old, on=ITEM_ID, how="left", maintain_order="left")
        .join(retired, on=[ITEM_ID, TEXT_DIGEST], how="left", maintain_order="left")
    )
    unchanged, returned = pl.col("old_digest").eq_missing(pl.col(TEXT_DIGEST)), pl.col("retired_codes").is_not_null()
    state = (
        pl.when(unchanged)
        .then(pl.lit(UNCHANGED))
        .when(returned)
        .then(pl.lit(RETURNED))
        .when(pl.col("old_digest").is_not_null())
        .then(pl.lit(CHANGED))
        .otherwise(pl.lit(NEW))
    )
    codes = pl.when(returned & ~unchanged).then("retired_codes").otherwise("old_codes")
    return both.select(ITEM_ID, TEXT_DIGEST, state.alias(STATE), codes.alias(CODES))


@dataclass(frozen=True)
class Placed:
    """A catalogue of N items coded by an old codebook of L levels.

    Args:
        codes: (N, L), or (N, L + 1) with suffixes.
        nearest: (N, L) codes before collisions were resolved; those of items that kept their SID are kept.
        fresh: (N,) bool, new and changed items.
        moved: how many fresh items have other codes than their nearest.
    """

    codes: np.ndarray
    nearest: np.ndarray
    fresh: np.ndarray
    moved: int


def place(
    book: Codebook,
    vectors: np.ndarray,
    compared: pl.DataFrame,
    previous: Previous,
    policy: Policy,
    item_ids: Sequence[str] | None = None,
) -> Placed | None:
    """Code the new and changed items among N; the others keep or get back what they had.

    Args:
        vectors: (N, D) text vectors.
        compared: what :func:`compare` gave.
        policy: `reassign`, `suffix` or `share`.
        item_ids: of the N items, where the projection needs them.

    Returns:
        None if the SIDs that are free do not suffice.
    """
    fresh = np.isin(compared[STATE].to_numpy(), (NEW, CHANGED))
    rows = np.flatnonzero(fresh)
    latent = book.project(vectors[rows], None if item_ids is None else [item_ids[n] for n in rows.tolist()])
    given = np.unique(
        np.concatenate([codes_array(previous.table), codes_array(previous.retired, previous.table)]), axis=0
    )
    codes = np.zeros((len(compared), given.shape[1]), dtype=np.int64)
    had = compared[CODES].is_not_null()
    codes[had.to_numpy()] = codes_array(compared.filter(had), previous.table)
    nearest = codes[:, : book.levels].copy()
    nearest[rows] = book.encode(latent)
    fixed = ~fresh | ((compared[STATE] == CHANGED).to_numpy() & _may_stay(codes, nearest, given, policy))
    codes[~fixed, : book.levels] = nearest[~fixed]
    reserved = given[~among(given, codes[fixed])] if policy != "share" else given[:0]
    if policy == "reassign" and len(codes) + len(reserved) > book.size**book.levels:
        return None
    with_reserved = np.concatenate([codes, reserved])
    held = np.concatenate([fixed, np.ones(len(reserved), dtype=bool)])
    # rows that keep their codes need no vectors: their pages of zeros are never touched, so they take no memory
    sparse = np.zeros((len(with_reserved), latent.shape[1]), dtype=np.float32)
    sparse[rows] = latent
    codes = resolve(book, sparse, with_reserved, held, policy)[: len(codes)]
    moved = int((codes[rows, : book.levels] != nearest[rows]).any(axis=1).sum())
    return Placed(codes, nearest, fresh, moved)


def _may_stay(codes: np.ndarray, nearest: np.ndarray, given: np.ndarray, policy: Policy) -> np.ndarray:
    """(N,) whether the SID that an item has, `codes` (N, L or L + 1), is still the best that it can have.

    It is if the nearest codes (N, L) are those of the SID. With `reassign` also if they differ in the
    last level only and another item was given them: the item is in its SID for that very reason.
    """
    same = codes[:, : nearest.shape[1]] == nearest
    if policy != "reassign":
        return same.all(axis=1)
    return same[:, :-1].all(axis=1) & (same[:, -1] | among(nearest, given))


def among(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) whether each of the rows (n, L) is one of the others (m, L)."""
    key = group_numbers(np.concatenate([rows, others]))
    return np.isin(key[: len(rows)], key[len(rows) :])


def codes_array(table: pl.DataFrame, like: pl.DataFrame | None = None) -> np.ndarray:
    """(N, L) int64 of the column `codes`; an empty table has as many levels as the first row of `like`."""
    source = table if table.height or like is None else like
    levels = int(source[CODES].list.len().item(0))
    return table[CODES].list.to_array(levels).to_numpy().reshape(-1, levels).astype(np.int64)


def retire(previous: Previous, table: pl.DataFrame) -> pl.DataFrame:
    """`retired.parquet` beside the new `table`: each (item, text) that had a SID since the fit and has left."""
    last = previous.table.with_columns(pl.lit(previous.snapshot).alias(LAST))
    given = pl.concat([previous.retired, last.select(previous.retired.columns)])
    return given.join(table, on=[ITEM_ID, TEXT_DIGEST], how="anti").sort(ITEM_ID, TEXT_DIGEST)


def churn(compared: pl.DataFrame, codes: np.ndarray, previous: Previous) -> dict[str, int]:
    """Counts of what changed since the snapshot before, for codes (N, L) of the items of :func:`compare`."""
    count = dict(compared[STATE].value_counts().iter_rows())
    unchanged = compared[STATE] == UNCHANGED
    old, new = codes_array(compared.filter(unchanged), previous.table), codes[unchanged.to_numpy()]
    kept = (old == new).all(axis=1).sum() if old.shape[1] == new.shape[1] else 0
    gone = previous.table.join(compared, on=ITEM_ID, how="anti").height
    return {
        "unchanged_items": len(old),
        "churned_items": len(old) - int(kept),
        "new_items": count.get(NEW, 0),
        "changed_items": count.get(CHANGED, 0),
        "returned_items": count.get(RETURNED, 0),
        "gone_items": gone,
    }
