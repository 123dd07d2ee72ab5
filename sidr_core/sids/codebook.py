"""The stage `sid_codebook`: every item's Semantic ID, the codebook behind it, and how good it is.

Files: `sid_codebook.parquet`, `quality.json`, `codes.png`, and for all kinds but a published index, which
comes without centroids, `codebook.safetensors` and `retired.parquet`.

`quantize.py` codes the vectors, `collisions.py` resolves collisions, and `warm_start.py` decides which SIDs stay from
one snapshot to the next. The codebook starts cold where there is no earlier snapshot, the quantizer's settings
changed, or no item is unchanged; it is fitted anew where it has aged past `quantizer.refit` or runs out of SIDs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.errors import InputError, ProfileError
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.sids import quality, warm_start
from sidr_core.sids.collisions import group_numbers, resolve
from sidr_core.sids.quantize import Codebook, codes_per_level, fit, refined
from sidr_core.sids.tokens import parse_sids, sid_texts
from sidr_core.sids.warm_start import QUALITY, RETIRED, TABLE, Fit, Previous
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Codebook as CodebookTable
from sidr_core.tables.contracts import RetiredSids
from sidr_core.tables.vectors import read_vectors

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Quantizer
    from sidr_core.settings.data import Refit

CENTROIDS, PLOT = "codebook.safetensors", "codes.png"
#: With so many items behind every code, a codebook does as well on unseen items as on its own.
_MANY_PER_CODE = 100
_FEW_ITEMS, _HELD_OUT = 20, 10
#: Up to so many items, a codebook of plain k-means that collapses is replaced by one of balanced clusters.
_SMALL = 10_000

Metrics = dict[str, float | int | str | bool]


@dataclass(frozen=True)
class _Catalogue:
    """The N items, sorted by id, their vectors (N, D), and what a fused fit needs besides."""

    items: pl.DataFrame
    vectors: np.ndarray
    histories: pl.DataFrame | None
    item_ids: list[str] | None

    def part(self, chosen: np.ndarray) -> _Catalogue:
        """The items of the mask (N,)."""
        ids = None if self.item_ids is None else list(compress(self.item_ids, chosen))
        return _Catalogue(self.items.filter(pl.Series(chosen)), self.vectors[chosen], self.histories, ids)


@dataclass(frozen=True)
class _Coded:
    """What a quantizer gave.

    Args:
        codes: (N, L), or (N, L + 1) with suffixes.
        nearest: (N, L) before collisions were resolved.
        replaced: why clusters of equal size took the place of plain k-means.
        judged: (N, L) what collapse is judged by: `nearest`, but where clusters are made equal by force
            the plain nearest codes, since force hides it.
    """

    codes: np.ndarray
    nearest: np.ndarray
    judged: np.ndarray
    size: int
    started: str
    book: Codebook | None = None
    fit: Fit | None = None
    ratios: dict[str, float] | None = None
    replaced: str | None = None

    @property
    def is_warm(self) -> bool:
        return self.started.startswith("warm")


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Code every item and write the table, the centroids, the retired SIDs and the report.

    Raises:
        ProfileError: more items than SIDs.
        InputError: fewer than two items; a published index is asked for and an item has no well-formed SID.
    """
    quantizer: Quantizer = config.quantizer
    snapshot: str = config.snapshot.key  # type: ignore[attr-defined]
    catalogue = _catalogue(inputs, quantizer)
    previous = warm_start.load(inputs.previous)
    compared = warm_start.compare(catalogue.items, previous) if previous else None
    if quantizer.kind == "published":
        coded = _published(catalogue.items, quantizer)
    else:
        coded = _quantized(catalogue, quantizer, previous, compared, snapshot, progress)
    progress.say(f"{coded.started}; writing the table and the report")
    codes = pl.Series(c.CODES, coded.codes.astype(np.int32)).arr.to_list()
    items = catalogue.items.with_columns(codes, sid_texts(list(coded.codes.T)))
    tables.write(items, out_dir / TABLE, CodebookTable)
    if coded.book is not None:
        coded.book.save(out_dir / CENTROIDS)
        retired = warm_start.retire(previous, items) if previous and coded.is_warm else warm_start.no_retired()
        tables.write(retired, out_dir / RETIRED, RetiredSids)
    levels = coded.codes[:, : coded.nearest.shape[1]]
    quality.plot(levels, coded.size, out_dir / PLOT)
    agreed = quality.agreements(levels, items)
    metrics = _metrics(catalogue, coded, agreed)
    if previous is not None and compared is not None:
        metrics |= warm_start.churn(compared, coded.codes, previous)
    metrics |= _ageing(coded, quantizer.refit)
    (out_dir / QUALITY).write_text(warm_start.summary(snapshot, quantizer, coded.fit, metrics))
    return Report(
        metrics=metrics,
        checks=(
            _collision_check(coded.codes, quantizer),
            _collapse_check(coded),
            _sids_last_check(coded, metrics),
        ),
        markdown={
            "Use of the codes": quality.level_table(levels, coded.size),
            "Prefixes and labels": quality.agreement_table(agreed),
            "Items that share a prefix": quality.prefix_examples(coded.codes, items),
            "Nearest items by text": quality.nearest_examples(levels, catalogue.vectors, items),
        },
    )


