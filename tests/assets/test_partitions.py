"""Partitions equal snapshots, on any day."""

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_assets.partitions import snapshot_partitions
from sidr_core.settings import Snapshots

STEP = {"monthly": 1, "quarterly": 3, "yearly": 12}


@pytest.mark.parametrize(
    ("cadence", "start", "end", "keys"),
    [
        ("monthly", "2018-11", "2019-01", ["2018-11", "2018-12", "2019-01"]),
        ("monthly", "2018-07", "2018-07", ["2018-07"]),
        ("quarterly", "2018-02", "2018-11", ["2018-02", "2018-05", "2018-08", "2018-11"]),
        ("yearly", "2013-10", "2015-10", ["2013-10", "2014-10", "2015-10"]),
    ],
)
def test_keys(cadence: str, start: str, end: str, keys: list[str]) -> None:
    partitions = snapshot_partitions(Snapshots(cadence=cadence, start=start, end=end))  # type: ignore[arg-type]
    assert partitions.get_partition_keys() == keys
    assert partitions.get_last_partition_key() == keys[-1]


@given(st.sampled_from(sorted(STEP)), st.integers(1996 * 12, 2024 * 12), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_keys_are_those_of_the_profile(cadence: str, first: int, count: int) -> None:
    last = first + count * STEP[cadence]
    start, end = (f"{month // 12:04d}-{month % 12 + 1:02d}" for month in (first, last))
    snapshots = Snapshots(cadence=cadence, start=start, end=end)  # type: ignore[arg-type]
    assert snapshot_partitions(snapshots).get_partition_keys() == snapshots.keys()


def test_windows_that_have_not_ended_are_there_too() -> None:
    snapshots = Snapshots(cadence="yearly", start="2018-01", end="2060-01")
    assert snapshot_partitions(snapshots).get_partition_keys() == snapshots.keys()


def test_one_definition_for_equal_snapshots() -> None:
    snapshots = Snapshots(cadence="monthly", start="2018-07", end="2018-10")
    assert snapshot_partitions(snapshots) == snapshot_partitions(snapshots)
    assert isinstance(snapshot_partitions(snapshots), dg.TimeWindowPartitionsDefinition)
