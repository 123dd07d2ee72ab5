"""User turns of every task, and the one way in which untrusted text enters them.

Deviations from the paper: its turns are long, partly game-flavoured for every category, and drawn at
random from eleven variants. Here each task has one short neutral turn, since a small model pays for
every token, and the *same* next-item turn serves alignment, reasoning, RL and inference: direct and
thinking mode differ by the assistant's prefill alone (`sidr_core.models.prompt`).

A SID delimits itself (its first token is of level `a`), so histories are joined by one blank.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SYSTEM = "Recommend items by semantic ID."

#: Most characters of a title inside a history, and of a title that stands alone.
HISTORY_TITLE_CHARS = 60
TITLE_CHARS = 120

UNTITLED = "untitled"

#: How many times its allowance of characters a text is looked at, for what is invisible in it.
_LOOKED_AT = 20

# What a tokenizer's own normalisation (NFKC, NFKD) would turn into a bracket is folded first.
_WIDE_BRACKETS = str.maketrans("＜﹤≮＞﹥≯［］", "‹‹‹›››[]")
_BRACKETS = _WIDE_BRACKETS | str.maketrans("<>", "‹›")
# Control words of tokenizers that write them in square brackets: [INST], [/INST], [MASK], [gMASK].
_CONTROL_WORD = re.compile(r"\[(\s*/?\w*[A-Z]{2}\w*\s*)\]")
# Invisible characters outside Unicode category C: joiners, fillers, blanks that show as nothing.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_BLANKS = re.compile(r"\s+")
#: Anything that a tokenizer could hold as one angle-bracketed token: a tag without blanks.
TAG = re.compile(r"<([^<>‹›\s]{1,64})>")


def neutralise(text: str, max_chars: int) -> str:
    """Make untrusted text harmless: one visible line of at most `max_chars` characters.

    Control, bidirectional, zero-width, surrogate and unassigned characters go; any run of blanks and
    line ends becomes one blank; `<` and `>` become ‹ and ›, so nothing in it can be read as a special
    token, a think tag or a SID; control words in square brackets ([INST]) get round ones. A cut falls
    on a blank where one is near. Applying it twice changes nothing.
    """
    # A text is looked at a little further than it may be long, so that 50 MB of title cost nothing.
    plain = _visible(_BLANKS.sub(" ", text[: _LOOKED_AT * max_chars + _LOOKED_AT])).translate(_BRACKETS)
    whole = _BLANKS.sub(" ", _CONTROL_WORD.sub(r"(\1)", plain)).strip()
    if len(whole) <= max_chars:
        return whole
    head = whole[:max_chars]
    blank = head.rfind(" ")
    ends_with_word = whole[max_chars] == " " or blank <= max_chars // 2
    return (head if ends_with_word else head[:blank]).rstrip()


def neutralise_lines(text: str, max_chars: int) -> str:
    """The same for text of several lines in which `<` and `>` may mean something, such as code or mathematics.

    Lines and their indent stay; only what could be one token, a tag without blanks, loses its brackets
    (`List<int>` becomes `List‹int›`, `a < b` stays). Every other rule is that of :func:`neutralise`.
    """
    lines = text[:max_chars].replace("\r\n", "\n").replace("\t", "    ").split("\n")
    folded = "\n".join(_visible(line).translate(_WIDE_BRACKETS) for line in lines)
    return _CONTROL_WORD.sub(r"(\1)", TAG.sub(r"‹\1›", folded)).strip()


def _visible(text: str) -> str:
    seen = "".join(c for c in text if unicodedata.category(c)[0] != "C")
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", seen))


def next_item(history_sids: Sequence[str]) -> str:
    """The turn that asks for the next item; `history_sids` oldest first."""
    return f"History: {' '.join(history_sids)}\nNext item?"


def next_title(history_sids: Sequence[str]) -> str:
    """Asks for the next item's title, given SIDs."""
    return f"History: {' '.join(history_sids)}\nNext title?"


def title_of(sid: str) -> str:
    """Asks for the title of a SID."""
    return f"Title of {sid}?"


def fact_of(name: str, sid: str) -> str:
    """Asks for one stated fact of a SID."""
    return f"{name} of {sid}?"


def item_titled(title: str) -> str:
    """Asks for the SID of a (neutralised) title."""
    return f"Item titled: {title}"


def next_title_after(history_titles: Sequence[str]) -> str:
    """Asks for the next title, given (neutralised) titles: one a line, so no title can forge another."""
    return f"Titles:\n{_lines(history_titles)}\nNext title?"


def next_item_after(history_titles: Sequence[str]) -> str:
    """Asks for the next item's SID, given (neutralised) titles."""
    return f"Titles:\n{_lines(history_titles)}\nNext item?"


def _lines(titles: Sequence[str]) -> str:
    return "\n".join(f"- {title}" for title in titles)
