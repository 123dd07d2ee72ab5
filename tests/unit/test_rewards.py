"""The step rule: hand-computed scores, strict parsing, and policies that try to cheat it."""

import pytest

from sidr_core.training.rewards import answer_codes, step_rule

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
    scored = step_rule(text, TARGET, CATALOGUE)
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
    assert step_rule(text, TARGET, CATALOGUE).reward == 0
    assert answer_codes(text, 3) is None


def test_other_level_counts():
    assert step_rule("</think>\n\n<a_4>", (4,), {(4,)}).reward == pytest.approx(1.1)
    assert step_rule("</think>\n\n<a_4><b_1>", (4, 0), {(4, 1), (4, 0)}).reward == pytest.approx(0.6)
