"""The UI as a person meets it: the graph of a dataset, drawn in a real browser."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from sidr_core.profile import load_profile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def screenshot() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screenshot", ROOT / "scripts" / "screenshot.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_graph_is_drawn_with_every_stage(
    screenshot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`picture` waits for the name of every stage and fails where one is not shown."""
    pytest.importorskip("playwright")
    chromium = screenshot.browser()
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium, or set CHROMIUM")
    monkeypatch.setenv("SIDR_PROFILE", "quickstart")
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "sidr"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    storage = (ROOT / "dagster.yaml").read_text().replace(".sidr/dagster", str(tmp_path / "storage"))
    (tmp_path / "dagster.yaml").write_text(storage)
    with screenshot.web_server() as address:
        screenshot.picture(address, load_profile().default_dataset, tmp_path / "graph.png", chromium)
    assert (tmp_path / "graph.png").stat().st_size > 50_000
