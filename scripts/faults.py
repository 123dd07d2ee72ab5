"""Breaks things on purpose and looks for damage: the tables of docs/reliability.md, `make faults`.

Each suite is a module of `tests/faults`; a short cut of each is part of `make test`.

    .venv/bin/python scripts/faults.py                      # all of them
    .venv/bin/python scripts/faults.py races --count 50     # one, with a count of its own
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "faults"), str(TESTS / "unit")]

#: Suite -> how often it breaks something, by default, in the suite's own unit.
SUITES = {
    "runs": 10,
    "stages": 100,
    "steps": 1,
    "races": 50,
    "disk": 1,
    "inputs": 1,
    "damage": 1,
    "backfill": 40,
}


def main() -> int:
    """Run the suites, each of which prints its table and says how many promises were broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="default: all")
    parser.add_argument("--count", type=int, help="how often something is broken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="stages, separated by commas, for the suites that go by stage")
    told = parser.parse_args()
    broken = 0
    for name in told.suites or SUITES:
        suite = importlib.import_module(name)
        print(f"\n## {name}: {suite.__doc__.splitlines()[0]}\n", flush=True)
        only = tuple(stage for stage in told.only.split(",") if stage)
        broken += suite.suite(told.count or SUITES[name], told.seed, only)
    print(f"\nbroken promises: {broken}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
