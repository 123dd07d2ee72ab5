"""The adapter: reuse, data versions, early cut-off, warm starts, checks, errors and metadata."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests_with_backfill_policies
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.errors import DagsterExecutionInterruptedError
from fake_stages import NUMBERS, STAGES, TOTAL, fake_profile

from sidr_assets.definitions import build_definitions
from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.stage import CheckSpec
from sidr_core.pipeline.store import Store

MONTHS = ("2018-12", "2018-10", "2018-11")
TOYS_NUMBERS, TOYS_TOTAL = dg.AssetKey(["toys", "numbers"]), dg.AssetKey(["toys", "total"])


class Toys:
    """A Dagster instance and a store; `run` materializes one snapshot of everything."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.store, self.instance = Store(home / "store"), instance

    def run(
        self, profile: Profile | None = None, stages=STAGES, snapshot: str = "2018-10"
    ) -> dg.ExecuteInProcessResult:
        job = build_definitions(profile or fake_profile(), stages).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(partition_key=snapshot, instance=self.instance, raise_on_error=False)

    def digest(self, stage: str, snapshot: str = "2018-10") -> str:
        return self.store.require("toys", snapshot, stage).digest


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Toys(tmp_path, instance)


def events(result: dg.ExecuteInProcessResult) -> dict[dg.AssetKey, dg.AssetMaterialization]:
    materializations = [event.materialization for event in result.get_asset_materialization_events()]
    return {materialization.asset_key: materialization for materialization in materializations}


def reused(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    assert result.success
    return {key.path[1]: made.metadata["reused"].value for key, made in events(result).items()}


def test_second_run_reuses_everything(toys: Toys) -> None:
    assert reused(toys.run()) == {"numbers": False, "total": False}
    assert reused(toys.run()) == {"numbers": True, "total": True}


def test_data_version_is_the_content_digest(toys: Toys) -> None:
    made = events(toys.run())
    assert made[TOYS_NUMBERS].tags["dagster/data_version"] == toys.digest("numbers")
    assert made[TOYS_TOTAL].tags["dagster/data_version"] == toys.digest("total")


def test_code_version_bump_with_equal_bytes_stops_there(toys: Toys) -> None:
    before = events(toys.run())
    bumped = toys.run(stages=(replace(NUMBERS, code_version="2"), TOTAL))
    assert reused(bumped) == {"numbers": False, "total": True}
    after = events(bumped)
    assert after[TOYS_NUMBERS].tags["dagster/code_version"] != before[TOYS_NUMBERS].tags["dagster/code_version"]
    assert after[TOYS_NUMBERS].tags["dagster/data_version"] == before[TOYS_NUMBERS].tags["dagster/data_version"]
    assert after[TOYS_TOTAL].metadata["fingerprint"] == before[TOYS_TOTAL].metadata["fingerprint"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"evaluation": {"seed": 43}}, {"numbers": True, "total": False}),
        ({"quantizer": {"size": 5}}, {"numbers": False, "total": False}),
        ({"sft": {"learning_rate": 0.1}}, {"numbers": True, "total": True}),
    ],
)
def test_a_changed_field_recomputes_its_reader_and_what_lies_below(toys: Toys, section, expected) -> None:
    toys.run()
    assert reused(toys.run(fake_profile(**section))) == expected


def test_a_changed_field_changes_the_code_version_of_its_reader_only() -> None:
    def versions(profile: Profile) -> list[str | None]:
        graph = build_definitions(profile, STAGES).resolve_asset_graph()
        return [graph.get(key).code_version for key in (TOYS_NUMBERS, TOYS_TOTAL)]

    before, after = versions(fake_profile()), versions(fake_profile(evaluation={"seed": 43}))
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_warm_stage_starts_cold_without_its_previous_snapshot(toys: Toys) -> None:
    made = events(toys.run(snapshot="2018-12"))
    assert made[TOYS_TOTAL].metadata["started"].value == "cold: 2018-11 was never materialized"
    assert "started" not in made[TOYS_NUMBERS].metadata


