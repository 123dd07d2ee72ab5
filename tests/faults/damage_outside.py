"""What lies outside of a snapshot's outputs, damaged: each is noticed and made anew, or one message says what to do."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import harm
from tiny import DATASET, EARLIER, SNAPSHOT, Pipeline

from sidr_core.pipeline import catalog
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.run import plan
from sidr_core.pipeline.stage import Stage
from sidr_core.pipeline.store import MANIFEST, Artifact, fingerprint

if TYPE_CHECKING:
    from harm import Table

#: Pieces of work that snapshots share -> the stage that is made of them.
PARTS = {
    "sample_source": "raw_reviews",
    "parsed_reviews": "raw_reviews",
    "parsed_items": "raw_items",
    "decoded": "recommendations",
}
_HARM = (harm.flip, harm.truncate, harm.delete, harm.empty, harm.binary)


def suite(pipeline: Pipeline, stages: tuple[Stage, ...], table: Table, rng: random.Random) -> None:
    """Damage all that the stages leave beside their outputs; count into `table`."""
    names = {stage.name for stage in stages}
    _catalog(pipeline, stages, table, rng)
    _ledger(pipeline, table, rng)
    _parts(pipeline, names, table, rng)
    if "item_embeddings" in names:
        _vectors(pipeline, table, rng)
    if "sid_codebook" in names:
        _codebook_before(pipeline, table, rng)
    if "sft_checkpoint" in names:
        _resume_points(pipeline, table, rng)


def _forget(pipeline: Pipeline, stage: str) -> str:
    """Delete a current output, so that a run builds it; returns its digest."""
    artifact = pipeline.store.require(DATASET, SNAPSHOT, stage)
    shutil.rmtree(artifact.folder)
    return artifact.digest


def _built_alike(pipeline: Pipeline, stage: str, digest: str, table: Table, kind: str, detail: str) -> None:
    """Build a stage whose output is gone; it has to be what it was."""
    table.counts[kind]["left to a run"] += 1
    try:
        outcome = pipeline.run(stage_named(stage))
    except Exception as error:  # the finding itself
        table.broken.append(f"{kind}, {detail}: the run ended with {type(error).__name__}: {error}")
        return
    table.count(kind, "rebuilt alike", not outcome.reused and outcome.artifact.digest == digest, detail)


def _parts(pipeline: Pipeline, names: set[str], table: Table, rng: random.Random) -> None:
    kind = "part of a stage's work"
    for part, stage in PARTS.items():
        used = [fp for name, fp in _parts_of(pipeline, stage) if name == part] if stage in names else []
        for fp in used[:1]:
            artifact = pipeline.store.open(part, fp)
            assert artifact is not None
            for way in (*_HARM, harm.elsewhere):
                path = artifact.folder / rng.choice([n for n in artifact.files if (artifact.folder / n).stat().st_size])
                way(path, rng)
                detail = f"{part}/{path.name}, {way.__name__}"
                read = Artifact(artifact.folder, artifact.manifest).verified_folder
                harm.see(table, kind, path.name, detail, read)
                _built_alike(pipeline, stage, _forget(pipeline, stage), table, kind, detail)


def _parts_of(pipeline: Pipeline, stage: str) -> list[tuple[str, str]]:
    """Name and fingerprint of the parts that a stage's output was made of."""
    return [(name, fp) for name, fp in pipeline.store.require(DATASET, SNAPSHOT, stage).manifest["parts"]]


def _vectors(pipeline: Pipeline, table: Table, rng: random.Random) -> None:
    folder = pipeline.store.root.parent / "cache" / "vectors"
    for way in _HARM:
        path = rng.choice(sorted(folder.rglob("*.npy")))
        digest = _forget(pipeline, "item_embeddings")
        way(path, rng)
        pipeline.said.clear()
        _built_alike(pipeline, "item_embeddings", digest, table, "vector cache", way.__name__)
        table.counts["vector cache"]["cases"] += 1
        told = way is harm.delete or any(path.name in line for line in pipeline.said)
        for what in ("detected", "named"):  # a segment that is gone is no damage: the cache may be deleted
            table.count("vector cache", what, told, way.__name__)


def _codebook_before(pipeline: Pipeline, table: Table, rng: random.Random) -> None:
    """A warm start from a damaged codebook is refused: a cold one would give every item another SID."""
    store, stage, kind = pipeline.store, stage_named("sid_codebook"), "codebook of the snapshot before"
    for where in ("file", "manifest", "ref"):
        for way in _HARM:
            if (where, way) == ("ref", harm.delete):
                continue  # without a ref it was never materialized
            before = store.require(DATASET, EARLIER, stage.name)
            path = before.folder / ("sid_codebook.parquet" if where == "file" else MANIFEST)
            if where == "ref":
                path = store.root / "refs" / DATASET / EARLIER / f"{stage.name}.json"
            digest = _forget(pipeline, stage.name)
            way(path, rng)
            detail = f"{where}, {way.__name__}"
            harm.see(table, kind, path.name, detail, lambda: pipeline.run(stage))
            pipeline.run(stage, EARLIER)
            _built_alike(pipeline, stage.name, digest, table, kind, detail)


