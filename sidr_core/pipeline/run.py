"""Runs one stage of one dataset's snapshot: the entry point that every launcher shares.

As a module, `python -m sidr_core.pipeline.run <spec.json>` with
`{"profile": …, "dataset": …, "snapshot": …, "stage": …, "home": …}`; the profile is a name, a path, or
`{"name": …, "raw": …}`. Started by Dagster Pipes, it reports there
(`sidr_core/pipeline/launch.py`).
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sidr_core.errors import CheckFailed, SidrError, StoreError
from sidr_core.pipeline import catalog, disk, launch, live
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.place import STORE_VARIABLE, open_store
from sidr_core.pipeline.profile import Profile, StageConfig, load_profile, parse_profile
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, Stage, StageInput, load_object
from sidr_core.pipeline.store import Artifact, Store, fingerprint
from sidr_core.settings.sources import single_sources

_TAKEN = (
    "{name} was current from profile {other} and is no more: datasets of one name share their place in a home; rename "
    "one, or give each profile its own SIDR_HOME"
)


@dataclass(frozen=True)
class Outcome:
    """The result of a run: the published output, and whether it existed before."""

    artifact: Artifact
    reused: bool
    started: str  # "warm from 2018-09", or why it started cold; "" for stages that never start warm


@dataclass(frozen=True)
class Plan:
    """What a stage would read now; `key` and the stage's code version determine the fingerprint of its output."""

    inputs: Inputs
    config: StageConfig
    key: dict[str, Any]
    fingerprint: str
    started: str
    lineage: dict[str, str]


def plan(profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store) -> Plan:
    """Resolve a stage's inputs and settings from the profile and the current outputs upstream.

    Raises:
        NotMaterialized: an upstream output is missing.
        SidrError: the profile, the snapshot or a source file is wrong.
    """
    config = profile.dataset(dataset)
    window = config.snapshots.window(snapshot)
    scoped = StageConfig(config, stage.sections, dataset, window)
    reads = stage.reads(config)
    upstream = {name: store.require(dataset, snapshot, name) for name in reads}
    stages = {name: StageInput(upstream[name], files, stage.name) for name, files in reads.items()}
    previous, started = _previous(profile, dataset, snapshot, stage, store)
    base, earlier = _earlier(profile, dataset, snapshot, stage, store)
    generated = any(source.kind == "sample" for source in single_sources(config.source))
    synthetic = generated or any(a.synthetic for a in upstream.values())
    inputs = Inputs(stages, store, previous, synthetic)
    if base is not None:
        inputs.see_earlier(base, earlier)
    of_live = stage.reads_live(config)
    alive = live.read(store.live_at, dataset).live if of_live else None
    if alive is not None:
        inputs.see_live(alive, _of_live(alive, of_live, stage.name, store))
    key: dict[str, Any] = {"config": scoped.key(), "inputs": {name: item.digest for name, item in stages.items()}}
    if previous is not None:
        key["previous"] = previous.digest
    if earlier:
        key["earlier"] = {f"{base}/{name}": item.digest for name, item in earlier.items()}
    if alive is not None and inputs.live is not None:
        digests = {name: item.digest for name, item in inputs.live.items()}
        key["live"] = {"snapshot": alive.snapshot, "model": alive.model, **digests}
    if stage.tables:
        key["tables"] = dict(stage.tables)  # an output that was checked against other contracts is not reused
    if stage.sources:
        from sidr_core.pipeline.digest import digest

        section_name = stage.sections[0]
        section = getattr(config, section_name)
        files = load_object(stage.sources)(section)
        key["sources"] = {name: digest(path) for name, path in files.items()}
        # The content of a source file counts, not its path.
        key["config"][section_name] = _without_paths(section)
    lineage = {name: item.fingerprint for name, item in stages.items()}
    lineage |= {f"{base}/{name}": item.fingerprint for name, item in earlier.items()}
    return Plan(inputs, scoped, key, fingerprint(stage.name, stage.code_version, key), started, lineage)


