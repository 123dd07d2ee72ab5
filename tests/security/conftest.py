"""The security suite borrows the small pipeline of the unit tests, and a file server of the fault suites."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "faults"))
