"""Snapshots as Dagster partitions. Their keys are exactly `Snapshots.keys()`, on any day."""

import dagster as dg

from sidr_core.profile import MONTHS_PER_WINDOW, Snapshots

KEY_FORMAT = "%Y-%m"


def snapshot_partitions(snapshots: Snapshots) -> dg.TimeWindowPartitionsDefinition:
    """The partitions definition that all assets of a dataset share."""
    keys = snapshots.keys()
    return dg.TimeWindowPartitionsDefinition(
        start=keys[0],
        end=_month_after(keys[-1], snapshots),
        fmt=KEY_FORMAT,
        cron_schedule=f"0 0 1 {_cron_months(snapshots)} *",
        # Dagster hides windows that have not ended yet. The profile says which snapshots exist, not the
        # calendar: an offset as long as the whole range shows them all.
        end_offset=len(keys),
    )


def previous_snapshot() -> dg.TimeWindowPartitionMapping:
    """Maps a snapshot to the one before it; the first one maps to none, which is no error."""
    return dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1, allow_nonexistent_upstream_partitions=True)


def _cron_months(snapshots: Snapshots) -> str:
    """Months of the year in which windows begin, for a cron line."""
    first = int(snapshots.start.split("-")[1])
    months = range(first, first + 12, MONTHS_PER_WINDOW[snapshots.cadence])
    return ",".join(str(month) for month in sorted((m - 1) % 12 + 1 for m in months))


def _month_after(key: str, snapshots: Snapshots) -> str:
    """First month that the window called `key` does not cover."""
    year, month = (int(part) for part in key.split("-"))
    count = year * 12 + month - 1 + MONTHS_PER_WINDOW[snapshots.cadence]
    return f"{count // 12:04d}-{count % 12 + 1:02d}"
