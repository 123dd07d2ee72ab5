"""A checkpoint after its codebook was fitted anew: what is left of it, with and without an alignment of the codes.

Codes are names: a codebook fitted anew may find the same clusters and number them otherwise. Two ways to keep the names
are tried: the codes of each level are renumbered to agree with the old ones on as many items as can be (optimal
assignment on the counts of items), or k-means starts from the old centroids. The catalogue has changed: both are fitted
on 60 % of the items, and all are coded. The old checkpoint is then asked with the new SIDs, and beside it the one that
was trained on the codebook of NEW_HOME. Prints the table of docs/codebooks.md, "After a refit".

    .venv/bin/python scripts/codebook_drift.py OLD_HOME NEW_HOME    # both with games; the second with another codebook
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from sidr_core.metrics.intervals import bootstrap
from sidr_core.models import checkpoint
from sidr_core.models.checkpoint import Loaded
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.store import Store
from sidr_core.recommending.lists import checkpoint_lists
from sidr_core.recommending.rows import history_sids
from sidr_core.render.grid import markdown_table
from sidr_core.sids.codebook import CENTROIDS
from sidr_core.sids.collisions import resolve
from sidr_core.sids.index import SidIndex, levels_of
from sidr_core.sids.quantize import Codebook, fit, refined
from sidr_core.sids.tokens import format_sid, sid_token
from sidr_core.tables import files as tables
from sidr_core.tables.columns import CODES, ITEM_ID, RANK, ROW_ID, SID, TARGET, USER_ID
from sidr_core.tables.vectors import read_vectors

DATASET, SNAPSHOT, K = "games", "2018-10", 10
#: Of the items, those that the new codebook is fitted on.
SHARE = 0.6


def aligned(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The new codes (N, L), renumbered per level to agree with the old ones (N, L) on as many items as can be."""
    renumbered = new.copy()
    for level in range(new.shape[1]):
        size = 1 + max(old[:, level].max(), new[:, level].max())
        together = np.zeros((size, size), dtype=np.int64)
        np.add.at(together, (new[:, level], old[:, level]), 1)
        _, name = linear_sum_assignment(together, maximize=True)
        renumbered[:, level] = name[new[:, level]]
    return renumbered


def sids_by(book: Codebook, vectors: np.ndarray) -> np.ndarray:
    """Codes (N, L) of vectors (N, D), each SID given once."""
    latent = book.project(vectors)
    nearest = book.encode(latent)
    return resolve(book, latent, nearest, np.zeros(len(nearest), dtype=bool), "reassign")


def coded(items: pl.Series, codes: np.ndarray) -> pl.DataFrame:
    """A codebook of items (N,) and codes (N, L)."""
    lists = codes.tolist()
    return pl.DataFrame(
        {ITEM_ID: items, SID: [format_sid(of) for of in lists], CODES: lists},
        schema_overrides={CODES: pl.List(pl.Int32)},
    )


def hits(loaded: Loaded, codebook: pl.DataFrame, rows: pl.DataFrame) -> tuple[np.ndarray, int]:
    """Whether each target is among the first ten (R,), and how many items have a SID that the checkpoint can write."""
    vocabulary = loaded.tokenizer.get_vocab()
    known = np.ones(codebook.height, dtype=bool)
    for level, codes in enumerate(levels_of(codebook[CODES])):
        known &= np.array([sid_token(level, int(code)) in vocabulary for code in codes])
    listed = codebook.filter(pl.Series(known))
    over = dataclasses.replace(loaded, index=SidIndex.build(listed, vocabulary.__getitem__))
    decoding = load_profile().dataset(DATASET).decoding
    histories = history_sids(rows, codebook)
    lists = checkpoint_lists(over, rows[ROW_ID].to_list(), histories, "direct", decoding).rankings
    first = lists.filter(pl.col(RANK) <= K)
    hit = first.join(rows, left_on=[ROW_ID, ITEM_ID], right_on=[ROW_ID, TARGET], how="semi")[ROW_ID]
    return rows[ROW_ID].is_in(hit.implode()).to_numpy(), int(known.sum())


def main() -> None:
    """Ask the old checkpoint with the old, the new and the aligned SIDs, and the new one with its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    before, after = (Store(home / "store") for home in (args.old, args.new))

    def read(store: Store) -> tuple[pl.DataFrame, Loaded]:
        table = tables.read(store.require(DATASET, SNAPSHOT, "sid_codebook").path("sid_codebook.parquet"))
        folder = store.require(DATASET, SNAPSHOT, "sft_checkpoint").verified_folder()
        return table.sort(ITEM_ID), checkpoint.load(folder, "cpu")

    (old, trained), (new, retrained) = read(before), read(after)
    items = old[ITEM_ID]
    assert items.equals(new[ITEM_ID])
    codes = [np.stack(levels_of(table[CODES]), axis=1) for table in (old, new)]
    path = before.require(DATASET, SNAPSHOT, "item_embeddings").path("item_embeddings.parquet")
    order = tables.read(path, [ITEM_ID])[ITEM_ID].arg_sort().to_numpy()
    vectors = np.ascontiguousarray(np.asarray(read_vectors(path))[order], dtype=np.float32)
    part = vectors[np.random.default_rng(0).permutation(len(vectors))[: int(SHARE * len(vectors))]]
    book = Codebook.load(before.require(DATASET, SNAPSHOT, "sid_codebook").path(CENTROIDS))
    fitted = sids_by(fit(part, load_profile().dataset(DATASET).quantizer), vectors)
    rows = tables.read(before.require(DATASET, SNAPSHOT, "interactions").path("test.parquet")).sort(ROW_ID)
    lines = []
    for name, loaded, of in (
        ("old checkpoint, codebook kept", trained, codes[0]),
        ("old checkpoint, fitted anew", trained, fitted),
        ("old checkpoint, fitted anew and renumbered", trained, aligned(codes[0], fitted)),
        ("old checkpoint, fitted from the old centroids", trained, sids_by(refined(book, part), vectors)),
        ("trained again, on a codebook of another seed", retrained, codes[1]),
    ):
        hit, known = hits(loaded, coded(items, of), rows)
        ends = bootstrap(hit.astype(float)[:, None], rows[USER_ID].to_numpy(), draws=10_000, confidence=0.95, seed=42)
        same = [
            float((of[:, : level + 1] == codes[0][:, : level + 1]).all(axis=1).mean()) for level in range(of.shape[1])
        ]
        figure = f"{ends.value[0]:.3f} [{ends.low[0]:.3f}, {ends.high[0]:.3f}]"
        lines.append((name, " / ".join(f"{share:.0%}" for share in same), f"{known:,}", figure))
    print(
        markdown_table(
            ("asked", "items with the old a / ab / abc", "items that can be listed", f"HR@{K}"), lines, "lrrr"
        )
    )


if __name__ == "__main__":
    main()
