"""Lists, their checks and their evaluation, on a small published world with untrained checkpoints."""

import math
import shutil

import numpy as np
import polars as pl
import pytest
import small_world
from small_world import CODES, ITEMS, MODELS, SNAPSHOT

from sidr_core import contracts, tables
from sidr_core.errors import InputError
from sidr_core.evaluation import lists, recommend
from sidr_core.evaluation.protocol import chosen_rows, comparisons, headline, history_sids

KEYS = ["model", "mode", "row_id"]


def published(world, stage: str, file: str) -> pl.DataFrame:
    return tables.read(world.store.require("toys", SNAPSHOT, stage).path(file))


def of(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    model, mode = name.split("/")
    return frame.filter((pl.col("model") == model) & (pl.col("mode") == mode))


# -- rows ----------------------------------------------------------------------------------------


def test_all_rows_are_chosen_without_a_limit():
    test = small_world.samples(4, 2)
    assert chosen_rows(test, None)["row_id"].to_list() == sorted(test["row_id"])
    assert chosen_rows(test, 12).height == 12


def test_a_limit_takes_whole_users_always_the_same_and_nested():
    test = small_world.samples(4, 2)
    four, eight = chosen_rows(test, 5), chosen_rows(test, 8)
    assert (four.height, eight.height) == (4, 8)
    assert four.group_by("user_id").len()["len"].to_list() == [2, 2]
    assert set(four["row_id"]) < set(eight["row_id"])
    assert chosen_rows(test.reverse(), 5).equals(four)
    assert chosen_rows(test, 1).height == 2  # one user at least


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match="test split is empty"):
        chosen_rows(small_world.samples(4, 2).clear(), None)


def test_a_history_item_without_a_sid_is_named():
    book = small_world.codebook().filter(pl.col("item_id") != "A03")
    with pytest.raises(InputError, match="A03"):
        history_sids(small_world.samples(4, 2), book)


def test_comparisons_need_both_models_and_pick_no_best():
    assert comparisons(("sft/direct", "grpo/direct", "grpo/thinking", "popularity/direct")) == [
        ("grpo/thinking", "grpo/direct"),
        ("grpo/direct", "sft/direct"),
        ("sft/direct", "popularity/direct"),
        ("grpo/direct", "popularity/direct"),
        ("grpo/thinking", "popularity/direct"),
    ]
    assert comparisons(("sft/direct",)) == []


def test_headline_falls_back_to_the_largest_cut_off():
    assert headline((1, 3, 5, 10, 20)) == [5, 10]
    assert headline((1, 3)) == [3]


# -- lists ---------------------------------------------------------------------------------------


def test_places_list_all_items_of_a_shared_sid():
    from sidr_core.decoding.beam import Beams
    from sidr_core.decoding.index import SidIndex

    book = pl.DataFrame({"item_id": ["x", "y", "z"], "codes": [[0, 0], [0, 1], [0, 1]]})
    index = SidIndex.build(book, lambda token: 7)
    beams = Beams(np.array([[1, 0], [0, 1]]), np.array([[-0.5, -1.0], [-2.0, -3.0]], dtype=np.float32))
    assert lists.places_of(beams, index, ["r2", "r1"]).rows() == [
        ("r2", 1, "y", "<a_0><b_1>", -0.5),
        ("r2", 2, "z", "<a_0><b_1>", -0.5),
        ("r2", 3, "x", "<a_0><b_0>", -1.0),
        ("r1", 1, "x", "<a_0><b_0>", -2.0),
        ("r1", 2, "y", "<a_0><b_1>", -3.0),
        ("r1", 3, "z", "<a_0><b_1>", -3.0),
    ]


def test_a_counters_list_ends_where_its_sids_are_full():
    ranked = pl.DataFrame(
        {"row_id": ["r"] * 5, "rank": [1, 2, 3, 4, 5], "item_id": list("ABCDE"), "score": [5.0, 4, 3, 2, 1]}
    )
    book = pl.DataFrame({"item_id": list("ABCE"), "sid": ["s1", "s2", "s1", "s3"]})
    assert lists.counted(ranked, book, 2).places.select("rank", "item_id").rows() == [(1, "A"), (2, "B"), (3, "C")]
    # D has no SID and is left out; the ranks close up
    assert lists.counted(ranked, book, 3).places["item_id"].to_list() == ["A", "B", "C", "E"]
    assert lists.counted(ranked, book, 3).places["rank"].to_list() == [1, 2, 3, 4]


