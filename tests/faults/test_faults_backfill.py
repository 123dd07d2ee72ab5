"""Short cut of the backfills: a real daemon, two snapshots, one of which fails and is built again."""

import backfill
import pytest


@pytest.mark.long
def test_a_backfill_with_a_failure_is_resumed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert backfill.backfills(2, 0) == []
