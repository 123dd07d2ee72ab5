"""`sidr status`: what a refresh costs, by what the same stages took before."""

import json
from dataclasses import replace

import pytest

from builders.small_world import SNAPSHOT
from sidr_core.cli.status import Refresh, duration, refresh
from sidr_core.corpus.estimate import corpus_usd
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.run import plan, run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.status import ABSENT, CURRENT, STALE, State, staleness, states


def state(stage, state, seconds):
    return State("toys", SNAPSHOT, stage, state, "", None, seconds)


def test_a_refresh_adds_up_what_is_due(world):
    stages = [state("interactions", CURRENT, 0.0), state("sid_codebook", STALE, 7.5), state("evaluation", ABSENT, None)]
    assert refresh(world.profile, world.store, stages) == Refresh(2, 7.5, ("evaluation",), 0.0, "")
    corpus = [state("synthetic_corpus", STALE, 1.0)]
    assert refresh(world.profile, world.store, corpus).usd == 0.0  # rules cost nothing


def test_the_cost_of_a_refresh_in_words():
    assert Refresh(0, 0.0, (), 0.0, "").line() == "refresh: nothing to do"
    assert Refresh(2, 7.5, ("evaluation",), 0.0, "").line() == (
        "refresh: 2 stages, at most 7.5 s by the last time each was built, and evaluation, never built before"
    )
    never = Refresh(2, 0.0, ("recommendations", "evaluation"), 0.0, "")
    assert never.line() == "refresh: 2 stages, never built before"
    assert Refresh(1, 1.0, (), 1.25, "").line().endswith("about 1.2500 USD for the teacher (more: sidr estimate)")
    assert Refresh(1, 1.0, (), None, "no codebook").line().endswith("price is not known yet: no codebook")


def test_a_paid_teacher_is_estimated_from_what_is_published(world):
    """As many USD as `sidr estimate` says; none is spent, and no key is needed."""
    config = world.profile.dataset("toys")
    endpoint = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    teacher = {"kind": "openai", "endpoint": endpoint, "price": {"input": 1.0, "output": 2.0}}
    paid = config.model_copy(update={"teacher": type(config.teacher).model_validate(teacher)})
    profile = replace(world.profile, datasets={"toys": paid})
    stages = [one for one in states(profile, world.store, "toys") if one.snapshot == SNAPSHOT]
    cost = refresh(profile, world.store, stages)
    assert cost.usd == pytest.approx(corpus_usd(world.store, "toys", SNAPSHOT, paid.teacher))
    assert cost.usd > 0
    (world.store.root / "refs" / "toys" / SNAPSHOT / "sid_codebook.json").unlink()
    cost = refresh(profile, world.store, stages)
    assert (cost.usd, "sid_codebook" in cost.usd_unknown) == (None, True)


def test_status_as_json(world, sidr):
    key = world.store.require("toys", SNAPSHOT, "evaluation").manifest["key"]
    artifact, _ = world.store.obtain("evaluation", "0", key, lambda folder: None, extra={"seconds": 12.5})
    world.store.set_ref("toys", SNAPSHOT, "evaluation", artifact.fingerprint)
    code, out, _ = sidr("status", "--format", "json")
    assert code == 0
    (snapshot,) = json.loads(out)["snapshots"]
    stages = {stage["stage"]: stage for stage in snapshot["stages"]}
    assert (stages["evaluation"]["state"], stages["evaluation"]["refresh_seconds"]) == (STALE, 12.5)
    assert stages["evaluation"]["why"].startswith("code version 0 -> ")
    assert (stages["interactions"]["state"], stages["interactions"]["refresh_seconds"]) == (CURRENT, 0.0)
    due = [stage for stage in stages.values() if stage["state"] != CURRENT]
    assert snapshot["refresh"]["stages"] == len(due)
    assert snapshot["refresh"]["seconds"] == pytest.approx(sum(stage["refresh_seconds"] or 0 for stage in due))
    code, out, _ = sidr("status")
    assert code == 0 and f"refresh: {len(due)} stages, at most" in out


