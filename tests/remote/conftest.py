"""Retries of milliseconds, and a ledger of the test's own."""

import pytest

from sidr_core.remote import retry


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retry, "BASE", 0.001)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"