def _catalogue(inputs: Inputs, quantizer: Quantizer) -> _Catalogue:
    columns = [c.ITEM_ID, c.TITLE, c.BRAND, c.CATEGORY, c.PUBLISHED_SID]
    items = tables.read(inputs["interactions"].path("items.parquet"), columns).sort(c.ITEM_ID)
    if items.height < 2:
        raise InputError(
            "sid_codebook: there is nothing to choose from",
            expected="at least two items that pass the filters",
            found=f"{items.height}",
            fix="lower `filters.k_core` or widen the window; the page of `interactions` says what they left out",
        )
    path = inputs["item_embeddings"].path("item_embeddings.parquet")
    rows = tables.read(path, [c.ITEM_ID, c.TEXT_DIGEST]).with_row_index("row")
    items = items.join(rows, on=c.ITEM_ID, how="left", maintain_order="left", validate="1:1")
    assert items["row"].null_count() == 0, "item_embeddings lacks items of the catalogue"
    vectors, order = read_vectors(path), items["row"].to_numpy()
    if not np.array_equal(order, np.arange(len(vectors))):  # a copy only where it is needed
        vectors = vectors[order]
    histories = item_ids = None
    if quantizer.vectors == "fused" and quantizer.kind != "published":
        histories = tables.read(inputs["interactions"].path("train.parquet"), [c.HISTORY, c.TARGET])
        item_ids = items[c.ITEM_ID].to_list()
    return _Catalogue(items.drop("row"), vectors, histories, item_ids)


# -- coding -------------------------------------------------------------------------------------


def _quantized(
    catalogue: _Catalogue,
    quantizer: Quantizer,
    previous: Previous | None,
    compared: pl.DataFrame | None,
    snapshot: str,
    progress: Progress,
) -> _Coded:
    """Warm by the old codebook while it does, else by a new one."""
    total = len(catalogue.vectors)
    if quantizer.collisions == "reassign" and total > quantizer.size**quantizer.levels:
        raise ProfileError(
            "sid_codebook: more items than SIDs",
            expected=f"at most {quantizer.size} ** {quantizer.levels} items",
            found=f"{total:,} items",
            fix="raise `quantizer.size` or `quantizer.levels`, or set `quantizer.collisions: suffix`",
        )
    started, ratios, start = "cold", None, None
    if previous is not None and compared is not None:
        if previous.quantizer != warm_start.settings(quantizer):
            started = "cold: other quantizer settings than in the previous snapshot"
        elif not (compared[warm_start.STATE] == warm_start.UNCHANGED).any():
            started = "cold: no item is as it was in the previous snapshot"
        else:
            warm = _warm(catalogue, quantizer, previous, compared)
            if isinstance(warm, _Coded):
                return warm
            started, ratios = f"refit: {warm[0]}", warm[1]
            if quantizer.refit.start == "previous":
                book = Codebook.load(previous.folder.path(CENTROIDS))
                # A catalogue that has outgrown a small codebook gets more codes; nothing tells where they would start.
                start = book if book.size == codes_per_level(catalogue.vectors, quantizer) else None
                started += ", from the old centroids" if start else ", anew, as the number of codes changes"
    progress.say(f"{started}: quantizing {total:,} items into {quantizer.levels} × {quantizer.size} codes")
    return _fitted(catalogue, quantizer, snapshot, started, ratios, start, progress)