def test_warm_stage_reads_its_previous_snapshot(toys: Toys) -> None:
    first, second = toys.run(snapshot="2018-10"), toys.run(snapshot="2018-11")
    assert events(first)[TOYS_TOTAL].metadata["started"].value == "cold: this is the first snapshot"
    assert events(second)[TOYS_TOTAL].metadata["started"].value == "warm from 2018-10"
    read = [toys.store.require("toys", key, "total").path("total.txt").read_text() for key in ("2018-10", "2018-11")]
    assert read == ["6", "12"]  # 0 + 1 + 2 + 3, and once more on top of the previous


def test_failed_blocking_check_stops_what_lies_below(toys: Toys) -> None:
    result = toys.run(fake_profile(quantizer={"size": 2}))
    assert not result.success
    assert TOYS_TOTAL not in events(result)
    outcome = {e.check_name: (e.passed, e.severity, e.description) for e in result.get_asset_check_evaluations()}
    assert outcome["enough"] == (False, dg.AssetCheckSeverity.ERROR, "2 numbers")


def test_a_failed_blocking_check_says_why_and_what_to_do(toys: Toys) -> None:
    result = toys.run(fake_profile(quantizer={"size": 2}))
    failure = result.failure_data_for_node("toys__numbers")
    assert failure is not None and failure.error is not None
    assert failure.error.to_string().strip().splitlines() == [
        "toys/numbers of snapshot 2018-10 failed enough",
        "  expected: There are at least three.",
        "  found:    2 numbers",
        "  fix:      raise the size",
    ]
    (evaluation,) = (e for e in result.get_asset_check_evaluations() if e.check_name == "enough")
    assert evaluation.metadata["fix"].value == "raise the size"


@pytest.mark.parametrize("by", ["key", "range"])
def test_check_results_belong_to_their_snapshot(toys: Toys, by: str) -> None:
    tags = {"dagster/asset_partition_range_start": "2018-11", "dagster/asset_partition_range_end": "2018-11"}
    job = build_definitions(fake_profile(), STAGES).resolve_implicit_global_asset_job_def()
    where: dict[str, Any] = {"partition_key": "2018-11"} if by == "key" else {"tags": tags}
    toys.run(fake_profile(quantizer={"size": 2}))
    assert job.execute_in_process(instance=toys.instance, **where).success
    key, history = dg.AssetCheckKey(TOYS_NUMBERS, "enough"), toys.instance.event_log_storage
    records = history.get_asset_check_execution_history(key, limit=9)
    statuses = {record.partition: record.status.value for record in records}
    assert statuses == {"2018-10": "FAILED", "2018-11": "SUCCEEDED"}


