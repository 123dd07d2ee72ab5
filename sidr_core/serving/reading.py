"""A thought taken apart, and why an item is listed: what a person would check by hand."""

from __future__ import annotations

from collections.abc import Sequence

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.relations import Relations
from sidr_core.corpus.stated import stated_in
from sidr_core.corpus.thoughts import NEXT_IS, candidates_in, items_named, judge, parted, said_facts
from sidr_core.serving.messages import Candidate, Part, Reading, SharedFact, StatedFact
from sidr_core.sids.tokens import SID_PATTERN, parse_sid


def read(thought: str, closed: bool, tokens: int, relations: Relations, history: Sequence[Item]) -> Reading:
    """What a thought says, held against its history and the catalogue as `recommending.truth` does it.

    A thought without "Next:" has another form: its facts and candidates are not judged.
    """
    parts = parts_of(thought, relations.catalogue)
    if NEXT_IS not in thought:
        return Reading(parts=parts, closed=closed, tokens=tokens, facts=[], candidates=[], true=None)
    head, tail = parted(thought)
    holds = said_facts(relations, relations.state(history), relations.candidates(history))
    return Reading(
        parts=parts,
        closed=closed,
        tokens=tokens,
        facts=[
            StatedFact(name=name, value=value, holds=holds.get(name) == value)
            for name, value in stated_in(head.strip()).items()
        ],
        candidates=[
            Candidate(
                title=title, sid=sid, item_ids=[item.item_id for item in items_named(title, sid, relations.catalogue)]
            )
            for title, sid in candidates_in(tail)
        ],
        true=judge(thought, relations, history).true,
    )


def parts_of(thought: str, catalogue: Catalogue) -> list[Part]:
    """A thought cut at its whole SIDs, each with the items that carry it."""
    levels = len(next(iter(catalogue.values())).codes)
    parts, start = [], 0
    for match in SID_PATTERN.finditer(thought):
        if len(parse_sid(match[0])) < levels:
            continue
        if match.start() > start:
            parts.append(Part(text=thought[start : match.start()]))
        carried = catalogue.carrying(match[0])
        parts.append(
            Part(
                text=match[0],
                item_ids=[item.item_id for item in carried],
                titles=[item.short_title for item in carried],
            )
        )
        start = match.end()
    return [*parts, Part(text=thought[start:])] if start < len(thought) else parts


def shared_facts(item: Item, relations: Relations, history: Sequence[Item]) -> list[SharedFact]:
    """The categorical facts that an item states and items of the history do too, in the order of the history."""
    stated = {other.item_id: relations.facts.categorical(other.item_id) for other in history}
    shared = []
    for name, value in relations.facts.categorical(item.item_id).items():
        if stating := [item_id for item_id, facts in stated.items() if facts.get(name) == value]:
            shared.append(SharedFact(name=name, value=value, item_ids=stating))
    return shared