def run_stage(
    profile: Profile,
    dataset: str,
    snapshot: str,
    stage: Stage,
    store: Store,
    progress: Progress,
    starting: Callable[[str], object] | None = None,
) -> Outcome:
    """Reuse or build the output of a stage, make it current, and refresh the catalog.

    An output that fails a blocking check is kept for inspection but not made current: the one before it stays.

    Args:
        starting: called with the fingerprint just before the stage's function; not called if the output is reused.

    Raises:
        NotMaterialized: an upstream output is missing.
        StoreError: the disk is full, the home cannot be written, or memory ran out; earlier outputs are unchanged.
        SidrError: wrong input; nothing is published.
    """
    with disk.explained(store.root):
        planned = plan(profile, dataset, snapshot, stage, store)
    fp = planned.fingerprint
    planned.inputs.resume = store.resume_folder(stage.name, fp)

    def build(out_dir: Path) -> Report:
        if starting is not None:
            starting(fp)
        report = stage.load()(planned.inputs, planned.config, out_dir, progress)  # type: ignore[arg-type]
        if stage.tables:
            from sidr_core.pipeline import schema_check  # pandera takes half a second to import

            report = replace(report, checks=(schema_check.check(stage, out_dir), *report.checks))
        missing = {spec.name for spec in stage.checks} - {check.name for check in report.checks}
        assert not missing, f"{stage.name} did not report on {missing}"
        return report

    with disk.explained(store.root):
        artifact, reused = store.obtain(
            stage.name,
            stage.code_version,
            planned.key,
            build,
            synthetic=planned.inputs.synthetic,
            say=progress.say,
            extra={"lineage": planned.lineage, "started": planned.started, "profile": profile.name},
            finish=lambda: {"parts": planned.inputs.parts},
        )
        before = store.current(dataset, snapshot, stage.name)
        _make_current(dataset, snapshot, stage, store, artifact, reused)
    other = (
        before.manifest.get("profile")
        if before and store.ref(dataset, snapshot, stage.name) != before.fingerprint
        else None
    )
    if other not in (None, profile.name):
        progress.say(_TAKEN.format(name=f"{dataset}/{stage.name} of {snapshot}", other=other))
    return Outcome(artifact, reused, planned.started)


def reuse_stage(profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store) -> Outcome | None:
    """Like :func:`run_stage` if the output exists already, else None; used before a child process is started.

    Raises:
        NotMaterialized: an upstream output is missing.
        SidrError: the profile, the snapshot or a source file is wrong.
    """
    planned = plan(profile, dataset, snapshot, stage, store)
    artifact = store.sound(stage.name, planned.fingerprint)
    if artifact is None:
        return None
    with disk.explained(store.root):
        store.tidy(stage.name, artifact.fingerprint)
        _make_current(dataset, snapshot, stage, store, artifact, True)
    return Outcome(artifact, True, planned.started)


def _make_current(dataset: str, snapshot: str, stage: Stage, store: Store, artifact: Artifact, reused: bool) -> None:
    if check_failure(dataset, snapshot, stage, artifact) is None:
        if store.ref(dataset, snapshot, stage.name) != artifact.fingerprint:
            store.set_ref(dataset, snapshot, stage.name, artifact.fingerprint)
        if store.keeps_catalog:
            catalog.refresh(store, if_other=reused)


def _follower(profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store) -> None:
    """What every process but the first does: take part in the training and discard its output."""
    launch.meet(profile.dataset(dataset).launch.patience_minutes)
    leaders = launch.first_word()
    if leaders is None:
        return
    planned = plan(profile, dataset, snapshot, stage, store)
    if planned.fingerprint != leaders:
        raise SidrError(
            f"the processes of {dataset}/{stage.name} have different inputs or settings",
            expected=f"inputs and settings with the fingerprint {leaders}",
            found=planned.fingerprint,
            fix="materialize it again; do not change its inputs while it starts",
        )
    planned.inputs.resume = store.resume_folder(stage.name, planned.fingerprint)
    with tempfile.TemporaryDirectory(prefix="sidr-follower-") as folder:
        silent = Progress(lambda line: None)
        stage.load()(planned.inputs, planned.config, Path(folder), silent)  # type: ignore[arg-type]


