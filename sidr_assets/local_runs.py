"""Tells Dagster's run monitoring whether the process of a run is still alive.

Dagster's own local launcher cannot say. A run started from the command line and killed (`kill -9`, out of memory,
a reboot) would stay "started" for ever and block the runs that wait for its pool. dagster.yaml names this
launcher; the daemon of `dagster dev` calls it.
"""

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from sidr_core.pipeline.host import is_alive


class LocalRunLauncher(DefaultRunLauncher):
    """Dagster's launcher of local processes, with the health of all local runs, whatever started them."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED once the process that executes the run is gone; a run that logged no pid counts as running."""
        logs = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        entries = [(log.dagster_event.engine_event_data.metadata, log.timestamp) for log in logs if log.dagster_event]
        pids = [(int(str(metadata["pid"].value)), timestamp) for metadata, timestamp in entries if "pid" in metadata]
        if pids and not is_alive(*pids[-1]):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"process {pids[-1][0]} of the run is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
