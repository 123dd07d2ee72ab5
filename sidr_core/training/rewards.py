"""Outcome rewards: did the thought lead to the right item?

Pure functions of one completion and the target of its own row; nothing is looked up by the text of a prompt.
Deviation from the released code: parsing is strict. After the *last* closing think tag there must be exactly one SID,
levels in order, and nothing else but blanks; the released code takes any three angle-bracket groups of the last 50
characters (docs/method.md, "Rewards").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import log2

from sidr_core.sids.tokens import parse_sid

CLOSE = "</think>"
VALID_BONUS = 0.1


@dataclass(frozen=True)
class Completion:
    """What a reward may look at.

    Args:
        text: the completion, think tags included, special tokens stripped; for a direct rollout the
            closing tag of the empty thought is put before it.
        target: codes of the row's target.
        place: 0-based place of the target in the constrained beam that follows the thought; None where
            it is not in the beam, or no beam could follow since the thought was not closed.
        named: 0-based place of the target among the items that the thought names; None where it names it not.
        truth: share of the facts and candidates of the thought that are right.
    """

    text: str
    target: tuple[int, ...]
    place: int | None = None
    named: int | None = None
    truth: float = 1.0


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


def step_rule(completion: Completion, catalogue: Collection[tuple[int, ...]]) -> Scored:
    r"""The paper's reward: 1 for the whole SID, halved for each level missed, 0 if the first is wrong; +0.1 if legal.

    Args:
        catalogue: codes of every item.

    >>> step_rule(Completion("so<a_1></think>\n\n<a_1><b_2><c_9>", (1, 2, 3)), {(1, 2, 3)})
    Scored(reward=0.5, matched=2, parsed=True, valid=False)
    """
    scored = _compared(completion, catalogue)
    base = 0.5 ** (len(completion.target) - scored.matched) if scored.matched else 0.0
    return replace(scored, reward=base + VALID_BONUS * scored.valid)


def exact(completion: Completion, catalogue: Collection[tuple[int, ...]]) -> Scored:
    """1 for the target's SID, 0 for anything else."""
    scored = _compared(completion, catalogue)
    return replace(scored, reward=float(scored.matched == len(completion.target)))


def rank(completion: Completion, catalogue: Collection[tuple[int, ...]]) -> Scored:
    """The list's gain: 1 / log2(place + 2), what NDCG counts; 0 without an answer of the right form.

    Dense where `exact` is almost always 0. MiniOneRec's penalties rank the rollouts of a group among each other; here
    the place is that of the target in the list that a user would get.
    """
    scored = _compared(completion, catalogue)
    if not scored.parsed or completion.place is None:
        return scored
    return replace(scored, reward=1 / log2(completion.place + 2))


def named(completion: Completion, catalogue: Collection[tuple[int, ...]]) -> Scored:
    """The thought's own gain: 1 / log2(place + 2) of the target among the items that it names, times its truth.

    What mode merged takes from a thought is what it names, so that is paid, and only as far as the rest is true. 0
    without an answer of the right form.
    """
    scored = _compared(completion, catalogue)
    if not scored.parsed or completion.named is None:
        return scored
    return replace(scored, reward=completion.truth / log2(completion.named + 2))


REWARDS: dict[str, Callable[[Completion, Collection[tuple[int, ...]]], Scored]] = {
    "step_rule": step_rule,
    "exact": exact,
    "rank": rank,
    "named": named,
}


def with_length_cost(rewards: Sequence[float], lengths: Sequence[int], generations: int, cost: float) -> list[float]:
    """Rewards less `cost` times the thought's length over the longest of its group; what earned nothing stays at 0.

    So among equally good thoughts of a group the shorter earns more, and no thought is shortened that is not good.

    Args:
        rewards, lengths: per completion, in groups of `generations` neighbours; lengths in tokens.

    >>> with_length_cost([1.0, 1.0, 0.0], [10, 20, 5], 3, 0.1)
    [0.95, 0.9, 0.0]
    """
    longest = [max(lengths[n : n + generations]) for n in range(0, len(lengths), generations)]
    return [
        reward - cost * length / longest[n // generations] if reward > 0 and length else reward
        for n, (reward, length) in enumerate(zip(rewards, lengths, strict=True))
    ]


def zero_variance(rewards: Sequence[float], generations: int) -> list[bool]:
    """Whether all rewards of a group are equal, per group of `generations` neighbours: it teaches nothing."""
    groups = [rewards[n : n + generations] for n in range(0, len(rewards), generations)]
    return [max(group) - min(group) < 1e-9 for group in groups]


def _compared(completion: Completion, catalogue: Collection[tuple[int, ...]]) -> Scored:
    """The parts of a completion's score, with no reward yet."""
    codes = answer_codes(completion.text, len(completion.target))
    if codes is None:
        return Scored(0.0, 0, False, False)
    matched = 0
    while matched < len(codes) and codes[matched] == completion.target[matched]:
        matched += 1
    return Scored(0.0, matched, True, tuple(codes) in catalogue)
