"""The one adapter from a Stage to a Dagster asset: key `[dataset, stage]`, partitioned by snapshot.

To Dagster, an asset depends on others of its own snapshot alone, so that a whole snapshot is one run, also in a
backfill; what a stage reads of an earlier snapshot it finds in the store. A backfill asks for snapshots in their order,
one run each, and a pool of the dataset has them run in it.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError, DagsterUserCodeProcessError
from dagster_shared.error import SerializableErrorInfo
from dagster_shared.record import replace

from sidr_assets import hosts, launchers, metadata
from sidr_assets.arrows import Arrows, data_version
from sidr_assets.automation import follows_versions
from sidr_assets.schedules import STAGES as SCHEDULED
from sidr_core.errors import SidrError
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import Profile, StageConfig
from sidr_core.pipeline.run import Outcome, check_failure, check_warnings
from sidr_core.pipeline.stage import Progress, Stage
from sidr_core.pipeline.store import fingerprint
from sidr_core.settings import DatasetConfig
from sidr_core.settings.models import TRAINING_STAGES
from sidr_core.settings.sources import single_sources

OWNER = "team:sidr"
#: The pool of assets that train; dagster.yaml limits how many run at once.
TRAINING_POOL = "training"


class UserMistake(dg.Failure, DagsterUserCodeProcessError):
    """A :class:`SidrError` as a failed step that is not retried, as a retry would not help.

    Dagster prints a failure with thirty lines of its own stack, which bury the message. An error of another
    process it shows as it was reported, so this one is reported without a stack.
    """

    def __init__(self, error: SidrError) -> None:
        Exception.__init__(self, str(error))  # the __init__ of the two bases do not chain
        self.description, self.metadata, self.allow_retries = str(error), {}, False
        info = SerializableErrorInfo(message=f"{error}\n", stack=[], cls_name=type(error).__name__)
        self.user_code_process_error_infos = [info]


class Stopped(DagsterExecutionInterruptedError, DagsterUserCodeProcessError):
    """Ctrl-C, or a run that was ended in the UI, in one line instead of a hundred of stack."""

    def __init__(self, dataset: str, stage: Stage) -> None:
        line = f"stopped while {dataset}/{stage.name} was made: start it again, and it goes on from what is done\n"
        BaseException.__init__(self, line)
        self.user_code_process_error_infos = [SerializableErrorInfo(line, stack=[], cls_name="Stopped")]


def stage_asset(
    profile: Profile,
    dataset: str,
    stage: Stage,
    partitions: dg.PartitionsDefinition,
    arrows: Arrows,
    prefix: Sequence[str] = (),
    upstream: Sequence[dg.AssetKey] = (),
) -> dg.AssetsDefinition:
    """The asset of one stage of one dataset. Its body is `run_stage`, wherever that runs.

    Args:
        arrows: what it is seen to depend on, and what its data version carries on.
        prefix: parts of the key before the dataset.
        upstream: assets that write the source files; a stage that reads nothing but these files depends on them.
    """
    config = profile.dataset(dataset)
    key = dg.AssetKey([*prefix, dataset, stage.name])
    synthetic = any(source.kind == "sample" for source in single_sources(config.source))
    days, scheduled = config.operation.fresh_days, stage.name in SCHEDULED
    # What starts warm runs one at a time, so that it finds the snapshot before it made.
    pool = TRAINING_POOL if stage.name in TRAINING_STAGES else f"{dataset}_snapshots" if stage.warm else None

    @dg.asset(
        key=key,
        description=f"**Synthetic sample data.** {stage.description}" if synthetic else stage.description,
        group_name=dataset,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        deps=_deps(key, arrows) if stage.inputs else upstream,
        code_version=_code_version(config, dataset, stage),
        kinds=set(stage.kinds),
        owners=[OWNER],
        pool=pool,
        op_tags={"dagster/priority": str(-arrows.place)},
        automation_condition=follows_versions(stage),
        # What the schedule materializes stays fresh for `operation.fresh_days` after it last was.
        freshness_policy=dg.FreshnessPolicy.time_window(timedelta(days=days)) if days and scheduled else None,
        tags={"dataset": dataset, "data": "synthetic" if synthetic else "real"},
        metadata=metadata.of_definition(profile, stage, synthetic),
        check_specs=[
            dg.AssetCheckSpec(
                spec.name,
                asset=key,
                description=spec.description,
                blocking=spec.blocking,
                partitions_def=partitions,
                metadata={"fix": spec.fix},
            )
            for spec in stage.checks
        ],
    )
    def body(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        hosts.note_host(context)
        progress = Progress(context.log.info)
        try:
            outcome = launchers.run(context, profile, dataset, stage, progress)
        except SidrError as error:
            raise UserMistake(error) from None
        except DagsterExecutionInterruptedError:
            raise Stopped(dataset, stage) from None
        progress.say(_closing_line(outcome))
        for line in check_warnings(stage, outcome.artifact):
            context.log.warning(line)
        store = open_store(profile)
        outputs = {name: store.current(dataset, context.partition_key, name) for name in arrows.carries}
        carried = {name: output.digest for name, output in outputs.items() if output is not None}
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(data_version(outcome.artifact.digest, carried)),
            metadata=metadata.of_outcome(stage, outcome),
            check_results=_check_results(stage, outcome),
        )
        # Dagster's own error about a blocking check names it and gives no reason.
        if failure := check_failure(dataset, context.partition_key, stage, outcome.artifact):
            raise UserMistake(failure)

    return body


def _deps(key: dg.AssetKey, arrows: Arrows) -> list[dg.AssetDep]:
    """The stages that it is seen to read, snapshot by snapshot."""
    alike = dg.IdentityPartitionMapping()
    return [dg.AssetDep([*key.path[:-1], name], partition_mapping=alike) for name in arrows.inputs]


def _code_version(config: DatasetConfig, dataset: str, stage: Stage) -> str:
    """The stage's code version and a digest of the profile fields it reads, so that the UI marks an asset
    stale when either changed.
    """
    sections = tuple(name for name in stage.sections if name != "snapshot")
    window = config.snapshots.window(config.snapshots.start)
    fields = StageConfig(config, sections, dataset, window).key()
    return f"{stage.code_version}.{fingerprint(stage.name, stage.code_version, fields)[:8]}"


class _SnapshotCheckResult(dg.AssetCheckResult):
    """A check result of one snapshot. Dagster names its partition in a run that was asked for by key, not by range."""

    def to_asset_check_evaluation(self, step_context: Any) -> dg.AssetCheckEvaluation:
        return replace(super().to_asset_check_evaluation(step_context), partition=step_context.partition_key)


def _check_results(stage: Stage, outcome: Outcome) -> list[dg.AssetCheckResult]:
    """A result of every check of the stage. One that is younger than a reused output was not measured, and says so."""
    measured = {check["name"]: check for check in outcome.artifact.manifest["checks"]}
    unknown = {"passed": False, "detail": "not measured: this output was made before the check existed"}
    results = []
    for spec in stage.checks:
        check = measured.get(spec.name, unknown)
        blocks = spec.blocking and check is not unknown
        results.append(
            _SnapshotCheckResult(
                check_name=spec.name,
                passed=check["passed"],
                severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
                description=check["detail"] or None,
                metadata={} if check["passed"] else {"expected": spec.description, "fix": spec.fix},
            )
        )
    return results


def _closing_line(outcome: Outcome) -> str:
    manifest = outcome.artifact.manifest
    rows = ", ".join(f"{name} {count:,} rows" for name, count in metadata.row_counts(outcome.artifact).items())
    cost = f"{manifest['seconds']:.1f} s, peak {manifest['peak_memory_bytes'] / 2**20:,.0f} MiB"
    failed = [check["name"] for check in manifest["checks"] if not check["passed"]]
    parts = [
        f"reused (built in {cost})" if outcome.reused else f"built in {cost}",
        rows,
        outcome.started,
        f"checks failed: {', '.join(failed)}" if failed else "",
    ]
    return "; ".join(part for part in parts if part)