def _catalog(pipeline: Pipeline, stages: tuple[Stage, ...], table: Table, rng: random.Random) -> None:
    """`sidr sql` makes it anew and answers, or says what to do; the next run, though it reuses all, makes it anew."""
    from sidr_core.cli import sql as cli_sql

    path, kind = catalog.path(pipeline.store), "catalog"
    answers: list[str] = []

    def ask() -> None:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            cli_sql.sql(f"select count(*) from {DATASET}.{stages[0].name}", "csv")
        answers.append(out.getvalue())

    ask()
    for way in _HARM:
        way(path, rng)
        told = harm.told_by(ask)
        right = told == "" and answers[-1] == answers[0]
        table.counts[kind]["cases"] += 1
        table.count(kind, "detected", right or (told != "" and not told.startswith("a raw")), way.__name__)
        table.count(kind, "named", right or "catalog" in told, f"{way.__name__} ({told!r})")
        if path.is_file():
            way(path, rng)
        table.counts[kind]["left to a run"] += 1
        pipeline.run(stages[0])
        whole = catalog.is_current(pipeline.store)
        table.count(kind, "rebuilt alike", whole and harm.told_by(ask) == "", way.__name__)


def _ledger(pipeline: Pipeline, table: Table, rng: random.Random) -> None:
    """The ledger is never made anew: it holds what was paid for. The message says how to save it."""
    from sidr_core.remote.ledger import Ledger

    path = pipeline.store.root.parent / "damaged-ledger.sqlite"
    for way in (harm.halve, harm.binary):
        path.unlink(missing_ok=True)
        Ledger(path).close()
        way(path, rng)
        harm.see(table, "ledger", path.name, way.__name__, lambda: Ledger(path).verify())
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()


# -- resume points ---------------------------------------------------------------------------


class Stopped(BaseException):
    """Stands for the end of the process."""


def interrupted(pipeline: Pipeline, stage: Stage) -> Path:
    """Train until there is a resume point, and stop; returns the folder of the point."""
    key = plan(pipeline.profile, DATASET, SNAPSHOT, stage, pipeline.store).key
    resume = pipeline.store.resume_folder(stage.name, fingerprint(stage.name, stage.code_version, key))

    class Watched(list):
        def append(self, line: str) -> None:
            if list(resume.glob("checkpoint-*/COMPLETE")):
                raise Stopped

    pipeline.said = Watched()
    with contextlib.suppress(Stopped):
        pipeline.run(stage)
    pipeline.said = []
    return next(resume.glob("checkpoint-*"))


def _resume_points(whole: Pipeline, table: Table, rng: random.Random) -> None:
    """A training whose resume point is damaged begins anew, or says which folder to remove."""
    pipeline, stage, kind = Pipeline(whole.store), stage_named("sft_checkpoint"), "resume point"
    games = dict(pipeline.profile.raw["datasets"][DATASET])
    games["sft"] = {**games["sft"], "save_every": 5}
    pipeline.profile = parse_profile("tiny", {"datasets": {DATASET: games}})
    pipeline.run(stage)
    digest = _forget(pipeline, stage.name)
    first = _again(pipeline, stage)
    inside = sorted(f"{first.name}/{path.name}" for path in first.iterdir())
    for name in (*inside, "owner.json", "best-*.safetensors"):
        point = _again(pipeline, stage)
        paths = list(point.parent.glob(name.replace(first.name, point.name)))
        assert paths, f"no {name} beside the resume point"
        for path in paths:
            (harm.truncate if path.name == "COMPLETE" else harm.flip)(path, rng)
            table.counts[kind]["cases"] += 1
            told = harm.told_by(lambda: pipeline.run(stage)) or "\n".join(pipeline.said)
            noticed = "is damaged" in told or "another training" in told
            table.count(kind, "detected", noticed and not told.startswith("a raw"), f"{path.name} ({told[:200]})")
            table.count(kind, "named", path.name in told or path.name == "owner.json", f"{path.name} ({told[:200]})")
            if pipeline.store.current(DATASET, SNAPSHOT, stage.name) is None:
                shutil.rmtree(point.parent)  # what the message says to do
                pipeline.run(stage)
            table.counts[kind]["left to a run"] += 1
            table.count(kind, "rebuilt alike", _forget(pipeline, stage.name) == digest, path.name)
    whole.run(stage)


def _again(pipeline: Pipeline, stage: Stage) -> Path:
    """A fresh resume point."""
    for left in (pipeline.store.root / stage.name).glob(".resume-*"):
        shutil.rmtree(left)
    return interrupted(pipeline, stage)
