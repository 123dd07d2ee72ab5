"""The state of each stage: current, stale and why, not published; and how long stages took."""

from dataclasses import replace

from builders.small_world import SNAPSHOT
from sidr_core.pipeline.status import ABSENT, CURRENT, STALE, State, Timings, differences, states
from sidr_core.pipeline.store import Store


def by_stage(world, profile=None) -> dict[str, State]:
    return {s.stage: s for s in states(profile or world.profile, world.store, "toys") if s.snapshot == SNAPSHOT}


#: What the small world has and does not build: the bar for every model, which none of its lists needs.
LEFT_OUT = {"baseline_shortcut", "reevaluation"}
#: Nothing is asked of its untrained checkpoints.
LEFT_OUT |= {"grounding", "interventions"}


def test_all_is_current_after_a_run(world):
    by_name = by_stage(world)
    assert {name for name, state in by_name.items() if state.state == ABSENT} == LEFT_OUT
    assert {state.state for name, state in by_name.items() if name not in LEFT_OUT} == {CURRENT}


def test_a_changed_field_is_named_and_all_below_is_stale(world):
    config = world.profile.dataset("toys")
    changed = config.model_copy(update={"grpo": config.grpo.model_copy(update={"learning_rate": 1e-6})})
    by_name = by_stage(world, replace(world.profile, datasets={"toys": changed}))
    assert by_name["grpo_checkpoint"].state == STALE
    assert by_name["grpo_checkpoint"].why == f"grpo.learning_rate: {config.grpo.learning_rate} -> 1e-06"
    assert (by_name["recommendations"].state, by_name["recommendations"].why) == (STALE, "grpo_checkpoint is stale")
    assert (by_name["evaluation"].state, by_name["evaluation"].why) == (STALE, "recommendations is stale")
    others = {name for name, state in by_name.items() if state.state == CURRENT}
    assert others == set(by_name) - {
        "grpo_checkpoint",
        "recommendations",
        "evaluation",
        "leaderboard",
        "reasoning_report",
        *LEFT_OUT,
    }


def test_a_changed_input_is_named(world):
    """Another sft checkpoint is current, made under the same profile with another code version."""
    artifact, _ = world.store.obtain(
        "sft_checkpoint", "0", {"config": {}, "inputs": {}}, lambda folder: (folder / "x").write_text("x") and None
    )
    world.store.set_ref("toys", SNAPSHOT, "sft_checkpoint", artifact.fingerprint)
    by_name = by_stage(world)
    assert "code version 0 -> " in by_name["sft_checkpoint"].why
    assert "input sft_checkpoint changed" in by_name["recommendations"].why


def test_what_was_never_made_says_what_it_needs(world):
    for stage in ("sid_codebook", "recommendations"):
        (world.store.root / "refs" / "toys" / SNAPSHOT / f"{stage}.json").unlink()
    by_name = by_stage(world)
    assert (by_name["sid_codebook"].state, by_name["sid_codebook"].why) == (ABSENT, "")
    assert by_name["recommendations"].why.startswith("needs ")
    assert "sid_codebook" in by_name["recommendations"].why
    assert by_name["evaluation"].state == STALE


def test_differences_of_nested_settings_sources_and_previous():
    manifest = {
        "code_version": "1",
        "key": {"config": {"a": {"b": 1, "c": [1]}}, "inputs": {"x": "1", "y": "2"}, "sources": {"f": "1"}},
    }
    key = {
        "config": {"a": {"b": 2, "c": [1]}, "n": True},
        "inputs": {"x": "1", "y": "3"},
        "sources": {},
        "previous": "p",
    }
    assert differences(manifest, key, "2") == [
        "code version 1 -> 2",
        "a.b: 1 -> 2",
        "n: None -> True",
        "input y changed",
        "source file f changed",
        "the previous snapshot changed",
    ]
    assert differences(manifest, manifest["key"], "1") == []


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
