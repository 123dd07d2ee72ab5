"""The definition set: keys, groups, tags, partitions, checks, and a snapshot of the graph."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from sidr_assets.definitions import build_definitions
from sidr_core.pipeline.graph import OPTIONAL, STAGES, stages_of
from sidr_core.pipeline.profile import PROFILES, load_profile, parse_profile

SNAPSHOT = Path(__file__).with_name("graph_snapshot.json")
HEAVY = ("torch", "transformers", "sentence_transformers", "faiss", "trl", "matplotlib", "pandas", "polars")


@pytest.fixture(scope="module")
def graph() -> AssetGraph:
    return build_definitions(load_profile("quickstart")).resolve_asset_graph()


def test_graph_is_as_reviewed() -> None:
    """Keys, dependencies and checks. After a change on purpose: `SIDR_UPDATE_SNAPSHOTS=1 make test`."""
    graph = build_definitions(load_profile("quickstart")).resolve_asset_graph()
    nodes = {
        key.to_user_string(): {
            "deps": sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
            "checks": sorted(check.name for check in graph.get(key).check_keys),
        }
        for key in sorted(graph.materializable_asset_keys)
        if key.path[0] == "games"
    }
    if os.environ.get("SIDR_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(nodes, indent=1) + "\n")
    assert nodes == json.loads(SNAPSHOT.read_text())


def test_one_asset_per_dataset_and_stage(graph: AssetGraph) -> None:
    expected = {dg.AssetKey([d, s.name]) for d in ("games", "office", "industrial") for s in STAGES}
    assert graph.materializable_asset_keys == expected


def test_every_asset_says_what_it_is(graph: AssetGraph) -> None:
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        dataset, stage = key.path[0], next(s for s in STAGES if s.name == key.path[1])
        assert node.group_name == dataset
        assert node.tags["dataset"] == dataset
        assert node.kinds == set(stage.kinds)
        assert node.owners
        (reference,) = node.metadata["dagster/code_references"].code_references
        assert Path(reference.file_path).read_text().splitlines()[reference.line_number - 1].startswith("def build")
        assert node.code_version is not None and node.code_version.startswith(f"{stage.code_version}.")
        assert node.description is not None and node.description.endswith(stage.description)


def test_generated_data_are_labelled(graph: AssetGraph) -> None:
    node = graph.get(dg.AssetKey(["games", "evaluation"]))
    assert node.tags["data"] == "synthetic"
    assert node.metadata["synthetic"] is True
    assert node.description is not None and node.description.startswith("**Synthetic sample data.**")


def test_real_data_are_not() -> None:
    graph = build_definitions(load_profile("real")).resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert graph.get(key).tags["data"] == "real"
        assert "Synthetic" not in (graph.get(key).description or "")


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_snapshots_are_shared_by_all_assets_of_a_dataset(name: str) -> None:
    profile = load_profile(name)
    graph = build_definitions(profile).resolve_asset_graph()
    for dataset, config in profile.datasets.items():
        definitions = {graph.get(dg.AssetKey([dataset, stage.name])).partitions_def for stage in stages_of(config)}
        assert len(definitions) == 1
        (partitions,) = definitions
        assert partitions is not None
        assert partitions.get_partition_keys() == config.snapshots.keys()


def test_checks_carry_their_blocking_flag(graph: AssetGraph) -> None:
    for stage in STAGES:
        for spec in stage.checks:
            key = dg.AssetCheckKey(dg.AssetKey(["games", stage.name]), spec.name)
            promised = graph.get_check_spec(key)
            assert (promised.blocking, promised.description) == (spec.blocking, spec.description)


def test_the_columns_of_the_main_table_are_known_before_any_run(graph: AssetGraph) -> None:
    for stage in STAGES:
        metadata = graph.get(dg.AssetKey(["games", stage.name])).metadata
        assert ("dagster/column_schema" in metadata) == bool(stage.tables)
    columns = graph.get(dg.AssetKey(["games", "raw_reviews"])).metadata["dagster/column_schema"].columns
    rating = next(column for column in columns if column.name == "rating")
    assert (rating.type, rating.description) == ("float64", "stars; null where the source has none")
    assert (rating.constraints.nullable, rating.constraints.other) == (True, ["≥ 0", "≤ 5"])
    assert next(column for column in columns if column.name == "user_id").constraints.nullable is False


def test_assets_depend_on_their_own_snapshot_alone(graph: AssetGraph) -> None:
    for stage in STAGES:
        key = dg.AssetKey(["games", stage.name])
        assert {parent.path[1] for parent in graph.get(key).parent_keys} <= set(stage.inputs)  # test_arrows: which


def test_loading_imports_no_model_library() -> None:
    code = f"import sys, sidr_assets; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_module_holds_one_definitions_object() -> None:
    import sidr_assets

    names = [name for name, value in vars(sidr_assets).items() if isinstance(value, dg.Definitions)]
    assert names == ["defs"]
    dg.Definitions.validate_loadable(sidr_assets.defs)


def test_every_promise_of_the_operations_page_has_the_check_it_names(graph: AssetGraph) -> None:
    """`docs/operations.md`, its table of promises: each named check exists on its asset and is as severe as it says."""
    stages = (*STAGES, *OPTIONAL)
    page = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    blocking = {(stage.name, check.name): check.blocking for stage in stages for check in stage.checks}
    of_kind = {"checkpoints": [stage.name for stage in stages if stage.name.endswith("_checkpoint")]}
    of_kind |= {
        "baselines": [stage.name for stage in stages if (stage.name, "learnt") in blocking and "baseline" in stage.name]
    }
    of_kind |= {"every asset with tables": [stage.name for stage in stages if stage.tables]}
    promised: set[tuple[str, str, bool]] = set()
    rows = page.split("## Promises and their checks")[1].split("\n## ")[0].splitlines()
    for row in (
        line.split("|") for line in rows if line.startswith("|") and line.rstrip().endswith(("ERROR |", "WARN |"))
    ):
        for promise in row[2].split(";"):
            where, _, checks = promise.partition(":")
            names = of_kind.get(where.strip(), re.findall(r"`(\w+)`", where))
            promised |= {
                (stage, check, row[3].strip() == "ERROR") for stage in names for check in re.findall(r"`(\w+)`", checks)
            }
    assert len(promised) > 30
    assert {entry for entry in promised if blocking.get(entry[:2]) is not entry[2]} == set()
    # A check that no promise names belongs into the table, or is of no use.
    assert {key for key in blocking if (*key, blocking[key]) not in promised} == set()


@pytest.mark.parametrize("asked", [(), ("promotion",), ("recommendations_all", "promotion")])
def test_a_dataset_has_an_optional_stage_only_where_its_profile_asks_for_it(asked: tuple[str, ...]) -> None:
    raw = json.loads(json.dumps(load_profile("quickstart").raw))
    raw["datasets"]["games"] |= {name: {} for name in asked}
    graph = build_definitions(parse_profile("quickstart", raw)).resolve_asset_graph()
    optional = {stage.name for stage in OPTIONAL}
    assert {key.path[1] for key in graph.materializable_asset_keys} & optional == set(asked)


@pytest.mark.parametrize(
    ("models", "optional", "left_out"),
    [
        (["grpo/direct"], {}, {"item_item", "text_knn", "gru4rec", "sasrec", "tiger"}),
        (["sft_mixed/direct"], {}, {"item_item", "text_knn", "gru4rec", "tiger", "activation", "grpo"}),
        (["sasrec/direct"], {}, {"item_item", "text_knn", "gru4rec", "tiger", "corpus", "sft",
                                 "activation", "grpo"}),
        (["item_item/direct"], {"recommendations_all": {"model": "tiger/direct"}},
         {"text_knn", "gru4rec", "sasrec", "corpus", "sft", "activation", "grpo"}),
        (["shortcut/direct"], {"recommendations_all": {"model": "sft/direct", "checkpoint": "live"}},
         {"item_item", "text_knn", "gru4rec", "sasrec", "tiger", "corpus", "sft", "activation", "grpo"}),
    ],
)  # fmt: skip
def test_a_dataset_trains_nothing_that_no_list_needs(models: list[str], optional: dict, left_out: set[str]) -> None:
    raw = json.loads(json.dumps(load_profile("quickstart").raw))
    raw["datasets"]["games"] |= optional
    raw["datasets"]["games"]["decoding"] |= {"models": models}
    profile = parse_profile("quickstart", raw)
    graph = build_definitions(profile).resolve_asset_graph()
    built = {key.path[1] for key in graph.materializable_asset_keys if key.path[0] == "games"}
    missing = {stage.name.removeprefix("baseline_").removesuffix("_checkpoint") for stage in STAGES} - {
        name.removeprefix("baseline_").removesuffix("_checkpoint") for name in built
    }
    assert {name.removeprefix("synthetic_") for name in missing} == left_out
    read = {parent.path[1] for name in built for parent in graph.get(dg.AssetKey(["games", name])).parent_keys}
    assert read <= built, "an asset depends on one that is not there"


def test_the_complete_games_train_one_language_model() -> None:
    names = [stage.name for stage in stages_of(load_profile("real").dataset("games_complete"))]
    assert {"evaluation", "baseline_gru4rec", "baseline_sasrec", "sft_checkpoint"} <= set(names)
    assert {"activation_checkpoint", "grpo_checkpoint", "baseline_tiger"}.isdisjoint(names)


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import sidr_core, sys; assert 'torch' not in sys.modules", 0.3),
        ("from sidr_assets import defs; assert len({s.group_name for s in defs.resolve_all_asset_specs()}) == 3", 3.0),
    ],
    ids=["import", "definitions of three datasets"],
)
def test_it_starts_quickly(code: str, most: float) -> None:
    """Seconds of processor, so that other work on the machine does not count; one of three has to do."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "SIDR_PROFILE": "quickstart"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < most for _ in range(3))
