"""The state of each stage (current, stale, not published) and how long it took to build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sidr_core.errors import SidrError, StoreError
from sidr_core.pipeline.graph import STAGES, stages_of
from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.run import check_failure, check_warnings, plan
from sidr_core.pipeline.stage import Stage
from sidr_core.pipeline.store import Artifact, Store

CURRENT, STALE, ABSENT = "current", "stale", "not published"
_NEEDS = "needs "


@dataclass(frozen=True)
class State:
    """One stage of one snapshot.

    Args:
        why: what makes it stale or prevents it from being built.
        artifact: the published output, if any.
        refresh_seconds: how long it took to build the last time, here or for the nearest snapshot or dataset;
            0 if it is current, None if it was never built.
        warnings: what its output failed of the checks that stop nothing, and what to do.
    """

    dataset: str
    snapshot: str
    stage: str
    state: str
    why: str
    artifact: Artifact | None
    refresh_seconds: float | None
    warnings: tuple[str, ...] = ()

    @property
    def untouched(self) -> bool:
        """Whether nothing of it was ever made, also nothing that failed."""
        return self.artifact is None and (not self.why or self.why.startswith(_NEEDS))


def newest_published(profile: Profile, store: Store, dataset: str, stage: str, snapshot: str | None) -> str:
    """The newest snapshot for which a stage is published, or `snapshot` if it is given.

    Raises:
        ProfileError: unknown dataset or snapshot.
        NotMaterialized: the stage is not published.
        StoreError: its newest output is damaged.
    """
    snapshots = profile.dataset(dataset).snapshots
    if snapshot is not None:
        snapshots.window(snapshot)
    candidates = [snapshot] if snapshot is not None else snapshots.keys()[::-1]
    for key in candidates:
        if store.find(dataset, key, stage) is not None:
            return key
    store.require(dataset, candidates[0], stage)
    raise AssertionError("unreachable: require raises")


def states(profile: Profile, store: Store, dataset: str) -> Iterator[State]:
    """Every stage of the newest snapshot and of all others that have an output."""
    published = {snapshot for name, snapshot, _ in store.refs() if name == dataset}
    known = profile.dataset(dataset).snapshots.keys()
    timings = Timings(store)
    for snapshot in (key for key in known if key in published or key == known[-1]):
        unsettled: list[str] = []
        for stage in stages_of(profile.dataset(dataset)):
            state, why, artifact = _state(profile, store, dataset, snapshot, stage, unsettled)
            if state != CURRENT:
                unsettled.append(stage.name)
            seconds = 0.0 if state == CURRENT else timings.last(dataset, snapshot, stage.name)
            warnings = tuple(check_warnings(stage, artifact)) if artifact else ()
            yield State(dataset, snapshot, stage.name, state, why, artifact, seconds, warnings)


def staleness(profile: Profile, store: Store, dataset: str, snapshot: str, stage: str) -> str | None:
    """Why a published output is not what the profile would make now: of other settings, data or code, here or above.

    Returns:
        None where it is.
    """
    above, unsettled = {stage}, []
    for one in reversed(STAGES):
        if one.name in above:
            above |= set(one.reads(profile.dataset(dataset)))
    for one in (one for one in STAGES if one.name in above):
        state, why, _ = _state(profile, store, dataset, snapshot, one, unsettled)
        if state != CURRENT:
            return f"{one.name} is {state}{f' ({why})' if why else ''}"
    return None


def _state(
    profile: Profile, store: Store, dataset: str, snapshot: str, stage: Stage, unsettled: list[str]
) -> tuple[str, str, Artifact | None]:
    try:
        artifact = store.find(dataset, snapshot, stage.name)
    except StoreError as error:
        return STALE, error.what, None
    stale_inputs = [name for name in stage.reads(profile.dataset(dataset)) if name in unsettled]
    if artifact is None and (stale_inputs or stage.sources):  # no plan: that could download the source files
        return ABSENT, f"{_NEEDS}{', '.join(stale_inputs)}" if stale_inputs else "", None
    try:
        planned = plan(profile, dataset, snapshot, stage, store)
    except SidrError as error:
        return (STALE if artifact else ABSENT), error.what, artifact
    # What the output of these inputs and settings was not published for; "" if it was, or was never built.
    built = store.open(stage.name, planned.fingerprint)
    failure = check_failure(dataset, snapshot, stage, built) if built else None
    refused = f"{failure.what}: {failure.found}; fix: {failure.fix}" if failure else ""
    if artifact is None:
        return ABSENT, refused, None
    changes = differences(artifact.manifest, planned.key, stage.code_version)
    if not changes and stale_inputs:
        changes = [f"{name} is stale" for name in stale_inputs]
    return (STALE if changes else CURRENT), "; ".join([*changes, *filter(None, [refused])]), artifact


def differences(manifest: Mapping[str, Any], key: Mapping[str, Any], code_version: str) -> list[str]:
    """How a published output differs from the one that its stage would make now, in words."""
    changes = []
    if manifest["code_version"] != code_version:
        changes.append(f"code version {manifest['code_version']} -> {code_version}")
    old, new = manifest["key"], dict(key)
    for name, before, after in _changed(old["config"], new["config"]):
        changes.append(f"{name}: {before} -> {after}")
    for part, word in (("inputs", "input"), ("sources", "source file"), ("earlier", "earlier output")):
        changes += [f"{word} {name} changed" for name, _, _ in _changed(old.get(part, {}), new.get(part, {}))]
    for part, words in (("previous", "the previous snapshot changed"), ("live", "something else is live")):
        changes += [words] if old.get(part) != new.get(part) else []
    return changes


def _changed(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of values that differ in two nested mappings; a missing one counts as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _changed(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new


class Timings:
    """How long stages took to build, from the manifests of all current outputs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _refs(self) -> list[tuple[str, str, str]]:
        return self._store.refs()[::-1]

    def last(self, dataset: str, snapshot: str, stage: str) -> float | None:
        """Seconds that it took for this snapshot, else for the dataset's newest, else for another dataset's newest."""
        refs = [ref for ref in self._refs if ref[2] == stage]
        for ref in sorted(refs, key=lambda ref: (ref[0] != dataset, ref[1] != snapshot)):
            if (artifact := self._store.current(*ref)) is not None:
                return artifact.manifest["seconds"]
        return None
