"""Our codebooks beside the one that MiniOneRec published, on the same catalogue, as Markdown tables.

    SIDR_REAL_DATA=… .venv/bin/python scripts/compare_codebooks.py --home /tmp/compare

Runs `raw_reviews` … `item_embeddings` of the dataset `office_published` of the profile `real` (what is
there already is reused), then fits each quantizer in this process. Pairs are (last item of the history,
target) of **valid** rows, repeats excluded; test rows are not opened. For `docs/codebooks.md`.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.settings import Quantizer
from sidr_core.sids import quality
from sidr_core.sids.collisions import group_numbers, resolve
from sidr_core.sids.quantize import Codebook, fit
from sidr_core.sids.tokens import parse_sid
from sidr_core.tables import files as tables
from sidr_core.tables.columns import BRAND, HISTORY, ITEM_ID, PUBLISHED_SID, TARGET
from sidr_core.tables.vectors import read_vectors

PROFILE, DATASET = "real", "office_published"
STAGES = ("raw_reviews", "raw_items", "interactions", "item_embeddings")
PUBLISHED = "published"


def quantizers(epochs: int) -> dict[str, Quantizer]:
    """What is compared, by its name in the tables."""
    return {
        "residual k-means, 64": Quantizer(size=64),
        "residual k-means, 256": Quantizer(),
        "balanced k-means, 64": Quantizer(kind="balanced_kmeans", size=64),
        "balanced k-means, 256": Quantizer(kind="balanced_kmeans"),
        "RQ-VAE, 64": Quantizer(kind="rqvae", size=64, epochs=epochs),
        "RQ-VAE, 256": Quantizer(kind="rqvae", epochs=epochs),
        "whitened, 64": Quantizer(vectors="whitened", size=64),
        "whitened, 256": Quantizer(vectors="whitened"),
        "fused, 64": Quantizer(vectors="fused", size=64),
        "fused, 256": Quantizer(vectors="fused"),
    }


@dataclass(frozen=True)
class World:
    """The catalogue (N items sorted by id), text vectors (N, D), train rows, and valid pairs (P, 2) of rows."""

    items: pl.DataFrame
    vectors: np.ndarray
    train: pl.DataFrame
    pairs: np.ndarray


@dataclass(frozen=True)
class Coded:
    """Codes (N, L) before and after collisions were resolved."""

    nearest: np.ndarray
    codes: np.ndarray
    size: int
    book: Codebook | None = None
    seconds: float | None = None


def load(home: Path) -> World:
    """Build or reuse the outputs and read what is compared."""
    profile, store = load_profile(PROFILE), Store(home / "store")
    snapshot = profile.newest(DATASET)
    made: dict[str, Artifact] = {}
    for name in STAGES:
        progress = Progress().named(name)
        made[name] = run_stage(profile, DATASET, snapshot, stage_named(name), store, progress).artifact
    items = tables.read(made["interactions"].path("items.parquet")).sort(ITEM_ID)
    path = made["item_embeddings"].path("item_embeddings.parquet")
    order = items.join(tables.read(path, [ITEM_ID]).with_row_index("row"), on=ITEM_ID, maintain_order="left")["row"]
    train = tables.read(made["interactions"].path("train.parquet"), [HISTORY, TARGET])
    valid = tables.read(made["interactions"].path("valid.parquet"), [HISTORY, TARGET])
    rows = pl.DataFrame({"item": items[ITEM_ID], "row": np.arange(items.height)})
    pairs = (
        valid.select(last=pl.col(HISTORY).list.last(), target=TARGET)
        .filter(pl.col("last") != pl.col("target"))
        .join(rows.rename({"item": "last", "row": "a"}), on="last")
        .join(rows.rename({"item": "target", "row": "b"}), on="target")
    )
    return World(items, read_vectors(path)[order.to_numpy()], train, pairs.select("a", "b").to_numpy())


def published(world: World) -> Coded:
    """The index that came with the data."""
    codes = np.array([parse_sid(sid) for sid in world.items[PUBLISHED_SID]])
    return Coded(codes, codes, 256)


def ours(world: World, quantizer: Quantizer) -> Coded:
    """Fit, code and reassign."""
    started = time.perf_counter()
    ids = world.items[ITEM_ID].to_list()
    book = fit(world.vectors, quantizer, histories=world.train, item_ids=ids)
    latent = book.project(world.vectors, ids)
    nearest = book.encode(latent) if book.fitted is None else book.fitted
    codes = resolve(book, latent, nearest, np.zeros(len(nearest), dtype=bool), quantizer.collisions)
    return Coded(nearest, codes, book.size, book, time.perf_counter() - started)


def use_row(name: str, world: World, coded: Coded) -> str:
    """Collisions and use of the codes."""
    found = quality.usage(coded.codes, coded.size)
    letters = quality.LETTERS[: coded.codes.shape[1]]

    def levels(what: str, form: str) -> str:
        return " / ".join(format(found[f"level_{letter}_{what}"], form) for letter in letters)

    error = "–"
    if coded.book is not None:
        errors = quality.squared_errors(coded.book, world.vectors, coded.codes)
        error = f"{quality.relative_error(world.vectors, errors):.3f}"
    cells = [
        name,
        f"{quality.collision_rate(coded.nearest):.2%}" if coded.book is not None else "unknown",
        f"{quality.collision_rate(coded.codes):.3%}",
        levels("codes", ".0f"),
        levels("perplexity", ".0f"),
        levels("gini", ".2f"),
        f"{len(quality.prefix_counts(coded.codes)):,}",
        error,
        "–" if coded.seconds is None else f"{coded.seconds:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def meaning_row(name: str, world: World, coded: Coded) -> str:
    """What prefixes have to do with brands, text and what people take next."""
    cells = [name]
    for depth in (1, 2):
        groups = group_numbers(coded.codes[:, :depth])
        brand = quality.agreement(groups, world.items[BRAND])
        cells.append("–" if brand is None else f"{brand.same:.1%} ({brand.lift:.1f} ×)")
    near = quality.nearest_shares(coded.codes, world.vectors)
    cells += [f"{near['nearest_shares_a']:.1%}", f"{near['nearest_shares_ab']:.1%}"]
    for depth in (1, 2):
        groups = group_numbers(coded.codes[:, :depth])
        last, target = groups[world.pairs.T]
        share = float((last == target).mean())
        by_chance = float(np.bincount(last, minlength=len(groups)) @ np.bincount(target, minlength=len(groups)))
        cells.append(f"{share:.1%} ({share / (by_chance / len(last) ** 2):.1f} ×)")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("SIDR_HOME") or ".sidr"))
    parser.add_argument("--epochs", type=int, default=Quantizer().epochs, help="of the RQ-VAE")
    args = parser.parse_args()
    world = load(args.home.absolute())
    settings = quantizers(args.epochs)
    progress = Progress()
    found = {PUBLISHED: published(world)}
    for name, quantizer in settings.items():
        progress.say(name)
        found[name] = ours(world, quantizer)
    print(f"{world.items.height:,} items, {len(world.pairs):,} valid pairs, {args.epochs} epochs of the RQ-VAE.\n")
    print("| codebook | collisions before | after | codes in use a / b / c | perplexity | Gini | prefixes (a, b) "
          "| relative error | s |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, coded in found.items():
        print(use_row(name, world, coded))
    print("\n| codebook | same brand under one a | under one (a, b) | nearest item shares a | shares (a, b) "
          "| valid pairs share a | share (a, b) |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, coded in found.items():
        print(meaning_row(name, world, coded))


if __name__ == "__main__":
    main()