def test_the_table_holds_every_model_and_row(world):
    table = published(world, "recommendations", "recommendations.parquet")
    contracts.Recommendations.validate(table)
    assert table.select("model", "mode").unique(maintain_order=True).rows() == [tuple(m.split("/")) for m in MODELS]
    assert table.group_by(KEYS).len().height == 6 * 12
    assert table.select("dataset", "snapshot", "split").unique().rows() == [("toys", SNAPSHOT, "test")]
    truth = dict(small_world.samples(4, 2).select("row_id", "target_item_id").iter_rows())
    assert all(truth[row] == target for row, target in table.select("row_id", "target_item_id").iter_rows())


def test_every_place_of_a_thinking_list_carries_its_thought_and_no_direct_one_does(world):
    table = published(world, "recommendations", "recommendations.parquet")
    thinking = table.filter(pl.col("mode") == "thinking")
    assert thinking["reasoning"].null_count() == 0
    assert (thinking.group_by(KEYS).agg(pl.col("reasoning").n_unique())["reasoning"] == 1).all()
    direct = table.filter(pl.col("mode") == "direct")
    assert direct["reasoning"].null_count() == direct.height > 0


def test_items_of_the_shared_sid_stand_side_by_side_at_one_score(world):
    table = of(published(world, "recommendations", "recommendations.parquet"), "sft/direct")
    twins = table.filter(pl.col("item_id").is_in(["A14", "A15"])).sort("row_id", "rank")
    assert twins.height >= 2
    for _, pair in twins.group_by("row_id"):
        assert pair["item_id"].to_list() == ["A14", "A15"]
        assert pair["rank"][1] == pair["rank"][0] + 1
        assert pair["score"][0] == pair["score"][1]


def test_a_thinking_list_is_what_follows_the_thought_closed_by_force(world):
    """Done again step by step: prompt, greedy thought, closing ids, exact scores of the whole catalogue."""
    import torch

    from sidr_core.corpus.prompts import next_item
    from sidr_core.decoding.thinking import generate_thoughts
    from sidr_core.models import checkpoint

    loaded = checkpoint.load(world.store.require("toys", SNAPSHOT, "grpo_checkpoint").verified_folder())
    row = small_world.samples(4, 2).row(3, named=True)
    sid_of = dict(small_world.codebook().select("item_id", "sid").iter_rows())
    prompt = loaded.renderer.prompt(next_item([sid_of[item] for item in row["history_item_ids"]]), "thinking")
    (thought,) = generate_thoughts(loaded.model, [prompt], max_tokens=6, batch_size=1, renderer=loaded.renderer)
    start = [*prompt, *thought.ids, *loaded.renderer.close_ids]
    scores = {}
    for leaf, sid in enumerate(loaded.index.sids):
        path = loaded.index.path(leaf)
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([start + path[:-1]])).logits[0, len(start) - 1 :].log_softmax(-1)
        scores[sid] = sum(float(logits[place, token]) for place, token in enumerate(path))
    best = sorted(scores, key=lambda sid: -scores[sid])[:5]
    table = of(published(world, "recommendations", "recommendations.parquet"), "grpo/thinking")
    found = table.filter(pl.col("row_id") == row["row_id"]).sort("rank")
    assert found["sid"].unique(maintain_order=True).to_list() == best
    assert found["score"].to_list() == pytest.approx([scores[sid] for sid in found["sid"]], abs=1e-4)


def test_thoughts_that_were_cut_are_counted_as_not_closed(world):
    models = published(world, "recommendations", "models.parquet")
    thoughts = published(world, "recommendations", "thoughts.parquet")
    contracts.RecommendedModels.validate(models)
    contracts.Thoughts.validate(thoughts)
    assert thoughts.height == 24
    assert not thoughts["closed"].any()  # untrained models do not stop within 6 tokens
    rates = dict(models.select(pl.concat_str("model", "mode", separator="/"), "close_rate").iter_rows())
    assert rates["grpo/thinking"] == 0
    assert rates["grpo/direct"] is None
    checks = {
        check["name"]: check for check in world.store.require("toys", SNAPSHOT, "recommendations").manifest["checks"]
    }
    assert not checks["close_rate"]["passed"]
    assert checks["only_real_items"]["passed"] and checks["distinct"]["passed"]


