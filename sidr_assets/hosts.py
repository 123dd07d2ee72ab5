"""Which machine executes a run, where several share one history of runs."""

import platform

import dagster as dg

#: Tag of a run: the machine that executes it.
HOST_TAG = "sidr/host"


def note_host(context: dg.AssetExecutionContext) -> None:
    """Tag the run with this machine, if other machines may look at it."""
    if is_shared(context.instance) and HOST_TAG not in context.run.tags:
        context.instance.add_run_tags(context.run.run_id, {HOST_TAG: platform.node()})


def is_shared(instance: dg.DagsterInstance) -> bool:
    """Whether other machines can see the history of runs; a SQLite file belongs to one."""
    from dagster._core.storage.runs import InMemoryRunStorage, SqliteRunStorage  # not at start-up

    return not isinstance(instance.run_storage, (SqliteRunStorage, InMemoryRunStorage))
