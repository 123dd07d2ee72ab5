"""The two sensors: what new files ask for, and what changed data and code do."""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from fake_stages import NUMBERS, STAGES, TOTAL, fake_profile

from sidr_assets import automation
from sidr_assets.definitions import build_definitions
from sidr_core.pipeline.graph import STAGES as REAL_STAGES
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.report import Report

LONG_AGO = datetime(2018, 11, 15, tzinfo=UTC).timestamp()


def write(path: Path, text: str, changed_at: float = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (changed_at, changed_at))
    return path


class Watched:
    """A dataset over `<folder>/reviews/*.json` with one file, and its sensor."""

    def __init__(self, folder: Path, **source: object) -> None:
        self.folder = folder
        write(folder / "reviews" / "a.json", "one")
        write(folder / "items.json", "items")
        fields = {"kind": "amazon_2018", "reviews": [f"{folder}/reviews/*.json"], "items": [f"{folder}/items.json"]}
        self.profile = fake_profile(source=fields | source)
        self.defs = build_definitions(self.profile, STAGES)
        self.sensor = self.defs.resolve_sensor_def("toys_new_files")
        self.cursor: str | None = None

    def look(self, instance: dg.DagsterInstance):
        context = dg.build_sensor_context(instance=instance, cursor=self.cursor, definitions=self.defs)
        data = self.sensor.evaluate_tick(context)
        self.cursor = data.cursor
        return data

    def skipped(self, instance: dg.DagsterInstance) -> str:
        data = self.look(instance)
        assert not data.run_requests and data.skip_message is not None
        return data.skip_message

    def asked(self, instance: dg.DagsterInstance) -> dg.RunRequest:
        (request,) = self.look(instance).run_requests
        return request


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_first_look_notes_what_is_there(watched: Watched, instance) -> None:
    message = watched.skipped(instance)
    assert message.startswith("first look") and "2 files, 8 bytes" in message
    assert "2018-11-15 00:00:00 UTC" in message


def test_nothing_new_asks_for_nothing(watched: Watched, instance) -> None:
    watched.look(instance)
    before = watched.cursor
    assert watched.skipped(instance).startswith("nothing new: 2 files, 8 bytes")
    assert watched.cursor == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write(folder / "reviews" / "b.json", "two"),
        lambda folder: write(folder / "reviews" / "a.json", "longer"),
        lambda folder: write(folder / "reviews" / "a.json", "one", LONG_AGO + 1),
        lambda folder: (folder / "reviews" / "a.json").unlink(),
        lambda folder: write(folder / "items.json", "ITEMS", LONG_AGO - 1),
    ],
    ids=["new match", "other size", "other time", "one less", "other items"],
)
def test_each_change_is_asked_for_once(watched: Watched, instance, change) -> None:
    watched.look(instance)
    change(watched.folder)
    request = watched.asked(instance)
    assert (request.partition_key, request.run_key) == ("2018-11", f"2018-11-{watched.cursor}")
    assert request.tags["dataset"] == "toys"
    assert watched.skipped(instance).startswith("nothing new")


def test_a_hidden_file_below_a_folder_is_none(tmp_path: Path, instance) -> None:
    watched = Watched(tmp_path, reviews=[f"{tmp_path}/reviews"])
    watched.look(instance)
    write(tmp_path / "reviews" / ".ipynb_checkpoints" / "a.json", "x")
    write(tmp_path / "reviews" / "_temporary" / "part-0.json", "x")
    assert watched.skipped(instance).startswith("nothing new")


def test_a_change_back_to_files_seen_before_is_asked_for(watched: Watched, instance) -> None:
    watched.look(instance)
    keys = set()
    for text in ("two", "one", "two", "one"):
        write(watched.folder / "reviews" / "a.json", text, LONG_AGO if text == "one" else LONG_AGO + 1)
        keys.add(watched.asked(instance).run_key)  # a key that was seen before would start no run
    assert len(keys) == 4


