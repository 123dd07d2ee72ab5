"""The schedule of a dataset and what freshness it promises."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from fake_stages import fake_profile

from sidr_assets.definitions import build_definitions
from sidr_assets.schedules import DEFAULT_CRON, STAGES, reevaluation_schedule
from sidr_core.errors import ProfileError


def tick(when: str):
    defs = build_definitions(fake_profile())
    at = datetime.fromisoformat(when).replace(tzinfo=UTC)
    context = dg.build_schedule_context(scheduled_execution_time=at, repository_def=defs.get_repository_def())
    return defs.resolve_schedule_def("toys_reevaluation").evaluate_tick(context)


@pytest.mark.parametrize(
    ("when", "snapshot"),
    [("2018-11-01", "2018-10"), ("2018-12-31", "2018-11"), ("2019-01-01", "2018-12"), ("2026-01-01", "2018-12")],
)
def test_a_tick_asks_for_the_newest_snapshot_that_has_ended(when: str, snapshot: str) -> None:
    (request,) = tick(when).run_requests
    assert (request.partition_key, request.run_key) == (snapshot, f"{when}T00:00:00+00:00")
    assert request.tags["dataset"] == "toys"


def test_before_the_first_end_nothing_is_asked() -> None:
    assert tick("2018-10-31").skip_message == "no snapshot has ended yet; the first is 2018-10"


def test_it_is_off_until_the_profile_says_when() -> None:
    off = reevaluation_schedule(fake_profile(), "toys")
    on = reevaluation_schedule(fake_profile(operation={"reevaluate": "30 4 * * 2"}), "toys")
    assert (off.cron_schedule, off.default_status) == (DEFAULT_CRON, dg.DefaultScheduleStatus.STOPPED)
    assert (on.cron_schedule, on.default_status) == ("30 4 * * 2", dg.DefaultScheduleStatus.RUNNING)
    assert on.execution_timezone == "UTC"


@pytest.mark.parametrize("cron", ["0 6 * * 1", "*/15 0-6/2 1,15 * 7", "59 23 31 12 0"])
def test_cron_lines_are_known(cron: str) -> None:
    assert fake_profile(operation={"reevaluate": cron}).dataset("toys").operation.reevaluate == cron
    reevaluation_schedule(fake_profile(operation={"reevaluate": cron}), "toys")  # and Dagster knows them too


@pytest.mark.parametrize(
    "cron",
    ["", "0 6 * *", "60 6 * * 1", "0 24 * * *", "0 6 0 * *", "0 6 * 13 *", "0 6 * * 8", "*/0 * * * *", "a b c d e"],
)
def test_other_lines_are_refused(cron: str) -> None:
    with pytest.raises(ProfileError, match="cron line of five fields"):
        fake_profile(operation={"reevaluate": cron})


def test_operation_is_part_of_no_code_version_and_shows_freshness() -> None:
    plain = build_definitions(fake_profile()).resolve_asset_graph()
    fresh = {"reevaluate": "0 6 * * 1", "automation": True, "fresh_days": 8}
    operated = build_definitions(fake_profile(operation=fresh)).resolve_asset_graph()
    for key in plain.materializable_asset_keys:
        assert plain.get(key).code_version == operated.get(key).code_version
        assert plain.get(key).freshness_policy is None
        expected = dg.FreshnessPolicy.time_window(timedelta(days=8)) if key.path[1] in STAGES else None
        assert operated.get(key).freshness_policy == expected
