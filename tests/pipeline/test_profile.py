"""Profiles: defaults, inheritance, windows, and errors that help."""

import copy
import re
import tomllib
from pathlib import Path

import pytest

import sidr_core
from sidr_core.errors import ProfileError
from sidr_core.pipeline.profile import PROFILES, StageConfig, load_profile, parse_profile
from sidr_core.settings import DatasetConfig

BASE = {
    "datasets": {
        "games": {
            "source": {"kind": "sample", "category": "games"},
            "snapshots": {"start": "2018-07", "end": "2018-10"},
        }
    }
}


def parsed(**changes):
    raw = copy.deepcopy(BASE)
    raw["datasets"]["games"].update(changes)
    return parse_profile("test", raw)


@pytest.mark.parametrize("name", sorted(p.stem for p in PROFILES.glob("*.yaml")))
def test_every_shipped_profile_is_valid(name):
    profile = load_profile(name)
    for dataset in profile:
        assert profile.newest(dataset) == profile.dataset(dataset).snapshots.end


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"filters": {"k_core": 10**30}}, "k_core is 1e+30, and no whole number may have more than 15 digits"),
        ({"quantizer": {"seed": -1}}, "quantizer.seed"),
        ({"sft": {"seed": 2**32}}, "sft.seed"),
        ({"base_model": {"kind": "tiny", "hidden_size": 10**9}}, "hidden_size"),
        ({"base_model": {"kind": "tiny", "layers": 0}}, "layers"),
        ({"snapshots": {"start": "0001-01", "end": "2018-12"}}, "from 1970-01 to 2099-12, found '0001-01'"),
        ({"snapshots": {"start": "2018-12", "end": "9999-12"}}, "from 1970-01 to 2099-12, found '9999-12'"),
    ],
)
def test_numbers_and_months_that_nothing_can_hold_are_refused(section, said):
    with pytest.raises(ProfileError, match=re.escape(said)):
        parsed(**section)


def test_windows():
    snapshots = parsed().dataset("games").snapshots
    assert snapshots.keys() == ["2018-07", "2018-08", "2018-09", "2018-10"]
    assert snapshots.window("2018-10").cutoff == 1541030400  # 2018-11-01T00:00:00Z
    assert snapshots.before("2018-07") == []
    assert snapshots.before("2018-09") == ["2018-08", "2018-07"]


def test_coarser_windows_end_later():
    quarterly = parsed(snapshots={"cadence": "quarterly", "start": "2018-01", "end": "2018-10"}).dataset("games")
    assert quarterly.snapshots.keys() == ["2018-01", "2018-04", "2018-07", "2018-10"]
    assert quarterly.snapshots.window("2018-10").cutoff == 1546300800  # 2019-01-01T00:00:00Z
    yearly = parsed(snapshots={"cadence": "yearly", "start": "2017-01", "end": "2018-01"}).dataset("games")
    assert yearly.snapshots.window("2018-01").cutoff == 1546300800


def test_unknown_snapshot_is_named():
    with pytest.raises(ProfileError, match="2018-07 … 2018-10"):
        parsed().dataset("games").snapshots.window("2019-01")


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"sorce": {}}, "did you mean 'source'"),
        ({"grpo": {"learnin_rate": 1}}, "did you mean 'learning_rate'"),
        ({"source": {"kind": "sample", "category": "games", "itmes": 3}}, "did you mean 'items'"),
        ({"source": {"kind": "smaple", "category": "games"}}, "sample"),
        ({"sft": {"tasks": {"sid_to_sid": 1}}}, "did you mean 'sids_to_sid'"),
        ({"evaluation": {"ks": [1, 50]}}, "beam_width is only 20"),
        ({"split": {"ratios": [0.8, 0.1, 0.2]}}, "sum to 1"),
        ({"snapshots": {"start": "2018-13", "end": "2018-10"}}, "YYYY-MM"),
        ({"snapshots": {"start": "2018-10", "end": "2018-07"}}, "before start"),
        ({"sft": {"batch_size": 10, "micro_batch": 4}}, "no multiple"),
        ({"sft": {"learning_rate": float("inf")}}, "finite number"),
        ({"extends": "gmaes"}, "did you mean 'games'"),
        ({"decoding": {"models": ["gpro/direct"]}}, "unknown model"),
    ],
)
def test_mistakes_are_named_with_the_nearest_known_key(changes, hint):
    with pytest.raises(ProfileError, match=hint):
        parsed(**changes)


def test_unknown_top_level_key_and_names():
    with pytest.raises(ProfileError, match="did you mean 'datasets'"):
        parse_profile("test", {**BASE, "dataset": {}})
    with pytest.raises(ProfileError, match="cannot name a dataset"):
        parse_profile("test", {"datasets": {"../evil": BASE["datasets"]["games"]}})
    with pytest.raises(ProfileError, match="names no dataset"):
        parse_profile("test", [1])
    with pytest.raises(ProfileError, match="no profile 'nope'"):
        load_profile("nope")
    with pytest.raises(ProfileError, match="did you mean 'quickstart'"):
        load_profile("quikstart")


