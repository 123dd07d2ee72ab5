"""The transfer matrix by hand, and its profile."""

from dataclasses import replace

import polars as pl
import pytest

from builders.remote import load
from sidr_core.evaluation.compare import Name, Scored
from sidr_core.pipeline.profile import load_profile
from sidr_core.settings import Evaluation

transfer = load("scripts/transfer_matrix.py")
SETTINGS = Evaluation(bootstrap=1000, least_users=2)
USERS = [f"{member}:u{n}" for member in ("games", "office") for n in range(20)]


def scored(dataset: str, games: float, office: float, model: str = "sft") -> Scored:
    """A model whose every row scores `games` or `office`."""
    rows = pl.DataFrame(
        {
            "row_id": [f"{user}:1" for user in USERS],
            "user_id": USERS,
            "target_item_id": "x",
            "item_hr@10": [games] * 20 + [office] * 20,
            "item_ndcg@10": [games / 2] * 20 + [office / 2] * 20,
        }
    )
    return Scored(Name(dataset, model, "direct"), rows, frozenset("x"), 1, "digest", 20, "2018-06-01", True)


def made() -> pl.DataFrame:
    games, office, counter = (
        scored("games", 0.8, 0.2),
        scored("office", 0.1, 0.6),
        scored("games", 0.5, 0.2, "item_item"),
    )
    return transfer.matrix([games, office], {"games": [games, counter], "office": [office]}, 10, SETTINGS)


def test_values_are_those_of_the_rows_of_one_domain():
    values = made().filter(pl.col("minus").is_null() & (pl.col("metric") == "hr"))
    assert values.select("domain", "dataset", "value", "n_users").rows() == [
        ("games", "games", pytest.approx(0.8), 20),
        ("games", "office", pytest.approx(0.1), 20),
        ("office", "games", pytest.approx(0.2), 20),
        ("office", "office", pytest.approx(0.6), 20),
    ]


def test_differences_are_from_each_reference_of_the_domain_and_none_from_itself():
    gaps = made().filter(pl.col("minus").is_not_null() & (pl.col("metric") == "hr"))
    assert gaps.select("domain", "dataset", "minus", "difference", "verdict").rows() == [
        ("games", "office", "games/sft/direct", pytest.approx(-0.7), "lower"),
        ("games", "games", "games/item_item/direct", pytest.approx(0.3), "higher"),
        ("games", "office", "games/item_item/direct", pytest.approx(-0.4), "lower"),
        ("office", "games", "office/sft/direct", pytest.approx(-0.4), "lower"),
    ]


def test_two_references_are_compared_once():
    games, counter = scored("games", 0.8, 0.2), scored("all", 0.5, 0.2, "item_item")
    found = transfer.matrix([games, counter], {"games": [counter, games]}, 10, SETTINGS)
    gaps = found.filter(pl.col("minus").is_not_null() & (pl.col("metric") == "hr"))
    assert gaps.select("dataset", "minus").rows() == [("games", "all/item_item/direct")]


def test_models_of_different_horizons_are_not_compared_without_saying_it():
    games, office = scored("games", 0.8, 0.2), scored("office", 0.1, 0.2)
    counter = replace(scored("games", 0.5, 0.2, "item_item"), seen_until="2017-01-01")
    found = transfer.matrix([games, office], {"games": [games, counter]}, 10, SETTINGS)
    gaps = found.filter(pl.col("minus").is_not_null() & (pl.col("metric") == "hr"))
    assert gaps.select("dataset", "minus", "verdict").rows() == [
        ("office", "games/sft/direct", "lower"),
        ("games", "games/item_item/direct", "higher (different horizons)"),
        ("office", "games/item_item/direct", "lower (different horizons)"),
    ]
    assert found.filter(pl.col("minus").is_null())["verdict"].null_count() == 4
    assert "minus_seen_until" not in found.columns


def test_all_differences_of_the_page_are_one_family():
    gaps = made().filter(pl.col("minus").is_not_null())
    # Each of the 8 has the least p that 1,000 draws allow, and Holm multiplies it by 8.
    assert gaps["p"].to_list() == pytest.approx([2 / 1001] * 8)
    assert gaps["p_holm"].to_list() == pytest.approx([8 * 2 / 1001] * 8)


def test_the_page_holds_matrix_differences_and_label():
    text = transfer.page("Stage 1", made(), SETTINGS, synthetic=True)
    assert "| model | games: HR@10 | games: NDCG@10 | office: HR@10 | office: NDCG@10 |" in text
    assert "| games/sft/direct | 0.8000 [0.8000, 0.8000] | 0.4000" in text
    assert "synthetic sample data" in text and "all 8 differences" in text
    assert "| office/sft/direct − games/sft/direct | games | HR@10 | -0.7000" in text
    assert "cannot tell" not in text
    few = transfer.page("Stage 1", made(), Evaluation(bootstrap=319), synthetic=True)
    assert '**319 draws cannot tell any of so many from 0: 320 are needed.** "Within' in few


def test_the_profile_shares_all_that_lies_above_training():
    profile = load_profile("transfer")
    base = profile.dataset("all")
    for name in profile:
        config = profile.dataset(name)
        assert (config.source, config.encoder, config.quantizer, config.filters) == (
            base.source,
            base.encoder,
            base.quantizer,
            base.filters,
        )
        assert config.split.model_copy(update={"train_only": ()}) == base.split
        assert config.grpo.model_copy(update={"train_only": ()}) == base.grpo
    for member in ("games", "office", "industrial"):
        assert profile.dataset(member).split.train_only == (member,)
        assert profile.dataset(f"rl_{member}").grpo.train_only == (member,)
        assert profile.dataset(f"rl_{member}").split == base.split
