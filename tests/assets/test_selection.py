"""What a user types, through the real command line: the selection forms, and mistakes.

The profile's source files are missing, so that each run plans its steps and then ends at once; what was
selected is read from the run in the instance.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from sidr_assets import selection
from sidr_core.pipeline.graph import stages_of
from sidr_core.pipeline.profile import parse_profile

ROOT = Path(__file__).resolve().parents[2]
PROFILE = """
default_dataset: games
datasets:
  games: &missing
    source: {kind: amazon_2018, reviews: [nowhere/reviews.json.gz], items: [nowhere/items.json.gz]}
    snapshots: {cadence: monthly, start: 2018-07, end: 2018-10}
  board_games: *missing
  games_small: *missing
"""
#: What the default lists need.
GAMES = {
    dg.AssetKey(["games", stage.name])
    for stage in stages_of(parse_profile("p", yaml.safe_load(PROFILE)).dataset("games"))
}
SOURCED = "source .envrc && export DAGSTER_HOME=$TEST_DAGSTER_HOME && "


class CommandLine:
    """The project root as a user has it, with a home, an instance and a profile of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "profile.yaml").write_text(PROFILE)
        storage = (ROOT / "dagster.yaml").read_text().replace(".sidr/dagster", str(folder / "storage"))
        (folder / "dagster.yaml").write_text(storage)
        inherited = {name: value for name, value in os.environ.items() if "DAGSTER" not in name}
        self.environment = inherited | {
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
            "SIDR_PROFILE": str(folder / "profile.yaml"),
            "SIDR_HOME": str(folder / "sidr"),
            "TEST_DAGSTER_HOME": str(folder),
        }
        self.instance = dg.DagsterInstance.from_config(str(folder))

    def __call__(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def newest_run(self) -> dg.DagsterRun | None:
        runs = self.instance.get_runs(limit=1)
        return runs[0] if runs else None


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    if not (ROOT / ".venv" / "bin" / "dagster").exists():
        pytest.skip("no .venv: run make setup")
    line = CommandLine(tmp_path_factory.mktemp("command_line"))
    with line.instance:
        yield line


EXPLICIT = "export DAGSTER_HOME=$TEST_DAGSTER_HOME && dagster asset materialize -m sidr_assets "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "snapshot"),
    [
        pytest.param(SOURCED + "dagster asset materialize --select games/*", "2018-10", id="bare"),
        pytest.param(EXPLICIT + "--select 'games/*' --partition 2018-08", "2018-08", id="explicit"),
        pytest.param(EXPLICIT + "--select 'key:\"games/*\"' --partition 2018-08", "2018-08", id="key"),
        pytest.param(EXPLICIT + "--select group:games --partition 2018-08", "2018-08", id="group"),
        pytest.param(SOURCED + "dg launch --assets 'games/*'", "2018-10", id="dg"),
    ],
)
def test_each_form_selects_exactly_the_games_assets(command_line: CommandLine, command: str, snapshot: str) -> None:
    before = command_line.newest_run()
    done = command_line(command)
    run = command_line.newest_run()
    assert run is not None and (before is None or run.run_id != before.run_id), done.stderr
    assert run.asset_selection == GAMES
    assert run.tags["dagster/partition"] == snapshot
    steps = command_line.instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id or "").step_keys_to_execute
    assert set(steps) == {"__".join(key.path) for key in GAMES}


def test_missing_source_is_one_clear_message(command_line: CommandLine) -> None:
    done = command_line(EXPLICIT + "--select games/raw_reviews --partition 2018-08")
    assert done.returncode == 1
    assert "nowhere/reviews.json.gz is missing" in done.stderr
    assert "Traceback" not in done.stderr and "Stack Trace" not in done.stderr
    assert not (Path(command_line.environment["SIDR_HOME"]) / "store" / "raw_reviews").exists()


def test_unknown_snapshot_is_one_clear_message(command_line: CommandLine) -> None:
    done = command_line(EXPLICIT + "--select 'games/*' --partition 2031-01")
    assert done.returncode == 1
    assert "2031-01" in done.stderr and "games 2018-07 … 2018-10 (monthly)" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_dataset_is_one_clear_message(command_line: CommandLine) -> None:
    done = command_line(EXPLICIT + "--select 'gmaes/*' --partition 2018-08")
    assert done.returncode == 1
    assert "expected: games 2018-07" in done.stderr
    assert "Traceback" not in done.stderr
    assert "a selection that holds no asset" in done.stderr


def test_no_snapshot_named_is_one_clear_message(command_line: CommandLine) -> None:
    done = command_line(EXPLICIT + "--select 'games/*'")
    assert done.returncode == 1
    assert "no '--partition' option was provided" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("names", ["2018-08...2018-09", "2018-08..2018-09"])
def test_a_range_of_snapshots_is_one_clear_message(command_line: CommandLine, names: str) -> None:
    done = command_line(EXPLICIT + f"--select 'games/*' --partition-range {names}")
    assert done.returncode != 0
    assert "--partition" in done.stderr and "Traceback" not in done.stderr


def test_unknown_profile_key_is_one_clear_message(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "typo.yaml").write_text(PROFILE.replace("snapshots:", "filtres: {}\n    snapshots:", 1))
    done = command_line(EXPLICIT + "--select 'games/*' --partition 2018-08", SIDR_PROFILE=str(tmp_path / "typo.yaml"))
    assert done.returncode == 1
    assert "did you mean 'filters'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["dg check defs", "dagster definitions validate"])
def test_code_location_loads_as_committed(command_line: CommandLine, command: str) -> None:
    done = command_line("export DAGSTER_HOME=$TEST_DAGSTER_HOME VIRTUAL_ENV=$PWD/.venv && " + command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dagster_leaves_nothing_in_the_project_root(command_line: CommandLine) -> None:
    done = command_line("source .envrc && dagster run list --limit 1 && dagster asset list --select 'games/*'")
    assert "games/raw_reviews" in done.stdout
    litter = {"history", "schedules", "storage", ".telemetry", ".nux"}
    assert not litter & {path.name for path in ROOT.iterdir()}


SELECTIONS = [
    ("games/*", {"games/raw", "games/evaluation"}),
    ("board_games/*", {"board_games/raw"}),
    ('key:"games/*"', {"games/raw", "games/evaluation"}),
    ("games/raw", {"games/raw"}),
    ("games/raw*", {"games/raw", "games/evaluation"}),
    ("games/raw+", {"games/raw", "games/evaluation"}),
    ("*", {"games/raw", "games/evaluation", "board_games/raw"}),
    ('key:"games/*" and not key:"*/raw"', {"games/evaluation"}),
]


def asset(dataset: str, name: str, *deps: str) -> dg.AssetsDefinition:
    @dg.asset(key=[dataset, name], deps=[dg.AssetKey([dataset, dep]) for dep in deps])
    def body() -> None: ...

    return body


@pytest.mark.parametrize(("text", "expected"), SELECTIONS)
def test_selection_strings(text: str, expected: set[str]) -> None:
    raw, board, below = asset("games", "raw"), asset("board_games", "raw"), asset("games", "evaluation", "raw")
    graph = dg.Definitions(assets=[raw, board, below]).resolve_asset_graph()
    chosen = dg.AssetSelection.from_string(text).resolve(graph)
    assert {key.to_user_string() for key in chosen} == expected


def test_installing_twice_wraps_once() -> None:
    wrapped = dg.AssetSelection.from_string
    selection.install()
    assert dg.AssetSelection.from_string == wrapped