def test_models_name_checkpoint_seed_and_newest_train_target(world):
    models = published(world, "recommendations", "models.parquet")
    by_name = {(row["model"], row["mode"]): row for row in models.iter_rows(named=True)}
    grpo = world.store.require("toys", SNAPSHOT, "grpo_checkpoint")
    assert by_name["grpo", "direct"]["checkpoint"] == grpo.digest == by_name["grpo", "thinking"]["checkpoint"]
    assert by_name["grpo", "direct"]["seed"] == 3
    assert by_name["popularity", "direct"]["seed"] == 0
    assert {row["seen_until"] for row in by_name.values()} == {"2020-01-28"}  # 1,580,000,000 + 2 days
    assert tables.iso_date(None) == "unknown"


# -- checks that can fail ------------------------------------------------------------------------


def test_checks_find_an_invented_item_a_repeat_and_a_gap(world):
    table = published(world, "recommendations", "recommendations.parquet")
    rows, book = small_world.samples(4, 2), small_world.codebook()
    assert recommend.only_real_items(table, book).passed
    assert recommend.distinct(table, rows, book, MODELS, 5).passed
    invented = table.with_columns(pl.when(pl.col("rank") == 2).then(pl.lit("X")).otherwise("item_id").alias("item_id"))
    assert not recommend.only_real_items(invented, book).passed
    swapped = table.with_columns(pl.lit("<a_0><b_0>").alias("sid"))  # real item, real SID, but not its own
    assert not recommend.only_real_items(swapped, book).passed
    repeat = table.with_columns(pl.when(pl.col("rank") == 2).then(pl.lit("A00")).otherwise("item_id").alias("item_id"))
    repeat = repeat.with_columns(pl.when(pl.col("rank") == 1).then(pl.lit("A00")).otherwise("item_id").alias("item_id"))
    assert not recommend.distinct(repeat, rows, book, MODELS, 5).passed
    assert not recommend.distinct(table.filter(pl.col("rank") > 2), rows, book, MODELS, 5).passed
    absent = table.filter((pl.col("row_id") != "user0:4") | (pl.col("model") != "grpo"))
    check = recommend.distinct(absent, rows, book, MODELS, 5)
    assert not check.passed and "2 missing" in check.detail


def test_close_rate_is_a_share_of_each_model():
    models = pl.DataFrame({"model": ["a", "b", "c"], "close_rate": [0.95, 1.0, None]})
    assert recommend.close_rate(models).passed
    low = models.with_columns(pl.when(pl.col("model") == "b").then(0.949).otherwise("close_rate").alias("close_rate"))
    assert not recommend.close_rate(low).passed


# -- reuse ---------------------------------------------------------------------------------------


def parts(outcome) -> list[str]:
    return [fingerprint for name, fingerprint in outcome.artifact.manifest["parts"] if name == "decoded"]


def test_the_same_inputs_give_the_same_bytes(world):
    old = world.store.require("toys", SNAPSHOT, "recommendations")
    for folder in ("recommendations", "decoded"):
        shutil.rmtree(world.store.root / folder)
    outcome = world.run("recommendations")
    assert not outcome.reused
    assert outcome.artifact.digest == old.digest


def test_only_lists_of_a_changed_checkpoint_are_decoded_again(world):
    first = world.run("recommendations")
    assert first.reused
    shutil.rmtree(world.store.root / "sft_checkpoint")
    world.publish("sft_checkpoint", lambda folder: small_world._checkpoint(folder, "sft", 9))
    second = world.run("recommendations")
    assert not second.reused
    changed = [a != b for a, b in zip(parts(first), parts(second), strict=True)]
    assert changed == [name.startswith("sft") for name in MODELS]


def test_a_longer_thought_concerns_thinking_lists_only(world):
    first = world.run("recommendations")
    second = world.run("recommendations", small_world.profile(max_thought_tokens=4))
    changed = [a != b for a, b in zip(parts(first), parts(second), strict=True)]
    assert changed == [name.endswith("thinking") for name in MODELS]
    thoughts = published(world, "recommendations", "thoughts.parquet")
    assert thoughts["n_tokens"].to_list() == [4] * 24


def test_a_limit_of_test_rows_reaches_lists_and_evaluation(world):
    few = small_world.profile(max_test_rows=4, models=["sft/direct", "popularity/direct"])
    assert world.run("recommendations", few).artifact.manifest["metrics"]["test_rows"] == 4
    world.run("evaluation", few)
    table = published(world, "evaluation", "evaluation.parquet")
    assert table.select("n_rows", "n_users").unique().rows() == [(4, 2)]
    assert published(world, "evaluation", "paired.parquet").height == 2  # HR@5 and NDCG@5 of one pair


# -- evaluation ----------------------------------------------------------------------------------


