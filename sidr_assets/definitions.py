"""All assets of the chosen profile (`SIDR_PROFILE`): one group per dataset, one asset per stage.

Nothing here imports a model library, so a code location of a few datasets loads in about two seconds.
"""

import warnings
from collections.abc import Sequence

import dagster as dg

from sidr_assets import command_line, selection
from sidr_assets.alerts import alert_sensors
from sidr_assets.arrows import arrows_of
from sidr_assets.automation import automation_sensor, new_files_sensor
from sidr_assets.partitions import snapshot_partitions
from sidr_assets.schedules import STAGES as SCHEDULED
from sidr_assets.schedules import reevaluation_schedule
from sidr_assets.stage_asset import stage_asset
from sidr_core.pipeline.graph import OPTIONAL, STAGES, stages_of
from sidr_core.pipeline.profile import Profile, load_profile
from sidr_core.pipeline.stage import Stage


def build_definitions(profile: Profile, stages: tuple[Stage, ...] = (*STAGES, *OPTIONAL)) -> dg.Definitions:
    """The asset graph of a profile, with the executor of its runs.

    Args:
        profile: its datasets become asset groups.
        stages: the steps, in data flow order; each becomes one asset per dataset that has it (`stages_of`).
    """
    # In-process: a step costs 0.2 s instead of the 3 to 6 s of a process of its own, and a model that
    # is in memory for one step is let go before the next either way.
    runner = dg.Definitions(executor=dg.in_process_executor, sensors=alert_sensors())
    return dg.Definitions.merge(graph_of(profile, stages), runner)


def graph_of(
    profile: Profile,
    stages: tuple[Stage, ...] = (*STAGES, *OPTIONAL),
    prefix: Sequence[str] = (),
    upstream: Sequence[dg.AssetKey] = (),
) -> dg.Definitions:
    """Assets, sensors and schedules of a profile, to be merged with those of another project.

    Args:
        prefix: parts of every asset's key before the dataset.
        upstream: assets that write the source files: the stages that read these files depend on them.
    """
    with warnings.catch_warnings():
        # Code references are beta, checks per snapshot a preview; Dagster's release is pinned.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        assets = [
            stage_asset(profile, dataset, stage, partitions, arrows[stage.name], prefix, upstream)
            for dataset, config in profile.datasets.items()
            for built in [stages_of(config, stages)]
            for partitions, arrows in [(snapshot_partitions(config.snapshots), arrows_of(built, config))]
            for stage in built
        ]
    sensors = [sensor for dataset in profile if (sensor := new_files_sensor(profile, dataset)) is not None]
    sensors += [automation_sensor(profile, dataset) for dataset in profile]
    scheduled = set(SCHEDULED) <= {stage.name for stage in stages}
    schedules = [reevaluation_schedule(profile, dataset, prefix) for dataset in profile] if scheduled else []
    return dg.Definitions(assets=assets, sensors=sensors, schedules=schedules)


command_line.shorten_user_errors()
selection.install()
_profile = load_profile()
command_line.shorten_user_errors(_profile)
defs = build_definitions(_profile)
