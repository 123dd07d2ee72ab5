"""The whole graph on a tiny sample with real models: reuse, early cut-off, determinism, sealed test rows."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from builders.stage import QUIET
from sidr_assets import metadata
from sidr_core.errors import SealedInput
from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import plan, run_stage
from sidr_core.pipeline.store import Store
from sidr_core.tables import files as tables

PROFILE = str(Path(__file__).resolve().parent.parent / "profiles" / "tiny.yaml")
SNAPSHOT = "2018-10"
TRAINING = ("synthetic_corpus", "sft_checkpoint", "activation_checkpoint", "grpo_checkpoint")


def run_all(store, dataset="games", stages=STAGES, snapshot=SNAPSHOT):
    profile = load_profile(PROFILE)
    return {stage.name: run_stage(profile, dataset, snapshot, stage, store, QUIET) for stage in stages}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("home") / "store")
    return store, run_all(store)


def table(outcome, name):
    return tables.read(outcome.artifact.path(name))


def test_every_stage_is_published_with_its_checks(built):
    _, outcomes = built
    for stage in STAGES:
        manifest = outcomes[stage.name].artifact.manifest
        assert {check["name"] for check in manifest["checks"]} == {spec.name for spec in stage.checks}
        blocking = {spec.name for spec in stage.checks if spec.blocking}
        assert [c for c in manifest["checks"] if c["name"] in blocking and not c["passed"]] == []
        assert manifest["synthetic"]


def test_every_output_has_numbers_to_plot_and_something_to_look_at(built):
    """A page or the first rows for each; figures where there are some, and nothing hides anything."""
    _, outcomes = built
    for stage in STAGES:
        entries = metadata.of_outcome(stage, outcomes[stage.name])
        manifest = outcomes[stage.name].artifact.manifest
        plotted = [name for name, value in entries.items() if type(value) in (int, float)]
        assert next(iter(entries)) == plotted[0] and plotted[0] in manifest["metrics"], stage.name
        assert 3 <= len(plotted) <= 10 and manifest["metrics"].items() <= entries["all numbers"].value.items(), (
            stage.name
        )
        assert "preview" in entries and "dagster/column_schema" in entries, stage.name
        assert [name for name in entries if name in manifest["markdown"]] == list(manifest["markdown"]), stage.name
        pages = "".join(manifest["markdown"].values())
        pictures = {name for name in manifest["files"] if name.endswith(".png") and f"]({name})" not in pages}
        figures = {f"figure: {name.removesuffix('.png')}" for name in pictures}
        assert {name for name in entries if name.startswith("figure: ")} == figures, stage.name
        for title in manifest["markdown"]:
            assert ".png)" not in entries[title].value, (stage.name, title)
            assert len(entries[title].value) >= len(manifest["markdown"][title])
    card = metadata.of_outcome(stage_named("sft_checkpoint"), outcomes["sft_checkpoint"])["model card"].value
    assert "](data:image/png;base64," in card


def test_recommendations_are_real_items_in_full_lists(built):
    _, outcomes = built
    recommended = table(outcomes["recommendations"], "recommendations.parquet")
    items = set(table(outcomes["interactions"], "items.parquet")["item_id"])
    assert set(recommended["item_id"]) <= items
    lists = recommended.group_by("model", "mode", "row_id").agg(
        pl.len(), pl.col("item_id").n_unique().alias("distinct")
    )
    assert lists["len"].min() == lists["distinct"].min() == 20
    n_test = len(table(outcomes["interactions"], "test.parquet"))
    assert set(lists.group_by("model", "mode").len()["len"]) == {n_test}
    thinking = recommended.filter(pl.col("mode") == "thinking")
    assert thinking["reasoning"].null_count() == 0


def test_evaluation_has_every_model_metric_and_level(built):
    _, outcomes = built
    evaluation = table(outcomes["evaluation"], "evaluation.parquet")
    models = {("sft", "direct"), ("activation", "thinking"), ("grpo", "direct"), ("grpo", "thinking")}
    counted = ("popularity", "item_item", "shortcut", "text_knn", "optimal")
    models |= {(name, "direct") for name in (*counted, "gru4rec", "sasrec", "tiger")}
    assert set(evaluation.select("model", "mode").iter_rows()) == models
    ranked = evaluation.filter(pl.col("metric").is_in(["hr", "ndcg", "mrr"]))
    assert len(ranked) == len(models) * 3 * 5 * 2  # metrics × ks × levels
    # Coverage, Gini and novelty at 5 and 10, invalid and distinct of every list, two more of the thinking ones.
    assert len(evaluation) - len(ranked) == len(models) * (3 * 2 + 2) + 2 * 2
    assert (evaluation["ci_low"] <= evaluation["value"] + 1e-12).all()
    assert (evaluation["value"] <= evaluation["ci_high"] + 1e-12).all()


def test_the_same_again_is_reused(built):
    store, _ = built
    assert all(outcome.reused for outcome in run_all(store).values())


def test_a_variant_pays_only_below_its_difference(built):
    store, _ = built
    outcomes = run_all(store, "games_fast_rl")
    assert [name for name, outcome in outcomes.items() if not outcome.reused] == [
        "grpo_checkpoint",
        "grounding",
        "recommendations",
        "evaluation",
        "leaderboard",
        "reasoning_report",
        "interventions",
        "reevaluation",  # its rows name the dataset
    ]


def test_a_code_bump_with_equal_bytes_stops_there(built):
    store, before = built
    bumped = [
        dataclasses.replace(stage, code_version="next") if stage.name == "sid_codebook" else stage for stage in STAGES
    ]
    outcomes = run_all(store, stages=bumped)
    assert [name for name, outcome in outcomes.items() if not outcome.reused] == ["sid_codebook"]
    assert outcomes["sid_codebook"].artifact.digest == before["sid_codebook"].artifact.digest
    run_all(store)


def test_two_runs_with_one_seed_give_the_same_table(built, tmp_path):
    _, first = built
    second = run_all(Store(tmp_path / "store"))
    for name, outcome in second.items():
        if name != "evaluation":
            assert outcome.artifact.digest == first[name].artifact.digest, name
    one, two = (
        table(outcomes["evaluation"], "evaluation.parquet").drop("evaluated_at") for outcomes in (first, second)
    )
    assert one.equals(two)


def test_an_earlier_snapshot_knows_less_and_warm_starts_keep_sids(built, tmp_path):
    last = ("grounding", "recommendations", "evaluation", "leaderboard", "reasoning_report", "interventions")
    last += ("reevaluation",)
    upstream = [stage for stage in STAGES if stage.name not in (*TRAINING, *last)]
    store = Store(tmp_path / "store")
    early = run_all(store, stages=upstream, snapshot="2018-09")
    late = run_all(store, stages=upstream)
    # Most vectors of the later one came from the cache; it is the table that it is without an earlier one.
    assert late["item_embeddings"].artifact.manifest["metrics"]["reused"] > 0
    assert late["item_embeddings"].artifact.digest == built[1]["item_embeddings"].artifact.digest
    assert early["sid_codebook"].started.startswith("cold")
    assert late["sid_codebook"].started == "warm from 2018-09"
    old, new = (table(o["sid_codebook"], "sid_codebook.parquet") for o in (early, late))
    same = old.join(new, on=("item_id", "text_digest"))
    assert len(same) > 0
    assert (same["sid"] == same["sid_right"]).all()
    assert len(table(early["raw_reviews"], "raw_reviews.parquet")) < len(
        table(late["raw_reviews"], "raw_reviews.parquet")
    )


def test_only_recommendations_and_evaluations_declare_test_rows():
    judges = ("recommendations", "evaluation", "reevaluation")
    for stage in STAGES:
        for upstream, files in [*stage.inputs.items(), *stage.from_earlier.items()]:
            if upstream in ("interactions", "raw_reviews") and stage.name != "interactions":
                opened = set(files) & {"test.parquet", "interactions.parquet", "raw_reviews.parquet", "*"}
                allowed = {"test.parquet"} if stage.name in judges else set()
                assert opened <= allowed, (stage.name, upstream, files)
        # The lists carry their targets: whoever reads them reads test rows.
        if "recommendations" in {*stage.inputs, *stage.from_earlier}:
            assert stage.name in (*judges[1:], "reasoning_report", "interventions"), stage.name
        # Nor does anything lie below that could bring them back to a training.
        assert "reevaluation" not in stage.inputs


@pytest.mark.parametrize(
    "name", ["synthetic_corpus", "sft_checkpoint", "grpo_checkpoint", "baseline_item_item", "baseline_sasrec"]
)
@pytest.mark.parametrize("file", ["test.parquet", "interactions.parquet", "../test.parquet"])
def test_training_cannot_open_test_rows(built, name, file):
    store, _ = built
    inputs = plan(load_profile(PROFILE), "games", SNAPSHOT, stage_named(name), store).inputs
    with pytest.raises(SealedInput, match="may not open"):
        inputs["interactions"].path(file)
