"""Facts that items state about themselves, which are what a thought may say.

They are every `Name: value.` of a description; of an item whose description states none, its brand, its category and
the beginning of its title that other titles share ("Series"). A fact is categorical (`System: Orbit PC`) or a number
(`Part: 2`); a number counts within the categorical fact that is stated with it and tells most items apart (parts count
within a series). All text is untrusted and neutralised.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.prompts import neutralise

BRAND, CATEGORY, SERIES = "Brand", "Category", "Series"
#: A name of a fact counts if so many items state it, and at most so many names count, the most frequent first.
_LEAST_ITEMS, _MOST_NAMES = 5, 8
_VALUE_CHARS = 40
#: A beginning of so many words that so many titles share is a series; the longest one counts.
_SERIES_WORDS, _SERIES_ITEMS = range(2, 6), range(2, 31)
_STATED = re.compile(r"(?:^|(?<=[.;] ))([A-Z][A-Za-z][A-Za-z -]{0,24}): ((?:[^.;:\n]|\.(?=\d)){1,60}?)(?=[.;](?:\s|$))")
_NUMBER = re.compile(r"\d{1,3}")


@dataclass(frozen=True)
class StatedFacts:
    """The facts of a catalogue.

    Args:
        of: item_id -> name -> value.
        numbers: name of a number -> name of the categorical fact within which it counts.
        order: names of categorical facts, the most frequent first.
        follows_from: facts that another one determines ("Next series" of "Series"): known with it, and so no part
            of what an item is looked up by.
    """

    of: Mapping[str, Mapping[str, str]]
    numbers: Mapping[str, str]
    order: tuple[str, ...]
    follows_from: frozenset[str]

    def categorical(self, item_id: str) -> dict[str, str]:
        """What an item states, without numbers."""
        return {name: value for name, value in self.of[item_id].items() if name not in self.numbers}

    def counts(self, item_id: str) -> dict[str, int]:
        """The numbers that an item states."""
        return {name: int(value) for name, value in self.of[item_id].items() if name in self.numbers}

    def kind(self, item_id: str) -> str:
        """Items are of one kind if they state the same facts, and have the same category where they state that."""
        facts = self.of[item_id]
        return ", ".join([*sorted(facts), facts.get(CATEGORY, "")])


def stated_in(text: str) -> dict[str, str]:
    """Every `Name: value.` sentence of a text, the first of each name.

    >>> stated_in("A racing game. Series: Iron Rally. Part: 2. System: Orbit PC.")
    {'Series': 'Iron Rally', 'Part': '2', 'System': 'Orbit PC'}
    """
    facts: dict[str, str] = {}
    for name, value in _STATED.findall(text):
        facts.setdefault(name, neutralise(value, _VALUE_CHARS))
    return {name: value for name, value in facts.items() if value}


def _can_be_said(name: str, value: str) -> bool:
    """Whether a sentence with this fact reads back as it: a brand such as "Dr. Smith" would end after "Dr"."""
    return stated_in(f"{name}: {value}.") == {name: value}


def read_facts(catalogue: Catalogue) -> StatedFacts:
    """The facts of every item of a catalogue."""
    stated = {
        item_id: {name: value for name, value in stated_in(item.description).items() if _can_be_said(name, value)}
        for item_id, item in catalogue.items()
    }
    items_of: dict[str, list[str]] = defaultdict(list)
    for item_id, facts in stated.items():
        for name in facts:
            items_of[name].append(item_id)
    series = _series(catalogue)
    frequent = sorted(items_of, key=lambda name: -len(items_of[name]))
    names = [name for name in frequent if len(items_of[name]) >= _LEAST_ITEMS][:_MOST_NAMES]
    numbers = [name for name in names if all(_NUMBER.fullmatch(stated[item_id][name]) for item_id in items_of[name])]
    categorical = [name for name in names if name not in numbers]
    owners = {number: _owner(number, items_of[number], stated, categorical) for number in numbers}
    counted = {number: owner for number, owner in owners.items() if owner}
    stated_names = {*categorical, *counted}
    of = {
        item_id: {name: value for name, value in facts.items() if name in stated_names}
        or _own(catalogue[item_id], series.get(item_id, ""))
        for item_id, facts in stated.items()
    }
    order = tuple(dict.fromkeys((*categorical, SERIES, BRAND, CATEGORY)))
    return StatedFacts(of, counted, order, _determined(of, order))


def _own(item: Item, series: str) -> dict[str, str]:
    """Brand, the last part of the category's path, and the series of an item that states nothing."""
    fields = {BRAND: item.brand, CATEGORY: item.category.rsplit(" > ", 1)[-1], SERIES: series}
    named = {name: neutralise(value, _VALUE_CHARS) for name, value in fields.items()}
    return {name: value for name, value in named.items() if value and _can_be_said(name, value)}


def _series(catalogue: Catalogue) -> dict[str, str]:
    """item_id -> the longest beginning of its title that other titles share, where there is one."""
    words = {item_id: item.full_title.split() for item_id, item in catalogue.items()}

    def beginnings(of_title: list[str]) -> list[str]:
        return [" ".join(of_title[:count]) for count in _SERIES_WORDS if count < len(of_title)]

    shared = Counter(beginning.casefold() for of_title in words.values() for beginning in beginnings(of_title))
    series: dict[str, str] = {}
    for item_id, of_title in words.items():
        fitting = [text for text in beginnings(of_title) if shared[text.casefold()] in _SERIES_ITEMS]
        if fitting:
            series[item_id] = fitting[-1]
    return series


def _owner(number: str, item_ids: Sequence[str], stated: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> str:
    """Of the facts that all items with a number state, the one within which it repeats least, the more frequent of
    equals; "" if there is none.
    """
    groups = {
        name: len({(stated[item_id][name], stated[item_id][number]) for item_id in item_ids})
        for name in names
        if all(name in stated[item_id] for item_id in item_ids)
    }
    return max(groups, key=lambda name: groups[name], default="")  # names are in order, so the first of equals wins


def _determined(stated: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> frozenset[str]:
    """Facts that have one value for each value of a more frequent fact, wherever they are stated."""
    follows = set()
    for place, name in enumerate(names):
        for giver in names[:place]:
            values: dict[str, set[str]] = defaultdict(set)
            stating = [facts for facts in stated.values() if name in facts]
            for facts in stating:
                values[facts.get(giver, "")].add(facts[name])
            if "" not in values and len(values) > 1 and all(len(each) == 1 for each in values.values()):
                follows.add(name)
    return frozenset(follows)
