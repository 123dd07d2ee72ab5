"""The fault suites borrow the small pipeline of the unit tests; their machinery lies beside their tests."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