def test_a_run_that_is_stopped_says_so_without_a_stack(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise DagsterExecutionInterruptedError

    monkeypatch.setattr("sidr_assets.launchers.run", stopped)
    result = toys.run()
    (failure,) = (event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    assert failure.job_failure_data.error is not None
    said = failure.job_failure_data.error
    assert (said.message, said.stack) == (
        "stopped while toys/numbers was made: start it again, and it goes on from what is done\n",
        [],
    )


def test_a_backfill_is_a_run_per_snapshot_in_their_order() -> None:
    graph = build_definitions(fake_profile(), STAGES).resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert key not in graph.get(key).parent_keys
        mappings = (graph.get_partition_mapping(key, parent) for parent in graph.get(key).parent_keys)
        assert all(isinstance(mapping, dg.IdentityPartitionMapping) for mapping in mappings)
    asked = [AssetKeyPartitionKey(key, month) for key in graph.materializable_asset_keys for month in MONTHS]
    with dg.DagsterInstance.ephemeral() as instance:
        requests = build_run_requests_with_backfill_policies(asked, graph, instance)
    assert [request.tags["dagster/asset_partition_range_start"] for request in requests] == sorted(MONTHS)
    assert all(len(request.asset_selection or ()) == len(STAGES) for request in requests)


def test_output_that_failed_a_blocking_check_does_not_become_current(toys: Toys) -> None:
    toys.run(fake_profile())
    before = toys.digest("numbers")
    assert not toys.run(fake_profile(quantizer={"size": 2})).success
    assert toys.digest("numbers") == before


def test_table_that_breaks_its_contract_does_not_become_current(toys: Toys) -> None:
    result = toys.run(stages=(replace(NUMBERS, tables={"numbers": "Popularity"}), TOTAL))
    assert not result.success
    outcome = {e.check_name: (e.passed, e.description) for e in result.get_asset_check_evaluations()}
    assert outcome["schema"][0] is False and "item_id breaks column_in_dataframe" in outcome["schema"][1]
    assert outcome["enough"][0] is True
    assert toys.store.current("toys", "2018-10", "numbers") is None


def test_what_was_published_without_the_check_is_not_reused(toys: Toys) -> None:
    toys.run()
    assert not toys.run(stages=(replace(NUMBERS, tables={"numbers": "Popularity"}), TOTAL)).success


def test_failed_warning_stops_nothing(toys: Toys) -> None:
    result = toys.run()
    outcome = {e.check_name: (e.passed, e.severity) for e in result.get_asset_check_evaluations()}
    assert outcome == {"enough": (True, dg.AssetCheckSeverity.ERROR), "many": (False, dg.AssetCheckSeverity.WARN)}
    assert TOYS_TOTAL in events(result)


def test_a_check_that_came_after_the_output_is_told_as_not_measured(toys: Toys) -> None:
    toys.run()
    late = CheckSpec("late", "Came with a later version.", blocking=True, fix="build it again")
    result = toys.run(stages=(replace(NUMBERS, checks=(NUMBERS.checks[0], late)), TOTAL))
    assert reused(result) == {"numbers": True, "total": True}
    outcome = {e.check_name: (e.passed, e.severity, e.description) for e in result.get_asset_check_evaluations()}
    assert outcome["late"][:2] == (False, dg.AssetCheckSeverity.WARN) and "not measured" in outcome["late"][2]
    assert outcome["enough"][0] is True and set(outcome) == {"enough", "late"}  # a check that is no more is not told


def test_user_mistake_is_one_message_and_publishes_nothing(toys: Toys) -> None:
    result = toys.run(fake_profile(quantizer={"size": 13}))
    failure = result.failure_data_for_node("toys__numbers")
    assert failure is not None and failure.error is not None
    assert failure.error.to_string().strip() == (
        "thirteen numbers\n  expected: another size\n  found:    13\n  fix:      choose another"
    )
    assert failure.user_failure_data is not None  # a dg.Failure, not a crash
    assert not events(result)
    assert toys.store.current("toys", "2018-10", "numbers") is None


def test_metadata(toys: Toys) -> None:
    metadata = events(toys.run())[TOYS_NUMBERS].metadata
    assert metadata["dagster/row_count"].value == 4
    assert metadata["all numbers"].value["rows/numbers"] == 4
    assert metadata["largest"] == dg.IntMetadataValue(3)
    assert metadata["synthetic"].value is True
    assert metadata["card"] == dg.MetadataValue.md("# Numbers")
    assert metadata["figure: curve"].value.startswith("![curve.png](data:image/png;base64,iVBOR")
    assert [column.name for column in metadata["dagster/column_schema"].value.columns] == ["number", "text"]
    preview = metadata["preview"].records
    assert [record.data["number"] for record in preview] == ["0", "1", "2", "3"]
    assert len(preview[0].data["text"]) == 121
    artifact = toys.store.require("toys", "2018-10", "numbers")
    assert metadata["folder"].value == str(artifact.folder)
    assert metadata["fingerprint"].value == artifact.fingerprint
    size = sum(path.stat().st_size for path in map(artifact.path, artifact.files))
    assert metadata["megabytes"].value == round(size / 1e6, 3)
    assert metadata["seconds"].value >= 0 and metadata["all numbers"].value["peak_memory_megabytes"] > 1


def test_a_dozen_numbers_are_plotted_and_the_rest_is_one_entry(toys: Toys) -> None:
    """The UI plots each number that is an entry of its own; `kind`, a text, and the rest stand together."""
    metadata = events(toys.run())[TOYS_NUMBERS].metadata
    numeric = [
        name for name, value in metadata.items() if isinstance(value, (dg.IntMetadataValue, dg.FloatMetadataValue))
    ]
    assert numeric == ["largest", "dagster/row_count", "seconds", "megabytes"]
    assert next(iter(metadata)) == "largest"
    assert metadata["all numbers"].value["kind"] == "range"


def test_preview_is_five_rows(toys: Toys) -> None:
    assert len(events(toys.run(fake_profile(quantizer={"size": 50})))[TOYS_NUMBERS].metadata["preview"].records) == 5
