"""`sidr status`: what a refresh costs, by what the same stages took before."""

import json
from dataclasses import replace

import pytest

from builders.small_world import SNAPSHOT
from sidr_core.cli import estimate as cli_estimate
from sidr_core.cli.status import _duration, _in_words, refresh
from sidr_core.errors import NotMaterialized
from sidr_core.pipeline.status import ABSENT, CURRENT, STALE, State, Timings, states
from sidr_core.pipeline.store import MANIFEST, Store, _seal


def publish(store, dataset, snapshot, stage, seconds):
    """An output that took so many seconds."""
    key = {"for": [dataset, snapshot]}
    made, _ = store.obtain(stage, "1", key, lambda folder: None, extra={"seconds": seconds})
    store.set_ref(dataset, snapshot, stage, made.fingerprint)


def test_the_nearest_time_that_is_known_counts(tmp_path):
    store = Store(tmp_path / "store")
    publish(store, "toys", "2020-01", "sid_codebook", 1.0)
    publish(store, "toys", "2020-02", "sid_codebook", 2.0)
    publish(store, "games", "2020-09", "sid_codebook", 3.0)
    publish(store, "games", "2020-09", "interactions", 4.0)
    timings = Timings(store)
    assert timings.last("toys", "2020-01", "sid_codebook") == 1.0
    assert timings.last("toys", "2020-05", "sid_codebook") == 2.0
    assert timings.last("office", "2020-05", "sid_codebook") == 2.0  # of the dataset that comes last by name
    assert timings.last("toys", "2020-01", "interactions") == 4.0
    assert timings.last("toys", "2020-01", "evaluation") is None


def test_a_refresh_adds_up_what_is_due(world, monkeypatch):
    def state(stage, state, seconds):
        return State("toys", SNAPSHOT, stage, state, "", None, seconds)

    group = [state("interactions", CURRENT, 0.0), state("sid_codebook", STALE, 7.5), state("evaluation", ABSENT, None)]
    found = refresh(world.profile, world.store, group)
    assert (found.stages, found.seconds, found.untimed, found.usd) == (2, 7.5, ("evaluation",), 0.0)
    assert _in_words(found) == (
        "refresh: 2 stages, at most 7.5 s by the last time each was built, and evaluation, never built before"
    )
    assert _in_words(refresh(world.profile, world.store, group[:1])) == "refresh: nothing to do"
    corpus = [state("synthetic_corpus", STALE, 1.0)]
    assert refresh(world.profile, world.store, corpus).usd == 0.0  # rules cost nothing
    monkeypatch.setattr(cli_estimate, "corpus_usd", lambda *_: 1.25)
    assert "about 1.2500 USD" in _in_words(refresh(world.profile, world.store, corpus))

    def absent(*_):
        raise NotMaterialized("no codebook", expected="", found="", fix="")

    monkeypatch.setattr(cli_estimate, "corpus_usd", absent)
    unknown = refresh(world.profile, world.store, corpus)
    assert (unknown.usd, unknown.usd_unknown) == (None, "no codebook")


def test_a_paid_teacher_is_estimated_from_what_is_published(world):
    """As many USD as `sidr estimate` says; none is spent, and no key is needed."""
    config = world.profile.dataset("toys")
    endpoint = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    teacher = {"kind": "openai", "endpoint": endpoint, "price": {"input": 1.0, "output": 2.0}}
    paid = config.model_copy(update={"teacher": type(config.teacher).model_validate(teacher)})
    profile = replace(world.profile, datasets={"toys": paid})
    group = [one for one in states(profile, world.store, "toys") if one.snapshot == SNAPSHOT]
    found = refresh(profile, world.store, group)
    assert found.usd == pytest.approx(cli_estimate.corpus_usd(world.store, "toys", SNAPSHOT, paid.teacher))
    assert found.usd > 0


def test_status_as_json(world, sidr):
    artifact = world.store.require("toys", SNAPSHOT, "evaluation")
    manifest = json.loads((artifact.folder / MANIFEST).read_text())
    manifest.pop("seal")
    manifest |= {"seconds": 12.5, "code_version": "0"}
    (artifact.folder / MANIFEST).write_text(json.dumps({**manifest, "seal": _seal(manifest)}))
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
    code, _, err = sidr("status", "--format", "csv")
    assert code == 1 and "table or json" in err


def test_durations():
    found = [_duration(seconds) for seconds in (0.04, 119.0, 120.0, 7199.0, 7200.0)]
    assert found == ["0.0 s", "119.0 s", "2 min", "120 min", "2.0 h"]
