"""Two sensors per dataset: one for new source files, one that follows changed data and code through the graph.

Both are off until switched on in the UI or with `dagster sensor start`; the second also by `operation.automation`.
Files are compared by path, size and modification time only; the run then compares contents, so a file that was merely
touched costs almost nothing. URLs are not watched: a change would only show by downloading them.
"""

import glob
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.stage import Stage
from sidr_core.reviews.files import is_hidden
from sidr_core.settings import DatasetConfig, Snapshots
from sidr_core.settings.sources import single_sources

#: The tag of assets, and of the runs that sensors and schedules ask for.
DATASET_TAG = "dataset"
INTERVAL_SECONDS = 60
#: A file that changed more recently may still be being written.
SETTLED_SECONDS = 60


@dataclass(frozen=True)
class SourceFiles:
    """The local files that a source's patterns match now, as (path, bytes, nanoseconds of modification)."""

    files: tuple[tuple[str, int, int], ...]

    @property
    def digest(self) -> str:
        """What the sensor's cursor ends with."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:32]

    @property
    def changed_at(self) -> float:
        """When the newest of them changed, in unix seconds."""
        return max(nanoseconds for _, _, nanoseconds in self.files) / 1e9

    def __str__(self) -> str:
        path, size, _ = max(self.files, key=lambda file: file[2])
        when = datetime.fromtimestamp(self.changed_at, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        total = sum(size for _, size, _ in self.files)
        return f"{len(self.files)} files, {total:,} bytes; newest: {Path(path).name} ({size:,} bytes, {when} UTC)"


def source_files(config: DatasetConfig) -> SourceFiles:
    """The local files of a dataset's source, without those below a folder that no stage reads; none is opened."""
    files: set[tuple[str, int, int]] = set()
    for pattern in local_patterns(config):
        path = Path(pattern).expanduser()
        for match in [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True)):
            for file in match.rglob("*") if match.is_dir() else [match]:
                hidden = any(map(is_hidden, file.relative_to(match).parts))
                if file.is_file() and not hidden:
                    stat = file.stat()
                    files.add((str(file.absolute()), stat.st_size, stat.st_mtime_ns))
    return SourceFiles(tuple(sorted(files)))


def local_patterns(config: DatasetConfig) -> list[str]:
    """Paths and globs of a source, without URLs and checksums."""
    values = [getattr(source, name) for source in single_sources(config.source) for name in source.PATHS]
    patterns = [pattern for value in values for pattern in ((value,) if isinstance(value, str) else value or ())]
    return [pattern.partition("#sha256=")[0] for pattern in patterns if "://" not in pattern]


def snapshot_for(snapshots: Snapshots, changed_at: float) -> str:
    """The snapshot in whose window files changed, as they contain nothing later; the newest one if that is outside
    the profile's range, as with a download of old data.
    """
    keys = snapshots.keys()
    first = datetime.strptime(keys[0], "%Y-%m").replace(tzinfo=UTC).timestamp()
    if changed_at < first:
        return keys[-1]
    return next((key for key in keys if changed_at < snapshots.window(key).cutoff), keys[-1])


def new_files_sensor(profile: Profile, dataset: str) -> dg.SensorDefinition | None:
    """The sensor of a dataset, or None if its source has no local file."""
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
        current = source_files(config)
        if not current.files:
            return dg.SkipReason(f"no file matches {', '.join(local_patterns(config))}")
        # The changes so far and the files then: files that were there before are a change again.
        changes, _, seen = (context.cursor or "").rpartition("-")
        if seen == current.digest:
            return dg.SkipReason(f"nothing new: {current}")
        if not seen:
            skip = dg.SkipReason(f"first look, changes count from here: {current}")
            return dg.SensorResult(skip_reason=skip, cursor=f"0-{current.digest}")
        if 0 <= time.time() - current.changed_at < SETTLED_SECONDS:  # one dated in the future says nothing of its age
            return dg.SkipReason(f"new, but changed less than {SETTLED_SECONDS} s ago: {current}")
        snapshot = snapshot_for(config.snapshots, current.changed_at)
        context.log.info(f"asking for {dataset}/* of {snapshot}: {current}")
        cursor = f"{int(changes or 0) + 1}-{current.digest}"
        request = dg.RunRequest(run_key=f"{snapshot}-{cursor}", partition_key=snapshot, tags={DATASET_TAG: dataset})
        return dg.SensorResult(run_requests=[request], cursor=cursor)

    return sensor


def follows_versions(stage: Stage) -> dg.AutomationCondition | None:
    """When a stage should run again: when its inputs have other bytes, or its own code or settings changed.

    A dependency that was materialized again with the same bytes requests nothing, so each step waits until its
    upstream steps have shown what changed. Changed code requests only snapshots that were built before; so does the
    first look after automation is switched on, since what changed until then cannot be known: what did not is reused.
    Nothing is requested while a dependency is missing or being made. An earlier snapshot is not followed.

    Returns:
        None for a stage that reads an earlier snapshot: the schedule runs it, otherwise every training would.
    """
    if stage.from_earlier:
        return None
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    built = ~dg.AutomationCondition.missing()
    code = dg.AutomationCondition.code_version_changed() & built
    first_look = dg.AutomationCondition.initial_evaluation() & built
    any_change: dg.AutomationCondition = changed | code
    missing = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.missing())
    return (
        (any_change.since_last_handled() | first_look)  # type: ignore[reportAttributeAccessIssue]
        & ~missing
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("data or code changed")


def automation_sensor(profile: Profile, dataset: str) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the conditions of a dataset's assets."""
    is_on = profile.dataset(dataset).operation.automation
    return dg.AutomationConditionSensorDefinition(
        name=f"{dataset}_automation",
        target=dg.AssetSelection.groups(dataset),
        default_status=dg.DefaultSensorStatus.RUNNING if is_on else dg.DefaultSensorStatus.STOPPED,
        run_tags={DATASET_TAG: dataset},
        description=f"Materializes what lies below changed data in {dataset}, and what has other code or settings.",
    )
