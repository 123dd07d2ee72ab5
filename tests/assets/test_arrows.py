"""The arrows of the graph: few, none implied by a longer way, and no change is lost on the way."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from fake_stages import NUMBERS, fake_profile
from test_automation import Followed

from sidr_assets.arrows import arrows_of, data_version
from sidr_assets.definitions import build_definitions
from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.profile import PROFILES, load_profile
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Stage

MOST_ARROWS = 36
DATASETS = [(path.stem, name) for path in sorted(PROFILES.glob("*.yaml")) for name in load_profile(path.stem)]


def closure(parents: dict[str, set[str]]) -> dict[str, set[str]]:
    """Everything above each stage; `parents` in the order of the data."""
    above: dict[str, set[str]] = {}
    for stage, direct in parents.items():
        above[stage] = direct.union(*(above[name] for name in direct))
    return above


@pytest.mark.parametrize(("profile", "dataset"), DATASETS)
def test_few_arrows_say_all_that_is_read(profile: str, dataset: str) -> None:
    config = load_profile(profile).dataset(dataset)
    arrows = arrows_of(STAGES, config)
    shown = {name: set(arrow.inputs) for name, arrow in arrows.items()}
    above = closure(shown)
    assert above == closure({stage.name: set(stage.reads(config)) for stage in STAGES})
    for parents in shown.values():
        for parent in parents:
            assert not any(parent in above[other] for other in parents)
    assert sum(len(arrow.inputs) for arrow in arrows.values()) <= MOST_ARROWS


@pytest.mark.parametrize(("profile", "dataset"), DATASETS)
def test_what_is_read_without_an_arrow_is_carried_on_all_the_way(profile: str, dataset: str) -> None:
    config = load_profile(profile).dataset(dataset)
    arrows = arrows_of(STAGES, config)
    above = closure({name: set(arrow.inputs) for name, arrow in arrows.items()})
    for stage in STAGES:
        shown = arrows[stage.name].inputs
        on_the_way = set(shown).union(*(above[name] for name in shown))
        for name in set(stage.reads(config)) - set(shown):
            assert all(name in arrows[other].carries for other in on_the_way if name in above[other])
            assert name in on_the_way


def test_nothing_carried_leaves_the_digest() -> None:
    assert data_version("abc", {}) == "abc"
    versions = {data_version("abc", {"x": "1"}), data_version("abc", {"x": "2"}), data_version("abd", {"x": "1"})}
    assert len(versions) == 3


# -- numbers -> middle -> end, and the end reads the numbers too ---------------------------------------

MIDDLE = Stage(
    name="middle",
    run="test_arrows:middle",
    inputs={"numbers": ("numbers.parquet",)},
    sections=(),
    code_version="1",
    description="The same bytes, whatever the numbers are.",
)
END = replace(
    MIDDLE, name="end", run="test_arrows:end", inputs={"numbers": ("numbers.parquet",), "middle": ("middle.txt",)}
)
CHAIN = (replace(NUMBERS, checks=(), run="test_arrows:numbers"), MIDDLE, END)


def numbers(inputs, config, out_dir, progress) -> Report:
    pl.DataFrame({"number": range(config.quantizer.size)}).write_parquet(out_dir / "numbers.parquet")
    return Report()


def middle(inputs, config, out_dir, progress) -> Report:
    (out_dir / "middle.txt").write_text(f"{inputs['numbers'].path('numbers.parquet').exists()}")
    return Report()


def end(inputs, config, out_dir, progress) -> Report:
    count = len(pl.read_parquet(inputs["numbers"].path("numbers.parquet")))
    (out_dir / "end.txt").write_text(inputs["middle"].path("middle.txt").read_text() + str(count))
    return Report()


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Followed(instance)


def stale(followed: Followed, profile) -> set[str]:
    """The stages of 2018-10 that Dagster shows as stale."""
    from dagster._core.loader import LoadingContextForTest

    graph = build_definitions(profile, CHAIN).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(followed.instance, graph, LoadingContextForTest(followed.instance))
    keys = graph.materializable_asset_keys
    return {key.path[1] for key in keys if resolver.get_status(key, "2018-10") == StaleStatus.STALE}


def test_the_arrow_past_the_middle_is_not_drawn() -> None:
    graph = build_definitions(fake_profile(), CHAIN).resolve_asset_graph()
    assert graph.get(dg.AssetKey(["toys", "end"])).parent_keys == {dg.AssetKey(["toys", "middle"])}


def test_a_change_reaches_its_readers_past_equal_bytes(followed: Followed) -> None:
    followed.run(stages=CHAIN)
    followed.look(CHAIN)
    other = fake_profile(quantizer={"size": 5})
    followed.run(profile=other, stages=CHAIN, select="numbers")
    assert stale(followed, other) == {"middle"}
    assert followed.asked(other, CHAIN) == {("middle", "2018-10")}
    followed.run(profile=other, stages=CHAIN, select="middle")  # to the bytes that it had
    assert stale(followed, other) == {"end"}
    assert followed.asked(other, CHAIN) == {("end", "2018-10")}
    followed.run(profile=other, stages=CHAIN, select="end")
    assert stale(followed, other) == set() and followed.asked(other, CHAIN) == set()


def test_equal_numbers_ask_for_nothing(followed: Followed) -> None:
    followed.run(stages=CHAIN)
    followed.look(CHAIN)
    followed.run(stages=CHAIN, select="numbers")
    followed.run(stages=CHAIN, select="middle")
    assert stale(followed, fake_profile()) == set() and followed.asked(stages=CHAIN) == set()


def test_stages_without_an_arrow_between_them_run_in_order(followed: Followed) -> None:
    followed.run(stages=CHAIN)
    defs = build_definitions(fake_profile(quantizer={"size": 5}), CHAIN)
    selection = dg.AssetSelection.assets(["toys", "end"], ["toys", "numbers"])
    result = dg.materialize(
        list(defs.assets or [])[::-1], partition_key="2018-10", instance=followed.instance, selection=selection
    )
    made = [event.asset_key.path[1] for event in result.get_asset_materialization_events()]
    assert made == ["numbers", "end"]
