"""Snapshots as Dagster partitions. Their keys are exactly `Snapshots.keys()`, on any day."""

from datetime import UTC, datetime

import dagster as dg

from sidr_core.settings import Snapshots

KEY_FORMAT = "%Y-%m"


def snapshot_partitions(snapshots: Snapshots) -> dg.TimeWindowPartitionsDefinition:
    """The partitions definition that all assets of a dataset share."""
    keys = snapshots.keys()
    return dg.TimeWindowPartitionsDefinition(
        start=keys[0],
        end=_month_after(snapshots, keys[-1]).strftime(KEY_FORMAT),
        fmt=KEY_FORMAT,
        cron_schedule=f"0 0 1 {_cron_months(snapshots)} *",
        # Dagster hides windows that have not ended yet, but the profile says which snapshots exist, not the
        # calendar: an offset as long as the range shows them all.
        end_offset=len(keys),
    )


def previous_snapshot() -> dg.TimeWindowPartitionMapping:
    """Maps a snapshot to the one before it; the first one maps to none, without an error."""
    return dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1, allow_nonexistent_upstream_partitions=True)


def earlier_snapshots(snapshots: Snapshots) -> dg.TimeWindowPartitionMapping:
    """Maps a snapshot to all before it; the first one has none, without an error."""
    return dg.TimeWindowPartitionMapping(
        start_offset=-len(snapshots.keys()),
        end_offset=-1,
        allow_nonexistent_upstream_partitions=True,
    )


def _month_after(snapshots: Snapshots, key: str) -> datetime:
    """First month that the window called `key` does not cover."""
    return datetime.fromtimestamp(snapshots.window(key).cutoff, UTC)


def _cron_months(snapshots: Snapshots) -> str:
    """Months of the year in which a window begins, for a cron line."""
    first = datetime.strptime(snapshots.start, KEY_FORMAT)
    after = _month_after(snapshots, snapshots.start)
    step = (after.year - first.year) * 12 + after.month - first.month
    months = {(first.month - 1 + offset) % 12 + 1 for offset in range(0, 12, step)}
    return "*" if len(months) == 12 else ",".join(map(str, sorted(months)))
