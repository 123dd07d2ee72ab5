"""A teacher made of rules: no key, no cost, the same words for the same rows.

Deviations from the paper (docs/method.md, "Corpus"): a thought states facts of the history and a few candidates in a
fixed form (`sidr_core.corpus.thoughts`) instead of a page, since a small model must learn the form from a few thousand
rows and pays for every token; and it is written from the history alone, never from the next item.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from sidr_core.corpus import thoughts
from sidr_core.corpus.catalogue import Item, all_words, content_words
from sidr_core.corpus.prompts import neutralise
from sidr_core.corpus.relations import Relations
from sidr_core.corpus.teacher.accept import spells_title
from sidr_core.corpus.teacher.facts import Facts

#: Weight of an item that is one step older than the next.
FADING = 0.8
_RUNNING_ASPECTS = 3
_KEYWORDS = 5


class RulesTeacher:
    """Writes from item facts and train statistics alone.

    Args:
        facts: aspects, for narratives. relations: what follows from what, for thoughts.
        seed: chooses among wordings of narratives. form: of thoughts.
        drop_open: whether a history from which nothing follows gets no thought.
    """

    def __init__(
        self, facts: Facts, relations: Relations, seed: int, form: str = thoughts.TERSE, drop_open: bool = False
    ) -> None:
        self._facts, self._relations, self._seed = facts, relations, seed
        self._form, self._drop_open = form, drop_open

    def think(self, history: Sequence[Item]) -> str:
        """The thought about a history, oldest first and not empty; "" if nothing follows and such are dropped."""
        if self._drop_open and not self._relations.candidates(history):
            return ""
        return thoughts.write(self._relations, history, self._form)

    def _ranked(self, history: Sequence[Item]) -> list[str]:
        """Aspects of the history, those first that it shows most strongly and most recently."""
        score: dict[str, float] = defaultdict(float)
        for age, item in enumerate(reversed(history)):
            for word in self._facts.of(item):
                score[word] += self._facts.weight[word] * FADING**age
        return sorted(score, key=lambda word: (-score[word], -self._facts.rarity[word], word))

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
        for word in self._ranked(history)[: min(len(history), _RUNNING_ASPECTS)]:
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


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
