"""Odd names in the environment and on the command line."""

import contextlib
import io
import os
from pathlib import Path
from unittest.mock import patch

from data_cases import LENIENT, REVIEWS, every
from hostile import Case
from reviews_bench import Bench, amazon, item

from sidr_core.errors import SidrError
from sidr_core.profile import home, load_profile

HOMES = ["a b", "a'b", 'a";drop schema d;--', "a\nb", "$(touch canary)", "-rf", "http:", "ünï✓"]
NO_HOMES = ["*", "[1]", "a?b=c", "\\x", "x" * 256, "x/" * 10 + "y" * 300]
PROFILES = ["..", "../../x", "a\nb", "x" * 300, "x" * 5000, "-rf", "'; drop", "\u202ex", "/etc/passwd", "/dev/null"]
ODD = ["..", "../x", "a/b", "a\nb", "-rf", "'; drop schema games", "g\u0430mes", "\udcff", "x" * 300]
#: Commands that take names, where `{}` is the odd one.
COMMANDS = [
    *("show --dataset {}", "show --snapshot {}", "status --dataset {}", "newest --dataset {}", "gc --days {}"),
    *("recommend --user u --dataset {}", "recommend --user u --snapshot {}", "recommend --user {}"),
    *("recommend --history {}", "explain --user {}", "explain --user u --model {}", "explain --user u --row {}"),
    *("estimate --dataset {}", "estimate --snapshot {}", "compare {} {}", "compare games/{}/direct games/sft/{}"),
    *("sql {}", "sql --format {} x"),
]


def homes(folder: Path, canary: Path) -> str:
    """A working folder of any name: the catalog finds what was published there, and no other folder is made."""
    from sidr_core import catalog, cli_sql

    said = []
    for name in HOMES:
        place = folder / "homes" / name
        with patch.dict(os.environ, {"SIDR_HOME": str(place)}):
            bench = Bench(place, amazon(folder / "in", REVIEWS, [item("I1"), item("I2")]), **LENIENT)
            bench.run("raw_reviews")
            catalog.refresh(bench.store)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                cli_sql.sql("select count(*) as n from d.raw_reviews_all_snapshots", "csv")
            said.append(out.getvalue().split())
    assert sorted(path.name for path in (folder / "homes").iterdir()) == sorted(HOMES)
    return f"works in {sum(found == ['n', '3'] for found in said)} of {len(HOMES)}"


def no_homes(folder: Path, canary: Path) -> str:
    """DuckDB takes these for patterns: a catalog in `[1]` would show the files of its neighbour `1`."""

    def attempt(name: object) -> None:
        with patch.dict(os.environ, {"SIDR_HOME": str(folder / "homes" / str(name))}):
            home()

    return every(NO_HOMES, attempt)


def profiles(folder: Path, canary: Path) -> str:
    def attempt(name: object) -> None:
        with patch.dict(os.environ, {"SIDR_PROFILE": str(name)}):
            load_profile()

    return every(PROFILES, attempt)


def command_line(folder: Path, canary: Path) -> str:
    """Every odd name to every command: one clear error, or a refusal of the command line itself; no file is made."""
    from sidr_core.cli import app

    passed = []
    for command in COMMANDS:
        for name in ODD:
            quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
            try:
                with quiet[0], quiet[1]:
                    app([word.replace("{}", name) for word in command.split()])
            except SidrError:
                continue
            except SystemExit as end:
                if end.code == 2:
                    continue
            passed.append((command, name))
    assert not list((folder / "home").rglob("*")), "files were made"
    tried = len(COMMANDS) * len(ODD)
    return f"refused {tried - len(passed)} of {tried}" + (f", not {passed[0]!r}" if passed else "")


def all_cases() -> list[Case]:
    return [
        Case("8 odd names", "SIDR_HOME", homes, "works in 8 of 8"),
        Case("6 patterns and names too long", "SIDR_HOME", no_homes, "refused 6 of 6"),
        Case("10 names", "SIDR_PROFILE", profiles, "refused 10 of 10"),
        Case("9 names in 18 commands", "command line", command_line, "refused 162 of 162"),
    ]
