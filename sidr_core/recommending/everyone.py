"""The stage `recommendations_all`: the lists of one model for every user of the snapshot.

A user's history is all that was known by the end of the snapshot, so these lists cannot be evaluated: nothing that is
known comes after them. Users are taken in the order of their ids, in parts. Each finished part lies in the store, so a
run that was killed goes on behind it, and memory is bounded by one part. Before it starts, a first batch says how long
all of them will take.

They are made by the snapshot's own checkpoint, or by what is live, over this snapshot's items: then a snapshot with new
items and new users is served without training anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from sidr_core.decoding.lists import RANKING
from sidr_core.errors import InputError
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import leakage
from sidr_core.recommending.recommend import part_of
from sidr_core.recommending.rows import history_sids
from sidr_core.settings.models import split_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import (
    DATASET,
    HISTORY,
    ITEM_ID,
    MODE,
    MODEL,
    POSITION,
    ROW_ID,
    SID,
    SNAPSHOT,
    TARGET_TIME,
    USER_ID,
)
from sidr_core.tables.contracts import EveryonesLists, ScoredParts

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write the lists as `lists/part-<number>.parquet`, and `recommendations_all`, which says who is in which.

    Raises:
        InputError: the checkpoint was trained with another codebook or other interactions; it is to be what is live,
            and nothing is.
    """
    settings = config.recommendations_all
    assert settings is not None, "the stage is asked for by its section"
    model, mode = split_name(settings.model)
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    users = histories(tables.read(inputs["interactions"].path("interactions.parquet")), config.split.max_history)
    if settings.checkpoint == "live":
        inputs, codebook = _over_live(inputs, model, codebook, progress)
        known = pl.element().is_in(codebook[ITEM_ID].implode())
        users = users.with_columns(pl.col(HISTORY).list.eval(pl.element().filter(known)))
    else:
        leakage.check_checkpoints(inputs, [settings.model], users, codebook)
    history_sids(users.head(settings.users_per_part), codebook)
    total, size = users.height, settings.users_per_part
    parts = -(-total // size)
    batch = users.head(config.decoding.batch_size)
    also = {"everyone": {"first_users": batch.height}}
    probe = part_of(settings.model, inputs, config, batch, codebook, progress.named("estimate"), also)
    ahead = f"{total:,} users in {parts:,} parts of {settings.model}"
    progress.say(
        f"{ahead}: at most {_time(probe.manifest['seconds'] * total / batch.height)}, as the first {batch.height:,} "
        "took with all that comes before them"
    )
    full = min(config.decoding.beam_width, codebook[SID].n_unique())
    context = {DATASET: config.dataset, SNAPSHOT: config.snapshot.key, MODEL: model, MODE: mode}  # type: ignore[attr-defined]
    (out_dir / "lists").mkdir()
    written, seconds, bad = [], 0.0, {"short": 0, "repeats": 0, "unreal": 0}
    for number in range(parts):
        rows = users.slice(number * size, size)
        name = f"part {number + 1:,} of {parts:,}"
        also = {"everyone": {"users_per_part": size, "part": number}}
        part = part_of(settings.model, inputs, config, rows, codebook, progress.named(name), also)
        lists = tables.read(part.path("places.parquet"), RANKING).rename({ROW_ID: USER_ID})
        for what, count in _faults(lists, codebook, full).items():
            bad[what] += count
        file = f"lists/part-{number:05}.parquet"
        columns = [pl.lit(value).alias(column) for column, value in context.items()]
        tables.write(lists.with_columns(columns), out_dir / file, EveryonesLists)
        ends = {"first_user": rows[USER_ID][0], "last_user": rows[USER_ID][-1]}
        counts = {"users": lists[USER_ID].n_unique(), "rows": lists.height}
        written.append({"part": number, "file": file, **ends, **counts})
        seconds += part.manifest["seconds"]
        done = min(total, (number + 1) * size)
        left = _time(seconds / done * (total - done))
        progress.say(f"{name}: {done:,} of {total:,} users, {done / max(seconds, 1e-3):,.0f} lists/s, {left} left")
    table = tables.typed(written, ScoredParts)
    tables.write(table, out_dir / "recommendations_all.parquet", ScoredParts)
    lists_made = int(table["users"].sum())
    return Report(
        metrics={"users": lists_made, "parts": parts, "lists_per_second": round(total / max(seconds, 1e-3), 2)},
        checks=(
            Check("everyone", lists_made == total, f"{lists_made:,} lists for {total:,} users"),
            Check(
                "full_lists",
                not any(bad.values()),
                f"{bad['short']:,} lists short of {full} SIDs, {bad['repeats']:,} with an item twice, "
                f"{bad['unreal']:,} places of no real item",
            ),
        ),
    )


def _over_live(inputs: Inputs, model: str, codebook: pl.DataFrame, progress: Progress) -> tuple[Inputs, pl.DataFrame]:
    """The inputs with the checkpoint that is live, and what of the codebook it can list."""
    from sidr_core.models import checkpoint
    from sidr_core.recommending.fresh import with_catalogue

    stage = f"{model}_checkpoint"
    if inputs.live is None or stage not in inputs.live:
        raise InputError(
            f"no {stage} is live",
            expected=f"something live that has a {stage}",
            found=str(inputs.alive or "nothing"),
            fix="promote a candidate, or set recommendations_all.checkpoint: snapshot",
        )
    fresh = with_catalogue(checkpoint.load(inputs.live[stage].folder(), "cpu"), codebook)
    progress.say(f"{inputs.alive}: {fresh}")
    return inputs.over_live([stage]), fresh.codebook


def histories(interactions: pl.DataFrame, max_history: int) -> pl.DataFrame:
    """The last items of every user, oldest first, by user id: rows that can be decoded, without a target.

    Args:
        interactions: the contract `Interactions`.
        max_history: items at most.
    """
    ordered = interactions.sort(USER_ID, POSITION)
    users = ordered.group_by(USER_ID, maintain_order=True).agg(pl.col(ITEM_ID).tail(max_history).alias(HISTORY))
    return users.with_columns(pl.col(USER_ID).alias(ROW_ID), pl.lit(None, pl.Int64).alias(TARGET_TIME))


def _faults(lists: pl.DataFrame, codebook: pl.DataFrame, full: int) -> dict[str, int]:
    """How many lists are short or repeat an item, and how many places hold no real item."""
    each = lists.group_by(USER_ID).agg(pl.col(SID).n_unique() < full, pl.col(ITEM_ID).n_unique() < pl.len())
    unreal = lists.join(codebook.select(ITEM_ID, SID), on=[ITEM_ID, SID], how="anti").height
    return {"short": int(each[SID].sum()), "repeats": int(each[ITEM_ID].sum()), "unreal": unreal}


def _time(seconds: float) -> str:
    """Seconds in words.

    >>> _time(40), _time(600), _time(7200)
    ('40 s', '10 min', '2.0 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
