"""Prints the table of hostile inputs in docs/reliability.md: input, loader, outcome, canaries created.

    python scripts/security_table.py [--bombs]

The cases are those of `tests/security`; `--bombs` adds what each decompression bomb costs in memory.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / name) for name in ("security", "faults")] + [str(TESTS)]


def cell(text: str) -> str:
    """A text that cannot break a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Run every case in its own folder and print the outcome.

    Exit code 1 if a canary was created or an outcome was not the expected one.
    """
    import data_cases
    import file_cases
    import hostile
    import model_cases
    import name_cases
    import test_security_memory as memory

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bombs", action="store_true", help="add the bombs: about half a minute")
    bombs = parser.parse_args().bombs
    canaries, wrong = 0, []
    suites = (model_cases, file_cases, data_cases, name_cases)
    cases = [case for suite in suites for case in suite.all_cases()]
    print("| what is given | to which loader | outcome | canary |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="sidr-security-") as place:
        for number, case in enumerate(cases):
            outcome, ran = hostile.outcome(case, Path(place) / str(number))
            canaries += ran
            if not re.fullmatch(case.expected, outcome):
                wrong.append(f"{case.loader}, {case.thing}: {outcome}; expected: {case.expected}")
            print(
                f"| {cell(case.thing)} | {case.loader} | {cell(outcome)} | {'created' if ran else 'none'} |", flush=True
            )
        print(f"\nCanary files created: {canaries}.")
        if bombs:
            print("\n| bomb | outcome | MB beyond the libraries | allowed MB | CPU seconds |")
            print("| --- | --- | --- | --- | --- |")
            for name, (expected, most) in memory.BOMBS.items():
                (folder := Path(place) / name).mkdir()
                measured = memory.measured(name, folder)
                if not re.fullmatch(expected, measured["said"]) or measured["mb"] > most:
                    wrong.append(f"bomb {name}: {measured}; expected: {expected}, at most {most} MB")
                print(
                    f"| {name} | {cell(measured['said'])} | {measured['mb']} | {most} | {measured['seconds']:.1f} |",
                    flush=True,
                )
    print(f"\nOther outcomes than expected: {len(wrong)}.")
    for line in wrong:
        print(f"- {line}")
    sys.exit(canaries > 0 or len(wrong) > 0)


if __name__ == "__main__":
    main()