def test_a_file_dated_in_the_future_is_not_waited_for(watched: Watched, instance) -> None:
    watched.look(instance)
    write(watched.folder / "reviews" / "b.json", "two", time.time() + 86_400)
    assert watched.asked(instance).partition_key == "2018-12"


def test_the_cursor_of_an_earlier_version_is_read(watched: Watched, instance) -> None:
    watched.cursor = automation.source_files(watched.profile.dataset("toys")).digest
    assert watched.skipped(instance).startswith("nothing new")


def test_a_file_outside_the_patterns_is_none(watched: Watched, instance) -> None:
    watched.look(instance)
    write(watched.folder / "reviews" / "notes.txt", "x")
    assert watched.skipped(instance).startswith("nothing new")


def test_a_file_that_is_still_being_written_is_waited_for(watched: Watched, instance, monkeypatch) -> None:
    watched.look(instance)
    write(watched.folder / "reviews" / "b.json", "half", time.time())
    assert "changed less than 60 s ago" in watched.skipped(instance)
    monkeypatch.setattr(automation, "SETTLED_SECONDS", 0)
    assert watched.asked(instance).partition_key == "2018-12"  # later than all windows: the newest


def test_a_source_without_files_is_reported(tmp_path: Path, instance) -> None:
    watched = Watched(tmp_path, reviews=[f"{tmp_path}/none/*.json"], items=[])
    assert watched.skipped(instance) == f"no file matches {tmp_path}/none/*.json"


def test_folders_checksums_and_urls(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    patterns = [f"{tmp_path}/reviews", f"{tmp_path}/items.json#sha256={'0' * 64}", "https://example.org/x.json"]
    config = fake_profile(source={"kind": "tables", "reviews": patterns, "items": patterns[:1]}).dataset("toys")
    assert automation.local_patterns(config) == [f"{tmp_path}/reviews", f"{tmp_path}/items.json", f"{tmp_path}/reviews"]
    assert automation.source_files(config) == automation.source_files(watched.profile.dataset("toys"))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2018-09-30", "2018-12"),  # before the first window: old data, just fetched
        ("2018-10-01", "2018-10"),
        ("2018-10-31", "2018-10"),
        ("2018-11-01", "2018-11"),
        ("2018-12-31", "2018-12"),
        ("2024-01-01", "2018-12"),
    ],
)
def test_the_snapshot_is_the_one_in_whose_window_the_files_changed(when: str, expected: str) -> None:
    snapshots = fake_profile().dataset("toys").snapshots
    assert automation.snapshot_for(snapshots, datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()) == expected


