"""How much a thought says of the target that it could not know from the history ("hindsight").

The teacher sees the next item of a train row, so its thought may be fitted backwards (docs/method.md, "Corpus").
A word of the target that no item of the history has is a *target-only* word; a thought that says one gives the
target away. Words are compared by a rough stem, so that "printers" does not hide "printer". Meaning is not compared:
"something to write with" for a pen passes, and shows only in the figures over a corpus.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sidr_core.corpus.catalogue import STOPWORDS, Item, audit_words

#: Share of the thoughts, and least number of them, from which on a word that is not about their rows is
#: common wording.
COMMON_SHARE = 0.01
COMMON_ROWS = 3

_STOP = audit_words(" ".join(STOPWORDS))


class RowThought(NamedTuple):
    """A thought and the train row that it was written for."""

    thought: str
    history: Sequence[Item]
    target: Item


def target_only_words(history: Sequence[Item], target: Item) -> frozenset[str]:
    """Audit words that the target has and no history item has, without those that say nothing."""
    return target.facts.difference(*(item.facts for item in history)) - _STOP


def leaked_words(
    thought: str, history: Sequence[Item], target: Item, frame_words: frozenset[str] = frozenset()
) -> list[str]:
    """Target-only words that the thought says, except `frame_words` (audit words)."""
    return sorted((target_only_words(history, target) & audit_words(thought)) - frame_words)


def leaked_share(
    thought: str, history: Sequence[Item], target: Item, frame_words: frozenset[str] = frozenset()
) -> float:
    """Share of the target-only words that the thought says; 0 is a clean thought."""
    words = target_only_words(history, target) - frame_words
    return len(words & audit_words(thought)) / len(words) if words else 0.0


def mean_share(thoughts: Sequence[RowThought], frame_words: frozenset[str] = frozenset()) -> float:
    """Mean of :func:`leaked_share` over thoughts; 0 for none."""
    return sum(leaked_share(*one, frame_words) for one in thoughts) / len(thoughts) if thoughts else 0.0


def mean_share_by_chance(thoughts: Sequence[RowThought], frame_words: frozenset[str] = frozenset()) -> float:
    """The same with the target of the row that follows: what thoughts say of a target that they never saw."""
    shifted = (*thoughts[1:], *thoughts[:1])
    return mean_share(
        [one._replace(target=other.target) for one, other in zip(thoughts, shifted, strict=True)], frame_words
    )


def common_wording(thoughts: Iterable[RowThought]) -> frozenset[str]:
    """Words that thoughts say no matter what the target is, so that saying one gives nothing away.

    A word is common wording if
    (1) at least `COMMON_SHARE` of the thoughts, and `COMMON_ROWS` of them, say it although neither their history
        nor their target has it, and
    (2) thoughts for which it is a target-only word say it hardly more often than that share would make them:
        at most expected + 2·√expected + 1 times.
    Without such a rule any thought in natural language would fail on a word like "home".
    """
    rows = 0
    rows_with: Counter[str] = Counter()  # word -> rows whose history or target has it
    target_only_in: Counter[str] = Counter()  # word -> rows whose target alone has it
    leaked: Counter[str] = Counter()  # word -> such rows whose thought says it
    unprompted: Counter[str] = Counter()  # word -> thoughts that say it though neither history nor target has it
    for thought, history, target in thoughts:
        rows += 1
        row_words = target.facts.union(*(item.facts for item in history))
        target_only, thought_words = target_only_words(history, target), audit_words(thought)
        rows_with.update(row_words)
        target_only_in.update(target_only)
        leaked.update(target_only & thought_words)
        unprompted.update(thought_words - row_words)
    common: set[str] = set()
    for word, times in unprompted.items():
        expected = target_only_in[word] * times / (rows - rows_with[word])
        enough = times >= max(COMMON_ROWS, COMMON_SHARE * rows)
        if enough and leaked[word] <= expected + 2 * math.sqrt(expected) + 1:
            common.add(word)
    return frozenset(common)