def test_shipped_profiles_lie_in_the_package():
    """A wheel holds what lies below its packages."""
    package = Path(sidr_core.__file__).parent
    declared = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path.name for pattern in declared["sidr_core"] for path in package.glob(pattern)}
    assert {path.name for path in PROFILES.iterdir()} == packed >= {"quickstart.yaml", "schema.json"}


def test_extends_overrides_single_fields_and_whole_kinds():
    raw = copy.deepcopy(BASE)
    raw["datasets"]["games"]["grpo"] = {"steps": 7, "learning_rate": 1e-5}
    raw["datasets"]["office"] = {"extends": "games", "source": {"category": "office"}, "grpo": {"steps": 9}}
    raw["datasets"]["real"] = {
        "extends": "office",
        "source": {"kind": "amazon_2018", "reviews": ["a.json"], "items": ["b.json"]},
    }
    profile = parse_profile("test", raw)
    office, real = profile.dataset("office"), profile.dataset("real")
    assert (office.source.category, office.grpo.steps, office.grpo.learning_rate) == ("office", 9, 1e-5)
    assert (real.source.kind, real.grpo.steps) == ("amazon_2018", 9)


def test_what_a_section_leaves_out_suits_the_tiny_model():
    bare = parsed().dataset("games")
    config = parsed(sft={"epochs": 9}, grpo={"steps": 3}, decoding={"beam_width": 25}).dataset("games")
    assert config.sft == bare.sft.model_copy(update={"epochs": 9.0})
    assert config.grpo == bare.grpo.model_copy(update={"steps": 3})
    assert config.decoding.max_thought_tokens == bare.decoding.max_thought_tokens == 192
    pretrained = parsed(base_model={"kind": "pretrained", "name": "x/y"}, sft={"epochs": 9}).dataset("games")
    assert (pretrained.sft.learning_rate, pretrained.decoding.max_thought_tokens) == (3e-4, 1024)


@pytest.mark.parametrize(("batch_size", "micro_batch"), [(64, 32), (48, 24), (8, 8)])
def test_a_batch_is_divided_evenly_where_the_profile_does_not_say_how(batch_size, micro_batch):
    assert parsed(sft={"batch_size": batch_size}).dataset("games").sft.micro_batch == micro_batch


@pytest.mark.parametrize("given", [{"mode": "direct"}, {"rollouts": "free"}, {"reward": "exact"}])
def test_a_profile_that_chooses_rollouts_or_reward_chooses_both(given):
    grpo = parsed(grpo=given).dataset("games").grpo
    assert {"mode": "thinking", "rollouts": "free", "reward": "step_rule"} | given == {
        "mode": grpo.mode,
        "rollouts": grpo.rollouts,
        "reward": grpo.reward,
    }
    assert grpo.learning_rate == 1e-4


def test_extends_in_a_circle():
    raw = {"datasets": {"a": {"extends": "b"}, "b": {"extends": "a"}}}
    with pytest.raises(ProfileError, match="a -> b -> a"):
        parse_profile("test", raw)


def test_environment_in_paths(monkeypatch):
    source = {"kind": "amazon_2018", "reviews": ["${SIDR_X:-/d}/r.json"], "items": ["${SIDR_X:-/d}/m.json"]}
    assert parsed(source=source).dataset("games").source.reviews == ("/d/r.json",)
    monkeypatch.setenv("SIDR_X", "/other")
    assert parsed(source=source).dataset("games").source.reviews == ("/other/r.json",)


def test_a_stage_reads_only_what_it_declared():
    config = parsed().dataset("games")
    assert isinstance(config, DatasetConfig)
    scoped = StageConfig(config, ("split", "snapshot"), "games", config.snapshots.window("2018-10"))
    assert scoped.split.max_history == 10
    assert scoped.snapshot.key == "2018-10"
    assert set(scoped.key()) == {"split", "snapshot"}
    with pytest.raises(AttributeError, match="not declared"):
        _ = scoped.grpo


def test_a_stage_may_declare_one_field_of_a_section():
    config = parsed().dataset("games")
    window = config.snapshots.window("2018-10")
    longer = config.model_copy(update={"decoding": config.decoding.model_copy(update={"beam_width": 99})})
    scoped, other = (
        StageConfig(one, ("grpo", "decoding.max_thought_tokens"), "games", window) for one in (config, longer)
    )
    assert scoped.decoding.max_thought_tokens == config.decoding.max_thought_tokens
    assert scoped.key() == other.key()
    with pytest.raises(AttributeError, match="beam_width"):
        _ = scoped.decoding.beam_width