def _leader(profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store, progress: Progress) -> Outcome:
    """What the first of several processes does: the same as a single one, and let the others know."""
    launch.meet(profile.dataset(dataset).launch.patience_minutes)
    word = launch.Word()
    try:
        return run_stage(profile, dataset, snapshot, stage, store, progress, word.give)
    finally:
        word.give(None)  # where it was not given: the output existed already, or its inputs are missing


def check_failure(dataset: str, snapshot: str, stage: Stage, artifact: Artifact) -> CheckFailed | None:
    """The error of an output that failed blocking checks, with their reasons; with one, it never becomes current."""
    details = {check["name"]: check["detail"] for check in artifact.manifest["checks"] if not check["passed"]}
    failed = [spec for spec in stage.checks if spec.blocking and spec.name in details]
    if not failed:
        return None
    return CheckFailed(
        f"{dataset}/{stage.name} of snapshot {snapshot} failed {', '.join(spec.name for spec in failed)}",
        expected=" ".join(spec.description for spec in failed),
        found="; ".join(details[spec.name] for spec in failed),
        fix="; ".join(dict.fromkeys(spec.fix for spec in failed)),
    )


def check_warnings(stage: Stage, artifact: Artifact) -> list[str]:
    """A line for each check that only warns and failed: what was found, expected, and what to do."""
    details = {check["name"]: check["detail"] for check in artifact.manifest["checks"] if not check["passed"]}
    return [
        f"check {spec.name} failed: {details[spec.name]}; expected: {spec.description} fix: {spec.fix}"
        for spec in stage.checks
        if not spec.blocking and spec.name in details
    ]


def _previous(
    profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store
) -> tuple[StageInput | None, str]:
    if not stage.warm:
        return None, ""
    before = profile.dataset(dataset).snapshots.before(snapshot)
    if not before:
        return None, "cold: this is the first snapshot"
    for earlier in before if stage.from_earlier else before[:1]:
        artifact = store.find(dataset, earlier, stage.name)
        if artifact is not None and artifact.hold():
            return StageInput(artifact, ("*",), stage.name), f"warm from {earlier}"
    return None, f"cold: {before[0]} was never materialized"


def _earlier(
    profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store
) -> tuple[str | None, dict[str, StageInput]]:
    """The newest earlier snapshot that has everything the stage declared of one, and its files; (None, {}) if none."""
    config = profile.dataset(dataset)
    reads = stage.reads_earlier(config)
    for earlier in config.snapshots.before(snapshot) if reads else ():
        outputs = {name: store.find(dataset, earlier, name) for name in reads}
        if all(artifact and artifact.hold() for artifact in outputs.values()):
            return earlier, {name: StageInput(a, reads[name], stage.name) for name, a in outputs.items() if a}
    return None, {}


def _of_live(
    alive: live.Live, reads: Mapping[str, tuple[str, ...]], reader: str, store: Store
) -> dict[str, StageInput]:
    """The files that a stage reads of what is live, as far as there is such an output."""
    found = {}
    for name, files in reads.items():
        if (fp := alive.outputs.get(name)) is None:
            continue
        artifact = store.held(name, fp)
        if artifact is None:
            raise StoreError(
                f"{alive.dataset}: {name} of what is live is not in the store",
                expected=f"the output {fp}",
                found="nothing, or a damaged manifest",
                fix=f"go back with `sidr rollback`, or delete {live.FOLDER}/{alive.dataset}.json in the store",
            )
        found[name] = StageInput(artifact, files, reader)
    return found


