"""Damaged outputs, refs, caches and resume points: noticed, named, and made good by a run.

Every file of every output of the tiny profile is damaged in each way, one at a time, and read: through the store,
and by the commands that open it. Then one damage of each kind per stage, chosen at random, is left for a run of the
whole graph: it has to build that stage alone, to the digest that it had. In the same way what lies outside of
outputs: refs, the codebook of the snapshot before, parts, vectors, the catalog, the ledger, resume points.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import damage_outside
from harm import FILE, FOREIGN, MANIFESTS, REFS, Table, delete, elsewhere, empty, flip, kept_aside, see, text, truncate
from runs import litter
from tiny import DATASET, EARLIER, SNAPSHOT, Pipeline, at_home, chosen

from sidr_core.pipeline.stage import Stage
from sidr_core.pipeline.store import MANIFEST, Artifact, Store

#: Reads a clock, so its bytes, and what is made of them, differ each time.
_CLOCK = {"evaluation": ["evaluation", "leaderboard"]}


# -- outputs ---------------------------------------------------------------------------------


def commands(store: Store, stage: str, artifact: Artifact) -> dict[str, Callable[[], object]]:
    """File of an output -> the command that opens it."""
    from sidr_core.cli import sql as cli_sql
    from sidr_core.cli import status as cli_status
    from sidr_core.cli.recommend import recommend as cli_recommend
    from sidr_core.tables import files as tables

    found: dict[str, Callable[[], object]] = {}
    for name in artifact.files:
        if name.endswith(".parquet") and "/" not in name:
            stem = name.removesuffix(".parquet")
            view = stage if stem == stage else f"{stage}_{stem}"
            found[name] = lambda view=view: cli_sql.sql(f"select count(*) from {DATASET}.{view}", "csv")
    if stage == "evaluation":
        found["evaluation.parquet"] = lambda: cli_status.show(DATASET, SNAPSHOT)
    if stage == "grpo_checkpoint":
        item = tables.read(store.require(DATASET, SNAPSHOT, "interactions").path("items.parquet"))["item_id"][0]
        recommend = lambda: cli_recommend(DATASET, SNAPSHOT, None, item, "direct", 3)  # noqa: E731
        found |= dict.fromkeys(artifact.files, recommend)
    return found


def look_at(pipeline: Pipeline, stage: Stage, table: Table, rng: random.Random) -> None:
    """Damage every file of an output in every way; read; put it back."""
    store = pipeline.store
    artifact = store.require(DATASET, SNAPSHOT, stage.name)
    asked = commands(store, stage.name, artifact)
    for name in artifact.files:
        for damage in FILE:
            path, detail = artifact.folder / name, f"{stage.name}/{name}"
            if damage in (flip, truncate) and not path.stat().st_size:
                continue
            if damage is empty and not path.stat().st_size:
                continue
            with kept_aside(path):
                damage(path, rng)
                kind = f"file: {damage.__name__}"
                read = store.require(DATASET, SNAPSHOT, stage.name).path
                see(table, kind, name, detail, partial(read, name))
                if store.sound(stage.name, artifact.fingerprint) is not None:
                    table.broken.append(f"{kind}, {detail}: a run would reuse it")
                if name in asked and damage in (flip, delete, elsewhere):
                    see(table, f"{kind}, by `sidr`", name, detail, asked[name])
    for damage in FOREIGN:
        with kept_aside(artifact.folder):
            damage(artifact.folder, rng)
            kind = f"folder: {damage.__name__}"
            see(table, kind, "foreign", stage.name, store.require(DATASET, SNAPSHOT, stage.name).verified_folder)


def look_at_records(pipeline: Pipeline, stage: Stage, table: Table, rng: random.Random) -> None:
    """The same for its manifest and its ref; the stage below, `sidr status` and `sidr sql` read them too."""
    from sidr_core.cli import sql as cli_sql
    from sidr_core.cli import status as cli_status

    store = pipeline.store
    artifact = store.require(DATASET, SNAPSHOT, stage.name)
    ref = store.root / "refs" / DATASET / SNAPSHOT / f"{stage.name}.json"
    for path, damages, kind in ((artifact.folder / MANIFEST, MANIFESTS, "manifest"), (ref, REFS, "ref")):
        for what, damage in damages.items():
            with kept_aside(path):
                damage(path, rng)
                named = MANIFEST if "unknown" in what else path.name
                read = lambda: store.require(DATASET, SNAPSHOT, stage.name)  # noqa: E731
                see(table, kind, named, f"{stage.name}, {what}", read)
        with kept_aside(path):
            text("[]")(path, rng)
            states = {state.stage: state for state in cli_status.states(pipeline.profile, store, DATASET)}
            table.counts[f"{kind}, by `sidr`"]["cases"] += 1
            why = states[stage.name].why
            table.count(f"{kind}, by `sidr`", "detected", states[stage.name].state != "current", stage.name)
            table.count(f"{kind}, by `sidr`", "named", path.name in why, f"{stage.name} ({why})")
            if stage.name in stage.tables:
                query = f"select count(*) from {DATASET}.{stage.name}"
                see(table, f"{kind}, by `sidr`", path.name, stage.name, partial(cli_sql.sql, query, "csv"))


def leave_to_a_run(
    pipeline: Pipeline, stages: tuple[Stage, ...], stage: Stage, table: Table, rng: random.Random
) -> None:
    """Damage an output in one way of each kind, run the whole graph each time, and compare."""
    store = pipeline.store
    for kind in ("file", "folder", "manifest", "ref"):
        before, artifact = pipeline.digests(stages), store.require(DATASET, SNAPSHOT, stage.name)
        path, name = artifact.folder, ""
        if kind == "file":
            path = artifact.folder / rng.choice([n for n in artifact.files if (artifact.folder / n).stat().st_size])
            damage = rng.choice(FILE)
        elif kind == "folder":
            damage = rng.choice(FOREIGN)
        elif kind == "manifest":
            path, (name, damage) = artifact.folder / MANIFEST, rng.choice([*MANIFESTS.items()])
        else:
            path = store.root / "refs" / DATASET / SNAPSHOT / f"{stage.name}.json"
            name, damage = rng.choice([*REFS.items()])
        damage(path, rng)
        detail = f"{stage.name}/{path.name}, {name or damage.__name__}"
        table.counts[kind]["left to a run"] += 1
        try:
            built = pipeline.rebuilt(stages)
        except Exception as error:  # the finding itself
            table.broken.append(f"{kind}, {detail}: the run ended with {type(error).__name__}: {error}")
            return
        expected = [] if kind == "ref" else [n for n in _CLOCK.get(stage.name, [stage.name]) if n in before]
        after = pipeline.digests(stages)
        alike = all(after[n] == before[n] for n in before if n not in _CLOCK["evaluation"])
        table.count(kind, "rebuilt alike", alike and set(expected) <= set(built), f"{detail}: built {built}")
        others = set(built) - set(expected)
        table.counts[kind]["others rebuilt"] += len(others)
        if others:
            table.broken.append(f"{kind}, {detail}: {sorted(others)} were built too")


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int:
    """Damage the outputs of all stages (or of `only`), `count` rebuilds of each kind; returns the broken promises."""
    rng, table = random.Random(seed), Table()
    stages = chosen(only)
    with tempfile.TemporaryDirectory(prefix="sidr-faults-") as name, at_home(Path(name) / "home") as store:
        pipeline = Pipeline(store)
        for snapshot in (EARLIER, SNAPSHOT):
            pipeline.rebuilt(stages, snapshot)
        for stage in stages:
            if not only or stage.name in only:
                look_at(pipeline, stage, table, rng)
                look_at_records(pipeline, stage, table, rng)
                for _ in range(count):
                    leave_to_a_run(pipeline, stages, stage, table, rng)
        damage_outside.suite(pipeline, stages, table, rng)
        table.broken += [f"left behind: {path}" for path in litter(store.root.parent)]
    table.show()
    for line in table.broken[:40]:
        print(f"- {line}")
    return len(table.broken)
