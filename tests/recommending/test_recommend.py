"""Lists and their checks, on a small published world with untrained checkpoints."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from builders import small_world
from builders.small_world import MODELS, SNAPSHOT
from sidr_core.decoding.lists import counted, rankings_of
from sidr_core.errors import InputError
from sidr_core.recommending import recommend
from sidr_core.recommending.rows import chosen_rows, history_sids
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

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


# -- lists ---------------------------------------------------------------------------------------


def test_places_list_all_items_of_a_shared_sid():
    from sidr_core.decoding.beam import Beams
    from sidr_core.sids.index import SidIndex

    book = pl.DataFrame({"item_id": ["x", "y", "z"], "codes": [[0, 0], [0, 1], [0, 1]]})
    index = SidIndex.build(book, lambda token: 7)
    beams = Beams(np.array([[1, 0], [0, 1]]), np.array([[-0.5, -1.0], [-2.0, -3.0]], dtype=np.float32))
    assert rankings_of(beams, index, ["r2", "r1"]).rows() == [
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
    assert counted(ranked, book, 2).rankings.select("rank", "item_id").rows() == [(1, "A"), (2, "B"), (3, "C")]
    # D has no SID and is left out; the ranks close up
    assert counted(ranked, book, 3).rankings["item_id"].to_list() == ["A", "B", "C", "E"]
    assert counted(ranked, book, 3).rankings["rank"].to_list() == [1, 2, 3, 4]


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


def test_every_baseline_adaptive_model_and_mixture_gives_full_lists(world):
    """On the same rows, by the same contract; adaptive models and mixtures say what was chosen on valid rows."""
    baselines = ("shortcut", "text_knn", "gru4rec", "sasrec", "tiger")
    for name in baselines:
        world.run(f"baseline_{name}")
    names = [*(f"{name}/direct" for name in baselines), "grpo_adaptive/thinking", "grpo/merged", "sft_mixed/direct"]
    names.append("sasrec_mixed/direct")
    outcome = world.run("recommendations", small_world.profile(models=names, choice_rows=6))
    checks = {check["name"]: check["passed"] for check in outcome.artifact.manifest["checks"]}
    assert checks["only_real_items"] and checks["distinct"]
    table = published(world, "recommendations", "recommendations.parquet")
    contracts.Recommendations.validate(table)
    full = table.group_by(KEYS).agg(pl.col("sid").n_unique(), (pl.col("item_id").n_unique() == pl.len()).alias("once"))
    assert full.height == 9 * 12 and set(full["sid"]) == {5} and full["once"].all()
    models = published(world, "recommendations", "models.parquet")
    assert dict(models.select("model", "seed").iter_rows())["sasrec"] == 42
    metrics = outcome.artifact.manifest["metrics"]
    assert metrics["grpo_adaptive_valid_rows"] == 6 and 0 <= metrics["grpo_adaptive_valid_share"] <= 1
    assert metrics["grpo_valid_rows"] == 6 and 0 <= metrics["grpo_valid_thought"] <= 1
    for name in ("sft_mixed", "sasrec_mixed"):
        chosen = {key: metrics[f"{name}_valid_{key}"] for key in ("rows", "ndcg", "shortcut", "is_shortcut")}
        assert chosen["rows"] == 6 and chosen["is_shortcut"] == (chosen["ndcg"] <= chosen["shortcut"])
        note = models.filter(model=name)["note"][0]
        assert (note == "is the shortcut: no mixture was above it on valid rows") == chosen["is_shortcut"]


@pytest.mark.parametrize("seen", ["drop", "choose"])
def test_items_of_the_history_are_left_out_of_every_list_alike(world, seen):
    for name in ("shortcut", "tiger", "sasrec"):
        world.run(f"baseline_{name}")
    names = [
        "sft/direct",
        "grpo/thinking",
        "grpo/merged",
        "sasrec_mixed/direct",
        "popularity/direct",
        "item_item/direct",
        "shortcut/direct",
        "tiger/direct",
    ]
    outcome = world.run("recommendations", small_world.profile(models=names, seen=seen))
    checks = {check["name"]: check["passed"] for check in outcome.artifact.manifest["checks"]}
    assert checks["only_real_items"] and checks["distinct"]
    table = published(world, "recommendations", "recommendations.parquet")
    sids = small_world.codebook().select("item_id", "sid")
    met = small_world.samples(4, 2).select("row_id", pl.col("history_item_ids").alias("item_id")).explode("item_id")
    repeats = table.join(met.join(sids, on="item_id").select("row_id", "sid"), on=["row_id", "sid"], how="semi")
    shortcut = json.loads(world.store.require("toys", SNAPSHOT, "baseline_shortcut").path("meta.json").read_text())
    left_out = seen == "drop" or not shortcut["model"]["repeats"]
    assert repeats.is_empty() == left_out
    said = "left out" if left_out else "may be listed"
    assert outcome.artifact.manifest["metrics"]["items_of_the_history"] == said


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
    world.publish("sft_checkpoint", lambda folder: small_world.checkpoint_of(folder, "sft", 9))
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


# -- figures -------------------------------------------------------------------------------------


def test_figures_are_the_same_bytes_and_skip_absent_columns(tmp_path):
    from sidr_core.render import figures as plots

    frame = pl.DataFrame({"step": [2, 1, 3], "reward": [0.2, 0.1, None], "length": [5, 4, 6]})
    for name in ("a", "b"):
        plots.curves(frame, "step", ["reward", "absent", "length"], tmp_path / f"{name}.png", "t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plots.curves(frame, "step", ["reward", "length"], tmp_path / "c.png", "t")
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    plots.curves(frame.with_columns(reward=pl.lit(0.9)), "step", ["reward", "length"], tmp_path / "d.png", "t")
    assert (tmp_path / "d.png").read_bytes() != (tmp_path / "a.png").read_bytes()
    assert b"matplotlib" not in (tmp_path / "a.png").read_bytes().lower()
