"""A stage as a job of a Ray cluster: submitted, followed through Dagster Pipes, stopped with its run.

`pip install 'sidr[ray]'`. The job's log is the run's; a failure comes back as a message and is raised once.
"""

import time
import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from sidr_assets.launchers import child_error
from sidr_core.errors import SidrError
from sidr_core.pipeline import launch
from sidr_core.pipeline.on_ray import connect, silent

_POLL_SECONDS = 0.5
#: How long the cluster's job server may be silent before the step fails.
_SILENT_SECONDS = 60.0


def run(context: dg.AssetExecutionContext, address: str, job: dict[str, Any], name: str) -> Mapping[str, Any]:
    """Run a job to its end. Returns what it reports of its output.

    Args:
        job: of :func:`sidr_core.pipeline.launch.ray_job`.
        name: of the output, for messages.

    Raises:
        SidrError: no cluster answers, or as the stage.
        DagsterUserCodeProcessError: the job failed with another error; contains its own stack.
    """
    client = connect(address)
    from dagster_ray.core.pipes import (  # pyright: ignore[reportMissingImports] # an extra
        PIPES_LAUNCHED_EXTRAS_RAY_ADDRESS_KEY,
        PIPES_LAUNCHED_EXTRAS_RAY_JOB_ID_KEY,
        PipesRayJobMessageReader,
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # raised by Pipes itself; the release is pinned
        with dg.open_pipes_session(context, dg.PipesEnvContextInjector(), PipesRayJobMessageReader()) as session:
            job["runtime_env"]["env_vars"] |= session.get_bootstrap_env_vars()
            number = _submitted(client, job, address, name)
            context.log.info(f"{name} is job {number} of {address}")
            extras = {PIPES_LAUNCHED_EXTRAS_RAY_JOB_ID_KEY: number, PIPES_LAUNCHED_EXTRAS_RAY_ADDRESS_KEY: address}
            try:
                session.report_launched({"extras": extras})
                status = _end(client, number, name)
            except BaseException:  # also the run's end by somebody's hand
                client.stop_job(number)
                raise
    messages = [message for message in session.get_custom_messages() if isinstance(message, dict)]
    if status == "SUCCEEDED":
        return messages[-1]
    failures = [launch.Failure.of_text(message[launch.FAILURE]) for message in messages if launch.FAILURE in message]
    last_words = client.get_job_info(number).message or ""
    raise child_error(failures[0] if failures else None, name, f"job {number} {status.lower()}: {last_words[-1500:]}")


def _submitted(client: Any, job: dict[str, Any], address: str, name: str) -> str:
    """The number of a job. Raises SidrError where the cluster does not take it, for a minute if no node is up yet."""
    end = time.monotonic() + _SILENT_SECONDS
    while True:
        try:
            return client.submit_job(**job)
        except OSError as error:
            raise silent(address, str(error)) from None
        except RuntimeError as error:  # the answer of its server, with its status
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise SidrError(
                    f"the Ray cluster at {address} does not take {name}",
                    expected="a job that waits or runs",
                    found=str(error).strip().rstrip("."),
                    fix="look at `ray status` there: a node has to be up, with what `launch.resources` asks for",
                ) from None
        time.sleep(_POLL_SECONDS)


def _end(client: Any, number: str, name: str) -> str:
    """The last status of a job. Raises SidrError where its cluster does not answer for a minute."""
    heard = time.monotonic()
    while True:
        try:
            status = client.get_job_status(number)
        except OSError as error:
            if time.monotonic() - heard > _SILENT_SECONDS:
                raise silent(f"{client.get_address()} (job {number} of {name})", str(error)) from None
        else:
            heard = time.monotonic()
            if status.is_terminal():
                return status.value
        time.sleep(_POLL_SECONDS)
