"""The rewards: hand-computed scores, strict parsing, and policies that try to cheat them."""

import polars as pl
import pytest

from builders.remote import load
from sidr_core.training import rewards
from sidr_core.training.rewards import (
    REWARDS,
    Completion,
    answer_codes,
    exact,
    rank,
    step_rule,
    with_length_cost,
    zero_variance,
)

table = load("scripts/reward_table.py")

CATALOGUE = {(1, 2, 3), (1, 2, 4), (1, 5, 6), (7, 8, 9)}
TARGET = (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "reward", "matched"),
    [
        ("thought\n</think>\n\n<a_1><b_2><c_3>", 1.1, 3),
        ("thought\n</think>\n\n<a_1><b_2><c_4>", 0.6, 2),
        ("thought\n</think>\n\n<a_1><b_2><c_9>", 0.5, 2),  # right prefix, no such item: no bonus
        ("thought\n</think>\n\n<a_1><b_5><c_6>", 0.35, 1),
        ("thought\n</think>\n\n<a_7><b_8><c_9>", 0.1, 0),
        ("thought\n</think>\n\n<a_9><b_2><c_3>", 0.0, 0),  # later levels alone earn nothing
    ],
)
def test_scores_by_hand(text, reward, matched):
    scored = step_rule(Completion(text, TARGET), CATALOGUE)
    assert scored.reward == pytest.approx(reward)
    assert scored.matched == matched
    assert scored.parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a_1><b_2><c_3>",  # no closing tag
        "<a_1><b_2><c_3></think>",  # the SID only inside the thought
        "<a_1><b_2><c_3>\n</think>\n\n",
        "x</think>\n\n<b_2><a_1><c_3>",  # levels out of order
        "x</think>\n\n<a_1><b_2>",
        "x</think>\n\n<a_1><b_2><c_3><d_4>",
        "x</think>\n\n<a_1><b_2><c_3><a_1><b_2><c_3>",  # repeated
        "x</think>\n\nanswer <a_1><b_2><c_3>",
        "x</think>\n\n<a_1><b_2><c_3> and more",
        "x</think>\n\n<a_1> <b_2> <c_3>",
        "x</think>\n\n<a_01><b_2><c_3>",
        "x</think>\n\n<a_1><b_2><c_3></think>",  # the last closing tag counts
    ],
)
def test_anything_else_earns_nothing(text):
    assert step_rule(Completion(text, TARGET), CATALOGUE).reward == 0
    assert answer_codes(text, 3) is None


def test_other_level_counts():
    assert step_rule(Completion("</think>\n\n<a_4>", (4,)), {(4,)}).reward == pytest.approx(1.1)
    assert step_rule(Completion("</think>\n\n<a_4><b_1>", (4, 0)), {(4, 1), (4, 0)}).reward == pytest.approx(0.6)


ANSWER = "thought\n</think>\n\n{}"
RIGHT, NEAR = "<a_1><b_2><c_3>", "<a_1><b_2><c_4>"


def test_exact_by_hand():
    assert exact(Completion(ANSWER.format(RIGHT), TARGET), CATALOGUE).reward == 1
    assert exact(Completion(ANSWER.format(NEAR), TARGET), CATALOGUE).reward == 0
    assert exact(Completion(RIGHT, TARGET), CATALOGUE).reward == 0


@pytest.mark.parametrize(("place", "reward"), [(0, 1.0), (1, 0.63092975), (6, 1 / 3), (None, 0.0)])
def test_rank_is_the_gain_of_the_place(place, reward):
    """The answer that was drawn does not matter, where the target stands does."""
    assert rank(Completion(ANSWER.format(NEAR), TARGET, place), CATALOGUE).reward == pytest.approx(reward)


def test_rank_wants_an_answer():
    assert rank(Completion("thought, never closed", TARGET, 0), CATALOGUE).reward == 0


def test_named_is_the_gain_among_the_items_that_a_thought_names_as_far_as_it_is_true():
    def earns(text=NEAR, **read):
        return rewards.named(Completion(ANSWER.format(text), TARGET, **read), CATALOGUE).reward

    assert earns(named=0) == 1 and earns(named=2, truth=0.5) == 0.25
    assert earns(place=0) == 0, "a place in the list that follows is not asked for"
    assert earns("no SID", named=0) == 0


def test_length_costs_only_what_earned_something():
    less = with_length_cost([1.0, 1.0, 0.0, 0.0, 0.5, 0.0], [10, 20, 40, 0, 0, 7], 3, 0.2)
    assert less == pytest.approx([0.95, 0.9, 0, 0, 0.5, 0])


def test_groups_without_variance():
    assert zero_variance([0.1, 0.1, 0.1, 0.6, 0.0, 0.0], 2) == [True, False, True]


ROWS = [
    table.Row([(7, 8, 9), (1, 2, 4)], target=(1, 2, 3), popular=(1, 2, 3), drawn=(1, 2, 4)),
    table.Row([(1, 2, 3), (1, 5, 6)], target=(7, 8, 9), popular=(1, 2, 3), drawn=(1, 2, 3)),
    table.Row([(1, 5, 6)], target=(1, 5, 6), popular=(1, 2, 3), drawn=(7, 8, 9)),
    table.Row([(7, 8, 9)], target=(1, 2, 4), popular=(1, 2, 3), drawn=(1, 2, 4)),
]


@pytest.mark.parametrize("reward", list(REWARDS))
@pytest.mark.parametrize("policy", list(table.POLICIES))
def test_no_fixed_policy_earns_more_than_its_answers_are_worth(policy, reward):
    answers = policy in ("last item", "most popular", "random legal")
    for row in ROWS:
        text, named = table.POLICIES[policy](row)
        worth = table.honest(reward, named, row.target)
        assert (answer_codes(text, 3) is not None) == answers
        assert table.earned(reward, text, named, row.target, CATALOGUE) == pytest.approx(worth if answers else 0)


def test_what_an_item_is_worth_by_hand():
    target = (1, 2, 3)
    named = [(1, 2, 3), (1, 2, 4), (1, 5, 3), (7, 2, 3), None]
    assert [table.honest("step_rule", item, target) for item in named] == pytest.approx([1.1, 0.6, 0.35, 0.1, 0])
    assert [table.honest("rank", item, target) for item in named] == [1, 0, 0, 0, 0]


def test_what_policies_know():
    train = pl.DataFrame({"history_item_ids": [["A"], ["B", "C"], ["C"]], "target_item_id": ["B", "C", "B"]})
    codes = {"A": (0, 0), "B": (0, 1), "C": (1, 0)}
    rows = table.rows_of(train, codes, seed=1)
    assert [row.target for row in rows] == [(0, 1), (1, 0), (0, 1)]
    assert list(rows[1].history) == [(0, 1), (1, 0)]
    assert {row.popular for row in rows} == {(0, 1)}
    assert {row.drawn for row in rows} <= set(codes.values())
