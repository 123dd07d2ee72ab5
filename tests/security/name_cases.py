"""Odd names in the environment and on the command line."""

import contextlib
import io
import json
import os
from pathlib import Path
from unittest.mock import patch

import yaml
from data_cases import LENIENT, REVIEWS, every
from hostile import Case

from builders import small_world
from builders.reviews import Bench, amazon, item
from builders.small_world import SNAPSHOT
from sidr_core.errors import SidrError
from sidr_core.pipeline.profile import home, load_profile

HOMES = ["a b", "a'b", 'a";drop schema d;--', "a\nb", "$(touch canary)", "-rf", "http:", "ünï✓"]
NO_HOMES = ["*", "[1]", "a?b=c", "\\x", "x" * 256, "x/" * 10 + "y" * 300]
PROFILES = ["..", "../../x", "a\nb", "x" * 300, "x" * 5000, "-rf", "'; drop", "\u202ex", "/etc/passwd", "/dev/null"]
ODD = ["..", "../x", "a/b", "a\nb", "-rf", "'; drop schema games", "g\u0430mes", "\udcff", "x" * 300]
#: Commands that take names, where `{}` is the odd one -> a sound one, of the small world.
COMMANDS = {
    "show --dataset {}": "toys",
    "show --snapshot {}": SNAPSHOT,
    "status --dataset {}": "toys",
    "newest --dataset {}": "toys",
    "gc --days {}": "7",
    "recommend --user user0 --dataset {}": "toys",
    "recommend --user user0 --snapshot {}": SNAPSHOT,
    "recommend --user {}": "user0",
    "recommend --history {}": "A01,A02",
    "explain --user {}": "user0",
    "explain --user user0 --model {}": "sft/direct",
    "explain --user user0 --row {}": "user0:5",
    "estimate --dataset {}": "toys",
    "estimate --snapshot {}": SNAPSHOT,
    "compare -k 5 toys/grpo/direct {}": "toys/sft/direct",
    "compare -k 5 toys/grpo/direct toys/{}/direct": "sft",
    "sql {}": "select count(*) from toys.evaluation",
    "sql --format {} select(1)": "csv",
}


def homes(folder: Path, canary: Path) -> str:
    """A working folder of any name: the catalog finds what was published there, and no other folder is made."""
    from sidr_core.cli import sql as cli_sql
    from sidr_core.pipeline import catalog

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


def _published(home: Path, file: Path) -> None:
    """The small world down to its evaluation, and its profile in a file."""
    from sidr_core.pipeline import catalog

    world = small_world.build(home)
    for stage in ("recommendations", "evaluation"):
        world.run(stage)
    catalog.refresh(world.store)
    file.write_text(yaml.safe_dump(json.loads(json.dumps(world.profile.raw))))


def _refused(command: str, name: str) -> bool:
    """Whether `sidr` answers with one clear error, or refuses the command line itself."""
    from sidr_core.cli.main import app

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            app([word.replace("{}", name) for word in command.split()])
    except SidrError:
        return True
    except SystemExit as end:
        return end.code == 2
    return False


def command_line(folder: Path, canary: Path) -> str:
    """Every odd name to every command, where a sound one works; no file is made or changed."""
    _published(folder / "home", folder / "test.yaml")
    with patch.dict(os.environ, {"SIDR_PROFILE": str(folder / "test.yaml")}):
        sound = [command for command, name in COMMANDS.items() if not _refused(command, name)]
        before = {path: path.stat().st_mtime_ns for path in (folder / "home").rglob("*")}
        passed = [(command, name) for command in COMMANDS for name in ODD if not _refused(command, name)]
    assert {path: path.stat().st_mtime_ns for path in (folder / "home").rglob("*")} == before, "files were made"
    tried = len(COMMANDS) * len(ODD)
    told = f", not {passed[0]!r}" if passed else ""
    return f"works in {len(sound)} of {len(COMMANDS)}, refused {tried - len(passed)} of {tried}{told}"


def all_cases() -> list[Case]:
    return [
        Case("8 odd names", "SIDR_HOME", homes, "works in 8 of 8"),
        Case("6 patterns and names too long", "SIDR_HOME", no_homes, "refused 6 of 6"),
        Case("10 names", "SIDR_PROFILE", profiles, "refused 10 of 10"),
        Case("9 names in 18 commands", "command line", command_line, "works in 18 of 18, refused 162 of 162"),
    ]
