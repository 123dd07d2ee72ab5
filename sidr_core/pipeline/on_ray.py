"""A training whose processes lie on any node of a Ray cluster.

The job's own process asks Ray Train for workers. Each of them runs the spec as a process of `accelerate launch` does:
Ray has set RANK, WORLD_SIZE and MASTER_ADDR and connected them. The first worker owns the store and its answer is the
job's; the failure that explains the others is raised in the job, as its worker raised it.
"""

from __future__ import annotations

from typing import Any

from sidr_core.errors import SidrError
from sidr_core.pipeline import launch
from sidr_core.pipeline.profile import parse_profile


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the training of a spec on `spec["workers"]` workers; called by the job. Returns the first worker's answer.

    Raises:
        SidrError: as the stage, or a worker died.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

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
    told = {rank: _failure(error) for rank, error in sorted(failures.items())}
    for failure in told.values():
        if failure is not None and (mistake := failure.as_user_error()) is not None:
            return mistake
    rank, failure = next(iter(told.items()))
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