def _warm(
    catalogue: _Catalogue, quantizer: Quantizer, previous: Previous, compared: pl.DataFrame
) -> _Coded | tuple[str, dict[str, float] | None]:
    """The catalogue coded by the old codebook, or why it should be fitted anew and the measures that say so."""
    assert previous.fit is not None, "a quantized codebook has a fit"
    book = Codebook.load(previous.folder.path(CENTROIDS))
    placed = warm_start.place(book, catalogue.vectors, compared, previous, quantizer.collisions, catalogue.item_ids)
    if placed is None:
        return f"too few of {book.size} ** {book.levels} SIDs have never been given", None
    fresh = np.flatnonzero(placed.fresh)
    errors = quality.squared_errors(book, catalogue.vectors[fresh], placed.nearest[fresh])
    record = previous.fit.with_placed(errors, placed.moved)
    ratios = record.ratios(len(placed.codes))
    if (reason := record.aged(len(placed.codes), quantizer.refit)) is not None:
        return reason, ratios
    started = f"warm: {len(placed.codes) - len(fresh)} of {len(placed.codes)} items keep their SIDs"
    return _Coded(placed.codes, placed.nearest, placed.nearest, book.size, started, book, record, ratios)


def _fitted(
    catalogue: _Catalogue,
    quantizer: Quantizer,
    snapshot: str,
    started: str,
    ratios: dict[str, float] | None,
    start: Codebook | None,
    progress: Progress,
) -> _Coded:
    """A codebook of these items, fitted from the centroids of `start` or anew, and their codes.

    Plain k-means gives most codes of a lower level to the few items that lie far from their centroids: in a small
    catalogue of similar items (147 gift cards, 3 × 32 codes) one code may hold most of the others. Clusters of equal
    size then take its place, unless they would only hide that the vectors themselves cannot be told apart.
    """
    book = _fit(catalogue, quantizer, start, progress)
    nearest, codes, judged = _resolved(book, catalogue, quantizer)
    faults, replaced = quality.collapse(judged, book.size), None
    if faults and quantizer.kind == "residual_kmeans" and len(codes) <= _SMALL:
        balanced = quantizer.model_copy(update={"kind": "balanced_kmeans"})
        even = _fit(catalogue, balanced, None, progress)
        resolved = _resolved(even, catalogue, balanced)
        if not quality.collapse(resolved[2], even.size):
            progress.say(f"clusters of equal size instead of plain k-means: {'; '.join(faults)}")
            quantizer, book, start, (nearest, codes, judged) = balanced, even, None, resolved
            replaced = f"with plain k-means {faults[0]}"
    error, taken = _unseen(catalogue, quantizer, book, start, nearest, codes, progress)
    return _Coded(
        codes, nearest, judged, book.size, started, book, Fit(snapshot, len(codes), error, taken), ratios, replaced
    )


def _fit(catalogue: _Catalogue, quantizer: Quantizer, start: Codebook | None, progress: Progress) -> Codebook:
    if start is not None:
        return refined(start, catalogue.vectors, catalogue.item_ids)
    return fit(
        catalogue.vectors, quantizer, histories=catalogue.histories, item_ids=catalogue.item_ids, progress=progress
    )


