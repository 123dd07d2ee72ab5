"""Outcome rewards: did the thought lead to the right item?

Pure functions of one rollout and the target of its own row; nothing is looked up by prompt text
(METHOD 10.14). Deviation from the released code: parsing is strict. After the *last* closing think
tag there must be exactly one SID, levels in order, and nothing else but blanks; the released code
takes any three angle-bracket groups of the last 50 characters (METHOD 7.2, 10.20).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import log2

from sidr_core.sids.tokens import parse_sid

CLOSE = "</think>"
VALID_BONUS = 0.1


@dataclass(frozen=True)
class Rollout:
    """What a reward may look at.

    Args:
        text: the completion, think tags included, special tokens stripped; for a direct rollout the
            closing tag of the empty thought is put before it.
        target: codes of the row's target.
        place: 0-based place of the target in the constrained beam that follows the thought; None where
            it is not in the beam, or no beam could follow since the thought was not closed.
    """

    text: str
    target: tuple[int, ...]
    place: int | None = None


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


def step_rule(rollout: Rollout, catalogue: Collection[tuple[int, ...]]) -> Scored:
    r"""METHOD 7.2: 1 for the whole SID, halved for each level missed, 0 if the first is wrong; +0.1 if legal.

    Args:
        catalogue: codes of every item.

    >>> step_rule(Rollout("so<a_1></think>\n\n<a_1><b_2><c_9>", (1, 2, 3)), {(1, 2, 3)})
    Scored(reward=0.5, matched=2, parsed=True, valid=False)
    """
    found = _compared(rollout, catalogue)
    base = 0.5 ** (len(rollout.target) - found.matched) if found.matched else 0.0
    return replace(found, reward=base + VALID_BONUS * found.valid)


def exact(rollout: Rollout, catalogue: Collection[tuple[int, ...]]) -> Scored:
    """1 for the target's SID, 0 for anything else."""
    found = _compared(rollout, catalogue)
    return replace(found, reward=float(found.matched == len(rollout.target)))


def rank(rollout: Rollout, catalogue: Collection[tuple[int, ...]]) -> Scored:
    """The list's gain: 1 / log2(place + 2), what NDCG counts; 0 without an answer of the right form.

    Dense where `exact` is almost always 0. Deviation from METHOD 7.3, whose penalties rank the rollouts of a
    group among each other: here the place is the target's own in the list that a user would be shown.
    """
    found = _compared(rollout, catalogue)
    if not found.parsed or rollout.place is None:
        return found
    return replace(found, reward=1 / log2(rollout.place + 2))


REWARDS: dict[str, Callable[[Rollout, Collection[tuple[int, ...]]], Scored]] = {
    "step_rule": step_rule,
    "exact": exact,
    "rank": rank,
}


def zero_variance(rewards: Sequence[float], generations: int) -> list[bool]:
    """Whether all rewards of a group are equal, per group of `generations` neighbours: it teaches nothing."""
    groups = [rewards[n : n + generations] for n in range(0, len(rewards), generations)]
    return [max(group) - min(group) < 1e-9 for group in groups]


def _compared(rollout: Rollout, catalogue: Collection[tuple[int, ...]]) -> Scored:
    """The parts of a rollout's score, with no reward yet."""
    codes = answer_codes(rollout.text, len(rollout.target))
    if codes is None:
        return Scored(0.0, 0, False, False)
    matched = 0
    while matched < len(codes) and codes[matched] == rollout.target[matched]:
        matched += 1
    return Scored(0.0, matched, True, tuple(codes) in catalogue)
