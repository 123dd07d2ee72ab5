"""Two parts of the instance, named in dagster.yaml: the queue of runs, and the launcher of local processes.

Dagster's queue reads which pools have a limit before it gives new ones theirs. So of runs that wait for a pool which
no run of this history ever took, all start at once: a first backfill builds its months side by side, in any order. Here
a pool has its limit before a run that takes it is in the queue.

Dagster's own local launcher cannot say whether the process of a run is still alive. A run started from the command line
and killed (`kill -9`, out of memory, a reboot) would stay "started" for ever and block the runs that wait for its pool.
The daemon of `dagster dev` asks this one.

A pid says something on its own machine only. Where several machines share one history (Postgres), each run carries
the name of the machine that executes it, and no other one judges it.
"""

import platform

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext

from sidr_assets.hosts import HOST_TAG, is_shared
from sidr_core.pipeline.host import is_alive


class RunQueue(QueuedRunCoordinator):
    """Dagster's queue, in which a pool is limited from its first run on."""

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        """Put a run into the queue, after its pools have the limit of dagster.yaml; one that was set by hand stays."""
        needs = context.dagster_run.run_op_concurrency
        for pool in (needs.all_pools or ()) if needs else ():
            self._instance.event_log_storage.initialize_concurrency_limit_to_default(pool)
        return super().submit_run(context)


class LocalRunLauncher(DefaultRunLauncher):
    """Dagster's launcher of local processes, with the health of all local runs, whatever started them."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED once the process that executes the run is gone. A run of another machine counts as running, as do
        one that logged no pid, and one of a shared history that has not said yet where it runs.
        """
        here = platform.node()
        if (host := run.tags.get(HOST_TAG, None if is_shared(self._instance) else here)) != here:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"it runs on {host or 'a machine not yet known'}")
        logs = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        entries = [(log.dagster_event.engine_event_data.metadata, log.timestamp) for log in logs if log.dagster_event]
        pids = [(int(str(metadata["pid"].value)), timestamp) for metadata, timestamp in entries if "pid" in metadata]
        if pids and not is_alive(*pids[-1]):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"process {pids[-1][0]} of the run is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
