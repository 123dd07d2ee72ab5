"""Items that a checkpoint never met, listed without training: how often is the right one among them found?

Invented reviews. Every tenth item is kept out of all files before a model is trained (snapshot 2018-08); then the
files come whole, with one month more. The new items get their SIDs from the codebook as it is, and the old checkpoint
ranks them after every history of the later snapshot whose next item is one of them. Beside it: the nearest neighbours
by text, and chance. Prints the table of docs/codebooks.md, "Fresh items" (made with --tiny).

    .venv/bin/python scripts/fresh_items.py           # the quickstart's sizes
    .venv/bin/python scripts/fresh_items.py --tiny    # the tests' sizes
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from day import DATASET, FIRST, SECOND, Day

from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.decoder import Decoder
from sidr_core.decoding.lists import rankings_of
from sidr_core.metrics.intervals import bootstrap
from sidr_core.models import checkpoint
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.recommending.fresh import Fresh, with_catalogue
from sidr_core.recommending.rows import history_sids
from sidr_core.render.grid import markdown_table
from sidr_core.tables import files as tables
from sidr_core.tables.columns import HISTORY, ITEM_ID, RANK, ROW_ID, TARGET, USER_ID
from sidr_core.tables.vectors import read_vectors

DATA = ("raw_reviews", "raw_items", "interactions", "item_embeddings", "sid_codebook")
K = 10


def build(snapshot: str, stages: tuple[str, ...]) -> None:
    """Materialize stages of a snapshot."""
    for name in stages:
        run_stage(load_profile(), DATASET, snapshot, stage_named(name), open_store(), Progress())


def keep_out(day: Day) -> int:
    """Take every tenth item out of the files of reviews; how many."""
    files = sorted(day.files.glob("reviews-*.jsonl.gz"))
    lines = {path: [(line, _item(line)) for line in _text(path)] for path in files}
    held = set(sorted({item for part in lines.values() for _, item in part if item})[::10])
    for path, part in lines.items():
        with gzip.open(path, "wt") as packed:
            packed.writelines(line for line, item in part if item not in held)
    return len(held)


def _text(path: Path) -> list[str]:
    with gzip.open(path, "rt") as packed:
        return list(packed)


def _item(line: str) -> str | None:
    try:
        return json.loads(line)["asin"]
    except json.JSONDecodeError:  # the sample has damaged lines
        return None


def fresh_rows(fresh: Fresh) -> pl.DataFrame:
    """All samples of the later snapshot whose target is new, with what of their histories the checkpoint can read."""
    store = open_store()
    parts = [
        tables.read(store.require(DATASET, SECOND, "interactions").path(f"{name}.parquet"))
        for name in ("train", "valid", "test")
    ]
    rows = pl.concat(parts).filter(pl.col(TARGET).is_in(pl.Series(fresh.added).implode()))
    known = fresh.codebook[ITEM_ID].implode()
    return rows.with_columns(pl.col(HISTORY).list.eval(pl.element().filter(pl.element().is_in(known)))).sort(ROW_ID)


def by_checkpoint(fresh: Fresh, rows: pl.DataFrame, among: bool) -> np.ndarray:
    """Whether each target is among the first ten (R,), of the new items alone or of all."""
    index = fresh.loaded.index
    new = pl.Series(fresh.added)
    allowed = index.leaves_with(index.item_ids.is_in(new.implode()).to_numpy()) if among else None
    decoder = Decoder(fresh.loaded.model, fresh.loaded.renderer, index, min(len(index), 50), 64)
    turns = [next_item(history) for history in history_sids(rows, fresh.codebook)]
    ranked = rankings_of(decoder.rank_directly(turns, allowed), index, rows[ROW_ID].to_list())
    hits = ranked.filter(pl.col(RANK) <= K).join(rows, left_on=[ROW_ID, ITEM_ID], right_on=[ROW_ID, TARGET], how="semi")
    return rows[ROW_ID].is_in(hits[ROW_ID].implode()).to_numpy()


def by_text(fresh: Fresh, rows: pl.DataFrame, among: bool) -> np.ndarray:
    """The same, of the items whose text is nearest to the mean of the history's last five."""
    path = open_store().require(DATASET, SECOND, "item_embeddings").path("item_embeddings.parquet")
    items = tables.read(path, [ITEM_ID])[ITEM_ID].to_list()
    vectors = np.asarray(read_vectors(path), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {item: n for n, item in enumerate(items)}
    legal = np.array([item in set(fresh.added) if among else True for item in items])
    found = []
    for history, target in rows.select(HISTORY, TARGET).iter_rows():
        scores = vectors @ vectors[[place[item] for item in history[-5:]]].mean(axis=0)
        scores[~legal] = -np.inf
        scores[[place[item] for item in history]] = -np.inf
        found.append(place[target] in np.argsort(-scores)[:K])
    return np.array(found)


def main() -> None:
    """Train, add the items, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes of the tests' profile")
    with tempfile.TemporaryDirectory(prefix="sidr-fresh-") as folder:
        day = Day(Path(folder), parser.parse_args().tiny)
        day.fields["decoding"]["models"] = ["sft/direct", "popularity/direct"]
        day.write_profile()
        months = [f"2018-{month:02d}" for month in range(3, 10)]
        day.deliver(months[:-1])
        held = keep_out(day)
        build(FIRST, (*DATA, "synthetic_corpus", "sft_checkpoint"))
        day.deliver(months)
        build(SECOND, DATA)
        store = open_store()
        loaded = checkpoint.load(store.require(DATASET, FIRST, "sft_checkpoint").verified_folder())
        codebook = tables.read(store.require(DATASET, SECOND, "sid_codebook").path("sid_codebook.parquet"))
        fresh = with_catalogue(loaded, codebook)
        rows = fresh_rows(fresh)
        rows = rows.filter(pl.col(HISTORY).list.len() > 0)
        users = rows[USER_ID].to_numpy()
        lines = []
        for among in (True, False):
            choice = len(fresh.added) if among else fresh.codebook.height
            what = f"the {choice:,} {'new items' if among else 'items of the catalogue'}"
            for name, ranked in (("checkpoint", by_checkpoint), ("text", by_text)):
                hit = ranked(fresh, rows, among).astype(float)[:, None]
                ends = bootstrap(hit, users, draws=10_000, confidence=0.95, seed=42)
                lines.append((what, name, f"{ends.value[0]:.3f} [{ends.low[0]:.3f}, {ends.high[0]:.3f}]"))
            lines.append((what, "chance", f"{min(1.0, K / choice):.3f}"))
        print(f"{held} items kept out; {fresh}; {rows.height:,} rows of {rows[USER_ID].n_unique():,} users")
        print(markdown_table(("among", "ranked by", f"HR@{K}"), lines, "llr"))


if __name__ == "__main__":
    main()