def test_the_evaluation_is_the_mean_of_what_the_lists_say(world):
    """Item and SID level of every model, scored again row by row in plain Python."""
    table = published(world, "recommendations", "recommendations.parquet")
    evaluation = published(world, "evaluation", "evaluation.parquet")
    contracts.EvaluationTable.validate(evaluation)
    assert evaluation.height == 6 * 2 * 2 * 3
    sid_of = {item: small_world.format_sid(CODES[item]) for item in ITEMS}
    for name in MODELS:
        for k in (1, 3, 5):
            totals = {("item", "hr"): 0.0, ("item", "ndcg"): 0.0, ("sid", "hr"): 0.0, ("sid", "ndcg"): 0.0}
            for _, listed in of(table, name).sort("rank").group_by("row_id", maintain_order=True):
                rows = listed.rows(named=True)
                target = rows[0]["target_item_id"]
                hit = next((row for row in rows if row["item_id"] == target), None)
                if hit:
                    ranks = [r["rank"] for r in rows if (r["sid"], r["score"]) == (hit["sid"], hit["score"])]
                    totals["item", "hr"] += sum(r <= k for r in ranks) / len(ranks)
                    totals["item", "ndcg"] += sum(1 / math.log2(r + 1) for r in ranks if r <= k) / len(ranks)
                sids = list(dict.fromkeys(row["sid"] for row in rows))
                if sid_of[target] in sids[:k]:
                    totals["sid", "hr"] += 1
                    totals["sid", "ndcg"] += 1 / math.log2(sids.index(sid_of[target]) + 2)
            found = of(evaluation, name).filter(pl.col("k") == k)
            for row in found.iter_rows(named=True):
                assert row["value"] == pytest.approx(totals[row["level"], row["metric"]] / 12), (name, row)
                assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_the_paired_table_agrees_with_the_evaluation(world):
    evaluation = published(world, "evaluation", "evaluation.parquet").filter(pl.col("level") == "item")
    paired = published(world, "evaluation", "paired.parquet")
    contracts.Paired.validate(paired)
    value = {(r["model"], r["mode"], r["metric"], r["k"]): r["value"] for r in evaluation.iter_rows(named=True)}
    assert paired.height == 2 * len(comparisons(MODELS)) == 22
    for row in paired.iter_rows(named=True):
        a = value[row["model_a"], row["mode_a"], row["metric"], row["k"]]
        b = value[row["model_b"], row["mode_b"], row["metric"], row["k"]]
        assert row["difference"] == pytest.approx(a - b, abs=1e-12)
        assert row["helped"] + row["harmed"] + row["same"] == row["n_rows"] == 12


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
    assert "| grpo/thinking |" in page and "not distinguishable" in page
    assert artifact.path("evaluation.png").read_bytes()[:4] == b"\x89PNG"
    metrics = artifact.manifest["metrics"]
    assert metrics["synthetic"] is True
    assert 0 <= metrics["grpo_thinking_ndcg@5"] <= 1


def test_evaluation_refuses_incomplete_lists(world):
    """Lists of four rows only, while the profile asks for all twelve."""
    few = small_world.profile(max_test_rows=4)
    world.run("recommendations", few)
    with pytest.raises(InputError, match="no list for 8 of 12 test rows"):
        world.run("evaluation")


def test_evaluation_refuses_a_cut_off_beyond_the_beam(world):
    from dataclasses import replace

    config = world.profile.dataset("toys")
    wide = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"ks": (1, 9)})})
    with pytest.raises(InputError, match="metrics at 9"):
        world.run("evaluation", replace(world.profile, datasets={"toys": wide}))


def test_evaluation_refuses_a_single_user(world):
    one = small_world.profile(max_test_rows=2)
    world.run("recommendations", one)
    with pytest.raises(InputError, match="at least 2 users"):
        world.run("evaluation", one)


def test_figures_are_the_same_bytes_and_skip_absent_columns(tmp_path):
    from sidr_core.report import plots

    frame = pl.DataFrame({"step": [2, 1, 3], "reward": [0.2, 0.1, None], "length": [5, 4, 6]})
    for name in ("a", "b"):
        plots.curves(frame, "step", ["reward", "absent", "length"], tmp_path / f"{name}.png", "t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plots.curves(frame, "step", ["reward", "length"], tmp_path / "c.png", "t")
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    plots.curves(frame.with_columns(reward=pl.lit(0.9)), "step", ["reward", "length"], tmp_path / "d.png", "t")
    assert (tmp_path / "d.png").read_bytes() != (tmp_path / "a.png").read_bytes()
    assert b"matplotlib" not in (tmp_path / "a.png").read_bytes().lower()
