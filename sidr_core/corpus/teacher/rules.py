"""A teacher made of rules: no key, no cost, the same words for the same rows.

Deviations from the paper (docs/method.md, "Corpus"): thoughts are one or two regular sentences instead of a page, since
a small model must learn the form from a few thousand rows and pays for every token. A thought first
recalls what the newest item is, then names the tendency and the history item that carries it:

    Recent <a_1><b_2><c_3> (playcube, racing). Tendency: starfall, playcube, as in <a_4><b_5><c_6>.

History ranks, hindsight filters: aspects are ranked by how strongly and how recently the history shows
them, and the hidden target only strikes out those that it lacks. If it lacks all, the thought keeps the
history's own strongest aspects and says "or something new". That this line is still built from history
matters: a flat "something new" is the most frequent single thought, so a greedy model would say
nothing else. `open_thoughts: drop` leaves such rows without a trace.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from sidr_core.corpus.catalogue import Item, all_words, audit_words, content_words
from sidr_core.corpus.prompts import neutralise
from sidr_core.corpus.teacher.accept import spells_title
from sidr_core.corpus.teacher.facts import Facts

#: Weight of an item that is one step older than the next.
FADING = 0.8
#: Nats that one shared leading SID code counts, beside shared aspects.
CODE_WEIGHT = 0.3
#: Least nats of an aspect for which its return counts as a tendency and not as chance ("black").
LEAST_WEIGHT = 0.1
_RECENT_ASPECTS = 2
_TENDENCY_ASPECTS = 3
_OPEN_ASPECTS = 2
_KEYWORDS = 5

_RECENT = "Recent {sid} ({words})."
_RECENT_BARE = "Recent {sid}."
_EARLIER = "Earlier {sid} ({word})."
_AS_IN = "Tendency: {words}, as in {sid}."
_OPEN = "Tendency: {words}, or something new."
_NOTHING = "Tendency: something new."
_FRAMES = (_RECENT, _RECENT_BARE, _EARLIER, _AS_IN, _OPEN, _NOTHING)


class RulesTeacher:
    """Writes from item facts and train statistics alone."""

    frame_words = audit_words(" ".join(frame.format(sid=" ", word=" ", words=" ") for frame in _FRAMES))

    def __init__(self, facts: Facts, seed: int, drop_open: bool = False) -> None:
        self._facts, self._seed, self._drop_open = facts, seed, drop_open

    def think(self, history: Sequence[Item], target: Item) -> str:
        """The thought of one train row; see the module's text. `history` is oldest first, not empty.

        "" if the target lacks all of the history's aspects and such thoughts are dropped.
        """
        recent = history[-1]
        aspects = ", ".join(self._facts.of(recent)[:_RECENT_ASPECTS])
        recall = (_RECENT if aspects else _RECENT_BARE).format(sid=recent.sid, words=aspects)
        ranked = self._ranked(history)
        target_words = set(target.words)
        persistent = [word for word in ranked if self._facts.weight[word] >= LEAST_WEIGHT]
        shared = [word for word in persistent if word in target_words][:_TENDENCY_ASPECTS]
        if not shared and self._drop_open:
            return ""
        if not shared:
            words = ranked[: min(len(history), _OPEN_ASPECTS)]
            return f"{recall} {_OPEN.format(words=', '.join(words)) if words else _NOTHING}"
        anchor = self._anchor(history, target, shared)
        clauses = [recall, *self._earlier(history, anchor, shared)]
        return " ".join([*clauses, _AS_IN.format(words=", ".join(shared), sid=anchor.sid)])

    def _ranked(self, history: Sequence[Item]) -> list[str]:
        """Aspects of the history, those first that it shows most strongly and most recently."""
        score: dict[str, float] = defaultdict(float)
        for age, item in enumerate(reversed(history)):
            for word in self._facts.of(item):
                score[word] += self._facts.weight[word] * FADING**age
        return sorted(score, key=lambda word: (-score[word], -self._facts.rarity[word], word))

    def _anchor(self, history: Sequence[Item], target: Item, shared: Sequence[str]) -> Item:
        """The history item that best stands for the tendency; the newest one of equals."""

        def closeness(index: int) -> tuple[float, int]:
            item, carried = history[index], 0.0
            for word in shared:
                carried += self._facts.weight[word] if word in item.words else 0.0
            age = len(history) - 1 - index
            return round((carried + CODE_WEIGHT * _shared_codes(item, target)) * FADING**age, 9), index

        carriers = [index for index, item in enumerate(history) if any(word in item.words for word in shared)]
        return history[max(carriers, key=closeness)]

    def _earlier(self, history: Sequence[Item], anchor: Item, shared: Sequence[str]) -> list[str]:
        """Says which older item carries the first aspect that neither the newest item nor the anchor has."""
        covered = {*history[-1].words, *anchor.words}
        for word in shared:
            if word not in covered:
                carrier = next(item for item in reversed(history) if word in item.words)
                return [_EARLIER.format(sid=carrier.sid, word=word)]
        return []

    def narrate_item(self, item: Item) -> str:
        """A paragraph of several sentences; the product is named by its SID, never by its title."""
        brand, kind = neutralise(item.brand, 40), neutralise(item.category.rsplit(" > ", 1)[-1], 40)
        aspects = [*self._facts.of(item), *(w for w in item.words if w not in self._facts.weight)]
        details = [word for word in content_words(item.description) if word not in item.words]
        details.sort(key=lambda word: (-self._facts.rarity.get(word, 0.0), word))
        text = self._item_text(item, brand, kind, aspects, details)
        if spells_title(text, item):  # a title of one or two words would be spelt out by its keywords
            title = all_words(item.title)
            others = [word for word in aspects if word not in title]
            brand = "" if set(all_words(brand)) & set(title) else brand
            kind = "" if set(all_words(kind)) & set(title) else kind
            text = self._item_text(item, brand, kind, others, details)
        return text

    def _item_text(self, item: Item, brand: str, kind: str, aspects: Sequence[str], details: Sequence[str]) -> str:
        sid, key = item.sid, item.item_id
        sentences = [self._opening(sid, key, brand, kind)]
        if aspects:
            named = _listed(aspects[:_KEYWORDS])
            sentences.append(
                self._pick(
                    key, "traits", f"Its traits are {named}.", f"What marks it is {named}.", f"Think of {named}."
                )
            )
        if details:
            named = _listed(details[:_KEYWORDS])
            sentences.append(
                self._pick(key, "details", f"Its description speaks of {named}.", f"Further details are {named}.")
            )
        if len(aspects) > 1:
            first, second = aspects[:2]
            sentences.append(
                self._pick(
                    key,
                    "audience",
                    f"{sid} suits a shopper who wants {first} together with {second}.",
                    f"Whoever looks for {first} and cares about {second} may choose {sid}.",
                    f"With {first} and {second}, {sid} fits alongside similar choices.",
                )
            )
        return " ".join(sentences)

    def _opening(self, sid: str, key: str, brand: str, kind: str) -> str:
        if brand and kind:
            return self._pick(
                key, "opening", f"{sid} by {brand} belongs to {kind}.", f"Under {kind}, {brand} offers {sid}."
            )
        if brand:
            return self._pick(key, "opening", f"{sid} comes from {brand}.", f"{brand} offers {sid}.")
        if kind:
            return self._pick(key, "opening", f"{sid} belongs to {kind}.", f"Under {kind} stands {sid}.")
        return f"{sid} is part of the catalogue."

    def narrate_user(self, history: Sequence[Item], target: Item) -> str:
        """Recites the history in order, says what runs through it, and ends with the target's SID."""
        key = f"{history[-1].item_id}|{target.item_id}|{len(history)}"
        chain = ", then ".join(item.sid for item in history)
        sentences = [
            self._pick(key, "chain", f"The shopper chose {chain}.", f"First to last, the choices were {chain}.")
        ]
        for word in self._ranked(history)[: min(len(history), _TENDENCY_ASPECTS)]:
            carriers = list(dict.fromkeys(item.sid for item in history if word in item.words))
            sentences.append(
                self._pick(
                    key,
                    word,
                    f"A taste for {word} shows in {_listed(carriers)}.",
                    f"With {_listed(carriers)} came {word}.",
                )
            )
        ending = self._pick(key, "ending", "The next choice is", "What follows is", "Next comes")
        return " ".join([*sentences, f"{ending} {target.sid}."])

    def _pick(self, key: str, place: str, *variants: str) -> str:
        """One of the variants, always the same for the same seed, key and place."""
        digest = hashlib.blake2b(f"{self._seed}|{key}|{place}".encode(), digest_size=4).digest()
        return variants[int.from_bytes(digest, "big") % len(variants)]


def _shared_codes(item: Item, target: Item) -> int:
    """How many leading codes the two SIDs share."""
    count = 0
    for left, right in zip(item.codes, target.codes, strict=True):
        if left != right:
            break
        count += 1
    return count


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
