"""What the catalogue and the train rows say about words: which of them carry a taste from one item to the next.

Deviation from the paper: its teacher is a language model that knows what "racing" means. Here a word
counts as an aspect of taste as far as train users who met it in their history go on to meet it in the
next item. With p = P(target has w | history has w), shrunk to chance, and q = P(target has w), a word
weighs p·ln(p/q) nats: persistent words score, function words and chance part numbers do not. Words
that nearly always come together ("lumen pocket") tell one thing; the weightiest of them stays an aspect.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from sidr_core.corpus.catalogue import Catalogue, Item

#: Bounds of a word's document frequency: at least 2 items, at most this share of the catalogue.
LARGEST_SHARE = 0.25
#: Rows of chance evidence added to each word's counts.
SHRINKAGE = 20.0
#: From this Jaccard overlap of their items on, two words tell one thing.
SAME = 0.8


@dataclass(frozen=True)
class Facts:
    """Aspects learned from a catalogue and its train rows.

    Args:
        weight: word -> nats; only words that are aspects.
        aspects: item_id -> its aspects, weightiest first.
        rarity: word -> inverse document frequency, for words of descriptions too.
    """

    weight: Mapping[str, float]
    aspects: Mapping[str, tuple[str, ...]]
    rarity: Mapping[str, float]

    def of(self, item: Item) -> tuple[str, ...]:
        """Aspects of an item, weightiest first."""
        return self.aspects[item.item_id]


def learn_facts(catalogue: Catalogue, rows: Iterable[tuple[Sequence[str], str]]) -> Facts:
    """Learn from (history item ids, target item id) of **train** rows.

    A row that repeats an item of its history says nothing about words and is left out.
    """
    words = {item_id: catalogue[item_id].words for item_id in catalogue}
    frequency = Counter(word for of_item in words.values() for word in of_item)
    most = max(3.0, LARGEST_SHARE * len(words))
    aspects = {word for word, count in frequency.items() if 2 <= count <= most}
    weight = _persistence(words, aspects, rows)
    weight = {word: weight[word] for word in sorted(aspects - _echoes(words, frequency, weight))}
    rarity = {word: math.log(len(words) / count) for word, count in frequency.items()}

    def ranked(of_item: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted((w for w in of_item if w in weight), key=lambda w: (-weight[w], -rarity[w], w)))

    return Facts(weight, {item_id: ranked(of_item) for item_id, of_item in words.items()}, rarity)


def _persistence(
    words: Mapping[str, tuple[str, ...]], aspects: set[str], rows: Iterable[tuple[Sequence[str], str]]
) -> dict[str, float]:
    in_history: Counter[str] = Counter()
    in_target: Counter[str] = Counter()
    in_both: Counter[str] = Counter()
    total = 0
    for history, target in rows:
        if target in history:
            continue
        total += 1
        history_words = {word for item_id in history for word in words[item_id]}
        in_history.update(history_words)
        in_target.update(words[target])
        in_both.update(word for word in words[target] if word in history_words)
    weight = dict.fromkeys(sorted(aspects), 0.0)
    for word in weight:
        if in_both[word]:
            base = in_target[word] / total
            after = (in_both[word] + SHRINKAGE * base) / (in_history[word] + SHRINKAGE)
            weight[word] = max(0.0, after * math.log(after / base))
    return weight


def _echoes(
    words: Mapping[str, tuple[str, ...]], frequency: Mapping[str, int], weight: Mapping[str, float]
) -> set[str]:
    """Words whose items are nearly those of a weightier word."""
    together: Counter[tuple[str, str]] = Counter()
    for of_item in words.values():
        together.update(combinations(sorted(word for word in of_item if word in weight), 2))
    same: dict[str, list[str]] = {}
    for (left, right), count in together.items():
        if count >= SAME * (frequency[left] + frequency[right] - count):
            same.setdefault(left, []).append(right)
            same.setdefault(right, []).append(left)
    echoes: set[str] = set()
    for word in sorted(same, key=lambda word: (-weight[word], word)):
        if word not in echoes:
            echoes.update(same[word])
    return echoes
