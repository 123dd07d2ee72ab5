"""Runs a stage where its dataset's `launch` section says: in this process, or in others through Dagster Pipes.

A child publishes into the same store and names what it published, so an asset tells the same about it
wherever it ran.
"""

import tempfile
import warnings
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError, DagsterUserCodeProcessError
from dagster_shared.error import SerializableErrorInfo

from sidr_core.pipeline import launch
from sidr_core.pipeline.profile import Profile, home
from sidr_core.pipeline.run import Outcome, reuse_stage, run_stage
from sidr_core.pipeline.stage import Progress, Stage
from sidr_core.pipeline.store import Store


def run(context: dg.AssetExecutionContext, profile: Profile, dataset: str, stage: Stage, progress: Progress) -> Outcome:
    """Reuse or build the output of a stage. An output that is there already starts no process.

    Raises:
        SidrError: as :func:`sidr_core.pipeline.run.run_stage`, from whichever process met it first.
        DagsterUserCodeProcessError: a child failed otherwise; holds the child's own stack.
    """
    store, snapshot = Store(home() / "store"), context.partition_key
    settings = profile.dataset(dataset).launch
    kind = settings.of(stage.name)
    if kind == "process":
        return run_stage(profile, dataset, snapshot, stage, store, progress)
    if (there := reuse_stage(profile, dataset, snapshot, stage, store)) is not None:
        return there
    with tempfile.TemporaryDirectory(prefix="sidr-launch-") as folder:
        spec = launch.write_spec(Path(folder), profile, dataset, snapshot, stage.name, home())
        failure = Path(folder) / launch.FAILURE
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # of Pipes' own making; the release is pinned
                done = dg.PipesSubprocessClient().run(context=context, command=launch.command(settings, kind, spec))
        except DagsterPipesExecutionError as error:
            raise _told(launch.Failure.read(failure), dataset, stage, str(error)) from None
    answer = done.get_custom_messages()[-1]
    artifact = store.open(stage.name, answer["fingerprint"])
    assert artifact is not None, "the child published into another store"
    return Outcome(artifact, answer["reused"], answer["started"])


def _told(failure: launch.Failure | None, dataset: str, stage: Stage, status: str) -> Exception:
    """The error of a failed child: a mistake as it was raised there, any other with the child's stack."""
    if failure is None:
        found = SerializableErrorInfo(
            f"{dataset}/{stage.name}: {status}, and no process of it could say why. It was killed (negative codes "
            "are signals; -9 is often a lack of memory) or did not start: see the run's stderr.\n",
            stack=[],
            cls_name="ChildDied",
        )
        return DagsterUserCodeProcessError.from_error_info(found)
    if (mistake := failure.as_mistake()) is not None:
        return mistake
    found = SerializableErrorInfo(
        f"{failure.kind} in process {failure.rank} of {dataset}/{stage.name}: {failure.message}\n",
        stack=failure.stack,
        cls_name=failure.kind,
    )
    return DagsterUserCodeProcessError.from_error_info(found)
