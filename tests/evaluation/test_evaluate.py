"""The stage `evaluation` on a small published world: values, differences, words, and what it refuses."""

import math
import shutil

import numpy as np
import polars as pl
import pytest

from builders import small_world
from builders.small_world import CODES, ITEMS, MODELS, SNAPSHOT
from sidr_core.errors import InputError
from sidr_core.evaluation.evaluate import Scored, paired_table
from sidr_core.evaluation.pages import caption, notes_of
from sidr_core.evaluation.protocol import comparisons, headline, thinking_pairs
from sidr_core.metrics.intervals import draw_means
from sidr_core.pipeline.graph import unused_producers
from sidr_core.settings import Evaluation
from sidr_core.tables import contracts
from sidr_core.tables import files as tables


def published(world, stage: str, file: str) -> pl.DataFrame:
    return tables.read(world.store.require("toys", SNAPSHOT, stage).path(file))


def of(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    model, mode = name.split("/")
    return frame.filter((pl.col("model") == model) & (pl.col("mode") == mode))


# -- what is compared ----------------------------------------------------------------------------


def test_comparisons_need_both_models_and_pick_no_best():
    assert comparisons(("sft/direct", "grpo/direct", "grpo/thinking", "popularity/direct")) == [
        ("grpo/thinking", "grpo/direct"),
        ("grpo/direct", "sft/direct"),
        ("sft/direct", "popularity/direct"),
        ("grpo/direct", "popularity/direct"),
        ("grpo/thinking", "popularity/direct"),
    ]
    assert comparisons(("sft/direct",)) == []
    assert comparisons(("sasrec/direct", "item_item/direct")) == []


def test_references_stand_in_for_popularity_and_adaptive_thinking_is_compared_too():
    names = ("sft/direct", "grpo/direct", "grpo_adaptive/thinking", "popularity/direct", "gru4rec/direct")
    assert comparisons((*names, "item_item/direct", "sasrec/direct", "tiger/direct")) == [
        ("grpo_adaptive/thinking", "grpo/direct"),
        ("grpo/direct", "sft/direct"),
        *[
            (name, f"{reference}/direct")
            for reference in ("item_item", "sasrec", "tiger")
            for name in ("sft/direct", "grpo/direct", "grpo_adaptive/thinking")
        ],
    ]


def test_a_stage_is_compared_with_the_nearest_before_it_in_the_same_mode():
    assert comparisons(("sft/direct", "activation/direct", "grpo/direct")) == [
        ("activation/direct", "sft/direct"),
        ("grpo/direct", "activation/direct"),
    ]
    assert thinking_pairs(("sft/thinking", "grpo/thinking", "grpo/direct")) == [("grpo/thinking", "grpo/direct")]


def test_what_no_model_needs_is_not_built():
    config = small_world.profile(models=["sft/direct", "item_item/direct"]).dataset("toys")
    unused = unused_producers(config)
    assert {"activation_checkpoint", "grpo_checkpoint"} <= unused
    assert not unused & {"sft_checkpoint", "baseline_item_item", "baseline_popularity", "interactions", "sid_codebook"}


def test_headline_falls_back_to_the_largest_cut_off():
    assert headline((1, 3, 5, 10, 20)) == [5, 10]
    assert headline((1, 3)) == [3]


def test_cut_offs_are_sorted_and_sane():
    assert Evaluation(ks=(10, 1, 5)).ks == (1, 5, 10)
    for ks in ((), (0, 5), (5, 5)):
        with pytest.raises(ValueError, match="different whole numbers"):
            Evaluation(ks=ks)


# -- the stage -----------------------------------------------------------------------------------


def test_the_evaluation_is_the_mean_of_what_the_lists_say(world):
    """Item and SID level of every model, scored again row by row in plain Python."""
    table = published(world, "recommendations", "recommendations.parquet")
    evaluation = published(world, "evaluation", "evaluation.parquet")
    contracts.EvaluationTable.validate(evaluation)
    ranked = evaluation.filter(pl.col("metric").is_in(["hr", "ndcg", "mrr"]))
    assert ranked.height == 6 * 2 * 3 * 3
    sid_of = {item: small_world.format_sid(CODES[item]) for item in ITEMS}
    for name in MODELS:
        for k in (1, 3, 5):
            totals = dict.fromkeys([(level, m) for level in ("item", "sid") for m in ("hr", "ndcg", "mrr")], 0.0)
            for _, listed in of(table, name).sort("rank").group_by("row_id", maintain_order=True):
                rows = listed.rows(named=True)
                target = rows[0]["target_item_id"]
                hit = next((row for row in rows if row["item_id"] == target), None)
                if hit:
                    ranks = [r["rank"] for r in rows if (r["sid"], r["score"]) == (hit["sid"], hit["score"])]
                    totals["item", "hr"] += sum(r <= k for r in ranks) / len(ranks)
                    totals["item", "ndcg"] += sum(1 / math.log2(r + 1) for r in ranks if r <= k) / len(ranks)
                    totals["item", "mrr"] += sum(1 / r for r in ranks if r <= k) / len(ranks)
                sids = list(dict.fromkeys(row["sid"] for row in rows))
                if sid_of[target] in sids[:k]:
                    totals["sid", "hr"] += 1
                    totals["sid", "ndcg"] += 1 / math.log2(sids.index(sid_of[target]) + 2)
                    totals["sid", "mrr"] += 1 / (sids.index(sid_of[target]) + 1)
            found = of(ranked, name).filter(pl.col("k") == k)
            for row in found.iter_rows(named=True):
                assert row["value"] == pytest.approx(totals[row["level"], row["metric"]] / 12), (name, row)
                assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_the_paired_table_agrees_with_the_evaluation(world):
    evaluation = published(world, "evaluation", "evaluation.parquet").filter(pl.col("level") == "item")
    paired = published(world, "evaluation", "paired.parquet")
    contracts.Paired.validate(paired)
    value = {(r["model"], r["mode"], r["metric"], r["k"]): r["value"] for r in evaluation.iter_rows(named=True)}
    assert paired.height == 2 * len(comparisons(MODELS)) == 14
    assert set(paired["k"]) == {5}
    for row in paired.iter_rows(named=True):
        a = value[row["model_a"], row["mode_a"], row["metric"], row["k"]]
        b = value[row["model_b"], row["mode_b"], row["metric"], row["k"]]
        assert row["difference"] == pytest.approx(a - b, abs=1e-12)
        assert row["helped"] + row["harmed"] + row["same"] == row["n_rows"] == 12
        assert row["p"] <= row["p_holm"] <= min(1, 14 * row["p"]) + 1e-12
        # 14 × 2 / 201 > 0.05, whatever the lists; 6 users are few, and random weights are no better than popularity.
        assert row["verdict"].startswith(("too few rows to tell (", "not distinguishable ("))
        assert row["verdict"].endswith("6 users)") and row["margin"] == 0.005
        assert row["difference"] == 0 or row["se"] > 0
        assert row["seen_until_a"] == row["seen_until_b"] == "2020-01-28"


def test_two_evaluations_differ_in_their_time_only(world):
    first = published(world, "evaluation", "evaluation.parquet")
    shutil.rmtree(world.store.root / "evaluation")
    world.run("evaluation")
    again = published(world, "evaluation", "evaluation.parquet")
    assert again.drop("evaluated_at").equals(first.drop("evaluated_at"))


def test_the_page_and_the_figure_say_synthetic(world):
    artifact = world.store.require("toys", SNAPSHOT, "evaluation")
    page = artifact.path("evaluation.md").read_text()
    assert "synthetic sample data" in page
    assert "| grpo/thinking |" in page and "too few rows to tell" in page
    assert artifact.path("evaluation.png").read_bytes()[:4] == b"\x89PNG"
    metrics = artifact.manifest["metrics"]
    assert metrics["synthetic"] is True
    assert 0 <= metrics["grpo_thinking_ndcg@5"] <= 1


@pytest.mark.parametrize(
    ("listed", "evaluated", "refusal"), [(4, None, "no list for 8 of 12 test rows"), (2, 2, "at least 2 users")]
)
def test_evaluation_refuses_incomplete_lists_and_a_single_user(world, listed, evaluated, refusal):
    world.run("recommendations", small_world.profile(max_test_rows=listed))
    with pytest.raises(InputError, match=refusal):
        world.run("evaluation", small_world.profile(max_test_rows=evaluated))


# -- horizons, words, notes ----------------------------------------------------------------------


def two_lists(seen_a: str, seen_b: str, remarks: dict[str, list[str]] | None = None) -> pl.DataFrame:
    """Thinking is right on all of 40 rows where direct is on none."""
    users = np.arange(40)
    columns = (("item", "hr", 5), ("item", "ndcg", 5))
    values = {"grpo/direct": np.zeros((40, 2)), "grpo/thinking": np.ones((40, 2))}
    means = {name: draw_means(held, users, draws=200, seed=1) for name, held in values.items()}
    scored = Scored(dict.fromkeys(values), columns, values, means, users)
    models = pl.DataFrame({"model": "grpo", "mode": ["thinking", "direct"], "seen_until": [seen_a, seen_b]})
    context = {"dataset": "toys", "snapshot": SNAPSHOT, "split": "test"}
    return paired_table(
        scored,
        models,
        Evaluation(ks=(5,), bootstrap=200, least_users=2),
        context,
        comparisons(tuple(scored.lists)),
        remarks,
    )


def test_a_sure_difference_is_said_and_its_p_corrected():
    found = two_lists("2020-01-28", "2020-01-28")
    contracts.Paired.validate(found)
    assert found["verdict"].to_list() == ["higher", "higher"]
    assert found["p"].to_list() == pytest.approx([2 / 201] * 2)
    assert found["p_holm"].to_list() == pytest.approx([4 / 201] * 2)
    assert found.select("helped", "harmed", "same").rows() == [(40, 0, 0)] * 2


def test_models_of_different_horizons_are_not_compared_without_saying_it():
    found = two_lists("2020-01-28", "2019-06-01")
    assert found["verdict"].to_list() == ["higher (different horizons)"] * 2
    assert found.select("seen_until_a", "seen_until_b").row(0) == ("2020-01-28", "2019-06-01")


def test_a_verdict_says_what_limits_it():
    remarks = {"": ["40 of 90 test rows"], "grpo/thinking": ["kept its start"], "sft/direct": ["other"]}
    found = two_lists("2020-01-28", "2020-01-28", remarks)
    assert found["verdict"].to_list() == ["higher (grpo/thinking kept its start; 40 of 90 test rows)"] * 2


def test_the_caption_names_different_horizons(world):
    evaluation = published(world, "evaluation", "evaluation.parquet")
    assert "trained on rows up to 2020-01-28" in caption(evaluation, False)
    early = pl.when(pl.col("model") == "sft").then(pl.lit("2019-06-01")).otherwise("seen_until")
    text = caption(evaluation.with_columns(early.alias("seen_until")), False)
    assert "different horizons, up to 2019-06-01 or 2020-01-28" in text


def test_notes_say_when_draws_are_too_few_to_decide():
    assert "all 14 differences" in notes_of(Evaluation(bootstrap=10_000), 14)
    assert "cannot tell" not in notes_of(Evaluation(bootstrap=560), 14)
    assert "**559 draws cannot tell any of so many from 0: 560 are needed.**" in notes_of(Evaluation(bootstrap=559), 14)
    assert "Nothing is compared" in notes_of(Evaluation(), 0)
