"""`scripts/faults.py` passes over nothing in silence."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults_command", ROOT / "scripts" / "faults.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "told",
    [
        ["stages", "--only", "interaction"],
        ["steps", "--only", "interactions"],
        ["backfill", "--only", "runs"],
        ["inputs", "--only", "amazon_2019"],
        ["runs", "--only", "interactions"],
        ["--only", "interactions"],  # not all suites go by stage
        ["stages", "--count", "0"],
    ],
)
def test_what_would_check_nothing_is_refused(command, told, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(told)
    assert ended.value.code == 2
    assert "has no part" in (said := capsys.readouterr().err) or "--count" in said


@pytest.mark.parametrize(
    ("found", "code", "said"), [(0, 0, "promises: 0"), (None, 1, "not checked: some"), (2, 1, ": 2")]
)
def test_what_was_not_checked_is_no_success(command, found, code, said, monkeypatch, capsys):
    suite = ModuleType("some", "A suite.")
    suite.suite = lambda count, seed, only: found
    monkeypatch.setitem(sys.modules, "some", suite)
    monkeypatch.setattr(command, "SUITES", {"some": 1})
    assert command.main(["some"]) == code
    assert said in capsys.readouterr().out
