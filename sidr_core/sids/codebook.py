"""The stage `sid_codebook`: every item's Semantic ID, the codebook behind it, and how good it is.

Files: `sid_codebook.parquet`, `quality.json`, `codes.png`, and `codebook.safetensors` (not for a
published index, which comes without centroids).

Warm start: an item whose text and encoder are those of the previous snapshot keeps its SID; new and
changed items are coded by the old centroids and take SIDs that are free. An item that left frees its
SID. The codebook starts cold where the quantizer's settings changed, nothing is unchanged, or the
catalogue has outgrown the codes. The paper has no such notion: it indexes one catalogue once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core import tables
from sidr_core.columns import CODES, ITEM_ID, PUBLISHED_SID, SID, TEXT_DIGEST, VECTOR
from sidr_core.contracts import Codebook as CodebookTable
from sidr_core.errors import InputError, ProfileError
from sidr_core.sids import quality
from sidr_core.sids.collisions import reassign
from sidr_core.sids.quantize import Codebook, codes_per_level, fit
from sidr_core.sids.tokens import format_sid, parse_sid
from sidr_core.stage import Check, Inputs, Progress, Report, StageInput

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Quantizer

TABLE, CENTROIDS, QUALITY = "sid_codebook.parquet", "codebook.safetensors", "quality.json"


@dataclass(frozen=True)
class _Previous:
    """The codebook of the snapshot before, as far as it concerns this catalogue (N items)."""

    kept: np.ndarray  # (N,) bool: known, text and encoder unchanged
    codes: dict[int, list[int]]  # of the kept items
    folder: StageInput
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Coded:
    """What a quantizer gave."""

    codes: np.ndarray  # (N, L)
    size: int
    started: str
    book: Codebook | None = None
    greedy_collisions: float | None = None


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Code every item and write the table, the centroids and the report.

    Raises:
        ProfileError: more items than SIDs.
        InputError: a published index is asked for and an item has no well-formed SID.
    """
    quantizer = config.quantizer
    items = tables.read(inputs["interactions"].path("items.parquet"))
    vectors = tables.read(inputs["item_embeddings"].path("item_embeddings.parquet"))
    frame = items.join(vectors, on=ITEM_ID, how="inner", validate="1:1").sort(ITEM_ID)
    assert frame.height == items.height, "item_embeddings lacks items of the catalogue"
    matrix = np.array(frame[VECTOR].to_list(), dtype=np.float32)
    previous = _previous(inputs.previous, frame)
    if quantizer.kind == "published":
        coded = _published(frame, quantizer)
    else:
        progress.say(f"quantizing {len(matrix):,} items into {quantizer.levels} × {quantizer.size} codes")
        coded = _quantized(matrix, quantizer, previous)
    frame = frame.with_columns(
        pl.Series(CODES, coded.codes.tolist(), dtype=pl.List(pl.Int32)),
        pl.Series(SID, [format_sid(row) for row in coded.codes.tolist()]),
    )
    metrics = _metrics(frame, matrix, coded, previous)
    tables.write(frame, out_dir / TABLE, CodebookTable)
    if coded.book is not None:
        coded.book.save(out_dir / CENTROIDS)
    quality.plot_usage(coded.codes, coded.size, out_dir / "codes.png")
    summary = {"quantizer": quantizer.model_dump(mode="json"), "metrics": metrics}
    (out_dir / QUALITY).write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return Report(
        metrics=metrics,
        checks=(_collision_check(coded.codes, quantizer), _collapse_check(coded.codes)),
        markdown={"Items that share a prefix": quality.neighbours(frame)},
    )


def _quantized(vectors: np.ndarray, quantizer: Quantizer, previous: _Previous | None) -> _Coded:
    """Residual k-means, warm or cold, collisions resolved as the profile wants."""
    if quantizer.collisions == "reassign" and len(vectors) > quantizer.size**quantizer.levels:
        raise ProfileError(
            "sid_codebook: more items than SIDs",
            expected=f"at most {quantizer.size} ** {quantizer.levels} items",
            found=f"{len(vectors):,} items",
            do="raise `quantizer.size` or `quantizer.levels`, or set `quantizer.collisions: share`",
        )
    book, started = _old_book(vectors, quantizer, previous)
    kept = np.zeros(len(vectors), dtype=bool)
    if book is not None and previous is not None:
        kept = previous.kept
    else:
        book = fit(vectors, quantizer)
    codes = book.encode(vectors)
    greedy = quality.collision_rate(codes)
    if previous is not None:
        for n in np.flatnonzero(kept).tolist():
            codes[n] = previous.codes[n]
    if quantizer.collisions == "reassign":
        codes = reassign(book, vectors, codes, kept)
    return _Coded(codes, book.size, started, book, greedy)


