"""A Ray cluster: whether it answers, and trainings whose processes lie on any of its nodes.

The job's own process asks Ray Train for workers. Each of them runs the spec as a process of `accelerate launch` does:
Ray has set RANK, WORLD_SIZE and MASTER_ADDR and connected them. The first worker owns the store and its answer is the
job's; the failure that explains the others is raised in the job, as its worker raised it.
"""

from __future__ import annotations

import sys
from typing import Any

from sidr_core.errors import SidrError
from sidr_core.pipeline import launch
from sidr_core.pipeline.profile import parse_profile
from sidr_core.settings import Launch

#: How long a cluster may take to say which Ray it runs.
_PATIENCE_SECONDS = 10.0


def main() -> None:
    """The job: as `python -m sidr_core.pipeline.run`, with the training of its spec on workers."""
    from sidr_core.pipeline import run

    sys.exit(run.main([], train))


def train(spec: dict[str, Any], report: Any = None) -> dict[str, Any]:
    """Run the training of a spec on `spec["workers"]` workers; called by the job. Returns the first worker's answer.

    Args:
        report: the job's Pipes session, which the workers have no part in.

    Raises:
        SidrError: as the stage, or a worker died.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # pyright: ignore[reportMissingImports] # an extra
    from ray.train.torch import TorchConfig, TorchTrainer  # pyright: ignore[reportMissingImports] # an extra
    from ray.train.v2.api.exceptions import WorkerGroupError  # pyright: ignore[reportMissingImports] # an extra

    settings = parse_profile(spec["profile"]["name"], spec["profile"]["raw"]).dataset(spec["dataset"]).launch
    trainer = TorchTrainer(
        _work,
        train_loop_config=spec,
        scaling_config=ScalingConfig(
            num_workers=spec["workers"], use_gpu="GPU" in settings.resources, resources_per_worker=settings.resources
        ),
        torch_config=TorchConfig(timeout_s=int(60 * settings.patience_minutes)),
        # Nothing is tried again behind the user's back: a rerun resumes.
        run_config=RunConfig(failure_config=FailureConfig(max_failures=0)),
    )
    try:
        answer = trainer.fit().return_value
    except WorkerGroupError as error:
        raise _first(error.worker_failures) from None
    assert isinstance(answer, dict), "the first worker gave no answer"
    return answer


class _WorkerFailed(Exception):
    """A :class:`launch.Failure` as text, which comes through pickle whole."""


def _work(spec: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker does."""
    from sidr_core.pipeline.run import run_spec

    try:
        return run_spec(spec, None)
    except Exception as error:
        raise _WorkerFailed(launch.Failure.of(error).text()) from error


def _first(failures: dict[int, Exception]) -> Exception:
    """The error that explains the others: one that a user can mend, else that of the first worker."""
    reported = {rank: _failure(error) for rank, error in sorted(failures.items())}
    for failure in reported.values():
        if failure is not None and (mistake := failure.as_user_error()) is not None:
            return mistake
    rank, failure = next(iter(reported.items()))
    return SidrError(
        f"worker {rank} of the training failed",
        expected="all workers to reach the end",
        found=f"{failure.kind}: {failure.message}" if failure else str(failures[rank])[-1500:],
        fix="see the job's log; if its node died, run it again: it resumes from the last point",
    )


def _failure(error: Exception) -> launch.Failure | None:
    """What a worker told of its failure; None of one that died."""
    raised = getattr(error, "_base_exc", error)  # Ray wraps what a worker raises
    return launch.Failure.of_text(str(raised)) if isinstance(raised, _WorkerFailed) else None


def connect(address: str) -> Any:
    """A client of the cluster's job server. Raises SidrError where Ray is not installed or nobody answers."""
    try:
        from ray.job_submission import JobSubmissionClient  # pyright: ignore[reportMissingImports] # an extra
    except ImportError:
        raise SidrError(
            "no job can be sent to a Ray cluster",
            expected="the package ray (`launch: {kind: ray}`)",
            found="it is not installed",
            fix="pip install -c constraints.txt 'sidr[ray]', on every node too",
        ) from None
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise silent(address, str(error)) from None


def answer(launch: Launch) -> str:
    """That the cluster of a profile answers, in words.

    Raises:
        SidrError: it does not, or has another Ray.
    """
    client = connect(launch.address)
    import httpx2
    import ray  # pyright: ignore[reportMissingImports] # an extra

    try:  # the client's own `get_version` is that of the job server's interface
        version = httpx2.get(f"{client.get_address()}/api/version", timeout=_PATIENCE_SECONDS).json()["ray_version"]
    except (httpx2.HTTPError, ValueError, KeyError) as error:
        raise silent(launch.address, str(error)) from None
    if version != ray.__version__:
        raise SidrError(
            f"the Ray cluster at {launch.address} has another version",
            expected=ray.__version__,
            found=version,
            fix="install the versions of constraints.txt on every node",
        )
    return f"{launch.address} answers: Ray {version}"


def silent(address: str, found: str) -> SidrError:
    """That nobody answers there."""
    return SidrError(
        f"the Ray cluster at {address} does not answer",
        expected="its job server (`launch.address`, port 8265 by default)",
        found=found.splitlines()[0][:300] if found else "nothing",
        fix="start it (`ray start --head --dashboard-host=…`), correct `launch.address`, or run the stages here with "
        "`launch: {kind: process}`",
    )