def test_durations():
    durations = [duration(seconds) for seconds in (0.04, 119.0, 120.0, 7199.0, 7200.0)]
    assert durations == ["0.0 s", "119.0 s", "2 min", "120 min", "2.0 h"]


def of_other_settings(world, **sections):
    return parse_profile("other", {"datasets": {"toys": {**world.profile.raw["datasets"]["toys"], **sections}}})


def test_an_output_that_failed_its_check_says_why_and_what_to_do(world):
    """Once beside one that stays current, and once alone."""
    other = of_other_settings(world, evaluation={"ks": [1, 3, 5], "bootstrap": 300})
    stage = stage_named("evaluation")
    key = plan(other, "toys", SNAPSHOT, stage, world.store).key
    failed = Check("complete", False, "3 rows are missing")
    world.store.obtain(stage.name, stage.code_version, key, lambda folder: Report(checks=(failed,)))
    ref = world.store.root / "refs" / "toys" / SNAPSHOT / "evaluation.json"
    for expected in (STALE, ABSENT):
        (found,) = (one for one in states(other, world.store, "toys") if one.stage == "evaluation")
        assert found.state == expected
        assert "toys/evaluation of snapshot 2020-02 failed complete: 3 rows are missing; fix: " in found.why
        ref.unlink(missing_ok=True)


def test_a_warning_of_what_is_current_says_why_and_what_to_do(world, sidr):
    other, stage = of_other_settings(world, evaluation={"ks": [1, 3, 5], "bootstrap": 300}), stage_named("evaluation")
    key = plan(other, "toys", SNAPSHOT, stage, world.store).key
    report = Report(checks=(Check("learnt", False, "below popularity"),))
    made, _ = world.store.obtain(stage.name, stage.code_version, key, lambda folder: report)
    world.store.set_ref("toys", SNAPSHOT, stage.name, made.fingerprint)
    (found,) = (one for one in states(other, world.store, "toys") if one.stage == stage.name)
    (warning,) = found.warnings
    assert found.state == CURRENT and warning.startswith("check learnt failed: below popularity; expected: ")
    words = " ".join(sidr("status")[1].split())
    assert "check learnt failed: below popularity" in words
    stages = json.loads(sidr("status", "--format", "json")[1])["snapshots"][0]["stages"]
    assert [one["warnings"] for one in stages if one["stage"] == stage.name] == [[warning]]


def test_staleness_names_the_first_cause_above(world):
    assert staleness(world.profile, world.store, "toys", SNAPSHOT, "leaderboard") is None
    other = of_other_settings(world, filters={"k_core": 3})
    why = staleness(other, world.store, "toys", SNAPSHOT, "evaluation")
    assert why is not None and why.startswith("raw_reviews is stale (filters.k_core: 5 -> 3")
    below = of_other_settings(world, evaluation={"ks": [1, 3, 5], "bootstrap": 300})
    assert staleness(below, world.store, "toys", SNAPSHOT, "recommendations") is None


def test_show_says_when_its_numbers_are_of_other_settings(world, sidr, monkeypatch):
    assert "is not what profile" not in sidr("show")[2]
    monkeypatch.setattr("sidr_core.cli.show.load_profile", lambda: of_other_settings(world, filters={"k_core": 3}))
    code, out, err = sidr("show")
    assert code == 0 and "item_item/direct" in out
    assert "note: toys/evaluation of 2020-02 is not what profile other would make now: raw_reviews is stale" in err


def test_a_profile_that_takes_the_place_of_another_says_so(world):
    other = of_other_settings(world, evaluation={"ks": [1, 3, 5], "bootstrap": 300})
    said: list[str] = []
    for _ in range(2):
        run_stage(other, "toys", SNAPSHOT, stage_named("evaluation"), world.store, Progress(said.append))
    (told,) = (line for line in said if "SIDR_HOME" in line)
    assert told.startswith("toys/evaluation of 2020-02 was current from profile test and is no more")
