"""Runs one stage of one dataset's snapshot: the entry that every launcher shares.

As a module, `python -m sidr_core.run <spec.json>` with
`{"profile": …, "dataset": …, "snapshot": …, "stage": …, "home": …}`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sidr_core import catalog
from sidr_core.errors import SidrError
from sidr_core.graph import stage_named
from sidr_core.profile import Profile, StageConfig, home, load_profile
from sidr_core.stage import Check, Inputs, Progress, Report, Stage, StageInput, load_object
from sidr_core.store import Artifact, Store, fingerprint


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the published output and whether it was there already."""

    artifact: Artifact
    reused: bool
    started: str  # "warm from 2018-09", or why it started cold; "" for stages that never start warm


@dataclass(frozen=True)
class Plan:
    """What a stage would read now; `key` with the stage's code version determines its fingerprint."""

    inputs: Inputs
    config: StageConfig
    key: dict[str, Any]
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
    synthetic = config.source.kind == "sample" or any(a.synthetic for a in upstream.values())
    inputs = Inputs(stages, store, previous, synthetic)
    key: dict[str, Any] = {"config": scoped.key(), "inputs": {name: item.digest for name, item in stages.items()}}
    if previous is not None:
        key["previous"] = previous.digest
    if stage.tables:
        key["tables"] = dict(stage.tables)  # so that nothing is reused that was not checked as it would be now
    if stage.sources:
        named = stage.sections[0]
        from sidr_core.reviews.files import digest

        section = getattr(config, named)
        files = load_object(stage.sources)(section)
        key["sources"] = {name: digest(path) for name, path in files.items()}
        # Where a file lies does not matter, its content does.
        key["config"][named] = _without_paths(section)
    lineage = {name: item.fingerprint for name, item in stages.items()}
    return Plan(inputs, scoped, key, started, lineage)


def run_stage(profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store, progress: Progress) -> Outcome:
    """Reuse or build the output of a stage, make it current, and refresh the catalog.

    An output that failed a blocking check is kept for a look but not made current: the one before stays.

    Raises:
        NotMaterialized: an upstream output is missing.
        SidrError: wrong input; nothing is published.
    """
    planned = plan(profile, dataset, snapshot, stage, store)
    planned.inputs.resume = store.resume_folder(stage.name, fingerprint(stage.name, stage.code_version, planned.key))

    def build(out_dir: Path) -> Report:
        report = stage.load()(planned.inputs, planned.config, out_dir, progress)  # type: ignore[arg-type]
        if stage.tables:
            report = replace(report, checks=(_schema_check(stage, out_dir), *report.checks))
        missing = {spec.name for spec in stage.checks} - {check.name for check in report.checks}
        assert not missing, f"{stage.name} did not report on {missing}"
        return report

    artifact, reused = store.obtain(
        stage.name,
        stage.code_version,
        planned.key,
        build,
        synthetic=planned.inputs.synthetic,
        say=progress.say,
        extra={"lineage": planned.lineage, "started": planned.started},
        finish=lambda: {"parts": planned.inputs.parts},
    )
    if not blocked_by(stage, artifact):
        store.set_ref(dataset, snapshot, stage.name, artifact.fingerprint)
        catalog.refresh(store, profile)
    return Outcome(artifact, reused, planned.started)


def _schema_check(stage: Stage, folder: Path) -> Check:
    from sidr_core import schema_check  # pandera takes half a second

    return schema_check.check(stage, folder)


def blocked_by(stage: Stage, artifact: Artifact) -> list[str]:
    """Names of the blocking checks that an output failed. Such an output never becomes current."""
    blocking = {spec.name for spec in stage.checks if spec.blocking}
    return [check["name"] for check in artifact.manifest["checks"] if check["name"] in blocking and not check["passed"]]


def _previous(
    profile: Profile, dataset: str, snapshot: str, stage: Stage, store: Store
) -> tuple[StageInput | None, str]:
    if not stage.warm:
        return None, ""
    earlier = profile.dataset(dataset).snapshots.previous(snapshot)
    if earlier is None:
        return None, "cold: this is the first snapshot"
    artifact = store.current(dataset, earlier, stage.name)
    if artifact is None:
        return None, f"cold: {earlier} was never materialized"
    return StageInput(artifact, ("*",), stage.name), f"warm from {earlier}"


def _without_paths(section: BaseModel) -> dict[str, Any]:
    """A section as JSON, without the fields that it or a part of it lists as `PATHS`."""
    dumped = section.model_dump(mode="json", exclude=set(getattr(section, "PATHS", ())))
    parts = {name: getattr(section, name) for name in dumped}
    return dumped | {name: _without_paths(part) for name, part in parts.items() if isinstance(part, BaseModel)}


def main(argv: list[str]) -> int:
    """Run the stage that the spec file names; print its manifest path."""
    spec = json.loads(Path(argv[0]).read_text())
    profile = load_profile(spec.get("profile"))
    store = Store(Path(spec["home"] if "home" in spec else home()) / "store")
    try:
        outcome = run_stage(profile, spec["dataset"], spec["snapshot"], stage_named(spec["stage"]), store, Progress())
    except SidrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"folder": str(outcome.artifact.folder), "reused": outcome.reused}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
