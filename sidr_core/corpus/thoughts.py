"""Thoughts that are true and could be known: stated facts of the history, then a few candidates that follow.

    Series: Ember Rally. Part: 2. System: Orbit PC. Next: Ember Rally 3 - Orbit PC <a_9><b_21><c_10>; Art Book <…>.

A thought is written from the history alone; every fact is stated by an item of it, and every candidate is an item of
the catalogue under its own SID. The verbose form says the same in sentences, and what was bought last besides.
:func:`judge` reads a thought back, whoever wrote it, and says what of it is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.relations import Candidate, Relations, State
from sidr_core.corpus.stated import stated_in
from sidr_core.sids.tokens import SID_PATTERN

NEXT_IS, NOTHING_FOLLOWS = "Next:", "open"
TERSE, VERBOSE = "terse", "verbose"
_RECALLED = 3


def write(relations: Relations, history: Sequence[Item], form: str = TERSE) -> str:
    """The thought of a history, oldest first and not empty. The same history gives the same thought."""
    candidates = relations.candidates(history)
    facts = said_facts(relations, relations.state(history), candidates)
    named = "; ".join(f"{c.item.short_title} {c.item.sid}" for c in candidates) or NOTHING_FOLLOWS
    if form == TERSE:
        return " ".join([*(f"{name}: {value}." for name, value in facts.items()), f"{NEXT_IS} {named}."])
    recalled = ", then ".join(f"{item.short_title} {item.sid}" for item in history[-_RECALLED:])
    sentences = [f"Let me look at what was bought. The last purchases were {recalled}."]
    sentences += [f"From these and earlier ones I read what holds. {name}: {value}." for name, value in facts.items()]
    return " ".join([*sentences, f"What comes next should follow from this. {NEXT_IS} {named}."])


def said_facts(relations: Relations, state: State, candidates: Sequence[Candidate]) -> dict[str, str]:
    """The facts that a thought says: those from which its candidates take values, each with its number; all that is
    known where nothing follows.
    """
    sources = {source for candidate in candidates for _, source in candidate.relation.steps}
    facts: dict[str, str] = {}
    for name in relations.facts.order:
        if name in state.facts and (name in sources or not candidates):
            facts[name] = state.facts[name]
            if state.reached.get(name):
                facts[relations.progress[name]] = str(state.reached[name])
    return facts


@dataclass(frozen=True)
class Verdict:
    """What of a thought is true.

    Args:
        facts: facts that it states. right: those that hold for the history.
        candidates: items that it names with a SID. real: those whose title and SID are of one item of the catalogue.
        wanted_facts: facts that a true thought of this history states.
    """

    facts: int
    right: int
    candidates: int
    real: int
    wanted_facts: int

    @property
    def true(self) -> bool:
        """Whether all that it says is right, and nothing is left out."""
        return self.right == self.facts == self.wanted_facts and self.real == self.candidates

    @property
    def share(self) -> float:
        """Share of the facts and candidates that are right; 0 of a thought that says nothing."""
        return (self.right + self.real) / max(self.facts + self.candidates, 1)


def judge(thought: str, relations: Relations, history: Sequence[Item]) -> Verdict:
    """Hold a thought against the history and the catalogue."""
    head, tail = parted(thought)
    holds = said_facts(relations, relations.state(history), relations.candidates(history))
    stated = stated_in(head.strip())
    named = candidates_in(tail)
    return Verdict(
        facts=len(stated),
        right=sum(holds.get(name) == value for name, value in stated.items()),
        candidates=len(named),
        real=sum(bool(items_named(title, sid, relations.catalogue)) for title, sid in named),
        wanted_facts=len(holds),
    )


def parted(thought: str) -> tuple[str, str]:
    """What a thought states, and from its last `Next:` on what it names; "" where it names nothing."""
    place = thought.rfind(NEXT_IS)
    return (thought, "") if place < 0 else (thought[:place], thought[place:])


def candidates_in(text: str) -> list[tuple[str, str]]:
    """(title, SID) of each candidate that a thought, or a part of one, names: after its last `Next:`, if it has one.

    >>> candidates_in(" Iron Rally 3 <a_1><b_2><c_3>; open.")
    [('Iron Rally 3', '<a_1><b_2><c_3>')]
    """
    text = text.rpartition(NEXT_IS)[2]
    named, start = [], 0
    for match in SID_PATTERN.finditer(text):
        named.append((text[start : match.start()].strip(" ;"), match[0]))
        start = match.end()
    return named


def items_named(title: str, sid: str, catalogue: Catalogue) -> list[Item]:
    """The items of a catalogue that have this title and this SID: those that a candidate stands for."""
    return [item for item in catalogue.carrying(sid) if item.short_title == title]


def named_items(thought: str, catalogue: Catalogue) -> list[str]:
    """The ids of the items that a thought's candidates stand for, in its order, each once."""
    items = (item for title, sid in candidates_in(thought) for item in items_named(title, sid, catalogue))
    return list(dict.fromkeys(item.item_id for item in items))