def test_a_request_runs_the_whole_dataset(watched: Watched, instance, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    watched.look(instance)
    write(watched.folder / "reviews" / "b.json", "two")
    request = watched.asked(instance)
    job = watched.defs.resolve_job_def(watched.sensor.job_name)
    result = job.execute_in_process(partition_key=request.partition_key, instance=instance)
    made = {event.materialization.asset_key.path[1] for event in result.get_asset_materialization_events()}
    assert result.success and made == {stage.name for stage in STAGES}


def test_sensors_stand_where_files_are_and_are_off() -> None:
    def statuses(name: str) -> dict[str, dg.DefaultSensorStatus]:
        sensors = build_definitions(load_profile(name)).sensors or []
        return {sensor.name: sensor.default_status for sensor in sensors if not sensor.name.startswith("alert_")}

    off = dg.DefaultSensorStatus.STOPPED
    assert statuses("real") == {
        f"{name}_{kind}": off for name in load_profile("real") for kind in ("new_files", "automation")
    }
    assert statuses("quickstart") == {f"{name}_automation": off for name in load_profile("quickstart")}
    dg.Definitions.validate_loadable(build_definitions(load_profile("real"), REAL_STAGES))


def test_automation_is_switched_on_by_the_profile() -> None:
    sensors = build_definitions(fake_profile(operation={"automation": True}), STAGES).sensors or []
    (sensor,) = [sensor for sensor in sensors if not sensor.name.startswith("alert_")]
    assert (sensor.name, sensor.default_status) == ("toys_automation", dg.DefaultSensorStatus.RUNNING)


# -- data and code versions ----------------------------------------------------------------------

COUNT = replace(
    NUMBERS, name="count", sections=(), inputs={"total": ("total.txt",)}, run="test_automation:count", checks=()
)
CHAIN = (*STAGES, COUNT)


def count(inputs, config, out_dir, progress) -> Report:
    (out_dir / "count.txt").write_text(inputs["total"].path("total.txt").read_text())
    return Report()


class Followed:
    """A store, an instance, and the evaluations of the sensor `toys_automation` one after another."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor = instance, None

    def run(self, snapshot: str = "2018-10", profile=None, stages=CHAIN, select: str = "*") -> None:
        defs = build_definitions(profile or fake_profile(), stages)
        result = dg.materialize(
            list(defs.assets or []), partition_key=snapshot, instance=self.instance, selection=f"toys/{select}"
        )
        assert result.success

    def asked(self, profile=None, stages=CHAIN) -> set[tuple[str, str]]:
        """(stage, snapshot) that the next evaluation asks for."""
        defs = build_definitions(profile or fake_profile(), stages)
        result = dg.evaluate_automation_conditions(defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return {
            (key.path[1], snapshot)
            for key in defs.resolve_asset_graph().materializable_asset_keys
            for snapshot in result.get_requested_partitions(key)
        }

    def look(self, stages=CHAIN) -> None:
        """The first look, which asks for all that was built before, and the one after it."""
        self.asked(stages=stages)
        assert self.asked(stages=stages) == set()


@pytest.fixture
def followed(instance, monkeypatch, tmp_path) -> Followed:
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    return Followed(instance)


def test_the_first_look_asks_for_what_was_built_before(followed: Followed) -> None:
    followed.run()
    other = fake_profile(quantizer={"size": 5})  # changed before automation was switched on
    assert followed.asked(other) >= {("numbers", "2018-10")}
    followed.run(profile=other)
    assert followed.asked(other) == set()


def test_nothing_is_asked_at_first_nor_after_a_whole_run(followed: Followed) -> None:
    assert followed.asked() == set()
    followed.run()
    assert followed.asked() == set()
    assert followed.asked() == set()


def test_equal_bytes_ask_for_nothing_and_other_bytes_for_the_children_alone(followed: Followed) -> None:
    followed.run()
    followed.asked()
    followed.run(select="numbers")
    assert followed.asked() == set()  # materialized again, to the same bytes
    other = fake_profile(quantizer={"size": 5})
    followed.run(profile=other, select="numbers")
    assert followed.asked(other) == {("total", "2018-10")}
    assert followed.asked(other) == set()  # asked for once
    followed.run(profile=other, select="total")
    assert followed.asked(other) == {("count", "2018-10")}
    followed.run(profile=other, select="count")
    assert followed.asked(other) == set()


def test_a_code_bump_asks_for_its_stage_where_it_was_built(followed: Followed) -> None:
    followed.run()
    followed.look()
    bumped = (NUMBERS, replace(TOTAL, code_version="2"), COUNT)
    assert followed.asked(stages=bumped) == {("total", "2018-10")}
    followed.run(stages=bumped, select="total")
    assert followed.asked(stages=bumped) == set()  # the same bytes: nothing below


def test_a_changed_setting_is_a_code_bump_of_its_reader(followed: Followed) -> None:
    followed.run()
    followed.look()
    assert followed.asked(fake_profile(evaluation={"seed": 43})) == {("total", "2018-10")}


def test_a_new_snapshot_needs_all_it_reads_but_no_earlier_one(followed: Followed) -> None:
    followed.asked()
    followed.run("2018-12", select="numbers")
    assert followed.asked() == {("total", "2018-12")}  # 2018-11, where a warm start would look, is missing


def test_a_stage_of_earlier_snapshots_follows_nothing() -> None:
    graph = build_definitions(load_profile("quickstart")).resolve_asset_graph()
    without = {key.path[1] for key in graph.materializable_asset_keys if graph.get(key).automation_condition is None}
    assert without == {"reevaluation"}
