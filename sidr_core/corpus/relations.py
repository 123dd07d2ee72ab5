"""What a history leads to, by stated facts: a state, and relations from a state to items, learned from train rows.

The *state* of a history is the newest stated value of every fact, and how far each series of numbers is reached. A
*relation* says of an item how each of its facts follows from the state: "category Games, the state's Series, the next
Part, the state's System". Relations are read off the targets of train rows, and kept with the share of rows in which
they lead to the target where they can be followed. The target of the row that is asked about is never looked at, so
a thought made of candidates holds no more than its reader can know.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.stated import StatedFacts, read_facts

#: How a number follows: one more than is reached, equal to it, or 1 within another value of its owner.
NEXT, SAME, FIRST = "next", "same", "first"
#: A relation counts from so many train targets on, a candidate from this probability on; and at most so many of them.
LEAST_ROWS, LEAST_PROBABILITY, MOST_CANDIDATES = 5, 0.04, 4
#: Rows without a hit that are added to each share; and the most rows that are looked at.
_SHRINKAGE, _MOST_ROWS = 20, 20_000
#: Histories whose candidates are remembered at most; then all are forgotten, so that a server does not grow.
_MOST_REMEMBERED = 50_000

Row = tuple[Sequence[Item], Item]


@dataclass(frozen=True)
class Relation:
    """How the facts of an item follow from a state.

    Args:
        kind: of the item (`StatedFacts.kind`).
        steps: (name of a fact, where its value comes from): the name of the state's fact, or NEXT, SAME or FIRST.
        owned: whether the item is one of the history, bought again.
    """

    kind: str
    steps: tuple[tuple[str, str], ...]
    owned: bool


@dataclass(frozen=True)
class State:
    """What a history says.

    Args:
        facts: name -> value of categorical facts.
        reached: owner -> the highest number owned within the state's value of it; 0 if there is none.
        newest: kind of the newest item.
    """

    facts: Mapping[str, str]
    reached: Mapping[str, int]
    newest: str


@dataclass(frozen=True)
class Candidate:
    """An item that may come next, and the probability that its relation gives it."""

    item: Item
    probability: float
    relation: Relation


class Relations:
    """Reads states and finds candidates; :func:`learn_relations` makes it.

    Attributes:
        speaker: name of a fact -> the kind of item that is believed first about it ("the console says which system
            is owned"), where one is more often right than whichever item is newest.
        progress: owner -> the number that counts progress within it: the one that most items state.
        shares: kind of the newest item -> (relation, share of rows in which it leads to the target).
    """

    def __init__(self, catalogue: Catalogue, facts: StatedFacts) -> None:
        self.catalogue, self.facts = catalogue, facts
        self.speaker: dict[str, str] = {}
        self.shares: dict[str, list[tuple[Relation, float]]] = {}
        self._known: dict[tuple[str, ...], list[Candidate]] = {}
        self._items: dict[tuple[str, frozenset[tuple[str, str]]], list[Item]] = defaultdict(list)
        for item_id, item in catalogue.items():
            self._items[facts.kind(item_id), frozenset(self._stated(item_id).items())].append(item)
        stated = Counter(name for own in facts.of.values() for name in own if name in facts.numbers)
        self.progress = {facts.numbers[name]: name for name, _ in reversed(stated.most_common())}

    def _stated(self, item_id: str) -> dict[str, str]:
        """What an item is looked up by: its facts, without those that follow from another."""
        return {name: value for name, value in self.facts.of[item_id].items() if name not in self.facts.follows_from}

    def state(self, history: Sequence[Item]) -> State:
        """The state of a history, oldest first and not empty."""
        newest: dict[str, str] = {}
        believed: dict[str, str] = {}
        for item in reversed(history):
            stated = self.facts.categorical(item.item_id)
            for name, value in stated.items():
                newest.setdefault(name, value)
                if self.speaker.get(name) == self.facts.kind(item.item_id):
                    believed.setdefault(name, value)
        known = newest | believed
        reached: dict[str, int] = {}
        for owner, number in self.progress.items():
            if owner in known:
                within = [item.item_id for item in history if self.facts.of[item.item_id].get(owner) == known[owner]]
                reached[owner] = max((self.facts.counts(item_id).get(number, 0) for item_id in within), default=0)
        return State(known, reached, self.facts.kind(history[-1].item_id))

    def relation(self, state: State, item: Item, owned: bool) -> Relation | None:
        """How an item follows from a state; None where one of its facts does not."""
        steps: dict[str, str] = {}
        stated = self._stated(item.item_id)
        for name in sorted(stated, key=lambda name: (name in self.facts.numbers, name)):
            if name in self.facts.numbers:
                steps[name] = self._number_step(state, name, int(stated[name]), steps)
            else:
                sources = [name, *sorted(state.facts)]
                steps[name] = next((source for source in sources if state.facts.get(source) == stated[name]), "")
            if not steps[name]:
                return None
        return Relation(self.facts.kind(item.item_id), tuple(steps.items()), owned) if steps else None

    def _number_step(self, state: State, number: str, value: int, steps: Mapping[str, str]) -> str:
        owner = self.facts.numbers[number]
        if steps[owner] != owner:
            return FIRST if value == 1 else ""
        reached = state.reached[owner]
        return {reached + 1: NEXT, reached: SAME}.get(value, "")

    def items(self, state: State, relation: Relation, history: Sequence[Item]) -> list[Item]:
        """The items to which a relation leads, in catalogue order."""
        steps, key = dict(relation.steps), {}
        for name, source in relation.steps:
            if name in self.facts.numbers:
                owner = self.facts.numbers[name]
                reached = state.reached.get(owner, 0) if steps[owner] == owner else 0
                key[name] = str(reached + (source != SAME))
            elif source in state.facts:
                key[name] = state.facts[source]
            else:
                return []
        fitting = self._items.get((relation.kind, frozenset(key.items())), ())
        met = {item.item_id for item in history}
        return [item for item in fitting if (item.item_id in met) == relation.owned]

    def candidates(self, history: Sequence[Item]) -> list[Candidate]:
        """Items to which the history leads, the most probable first, equal ones by item id."""
        ids = tuple(item.item_id for item in history)
        if ids in self._known:
            return self._known[ids]
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        state = self.state(history)
        best: dict[str, Candidate] = {}
        for relation, share in self.shares.get(state.newest, ()):
            items = self.items(state, relation, history)
            if not items or share / len(items) < LEAST_PROBABILITY:
                continue
            for item in items:
                candidate = Candidate(item, share / len(items), relation)
                known = best.get(item.item_id)
                if known is None or known.probability < candidate.probability:
                    best[item.item_id] = candidate
        ordered = sorted(best.values(), key=lambda candidate: (-candidate.probability, candidate.item.item_id))
        self._known[ids] = ordered[:MOST_CANDIDATES]
        return self._known[ids]


def learn_relations(catalogue: Catalogue, rows: Sequence[Row]) -> Relations:
    """Learn from (history, target) of **train** rows; of more than 20,000 rows every n-th is looked at."""
    rows = rows[:: 1 + (len(rows) - 1) // _MOST_ROWS] if rows else rows
    relations = Relations(catalogue, read_facts(catalogue))
    relations.speaker = _speakers(relations, rows)
    states = [relations.state(history) for history, _ in rows]
    followed: Counter[Relation] = Counter()
    for state, (history, target) in zip(states, rows, strict=True):
        if relation := relations.relation(state, target, target in history):
            followed[relation] += 1
    known = [relation for relation, count in followed.items() if count >= LEAST_ROWS]
    open_to: Counter[tuple[str, Relation]] = Counter()
    hits: Counter[tuple[str, Relation]] = Counter()
    for state, (history, target) in zip(states, rows, strict=True):
        for relation in known:
            if items := relations.items(state, relation, history):
                open_to[state.newest, relation] += 1
                hits[state.newest, relation] += target in items
    shares: dict[str, list[tuple[Relation, float]]] = defaultdict(list)
    for (newest, relation), count in sorted(open_to.items(), key=lambda entry: repr(entry[0])):
        if hits[newest, relation]:
            shares[newest].append((relation, hits[newest, relation] / (count + _SHRINKAGE)))
    relations.shares = dict(shares)
    return relations


def _speakers(relations: Relations, rows: Iterable[Row]) -> dict[str, str]:
    """Of each fact, the kind of item that agrees most often with the target, where one beats the newest item."""
    agrees: dict[str, Counter[str]] = defaultdict(Counter)
    for history, target in rows:
        asked = relations.facts.categorical(target.item_id)
        for name in asked:
            newest: dict[str, str] = {}
            for item in reversed(history):
                stated = relations.facts.categorical(item.item_id)
                if name in stated:
                    newest.setdefault("", stated[name])
                    newest.setdefault(relations.facts.kind(item.item_id), stated[name])
            for kind, value in newest.items():
                # where a kind says nothing the newest item is believed: only what it changes counts
                agrees[name][kind] += (value == asked[name]) - (newest[""] == asked[name])
    speakers = {}
    for name, counts in agrees.items():
        kind, gain = max(sorted(counts.items()), key=lambda entry: entry[1], default=("", 0))
        if gain > 0:
            speakers[name] = kind
    return speakers
