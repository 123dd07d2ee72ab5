"""Two sensors per dataset: one notices new source files, one follows changed data and code through the graph.

Both are off until switched on in the UI or with `dagster sensor start`; the second also by `operation.automation`.
Files are compared by path, size and time of change only; the run then compares contents, so a file that was merely
touched costs next to nothing. A URL is never asked: whether its content changed cannot be told without fetching it.
"""

import glob
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.stage import Stage
from sidr_core.settings import DatasetConfig, Snapshots
from sidr_core.settings.sources import single_sources

INTERVAL_SECONDS = 60
#: A file that changed this recently may still be being written.
SETTLED_SECONDS = 60


@dataclass(frozen=True)
class SourceFiles:
    """The local files that a source's patterns match now, as (path, bytes, nanoseconds of change)."""

    files: tuple[tuple[str, int, int], ...]

    @property
    def digest(self) -> str:
        """The sensor's cursor."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:32]

    @property
    def changed_at(self) -> float:
        """When the newest of them changed, unix seconds."""
        return max(nanoseconds for _, _, nanoseconds in self.files) / 1e9

    def __str__(self) -> str:
        path, size, _ = max(self.files, key=lambda file: file[2])
        when = datetime.fromtimestamp(self.changed_at, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        total = sum(size for _, size, _ in self.files)
        return f"{len(self.files)} files, {total:,} bytes; newest: {Path(path).name} ({size:,} bytes, {when} UTC)"


def source_files(config: DatasetConfig) -> SourceFiles:
    """Look at the files of a dataset's source, without opening any."""
    found: set[tuple[str, int, int]] = set()
    for pattern in local_patterns(config):
        for path in _matches(pattern):
            stat = path.stat()
            found.add((str(path.absolute()), stat.st_size, stat.st_mtime_ns))
    return SourceFiles(tuple(sorted(found)))


def local_patterns(config: DatasetConfig) -> list[str]:
    """Paths and globs that a source names, without URLs and checksums."""
    values = [getattr(source, name) for source in single_sources(config.source) for name in source.PATHS]
    patterns = [pattern for value in values for pattern in ((value,) if isinstance(value, str) else value or ())]
    return [pattern.partition("#sha256=")[0] for pattern in patterns if "://" not in pattern]


def _matches(pattern: str) -> Iterator[Path]:
    path = Path(pattern).expanduser()
    found = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
    for match in found:
        yield from (file for file in (match.rglob("*") if match.is_dir() else [match]) if file.is_file())


def snapshot_for(snapshots: Snapshots, changed_at: float) -> str:
    """The snapshot in whose window files changed: they hold nothing later. The newest one where that lies
    outside the profile's range, as with a download of old data.
    """
    keys = snapshots.keys()
    first = datetime.strptime(keys[0], "%Y-%m").replace(tzinfo=UTC).timestamp()
    if changed_at < first:
        return keys[-1]
    return next((key for key in keys if changed_at < snapshots.window(key).cutoff), keys[-1])


def new_files_sensor(profile: Profile, dataset: str) -> dg.SensorDefinition | None:
    """The sensor of a dataset, or None where its source names no local file."""
    config = profile.dataset(dataset)
    if not local_patterns(config):
        return None

    @dg.sensor(
        name=f"{dataset}_new_files",
        target=dg.AssetSelection.groups(dataset),
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"Materializes all of {dataset} when a source file is new or changed.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        seen = source_files(config)
        if not seen.files:
            return dg.SkipReason(f"no file matches {', '.join(local_patterns(config))}")
        if context.cursor == seen.digest:
            return dg.SkipReason(f"nothing new: {seen}")
        if context.cursor is None:
            skip = dg.SkipReason(f"first look, changes count from here: {seen}")
            return dg.SensorResult(skip_reason=skip, cursor=seen.digest)
        if time.time() - seen.changed_at < SETTLED_SECONDS:
            return dg.SkipReason(f"new, but changed less than {SETTLED_SECONDS} s ago: {seen}")
        snapshot = snapshot_for(config.snapshots, seen.changed_at)
        context.log.info(f"asking for {dataset}/* of {snapshot}: {seen}")
        request = dg.RunRequest(run_key=f"{snapshot}-{seen.digest}", partition_key=snapshot)
        return dg.SensorResult(run_requests=[request], cursor=seen.digest)

    return sensor


def follows_versions(config: DatasetConfig, dataset: str, stage: Stage) -> dg.AutomationCondition | None:
    """When a stage should run again: what it reads has other bytes, or its own code or settings changed.

    A dependency that was merely materialized again, to the same bytes, asks for nothing; so each step waits until
    the one above it has shown what changed. Code asks only for snapshots that were built before. Nothing is asked for
    while a dependency is missing or being made; an earlier snapshot, where a warm start looks, may be missing.

    Returns:
        None for a stage that reads an earlier snapshot: it belongs to the schedule, or each training would call it.
    """
    if stage.from_earlier:
        return None
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    code = dg.AutomationCondition.code_version_changed() & ~dg.AutomationCondition.missing()
    news: dg.AutomationCondition = changed | code
    may_lack = [f"{dataset}/{name}" for name in stage.inputs if name not in stage.reads(config)]
    may_lack += [f"{dataset}/{stage.name}"] if stage.warm else []
    return (
        news.since_last_handled()  # type: ignore[reportAttributeAccessIssue]
        & ~_missing(may_lack)
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("data or code changed")


def _missing(besides: list[str]) -> dg.AutomationCondition:
    """Whether a dependency is missing, not counting some of them."""
    found = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.missing())
    return found.ignore(dg.AssetSelection.assets(*besides)) if besides else found


def automation_sensor(profile: Profile, dataset: str) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the conditions of a dataset's assets."""
    on = profile.dataset(dataset).operation.automation
    return dg.AutomationConditionSensorDefinition(
        name=f"{dataset}_automation",
        target=dg.AssetSelection.groups(dataset),
        default_status=dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED,
        description=f"Materializes what lies below changed data in {dataset}, and what has other code or settings.",
    )
