"""Breaks things on purpose and looks for damage: the tables of docs/reliability.md, `make faults`.

Each suite is a module of `tests/faults`; `make test` runs a small part of each.

    .venv/bin/python scripts/faults.py                      # all of them
    .venv/bin/python scripts/faults.py races --count 50     # one, with a count of its own
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sidr_core.pipeline.graph import STAGES

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "faults"), str(TESTS)]

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
_STAGES = [stage.name for stage in STAGES]
#: Suites whose parts for `--only` are not the stages -> the names of their parts.
PARTS: dict[str, Callable[[Any], Iterable[str]]] = {
    "runs": lambda suite: (),
    "steps": lambda suite: (act.name for act in suite.ACTS),
    "disk": lambda suite: (*_STAGES, "catalog", "ledger"),
    "inputs": lambda suite: (kind.name for kind in suite.kinds()),
    "backfill": lambda suite: ("backfills", "trainings"),
}


def unknown(name: str, suite: Any, only: tuple[str, ...]) -> str:
    """The parts in `only` that the suite does not have, in words; "" if it has all."""
    parts = [*PARTS.get(name, lambda _: _STAGES)(suite)]
    # Kinds of input are chosen by the start of their name.
    missing = [one for one in only if not (any(p.startswith(one) for p in parts) if name == "inputs" else one in parts)]
    return f"{name} has no part {', '.join(missing)}; its parts: {', '.join(parts) or 'none'}" if missing else ""


def main(argv: list[str]) -> int:
    """Run the suites, each of which prints its table and says how many promises were broken.

    Returns:
        1 if a promise was broken, or if a suite could not check anything on this machine.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="default: all")
    parser.add_argument("--count", type=int, help="how often something is broken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="stages or other parts that each of the suites has, with commas")
    arguments = parser.parse_args(argv)
    if arguments.count is not None and arguments.count < 1:
        parser.error("--count has to be at least 1")
    only = tuple(part for part in arguments.only.split(",") if part)
    suites = {name: importlib.import_module(name) for name in arguments.suites or SUITES}
    if wrong := [text for name, suite in suites.items() if (text := unknown(name, suite, only))]:
        parser.error("\n".join(wrong))
    broken_by_suite: dict[str, int | None] = {}
    for name, suite in suites.items():
        print(f"\n## {name}: {suite.__doc__.splitlines()[0]}\n", flush=True)
        broken_by_suite[name] = suite.suite(arguments.count or SUITES[name], arguments.seed, only)
        if broken_by_suite[name] is None:
            print("not checked", flush=True)
    skipped = [name for name, broken in broken_by_suite.items() if broken is None]
    broken = sum(count or 0 for count in broken_by_suite.values())
    print(f"\nbroken promises: {broken}" + (f"; not checked: {', '.join(skipped)}" if skipped else ""))
    return int(broken > 0 or bool(skipped))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
