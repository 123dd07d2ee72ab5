"""Interventions: a model that ignores its thought shows 0 everywhere, a planted dependence is found."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import small_world
from builders.corpus import item
from builders.stage import QUIET
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.relations import learn_relations
from sidr_core.corpus.stated import read_facts
from sidr_core.evaluation import interventions
from sidr_core.evaluation.interventions import BLANK, CORRUPTED, OWN, PLACEBO, SHUFFLED, THOUGHTS, TRUE
from sidr_core.models import checkpoint
from sidr_core.pipeline.graph import stage_named
from sidr_core.settings import Evaluation
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Interventions

SETTINGS = Evaluation(ks=(10,), bootstrap=500)


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=30), st.integers(0, 99))
def test_every_thought_goes_to_another_user_once(users, seed):
    rows = pl.DataFrame({"user_id": users, "row_id": [str(n) for n in range(len(users))]})
    drawn = interventions.chosen(rows, 20, seed)
    users = drawn["user_id"].to_list()
    taken = interventions.other_users(users, seed)
    assert sorted(taken) == list(range(len(users)))
    assert all(users[row] != users[other] for row, other in enumerate(taken))
    assert drawn.height <= 20 and (drawn.height or rows["user_id"].n_unique() == 1)


def test_corrupted_facts_are_of_the_catalogue_and_nothing_else_changes():
    games = [
        item(f"g{n}", f"Game {n}", (n, 0), description=f"A game. System: {system}. Part: {n}.")
        for n, system in enumerate(("Orb", "Zed", "Orb", "Zed", "Orb", "Zed"))
    ]
    facts = read_facts(Catalogue({one.item_id: one for one in games}))
    generator = np.random.default_rng(0)
    text = "System: Orb. Part: 3. Next: Game 4 <a_4><b_0>; System: Orb."
    found = interventions.corrupted(text, facts, generator)
    head, tail = found.split(" Next: ")
    assert tail == "Game 4 <a_4><b_0>; System: Orb."  # only what is stated before the candidates
    assert head.startswith("System: Zed. Part: ") and head != "System: Zed. Part: 3."
    assert interventions.corrupted("I like games.", facts, generator) == "I like games."


def world_of_rows(users: int = 40):
    """One row per user; the target of row n is item n mod 16, and the own thought names it."""
    catalogue = Catalogue({name: item(name, f"Toy {name}", codes) for name, codes in small_world.CODES.items()})
    targets = [small_world.ITEMS[n % 14] for n in range(users)]
    rows = pl.DataFrame(
        {
            "row_id": [f"r{n:02d}" for n in range(users)],
            "user_id": [f"u{n:02d}" for n in range(users)],
            "history_item_ids": [[small_world.ITEMS[(n + 1) % 16]] for n in range(users)],
            "target_item_id": targets,
            "reasoning": [f"Next: Toy {target} {catalogue[target].sid}." for target in targets],
        }
    )
    train = [([catalogue["A00"]], catalogue["A01"])]
    return rows, catalogue, learn_relations(catalogue, train)


def ranker(rows: pl.DataFrame, catalogue: Catalogue, heeds: bool):
    """Lists of ten items that begin, where the thought is heeded, with the item whose SID it names first."""
    fixed = [name for name in small_world.ITEMS if name not in ("A14", "A15")][-10:]

    def after(texts):
        lists = []
        for row_id, text in zip(rows["row_id"], texts, strict=True):
            named = [name for name, one in catalogue.items() if one.sid in text] if heeds else []
            for rank, name in enumerate(dict.fromkeys([*named, *fixed]), start=1):
                lists.append((row_id, rank, name, catalogue[name].sid, -float(rank)))
        columns = {"row_id": pl.String, "rank": pl.Int32, "item_id": pl.String, "sid": pl.String, "score": pl.Float64}
        return pl.DataFrame(lists, schema=columns, orient="row")

    return after


@pytest.mark.parametrize("heeds", [False, True])
def test_a_model_that_ignores_its_thought_shows_nothing_and_a_planted_dependence_is_found(heeds):
    rows, catalogue, relations = world_of_rows()
    texts = interventions.replacements(rows, catalogue, relations, 3)
    assert list(texts) == list(THOUGHTS)
    after = ranker(rows, catalogue, heeds)
    found = interventions.measure(after, texts, rows, small_world.codebook(), SETTINGS, QUIET)
    gaps = {(row["thought"], row["metric"]): row for row in found if row["thought"] != OWN}
    assert len(gaps) == 10
    table = pl.DataFrame(found, infer_schema_length=None)
    if not heeds:
        assert {(row["difference"], row["p"]) for row in gaps.values()} == {(0, 1)}
        assert all(row["ci_low"] <= 0 <= row["ci_high"] for row in gaps.values())
        assert {row["verdict"] for row in gaps.values()} == {"not distinguishable"}
        assert not interventions.thoughts_matter(table).passed
        return
    own = {row["metric"]: row["value"] for row in found if row["thought"] == OWN}
    assert own == {"hr": 1.0, "ndcg": 1.0}  # the thought names the target
    for name in (PLACEBO, BLANK):
        assert gaps[name, "ndcg"]["verdict"] == "higher" and gaps[name, "ndcg"]["ci_low"] > 0
    # The words stay: a reader of SIDs alone does not mind their order, and there is no fact to corrupt.
    assert gaps[SHUFFLED, "ndcg"]["difference"] == gaps[CORRUPTED, "ndcg"]["difference"] == 0
    assert gaps[SHUFFLED, "ndcg"]["changed"] > 0 and gaps[CORRUPTED, "ndcg"]["changed"] == 0
    assert interventions.thoughts_matter(table).passed


def test_shuffled_words_are_the_same_words():
    rows, catalogue, relations = world_of_rows()
    texts = interventions.replacements(rows, catalogue, relations, 3)
    assert all(Counter(a.split()) == Counter(b.split()) for a, b in zip(texts[OWN], texts[SHUFFLED], strict=True))
    assert texts[BLANK] == [""] * rows.height
    assert all(text.rpartition("Next:")[1] for text in texts[TRUE])


def deaf(folder) -> None:
    """Write a checkpoint without attention: what it says next follows from the last token alone."""
    small_world.checkpoint_of(folder, "grpo", 3)
    loaded = checkpoint.load(folder, "cpu")
    for layer in loaded.model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    meta = {name: loaded.meta[name] for name in checkpoint.META_FIELDS}
    checkpoint.save(folder, loaded.model, loaded.tokenizer, small_world.codebook(), meta, "# card")


def test_the_stage_finds_nothing_in_a_real_model_that_cannot_hear_its_thought(world):
    small_world.spoil(world, "grpo_checkpoint", deaf)
    world.run("recommendations")
    made = world.run("interventions").artifact
    table = tables.read(made.path("interventions.parquet"))
    Interventions.validate(table)
    assert set(table["model"]) == {"grpo"} and table.height == 12 and set(table["n_rows"]) == {12}
    assert set(table["difference"].drop_nulls()) == {0.0}
    check = next(check for check in made.manifest["checks"] if check["name"] == "thoughts_matter")
    assert not check["passed"] and "+0.0000" in check["detail"]
    assert made.path("interventions.png").read_bytes().startswith(b"\x89PNG")
    assert "another user's (placebo)" in made.path("interventions.md").read_text()


def test_a_profile_that_does_not_think_has_an_empty_table(world):
    plain = small_world.profile(models=["sft/direct", "popularity/direct"])
    assert not [name for name in stage_named("interventions").reads(plain.dataset("toys")) if "checkpoint" in name]
    world.run("recommendations", plain)
    made = world.run("interventions", plain).artifact
    assert tables.read(made.path("interventions.parquet")).is_empty()
    assert "No thinking model" in made.path("interventions.md").read_text()
