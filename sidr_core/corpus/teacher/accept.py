"""What becomes of a model's text before it may enter the corpus: named items become SIDs, or it is refused.

A reply is untrusted text like any other: it is neutralised first, so nothing in it can become a token of
the vocabulary that this module does not put there. Then the bracketed names become SIDs. What is missing
and certain is added (an item's own SID, the history in order, the target at the end) and counted as a
repair; what is wrong is refused with a reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sidr_core.corpus.catalogue import Item
from sidr_core.corpus.prompts import neutralise
from sidr_core.sids.tokens import SID_PATTERN

#: How prompts and replies name an item; those of a history are `[1]`, `[2]`, …, oldest first.
ITEM, NEXT = "[item]", "[next]"

#: Most characters of a reply, before names become SIDs; it is cut at the end of a sentence.
NARRATIVE_CHARS = 2500
THOUGHT_CHARS = 1200
#: Fewest words of a text, and least share of distinct word triples (a small model can get caught in a loop).
LEAST_WORDS = 12
LEAST_DISTINCT = 0.6
#: So many words in a row of the instruction are an echo of it.
ECHO_WORDS = 6

_THINK_END = "</think>"
_LABEL = re.compile(r"^(?:narrative|reasoning)\s*:\s*", re.IGNORECASE)
_NAME = re.compile(r"\[([^\[\]]{1,60})\]")
_SEPARATOR = re.compile(r"\s*(?:,|;|&|\band\b)\s*")
_REFERENCE = re.compile(r"#?\d+|item|next|(?:item|choice|product)\s*#?\d+")
_SID_LIKE = re.compile(r"[‹<]\s*[a-z]\s*_\s*\d+\s*[›>]?", re.IGNORECASE)
_TAG_LIKE = re.compile(r"[‹<][^‹›<>\s]{1,64}[›>]")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_OF_GUIDANCE = re.compile(
    r"\bafterwards?\b|\bguidance\b|\b(?:hidden|reference|target) (?:item|choice|product)\b|\bground truth\b"
    r"|\bnext (?:choice|item|product|purchase) (?:is|was|will|would|must|has)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """`text` may enter the corpus unless there is a `reason`; `repairs` names what was added to it."""

    text: str
    reason: str = ""
    repairs: tuple[str, ...] = field(default=())


class _Refused(Exception):
    """Carries the reason."""


def item_narrative(reply: str, item: Item, asked: str = "") -> Verdict:
    """A paragraph about `item`, named by its SID alone. One that never names it gets the SID in front.

    `asked` is the instruction, which no reply may echo.
    """
    try:
        text = _swap(_named(reply, asked, {"item": item.sid}, NARRATIVE_CHARS), [item])
        if spells_title(text, item):
            raise _Refused("names_title")
    except _Refused as refused:
        return Verdict(excerpt(reply), str(refused))
    if item.sid in text:
        return Verdict(text)
    return Verdict(f"{item.sid}: {text}", repairs=("sid_added",))


def thought(reply: str, history: Sequence[Item], asked: str = "") -> Verdict:
    """A reasoning path that names items of the history, by SID, and no others, and speaks of no next item."""
    try:
        text = _swap(_named(reply, asked, _numbers(history), THOUGHT_CHARS), history)
        if _OF_GUIDANCE.search(text):
            raise _Refused("mentions_guidance")
        if not SID_PATTERN.search(text):
            raise _Refused("names_no_item")
    except _Refused as refused:
        return Verdict(excerpt(reply), str(refused))
    return Verdict(text)


def user_narrative(reply: str, history: Sequence[Item], target: Item, asked: str = "") -> Verdict:
    """A paragraph that recites the history's SIDs in order and ends with the target's; each is added if it lacks."""
    repairs: list[str] = []
    try:
        names = {**_numbers(history), "next": target.sid}
        text = _swap(_named(reply, asked, names, NARRATIVE_CHARS), [*history, target])
    except _Refused as refused:
        return Verdict(excerpt(reply), str(refused))
    sids = [item.sid for item in history]
    if SID_PATTERN.findall(text)[: len(sids)] != sids:
        text = f"The choices were {', then '.join(sids)}. {text}"
        repairs.append("history_added")
    if not text.rstrip(" .!").endswith(target.sid):
        text = f"{text if text.endswith(('.', '!', '?')) else f'{text}.'} The next choice is {target.sid}."
        repairs.append("target_added")
    return Verdict(text, repairs=tuple(repairs))


def swap_title(text: str, item: Item, mark: str) -> str:
    """`text` with each spelling of the item's shown title replaced by `mark`; a title of one word is left."""
    words = _WORD.findall(item.full_title)
    if len(words) < 2:
        return text
    pattern = r"(?<!\w)" + r"[\W_]+".join(map(re.escape, words)) + r"(?!\w)"
    return re.sub(pattern, lambda match: mark, text, flags=re.IGNORECASE)


def spells_title(text: str, item: Item) -> bool:
    """Whether the words of the item's shown title follow each other somewhere in `text`."""
    title, words = (" ".join(_WORD.findall(_folded(part))) for part in (item.full_title, SID_PATTERN.sub(" ", text)))
    return bool(title) and f" {title} " in f" {words} "


def _numbers(history: Sequence[Item]) -> dict[str, str]:
    return {str(number): item.sid for number, item in enumerate(history, start=1)}


def _named(reply: str, asked: str, sids: Mapping[str, str], most: int) -> str:
    """The reply as harmless text with names replaced by SIDs; refuses what names or looks like anything else."""
    text = _sentences(_LABEL.sub("", neutralise(reply.rpartition(_THINK_END)[2], 4 * most)), most)
    folded = _folded(text)
    if _SID_LIKE.search(folded):
        raise _Refused("sid_look_alike")
    if _TAG_LIKE.search(folded):
        raise _Refused("markup")
    words = text.split()
    if len(words) < LEAST_WORDS:
        raise _Refused("too_short")
    triples = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(triples)) < LEAST_DISTINCT * len(triples):
        raise _Refused("repetitive")
    if _runs(folded) & _runs(_folded(asked)):
        raise _Refused("echoes_prompt")
    return _NAME.sub(lambda match: _sid(match[1], sids), text)


def _runs(folded: str) -> set[tuple[str, ...]]:
    """Each `ECHO_WORDS` words in a row."""
    words = _WORD.findall(folded)
    return {tuple(words[place : place + ECHO_WORDS]) for place in range(len(words) - ECHO_WORDS + 1)}


def _sid(name: str, sids: Mapping[str, str]) -> str:
    """What stands for a bracketed name or list of names; brackets around anything else become round."""
    parts = _SEPARATOR.split(name.strip().lower())
    if not any(_REFERENCE.fullmatch(part) for part in parts):
        return f"({name})"
    named = [sids.get(re.sub(r"^(?:item|choice|product)?\s*#?(?=\d)", "", part)) for part in parts]
    if None in named:
        raise _Refused("unknown_item")
    return ", ".join(sid for sid in named if sid)


def _swap(text: str, items: Sequence[Item]) -> str:
    """Titles replaced by SIDs, longer titles first: one may stand inside another."""
    for item in sorted(items, key=lambda item: (-len(item.full_title), item.item_id)):
        text = swap_title(text, item, item.sid)
    return text


def _sentences(text: str, most: int) -> str:
    """`text`, cut after the last sentence that ends within `most` characters."""
    if len(text) <= most:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, most)]
    return text[: ends[-1]] if ends else neutralise(text, most)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def excerpt(reply: str) -> str:
    """What the quarantine keeps of a refused text."""
    return neutralise(reply, 500)
