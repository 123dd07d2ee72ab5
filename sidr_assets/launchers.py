"""Runs a stage as its dataset's `launch` section says: in this process, or in children through Dagster Pipes.

A child publishes into the same store and reports the fingerprint, so an asset shows the same wherever it ran.
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError, DagsterUserCodeProcessError
from dagster_shared.error import SerializableErrorInfo

from sidr_core.pipeline import launch
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import Profile, home
from sidr_core.pipeline.run import Outcome, planned_fingerprint, reuse_stage, run_stage
from sidr_core.pipeline.stage import Progress, Stage
from sidr_core.pipeline.store import Store


def run(context: dg.AssetExecutionContext, profile: Profile, dataset: str, stage: Stage, progress: Progress) -> Outcome:
    """Reuse or build the output of a stage. No process is started for an output that exists already.

    Raises:
        SidrError: as :func:`sidr_core.pipeline.run.run_stage`, from the process that raised it first.
        DagsterUserCodeProcessError: a child failed with another error; contains the child's own stack.
    """
    store, snapshot = open_store(profile), context.partition_key
    settings = profile.dataset(dataset).launch
    kind = settings.of(stage.name)
    if kind == "process":
        return run_stage(profile, dataset, snapshot, stage, store, progress)
    if (reused := reuse_stage(profile, dataset, snapshot, stage, store)) is not None:
        return reused
    if kind == "ray":
        from sidr_assets import ray_jobs

        fp = planned_fingerprint(profile, dataset, snapshot, stage, store)
        job = launch.ray_job(profile, dataset, snapshot, stage.name, fp, home())
        answer = ray_jobs.run(context, settings.address, job, f"{dataset}/{stage.name}")
        return _outcome(store, stage, answer)
    with tempfile.TemporaryDirectory(prefix="sidr-launch-") as folder:
        spec = launch.write_spec(Path(folder), profile, dataset, snapshot, stage.name, home())
        failure = Path(folder) / launch.FAILURE
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # raised by Pipes itself; the release is pinned
                done = dg.PipesSubprocessClient().run(context=context, command=launch.command(settings, kind, spec))
        except DagsterPipesExecutionError as error:
            raise child_error(launch.Failure.read(failure), f"{dataset}/{stage.name}", str(error)) from None
    return _outcome(store, stage, done.get_custom_messages()[-1])


def _outcome(store: Store, stage: Stage, answer: Mapping[str, Any]) -> Outcome:
    artifact = store.open(stage.name, answer["fingerprint"])
    assert artifact is not None, "the child published into another store"
    return Outcome(artifact, answer["reused"], answer["started"])


def child_error(failure: launch.Failure | None, name: str, status: str) -> Exception:
    """The error of a failed child: a SidrError as it was raised there, any other with the child's stack."""
    if failure is None:
        info = SerializableErrorInfo(
            f"{name}: {status}, and none of its processes could report why. It was killed (negative "
            "codes are signals; -9 often means out of memory) or did not start: see the run's stderr.\n",
            stack=[],
            cls_name="ChildDied",
        )
        return DagsterUserCodeProcessError.from_error_info(info)
    if (user_error := failure.as_user_error()) is not None:
        return user_error
    info = SerializableErrorInfo(
        f"{failure.kind} in process {failure.rank} of {name}: {failure.message}\n",
        stack=failure.stack,
        cls_name=failure.kind,
    )
    return DagsterUserCodeProcessError.from_error_info(info)
