"""Short cuts of `scripts/teacher_faults.py`, whose full runs take minutes."""

import pytest

from builders.remote import load
from sidr_core.remote import retry

faults = load("scripts/teacher_faults.py")


def test_the_fault_matrix(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(retry, "BASE", faults.BASE)
    monkeypatch.setattr(retry, "LONGEST", faults.LONGEST)
    assert faults.matrix(["refused"], (1, None), tmp_path)
    assert capsys.readouterr().out.count("| yes | intact |") == 6


@pytest.mark.slow
def test_kill_minus_nine(tmp_path, capsys):
    assert faults.kills(2, tmp_path, asked=120, concurrency=8)
    assert "| 2 | 120 |" in capsys.readouterr().out


def test_throughput(tmp_path, capsys):
    faults.throughput(tmp_path, latency=0.2, concurrency=16, count=64)  # the share itself needs an idle machine
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    in_flight, repeated = (int(cell) for cell in row[-3:-1])
    assert 12 <= in_flight <= 16 and repeated == 0  # a busy machine may not start all at once
