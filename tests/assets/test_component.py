"""SIDR inside another project: the component, and the example that joins it with assets of its own."""

import tomllib
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from dagster.components.core.package_entry import discover_package_objects
from dagster.components.testing import create_defs_folder_sandbox

from sidr_assets import SidrDatasets
from sidr_assets.command_line import message
from sidr_core.errors import ProfileError
from sidr_core.pipeline.graph import STAGES

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "examples" / "shop"


def loaded(**attributes: object) -> dg.Definitions:
    """The definitions of a project with one `defs.yaml` of these attributes."""
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=SidrDatasets,
            defs_yaml_contents={"type": "sidr_assets.SidrDatasets", "attributes": attributes},
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (component, defs):
            assert isinstance(component, SidrDatasets)
            return defs


def keys(defs: dg.Definitions) -> set[str]:
    graph = defs.resolve_asset_graph()
    return {key.to_user_string() for key in graph.materializable_asset_keys}


def test_the_registry_finds_it() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    modules = list(points["dagster_dg_cli.registry_modules"].values())
    found = {f"{key.namespace}.{key.name}" for key in discover_package_objects(modules)}
    assert found == {"sidr_assets.SidrDatasets"}


def test_without_attributes_it_is_the_graph_of_the_default_profile() -> None:
    assert keys(loaded()) == {f"{name}/{s.name}" for name in ("games", "office", "industrial") for s in STAGES}


def test_attributes_choose_datasets_prefix_and_upstream() -> None:
    defs = loaded(datasets=["office"], key_prefix=["ml", "sidr"], upstream=["warehouse/orders"])
    assert keys(defs) == {f"ml/sidr/office/{stage.name}" for stage in STAGES}
    graph = defs.resolve_asset_graph()
    for name in ("raw_reviews", "raw_items"):
        parents = graph.get(dg.AssetKey(["ml", "sidr", "office", name])).parent_keys
        assert parents == {dg.AssetKey(["warehouse", "orders"])}
    codebook = graph.get(dg.AssetKey(["ml", "sidr", "office", "sid_codebook"])).parent_keys
    assert {key.to_user_string() for key in codebook} == {
        "ml/sidr/office/item_embeddings",
    }
    (schedule,) = defs.schedules or ()
    job = defs.resolve_job_def(schedule.job_name)  # type: ignore[union-attr]
    assert dg.AssetKey(["ml", "sidr", "office", "reevaluation"]) in job.asset_layer.executable_asset_keys


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"profile": "quickstrat"}, "no file"),
        ({"datasets": ["gams"]}, "'gams'"),
        ({"profile": "mine.yaml"}, "mine.yaml"),
    ],
)
def test_what_is_not_there_is_told(attributes: dict[str, object], found: str) -> None:
    with pytest.raises(Exception) as told:
        loaded(**attributes)
    error = told.value
    while not isinstance(error, ProfileError):
        assert error.__cause__ is not None, error
        error = error.__cause__  # type: ignore[assignment]
    assert found in str(error)


def test_a_mistake_in_another_project_is_not_told_as_one_of_a_profile() -> None:
    assert message(dg.DagsterInvalidSubsetError("no asset 'x'"), None) is None


class Vectors:
    """Vectors that are a function of the text's digest."""

    encoded, seconds = 0, 0.0

    def __init__(self, *arguments: object) -> None:
        pass

    def of(self, texts: list[str], digests: list[bytes]) -> np.ndarray:
        return np.stack([np.frombuffer(digest[:16], np.uint8) for digest in digests]).astype(np.float32) - 127.5


def test_the_example_mails_what_is_recommended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders to mail list, through the real stages; nothing is trained, as its profile asks for counts alone.

    Titles are not encoded: loading the encoder takes longer than all the rest.
    """
    monkeypatch.setattr("sidr_core.items.embeddings._Vectors", Vectors)
    for name, value in {"SIDR_HOME": tmp_path / "home", "SHOP_DATA": tmp_path / "data"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.syspath_prepend(str(SHOP))
    from shop.definitions import defs as shop

    defs = shop()
    graph = defs.resolve_asset_graph()
    assert graph.get(dg.AssetKey(["sidr", "shop", "raw_reviews"])).parent_keys == {dg.AssetKey("orders")}
    assert graph.get(dg.AssetKey("mail_list")).parent_keys == {dg.AssetKey(["sidr", "shop", "recommendations"])}
    assets = list(defs.assets or ())
    behind = dg.AssetSelection.assets("mail_list").upstream() - dg.AssetSelection.assets("orders")
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(assets, instance=instance, selection="orders").success  # type: ignore[arg-type]
        made = dg.materialize(assets, instance=instance, selection=behind, partition_key="2026-05")  # type: ignore[arg-type]
    assert made.success
    steps = {event.asset_key.path[-1] for event in made.get_asset_materialization_events() if event.asset_key}
    assert steps >= {"interactions", "recommendations", "mail_list"} and not any("checkpoint" in step for step in steps)
    mails = pl.read_csv(tmp_path / "data" / "mail_list-2026-05.csv")
    assert mails.columns == ["customer", "rank", "sku", "title"] and mails["title"].null_count() == 0
    assert mails.group_by("customer").len()["len"].unique().to_list() == [3]
    # No customer is mailed the same thing twice, and every one who is mailed has ordered.
    assert mails.select("customer", "sku").is_duplicated().any() is False
    orders = pl.read_csv(tmp_path / "data" / "orders.csv")
    assert set(mails["customer"]) <= set(orders["customer"])