def _without_paths(section: BaseModel) -> dict[str, Any]:
    """A section as JSON, without the fields that it or one of its parts lists in `PATHS`."""
    dumped = section.model_dump(mode="json", exclude=set(getattr(section, "PATHS", ())))
    for name in dumped:
        part = getattr(section, name)
        if isinstance(part, BaseModel):
            dumped[name] = _without_paths(part)
        elif isinstance(part, dict):
            dumped[name] |= {key: _without_paths(value) for key, value in part.items() if isinstance(value, BaseModel)}
    return dumped


def main(argv: list[str], execute: Callable[[dict[str, Any], Any], dict[str, Any] | None] | None = None) -> int:
    """Run the stage that a spec names, that of a file or of the environment, and print its folder. A failure is
    reported to the launcher, if any.

    Args:
        execute: spec and Pipes session -> what the launcher wants to know; default: :func:`run_spec`.
    """
    spec = json.loads(Path(argv[0]).read_text() if argv else os.environ[launch.SPEC_VARIABLE])
    if "launcher" in spec:
        launch.leave_with(spec["launcher"])
    with _reporting() as report:
        try:
            answer = (execute or run_spec)(spec, report)
            if answer:
                if report:
                    report.report_custom_message(answer)
                print(json.dumps({name: answer[name] for name in ("folder", "reused")}))
            return 0
        except KeyboardInterrupt:
            return 130
        except SidrError as error:
            print(f"error: {error}", file=sys.stderr)
            failure = launch.Failure.of(error)
        except Exception as error:
            traceback.print_exc()
            failure = launch.Failure.of(error)
        if "failure" in spec:
            failure.write(Path(spec["failure"]))
        elif report:
            report.report_custom_message({launch.FAILURE: failure.text()})
        return 1


def run_spec(spec: dict[str, Any], report: Any) -> dict[str, Any] | None:
    """Run the stage of a spec. Returns what the launcher wants to know; None if this is not the first process."""
    if "home" in spec:
        os.environ["SIDR_HOME"] = spec["home"]  # where the ledger and the caches are
    if "store" in spec:
        os.environ[STORE_VARIABLE] = spec["store"]
    source = spec.get("profile")
    profile = parse_profile(source["name"], source["raw"]) if isinstance(source, dict) else load_profile(source)
    arguments = (profile, spec["dataset"], spec["snapshot"], stage_named(spec["stage"]), open_store(profile))
    if launch.rank() > 0:
        _follower(*arguments)
        return None
    if "fingerprint" in spec:
        _refuse_other_code(*arguments, spec["fingerprint"])
    progress = Progress(report.log.info if report else None)
    outcome = _leader(*arguments, progress) if launch.processes() > 1 else run_stage(*arguments, progress)
    artifact, reused = outcome.artifact, outcome.reused
    folder = str(artifact.folder)
    return {"fingerprint": artifact.fingerprint, "folder": folder, "reused": reused, "started": outcome.started}


def _refuse_other_code(
    profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store, expected: str
) -> None:
    here = planned_fingerprint(profile, dataset, snapshot, stage, store)
    if here != expected:
        raise SidrError(
            f"{dataset}/{stage.name} would be another output on {platform.node()}",
            expected=f"the fingerprint {expected}, as the launcher computes it",
            found=here,
            fix="install the launcher's version of sidr on every node, and give them the same store and source files",
        )


def planned_fingerprint(profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store) -> str:
    """The fingerprint of the output that a stage would have now. Raises as :func:`plan`."""
    return plan(profile, dataset, snapshot, stage, store).fingerprint


@contextmanager
def _reporting() -> Iterator[Any]:
    """The Dagster Pipes session of this process; None without Pipes, or if it is not the first of several."""
    if "DAGSTER_PIPES_CONTEXT" not in os.environ or launch.rank() > 0:
        yield None
        return
    from dagster_pipes import open_dagster_pipes  # does not import Dagster

    with open_dagster_pipes() as pipes:
        yield pipes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
