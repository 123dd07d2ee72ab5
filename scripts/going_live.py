"""What goes live, scripted: prints the table of docs/operations.md, "Going live".

Invented reviews, one file per month, and a model of the tests' size. A first candidate, which is below the counter and
goes live by force; new items, which what is live lists before anything is trained on them; a candidate that the gate
rejects; one that it lets pass; and the way back. Decisions are those of `sidr promote` and `sidr rollback`.

    .venv/bin/python scripts/going_live.py
"""

from __future__ import annotations

import io
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import polars as pl
from day import DATASET, FIRST, SECOND, Day
from fresh_items import keep_out

from sidr_core.cli import promote as command
from sidr_core.models import checkpoint
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.recommending.everyone import histories
from sidr_core.recommending.fresh import with_catalogue
from sidr_core.recommending.lists import checkpoint_lists
from sidr_core.recommending.rows import history_sids
from sidr_core.render.grid import markdown_table
from sidr_core.serving.promotion import Rejected, live
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, RANK, ROW_ID

DATA = ("raw_reviews", "raw_items", "interactions", "item_embeddings", "sid_codebook")
MODELS = ("baseline_popularity", "baseline_item_item", "synthetic_corpus", "sft_checkpoint")
JUDGED = ("recommendations", "evaluation", "promotion")


def build(snapshot: str, stages: tuple[str, ...]) -> None:
    """Materialize stages of a snapshot, with the profile as it is now."""
    for name in stages:
        run_stage(load_profile(), DATASET, snapshot, stage_named(name), open_store(), Progress())


def decided(act: Any) -> str:
    """What a decision of the command line says, in its first line; why not, where the gate rejects."""
    with redirect_stdout(io.StringIO()) as text:
        try:
            act()
        except Rejected as error:
            return f"rejected {error.found}"
    return text.getvalue().splitlines()[0].partition(" on ")[2].partition(" ")[2]


def of_new_items(snapshot: str) -> str:
    """What is live over the catalogue of a later snapshot: whether it lists items that it was not trained on."""
    store = open_store()
    alive = live(store, DATASET)
    assert alive is not None
    trained = store.open("sft_checkpoint", alive.outputs["sft_checkpoint"])
    assert trained is not None
    codebook = tables.read(store.require(DATASET, snapshot, "sid_codebook").path("sid_codebook.parquet"))
    fresh = with_catalogue(checkpoint.load(trained.verified_folder()), codebook)
    config = load_profile().dataset(DATASET)
    log = tables.read(store.require(DATASET, snapshot, "interactions").path("interactions.parquet"))
    log = log.filter(pl.col(ITEM_ID).is_in(fresh.codebook[ITEM_ID].implode()))
    users = histories(log, config.split.max_history)
    histories_now = history_sids(users, fresh.codebook)
    lists = checkpoint_lists(fresh.loaded, users[ROW_ID].to_list(), histories_now, "direct", config.decoding)
    first = lists.rankings.filter(pl.col(RANK) <= 10, pl.col(ITEM_ID).is_in(fresh.added))
    return f"{fresh}; a new one is among the first ten of {first[ROW_ID].n_unique():,} of {users.height:,} users"


def live_through(day: Day) -> list[tuple[str, str, str]]:
    """The steps: what was done, seconds, what came of it."""
    steps: list[tuple[str, str, str]] = []

    def step(title: str, *doing: Any) -> None:
        started, said = time.monotonic(), ""
        for one in doing:
            said = one() or said
        steps.append((title, f"{time.monotonic() - started:.1f}", said))
        print(steps[-1], flush=True)

    def promote() -> str:
        return decided(lambda: command.promote(DATASET, None))

    def change(**sft: Any) -> None:
        day.fields["sft"] |= sft
        day.write_profile()

    months = [f"2018-{month:02d}" for month in range(3, 10)]
    day.deliver(months[:-1])
    keep_out(day)
    step(f"first candidate, {FIRST}", lambda: build(FIRST, (*DATA, *MODELS, *JUDGED)), promote)
    step("by force", lambda: decided(lambda: command.promote(DATASET, "a trial")))
    day.deliver(months)
    step(f"new items, {SECOND}: no training", lambda: build(SECOND, DATA), lambda: of_new_items(SECOND))
    change(epochs=1, learning_rate=1e-6)
    step("candidate that learnt nothing", lambda: build(SECOND, (*MODELS, *JUDGED)), promote)
    change(epochs=4, learning_rate=5e-3)
    step("candidate that was trained longer", lambda: build(SECOND, (*MODELS, *JUDGED)), promote)
    step("the way back", lambda: decided(lambda: command.rollback(DATASET, "complaints")))
    return steps


def main() -> None:
    """Live through it and print the table."""
    with tempfile.TemporaryDirectory(prefix="sidr-live-") as folder:
        day = Day(Path(folder), tiny=True)
        day.sample |= {"users": 600}
        day.fields["sft"] |= {"epochs": 2, "learning_rate": 5e-3}
        day.fields["decoding"]["models"] = ["sft/direct", "popularity/direct", "item_item/direct"]
        # The seconds of so small a model are noise.
        day.fields["promotion"] = {"model": "sft/direct", "margin": 0.05, "slower": 10}
        day.write_profile()
        steps = live_through(day)
        print(markdown_table(("step", "seconds", "what came of it"), steps, "lrl"))
        command.live(DATASET, True, "table")


if __name__ == "__main__":
    main()