def _resolved(book: Codebook, catalogue: _Catalogue, quantizer: Quantizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`nearest`, `codes` and `judged` of :class:`_Coded`, of the items that a codebook was fitted on."""
    latent = book.project(catalogue.vectors, catalogue.item_ids)
    nearest = book.encode(latent) if book.fitted is None else book.fitted
    codes = resolve(book, latent, nearest, np.zeros(len(nearest), dtype=bool), quantizer.collisions)
    return nearest, codes, book.encode(latent) if book.forced else nearest


def _unseen(
    catalogue: _Catalogue,
    quantizer: Quantizer,
    book: Codebook,
    start: Codebook | None,
    nearest: np.ndarray,
    codes: np.ndarray,
    progress: Progress,
) -> tuple[float, float]:
    """What to expect of an item that the codebook was not fitted on: squared error, and chance that its SID is taken.

    With few items per code both are well above those of the items it was fitted on (the error 1.6 times,
    for 3,000 items and 3 × 256 codes), which would look like ageing. So they are measured: every tenth
    item is coded by a codebook of the others.
    """
    total, reassigned = len(catalogue.vectors), quantizer.collisions == "reassign"
    if total >= _MANY_PER_CODE * book.size or total < _FEW_ITEMS:
        group = group_numbers(nearest)
        shared = (np.bincount(group)[group] > 1) | (codes[:, : book.levels] != nearest).any(axis=1)
        errors = quality.squared_errors(book, catalogue.vectors, nearest)
        return float(errors.mean()), float(shared.mean()) if reassigned else 0.0
    progress.say("fitting once more without a tenth of the items, to know how unseen ones fare")
    held = np.arange(total) % _HELD_OUT == _HELD_OUT - 1
    mine, others = catalogue.part(~held), catalogue.part(held)
    rest = _fit(mine, quantizer, start, progress)
    unseen = rest.encode(rest.project(others.vectors, others.item_ids))
    error = float(quality.squared_errors(rest, others.vectors, unseen).mean())
    return error, float(warm_start.among(unseen, _resolved(rest, mine, quantizer)[1]).mean()) if reassigned else 0.0


def _published(items: pl.DataFrame, quantizer: Quantizer) -> _Coded:
    """The SIDs that came with the source, parsed strictly."""
    try:
        codes = parse_sids(items[c.ITEM_ID], items[c.PUBLISHED_SID])
    except ValueError as error:
        raise InputError(
            "sid_codebook: an item has no usable published SID",
            expected="one SID per item such as <a_3><b_17><c_200>, all of as many levels",
            found=str(error),
            fix="use a source that publishes SIDs, or set `quantizer.kind: residual_kmeans`",
        ) from None
    return _Coded(codes, codes, codes, max(quantizer.size, int(codes.max()) + 1), "published")


# -- the report ---------------------------------------------------------------------------------


def _metrics(catalogue: _Catalogue, coded: _Coded, agreed: dict[tuple[str, str], quality.Agreement]) -> Metrics:
    levels = coded.codes[:, : coded.nearest.shape[1]]
    prefixes = quality.prefix_counts(levels)
    metrics: Metrics = {
        "items": len(levels),
        "distinct_sids": len(np.unique(group_numbers(coded.codes))),
        "collision_rate": round(quality.collision_rate(coded.codes), 5),
        "distinct_prefixes": len(prefixes),
        "largest_prefix": int(prefixes.max()),
        "codes_per_level": coded.size,
        **quality.usage(levels, coded.size),
        **{f"{name}_lift_{prefix}": round(agreement.lift, 3) for (name, prefix), agreement in agreed.items()},
        **quality.nearest_shares(levels, catalogue.vectors),
        "started": coded.started,
    }
    if coded.book is not None:
        errors = quality.squared_errors(coded.book, catalogue.vectors, levels)
        metrics["collision_rate_before"] = round(quality.collision_rate(coded.nearest), 5)
        metrics["reconstruction_error"] = round(quality.relative_error(catalogue.vectors, errors), 5)
    if coded.codes.shape[1] > levels.shape[1]:
        metrics["largest_suffix"] = int(coded.codes[:, -1].max())
    if coded.replaced is not None:
        metrics["clusters_of_equal_size"] = coded.replaced
    return metrics


def _ageing(coded: _Coded, limits: Refit) -> Metrics:
    """The measures of the codebook's age beside their limits; of a refit, those that led to it."""
    if coded.fit is None:
        return {}
    metrics: Metrics = {
        "fit_snapshot": coded.fit.snapshot,
        "fit_items": coded.fit.items,
        "placed_since_fit": coded.fit.placed,
    }
    for name, value in (coded.ratios or {}).items():
        metrics |= {f"refit_{name}": round(value, 4), f"refit_{name}_limit": getattr(limits, name)}
    return metrics


def _collision_check(codes: np.ndarray, quantizer: Quantizer) -> Check:
    counts = np.bincount(group_numbers(codes))
    shared, surplus = int((counts > 1).sum()), len(codes) - len(counts)
    detail = f"{surplus} of {len(codes)} items lack a SID of their own; {shared} SIDs are shared"
    if quantizer.kind == "published":
        return Check("no_collisions", True, f"the published index is kept as it is: {detail}")
    if quantizer.collisions == "share":
        return Check("no_collisions", True, f"the profile allows it: {detail}")
    return Check("no_collisions", surplus == 0, detail)


def _collapse_check(coded: _Coded) -> Check:
    faults = quality.collapse(coded.judged, coded.size)
    if not faults:
        largest = quality.prefix_counts(coded.judged).max()
        return Check("no_collapse", True, f"every level is used widely and no prefix holds more than {largest} items")
    return Check("no_collapse", False, "; ".join(faults))


def _sids_last_check(coded: _Coded, metrics: Metrics) -> Check:
    churned, unchanged = metrics.get("churned_items", 0), metrics.get("unchanged_items", 0)
    detail = f"{churned} of {unchanged} unchanged items have another SID than before ({coded.started})"
    return Check("sids_last", churned == 0 or not coded.is_warm, detail)
