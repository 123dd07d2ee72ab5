"""Does a thought know what it cannot know? The audit of words that only the hidden target has.

The teacher sees the next item of a train row, so its thought may be fitted backwards (METHOD 4.5). A
word of the target that no item of the history has is the target's *own*; a thought that says one tells
of the future. Words are compared by a rough stem, so that "printers" does not hide "printer". Meaning
is not compared: "something to write with" for a pen passes, and shows only in the figures over a corpus.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from sidr_core.corpus.catalogue import STOPWORDS, Item, audit_words

#: Share of the thoughts, and least number of them, from which on a word that is not about their rows is
#: common speech.
COMMON_SHARE = 0.01
COMMON_ROWS = 3

Told = tuple[str, Sequence[Item], Item]  # thought, history, target


_STOP = audit_words(" ".join(STOPWORDS))


def own_words(history: Sequence[Item], target: Item) -> frozenset[str]:
    """Audit words that the target has and no history item has, without those that say nothing."""
    return target.facts.difference(*(item.facts for item in history)) - _STOP


def hindsight_words(
    thought: str, history: Sequence[Item], target: Item, frame_words: frozenset[str] = frozenset()
) -> list[str]:
    """Own words of the target that the thought says, but for `frame_words` (audit words)."""
    return sorted((own_words(history, target) & audit_words(thought)) - frame_words)


def hindsight_share(
    thought: str, history: Sequence[Item], target: Item, frame_words: frozenset[str] = frozenset()
) -> float:
    """Share of the target's own words that the thought tells; 0 is a clean thought."""
    own = own_words(history, target) - frame_words
    return len(own & audit_words(thought)) / len(own) if own else 0.0


def mean_share(told: Sequence[Told], frame_words: frozenset[str] = frozenset()) -> float:
    """Mean of :func:`hindsight_share` over thoughts; 0 for none."""
    return sum(hindsight_share(*one, frame_words) for one in told) / len(told) if told else 0.0


def by_chance(told: Sequence[Told], frame_words: frozenset[str] = frozenset()) -> float:
    """The same with the target of the row that follows: what thoughts tell of a target that they never saw."""
    others = [target for _, _, target in (*told[1:], *told[:1])]
    return mean_share(
        [(thought, history, other) for (thought, history, _), other in zip(told, others, strict=True)], frame_words
    )


def common_speech(told: Iterable[Told]) -> frozenset[str]:
    """Words that thoughts say no matter what the target is, so that saying one tells nothing of it.

    A word is common speech if
    (1) at least `COMMON_SHARE` of the thoughts, and `COMMON_ROWS` of them, say it although neither their history
        nor their target has it, and
    (2) thoughts whose target has it as an own word say it hardly more often than that share would make them:
        at most expected + 2·√expected + 1 times.
    Without such a rule any thought in natural language would fail on a word like "home".
    """
    rows = 0
    known_rows: Counter[str] = Counter()
    own_rows: Counter[str] = Counter()
    own_said: Counter[str] = Counter()
    free_said: Counter[str] = Counter()
    for thought, history, target in told:
        rows += 1
        known = target.facts.union(*(item.facts for item in history))
        own, said = own_words(history, target), audit_words(thought)
        known_rows.update(known)
        own_rows.update(own)
        own_said.update(own & said)
        free_said.update(said - known)
    common: set[str] = set()
    for word, times in free_said.items():
        expected = own_rows[word] * times / (rows - known_rows[word])
        enough = times >= max(COMMON_ROWS, COMMON_SHARE * rows)
        if enough and own_said[word] <= expected + 2 * math.sqrt(expected) + 1:
            common.add(word)
    return frozenset(common)
