"""The rewards: hand-computed scores, strict parsing, and policies that try to cheat them."""

import pytest

from sidr_core.training.rewards import REWARDS, Rollout, answer_codes, exact, rank, step_rule, zero_variance

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
    scored = step_rule(Rollout(text, TARGET), CATALOGUE)
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
    assert step_rule(Rollout(text, TARGET), CATALOGUE).reward == 0
    assert answer_codes(text, 3) is None


def test_other_level_counts():
    assert step_rule(Rollout("</think>\n\n<a_4>", (4,)), {(4,)}).reward == pytest.approx(1.1)
    assert step_rule(Rollout("</think>\n\n<a_4><b_1>", (4, 0)), {(4, 1), (4, 0)}).reward == pytest.approx(0.6)


ANSWER = "thought\n</think>\n\n{}"
RIGHT, NEAR = "<a_1><b_2><c_3>", "<a_1><b_2><c_4>"


def test_exact_by_hand():
    assert exact(Rollout(ANSWER.format(RIGHT), TARGET), CATALOGUE).reward == 1
    assert exact(Rollout(ANSWER.format(NEAR), TARGET), CATALOGUE).reward == 0
    assert exact(Rollout(RIGHT, TARGET), CATALOGUE).reward == 0


@pytest.mark.parametrize(("place", "reward"), [(0, 1.0), (1, 0.63092975), (6, 1 / 3), (None, 0.0)])
def test_rank_is_the_gain_of_the_place(place, reward):
    """The answer that was drawn does not matter, where the target stands does."""
    assert rank(Rollout(ANSWER.format(NEAR), TARGET, place), CATALOGUE).reward == pytest.approx(reward)


def test_rank_wants_an_answer():
    assert rank(Rollout("thought, never closed", TARGET, 0), CATALOGUE).reward == 0


def test_groups_without_variance():
    assert zero_variance([0.1, 0.1, 0.1, 0.6, 0.0, 0.0], 2) == [True, False, True]


#: History SIDs, target and the most popular SID of rows on which fixed policies are tried.
ROWS = [
    (["<a_7><b_8><c_9>", "<a_1><b_2><c_4>"], (1, 2, 3)),
    (["<a_1><b_2><c_3>", "<a_1><b_5><c_6>"], (7, 8, 9)),
    (["<a_1><b_5><c_6>"], (1, 5, 6)),
    (["<a_7><b_8><c_9>"], (1, 2, 4)),
]
POPULAR = "<a_1><b_2><c_3>"
LEGAL = ["<a_1><b_2><c_3>", "<a_1><b_2><c_4>", "<a_1><b_5><c_6>", "<a_7><b_8><c_9>"]


def _close(text):
    return ANSWER.format(text)


POLICIES = {
    "copy the history": lambda history, n: _close("".join(history)) if len(history) > 1 else _close(history[0] * 2),
    "last item": lambda history, n: _close(history[-1]),
    "most popular": lambda history, n: _close(POPULAR),
    "repeated SID": lambda history, n: _close(history[-1] * 3),
    "SID only inside the thought": lambda history, n: f"{history[-1]}\n</think>\n\n",
    "unclosed thought": lambda history, n: history[-1],
    "empty": lambda history, n: "",
    "random legal": lambda history, n: _close(LEGAL[(3 * n + 1) % 4]),
}


@pytest.mark.parametrize("reward", list(REWARDS))
@pytest.mark.parametrize("policy", list(POLICIES))
def test_no_fixed_policy_earns_more_than_its_answers_are_worth(policy, reward):
    """What a policy honestly deserves: the rule applied by hand to the item that it names, 0 if it names none."""
    names_an_item = policy in ("last item", "most popular", "random legal")
    for n, (history, target) in enumerate(ROWS):
        text = POLICIES[policy](history, n)
        codes = answer_codes(text, 3)
        assert (codes is not None) == names_an_item
        hit = codes is not None and tuple(codes) == target
        worth = {"exact": float(hit), "rank": float(hit)}.get(reward)
        if worth is None:
            same = 0
            while codes and same < 3 and codes[same] == target[same]:
                same += 1
            worth = {0: 0.0, 1: 0.25, 2: 0.5, 3: 1.0}[same] + 0.1 * (codes is not None)
        # A list that holds one item: the target is first in it or nowhere.
        found = REWARDS[reward](Rollout(text, target, 0 if hit else None), CATALOGUE)
        assert found.reward == pytest.approx(worth)
