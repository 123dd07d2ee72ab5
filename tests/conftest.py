"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real Amazon data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("SIDR_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "README.md").is_file():
        pytest.skip(f"real data not found at {folder}; set SIDR_REAL_DATA")
    return folder
