"""The documentation builds strictly: no broken link, no page outside the navigation; and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Written by the reader, as the page says.
READERS_OWN = {"profiles/mine.yaml"}
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "benchmarks" / "README.md"])


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "operations.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """`scripts/x.py`, `tests/y.py`, `docs/z.md` and the like, where they are named as files of this repository."""
    named = re.findall(
        r"\b(?:scripts|benchmarks|tests|docs|profiles|sidr_core|sidr_assets)/[\w/]+\.(?:py|md|yaml|png)\b",
        page.read_text(),
    )
    assert {name for name in named if not (ROOT / name).exists()} <= READERS_OWN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
    assert named <= targets


def test_a_dagster_home_elsewhere_gets_the_settings_and_keeps_its_own(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def make() -> None:
        target = home / "dagster.yaml"
        subprocess.run(["make", f"DAGSTER_HOME={home}", str(target)], cwd=ROOT, check=True, capture_output=True)

    make()
    written = (home / "dagster.yaml").read_text()
    assert written.count(f"{home}/storage") == 3 and ".sidr/dagster" not in written
    assert "sidr_assets.local_runs" in written and "granularity: run" in written
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    make()
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"
