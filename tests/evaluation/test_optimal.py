"""What could be known at best: the generator's lists of rows that the sample really has, and the kind of each row."""

import polars as pl
import pytest

from builders.reviews import Bench, rows
from sidr_core.errors import InputError
from sidr_core.evaluation import optimal
from sidr_core.metrics.ranking import per_row
from sidr_core.reviews.sample.rows import KINDS
from sidr_core.reviews.sample.shop import simulate
from sidr_core.settings import SampleSource

SAMPLE = {"kind": "sample", "category": "games", "items": 120, "users": 150, "seed": 3}
HIT = "item_hr@10"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("home"), SAMPLE, filters={"k_core": 3})
    artifact = bench.interactions()
    tables = {name: rows(artifact, name) for name in ("train", "test", "items")}
    shop = simulate(bench.profile.datasets["d"].source)[0]
    sids = [f"<a_{n}>" for n in range(tables["items"].height)]
    return shop, tables, tables["items"].select("item_id", pl.Series("sid", sids))


def test_no_counter_comes_near_the_generators_lists(made) -> None:
    shop, tables, codebook = made
    lists = optimal.optimal_lists(shop, tables["test"], codebook, 20)
    assert lists.group_by("row_id").len()["len"].unique().to_list() == [20]
    assert set(lists["item_id"]) <= set(codebook["item_id"])
    popular = tables["train"]["target_item_id"].value_counts(sort=True).head(10)["target_item_id"]
    counted = tables["test"].select(pl.col("target_item_id").is_in(popular.implode()).mean()).item()
    assert per_row(lists, tables["test"], codebook, (10,))[HIT].mean() > counted + 0.3


def test_every_row_has_a_kind_of_its_own(made) -> None:
    shop, tables, _ = made
    labelled = optimal.with_kinds(shop, tables["test"], tables["train"], tables["items"])
    assert labelled.drop("kind").equals(tables["test"])
    assert set(labelled["kind"]) == set(KINDS)


def test_rows_of_another_sample_are_refused_and_other_sources_know_nothing(made) -> None:
    shop, tables, codebook = made
    wrong = tables["test"].with_columns(pl.col("target_item_id").reverse())
    with pytest.raises(InputError, match="have other targets than the sample's generator"):
        optimal.optimal_lists(shop, wrong, codebook, 20)
    source = SampleSource.model_validate(SAMPLE)
    assert optimal.generator_of(source) is source
    assert optimal.generator_of(source.model_copy(update={"shift": "2018-09"})) is None
