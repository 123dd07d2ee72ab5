"""Facts that items state about themselves: brand, category, and every `Name: value.` of a description.

They are what a thought may say. A fact is categorical (`System: Orbit PC`) or a number (`Part: 2`); a number counts
within the categorical fact that is stated with it and tells most items apart (parts count within a series). All text
is untrusted and neutralised.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.prompts import neutralise

BRAND, CATEGORY = "Brand", "Category"
#: A name of a fact counts if so many items state it, and at most so many names count, the most frequent first.
_LEAST_ITEMS, _MOST_NAMES = 5, 8
_VALUE_CHARS = 40
_STATED = re.compile(r"(?:^|(?<=[.;] ))([A-Z][A-Za-z][A-Za-z -]{0,24}): ((?:[^.;:\n]|\.(?=\d)){1,60}?)(?=[.;](?:\s|$))")
_NUMBER = re.compile(r"\d{1,3}")


@dataclass(frozen=True)
class StatedFacts:
    """The facts of a catalogue.

    Args:
        of: item_id -> name -> value: what its description states; of an item that states nothing, brand and category.
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
        """Items are of one kind if they state the same facts; without any, if they have the same category."""
        names = self.of[item_id].keys()
        return self.of[item_id][CATEGORY] if CATEGORY in names else ", ".join(sorted(names - {BRAND}))


def stated_in(text: str) -> dict[str, str]:
    """Every `Name: value.` sentence of a text, the first of each name.

    >>> stated_in("A racing game. Series: Iron Rally. Part: 2. System: Orbit PC.")
    {'Series': 'Iron Rally', 'Part': '2', 'System': 'Orbit PC'}
    """
    facts: dict[str, str] = {}
    for name, value in _STATED.findall(text):
        facts.setdefault(name, neutralise(value, _VALUE_CHARS))
    return {name: value for name, value in facts.items() if value}


def read_facts(catalogue: Catalogue) -> StatedFacts:
    """The facts of every item of a catalogue."""
    stated = {item_id: stated_in(item.description) for item_id, item in catalogue.items()}
    items_of: dict[str, list[str]] = defaultdict(list)
    for item_id, facts in stated.items():
        for name in facts:
            items_of[name].append(item_id)
    frequent = sorted(items_of, key=lambda name: -len(items_of[name]))
    names = [name for name in frequent if len(items_of[name]) >= _LEAST_ITEMS][:_MOST_NAMES]
    numbers = [name for name in names if all(_NUMBER.fullmatch(stated[item_id][name]) for item_id in items_of[name])]
    categorical = [name for name in names if name not in numbers]
    owners = {number: _owner(number, items_of[number], stated, categorical) for number in numbers}
    counted = {number: owner for number, owner in owners.items() if owner}
    kept = {*categorical, *counted}
    of = {
        item_id: {name: value for name, value in facts.items() if name in kept} or _own(catalogue[item_id])
        for item_id, facts in stated.items()
    }
    return StatedFacts(of, counted, tuple(categorical), _determined(stated, categorical))


def _own(item: Item) -> dict[str, str]:
    """Brand, and the last part of the category's path."""
    fields = {BRAND: item.brand, CATEGORY: item.category.rsplit(" > ", 1)[-1]}
    named = {name: neutralise(value, _VALUE_CHARS) for name, value in fields.items()}
    return {name: value for name, value in named.items() if value}


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
