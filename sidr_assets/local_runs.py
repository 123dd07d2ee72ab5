"""Tells Dagster's run monitoring whether the process of a run is still alive.

Dagster's own local launcher cannot say. A run started from the command line and killed (`kill -9`, out of memory,
a reboot) would stay "started" for ever and block the runs that wait for its pool. dagster.yaml names this
launcher; the daemon of `dagster dev` calls it.

A pid says something on its own machine only. Where several machines share one history (Postgres), each run carries
the name of the machine that executes it, and no other one judges it.
"""

import platform

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from sidr_assets.hosts import HOST_TAG, is_shared
from sidr_core.pipeline.host import is_alive


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
