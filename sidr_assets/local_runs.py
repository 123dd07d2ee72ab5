"""Tells Dagster's run monitoring whether a run's process still lives.

Stock local runs cannot be asked, so one that was killed (`kill -9`, lack of memory, a reboot) while it was
started from the command line would stay "started" for ever and hold back the runs that wait for its pool.
Named in dagster.yaml; the daemon of `dagster dev` asks.
"""

import dagster as dg
import psutil
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher


class LocalRunLauncher(DefaultRunLauncher):
    """Dagster's launcher of local processes, and the health of all local runs, whatever started them."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED once the process that executes the run is gone; a run that named none counts as running."""
        logs = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        told = [(log.dagster_event.engine_event_data.metadata, log.timestamp) for log in logs if log.dagster_event]
        pids = [(int(str(metadata["pid"].value)), timestamp) for metadata, timestamp in told if "pid" in metadata]
        if pids and not _lives(*pids[-1]):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"process {pids[-1][0]} of the run is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def _lives(pid: int, seen: float) -> bool:
    """Whether the process that had this pid at a time (unix seconds) still runs."""
    try:
        process = psutil.Process(pid)
        return process.create_time() <= seen + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
