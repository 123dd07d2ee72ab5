"""One schedule per dataset: it reads new reviews and evaluates the newest earlier checkpoints on them.

Off until switched on in the UI, with `dagster schedule start`, or by `operation.reevaluate` in the profile. A tick
requests one run of the newest snapshot that has ended. Nothing is trained, and what did not change is reused, so a
tick without new reviews takes seconds.
"""

from collections.abc import Sequence

import dagster as dg

from sidr_assets.automation import DATASET_TAG
from sidr_core.pipeline.profile import Profile

#: What a tick materializes: the stages from source files to test rows, and the evaluation on them.
STAGES = ("raw_reviews", "raw_items", "interactions", "reevaluation")
#: Mondays at six, unless the profile gives a time.
DEFAULT_CRON = "0 6 * * 1"


def reevaluation_schedule(profile: Profile, dataset: str, prefix: Sequence[str] = ()) -> dg.ScheduleDefinition:
    """The schedule of a dataset, whose assets have `prefix` before their keys."""
    config = profile.dataset(dataset)
    cron = config.operation.reevaluate

    @dg.schedule(
        name=f"{dataset}_reevaluation",
        cron_schedule=cron or DEFAULT_CRON,
        execution_timezone="UTC",
        target=dg.AssetSelection.assets(*([*prefix, dataset, stage] for stage in STAGES)),
        default_status=dg.DefaultScheduleStatus.RUNNING if cron else dg.DefaultScheduleStatus.STOPPED,
        description=f"Evaluates earlier checkpoints of {dataset} on the rows of its newest snapshot that has ended.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        snapshot = config.snapshots.ended(context.scheduled_execution_time.timestamp())
        if snapshot is None:
            return dg.SkipReason(f"no snapshot has ended yet; the first is {config.snapshots.start}")
        when = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=when, partition_key=snapshot, tags={DATASET_TAG: dataset})

    return schedule