def _old_book(vectors: np.ndarray, quantizer: Quantizer, previous: _Previous | None) -> tuple[Codebook | None, str]:
    """The previous centroids if they can be used again, and how this start is called."""
    if previous is None:
        return None, "cold"
    if previous.settings != quantizer.model_dump(mode="json"):
        return None, "cold: other quantizer settings than in the previous snapshot"
    if not previous.kept.any():
        return None, "cold: no item is as it was in the previous snapshot"
    book = Codebook.load(previous.folder.path(CENTROIDS))
    # twice the codes, not one more: a catalogue that grows must not renumber itself each month
    if codes_per_level(vectors, quantizer) >= 2 * book.size or len(vectors) > book.size**book.levels:
        return None, f"cold: the catalogue has outgrown {book.size} codes per level"
    return book, f"warm: {int(previous.kept.sum())} of {len(vectors)} items keep their SIDs"


def _previous(folder: StageInput | None, frame: pl.DataFrame) -> _Previous | None:
    if folder is None:
        return None
    old = tables.read(folder.path(TABLE)).select(ITEM_ID, TEXT_DIGEST, CODES)
    codes = frame.select(ITEM_ID, TEXT_DIGEST).join(old, on=[ITEM_ID, TEXT_DIGEST], how="left", maintain_order="left")
    known = {n: row for n, row in enumerate(codes[CODES].to_list()) if row is not None}
    settings = json.loads(folder.path(QUALITY).read_text())["quantizer"]
    return _Previous(codes[CODES].is_not_null().to_numpy(), known, folder, settings)


def _published(frame: pl.DataFrame, quantizer: Quantizer) -> _Coded:
    """The SIDs that came with the source, parsed strictly."""
    codes: list[list[int]] = []
    for item, text in frame.select(ITEM_ID, PUBLISHED_SID).iter_rows():
        try:
            codes.append(parse_sid(text or ""))
        except ValueError:
            raise _bad_sid(item, text) from None
        if len(codes[-1]) != len(codes[0]):
            raise _bad_sid(item, text)
    array = np.array(codes)
    return _Coded(array, max(quantizer.size, int(array.max()) + 1), "published")


def _bad_sid(item: str, text: str | None) -> InputError:
    return InputError(
        f"sid_codebook: item {item!r} has no usable published SID",
        expected="one SID per item such as <a_3><b_17><c_200>, all of as many levels",
        found=repr(text)[:120],
        do="use a source that publishes SIDs, or set `quantizer.kind: residual_kmeans`",
    )


def _metrics(
    frame: pl.DataFrame, vectors: np.ndarray, coded: _Coded, previous: _Previous | None
) -> dict[str, float | int | str | bool]:
    codes = coded.codes
    found: dict[str, float | int | str | bool] = {
        "items": len(codes),
        "distinct_sids": len(np.unique(codes, axis=0)),
        "collision_rate": round(quality.collision_rate(codes), 5),
        "distinct_prefixes": len(quality.prefix_counts(codes)),
        "largest_prefix": int(quality.prefix_counts(codes).max()),
        "codes_per_level": coded.size,
        **quality.usage(codes, coded.size),
        **quality.label_metrics(codes, frame),
        "started": coded.started,
    }
    if coded.greedy_collisions is not None:
        found["collision_rate_before"] = round(coded.greedy_collisions, 5)
    if coded.book is not None:
        found["reconstruction_error"] = round(quality.relative_error(vectors, coded.book.decode(codes)), 5)
    if previous is not None:
        changed = sum(codes[n].tolist() != old for n, old in previous.codes.items())
        found |= {"unchanged_items": len(previous.codes), "churned_items": changed}
        found["new_items"] = len(codes) - len(previous.codes)
    return found


def _collision_check(codes: np.ndarray, quantizer: Quantizer) -> Check:
    _, counts = np.unique(codes, axis=0, return_counts=True)
    shared, surplus = int((counts > 1).sum()), len(codes) - len(counts)
    detail = f"{surplus} of {len(codes)} items lack a SID of their own; {shared} SIDs are shared"
    if quantizer.kind == "published":
        return Check("no_collisions", True, f"the published index is kept as it is: {detail}")
    if quantizer.collisions == "share":
        return Check("no_collisions", True, f"the profile allows it: {detail}")
    return Check("no_collisions", surplus == 0, detail)


def _collapse_check(codes: np.ndarray) -> Check:
    """Passes if every level uses two codes or more and no prefix holds over half of the items."""
    used = [len(np.unique(codes[:, level])) for level in range(codes.shape[1])]
    largest = int(quality.prefix_counts(codes).max())
    even = codes.shape[1] == 1 or largest <= max(2, len(codes) // 2)
    detail = f"codes in use per level: {', '.join(map(str, used))}; the fullest prefix holds {largest} items"
    return Check("no_collapse", min(used) > 1 and even, detail)
