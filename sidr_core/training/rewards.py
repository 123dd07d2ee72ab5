"""Outcome rewards: how much of the target SID did the thought lead to?

Pure functions over columns: a completion's text and the target of its own row. Nothing is looked up
by prompt text (METHOD 10.14). Deviation from the released code: parsing is strict. After the *last*
closing think tag there must be exactly one SID, levels in order, and nothing else but blanks; the
released code takes any three angle-bracket groups of the last 50 characters (METHOD 7.2, 10.20).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sidr_core.sids.tokens import parse_sid

CLOSE = "</think>"
VALID_BONUS = 0.1


@dataclass(frozen=True)
class Scored:
    """One rollout's reward and its parts.

    Args:
        matched: leading SID tokens equal to the target's (0 when nothing could be parsed).
        parsed: an answer of the right form was found. valid: and it is an item of the catalogue.
    """

    reward: float
    matched: int
    parsed: bool
    valid: bool


def answer_codes(text: str, levels: int) -> list[int] | None:
    """The codes of the answer in a completion, or None if it has no answer of the right form."""
    _, tag, answer = text.rpartition(CLOSE)
    if not tag:
        return None
    try:
        codes = parse_sid(answer.strip())
    except ValueError:
        return None
    return codes if len(codes) == levels else None


def step_rule(text: str, target: Collection[int], catalogue: Collection[tuple[int, ...]]) -> Scored:
    r"""METHOD 7.2: 1 for the whole SID, halved for each level missed, 0 if the first is wrong; +0.1 if legal.

    Args:
        text: the completion, think tags included, special tokens stripped.
        target: codes of the row's target.
        catalogue: codes of every item.

    >>> step_rule("so<a_1></think>\\n\\n<a_1><b_2><c_9>", (1, 2, 3), {(1, 2, 3)})
    Scored(reward=0.5, matched=2, parsed=True, valid=False)
    """
    target = tuple(target)
    codes = answer_codes(text, len(target))
    if codes is None:
        return Scored(0.0, 0, False, False)
    matched = 0
    while matched < len(target) and codes[matched] == target[matched]:
        matched += 1
    valid = tuple(codes) in catalogue
    base = 0.5 ** (len(target) - matched) if matched else 0.0
    return Scored(base + VALID_BONUS * valid, matched, True, valid)
