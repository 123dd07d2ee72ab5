"""Plain text out of the HTML and list literals in which catalogue texts come."""

from __future__ import annotations

import ast
import html
import re

#: Longest raw field that is looked at, in characters; the encoder reads far less.
MAX_FIELD = 40_000

# Each alternative stops at the next angle bracket and never goes back: linear on hostile input too.
_MARKUP = re.compile(r"<!--|-->|<(/?)([A-Za-z][A-Za-z0-9]*+)[^<>]*+>|<[/!?][^<>]*+>")
_OPENING = re.compile(r"<(?=[/!A-Za-z])")
_CUT_TAG = re.compile(r"<[A-Za-z/!][^<>]*\Z")
_TITLE_HTML = re.compile(r"<\s*[/!A-Za-z][^<>]*(?:>|\Z|=)")
_TITLE_SCRIPT = re.compile(r"\bfunction\s*\(|\A\s*var\s+\w+\s*=|\bdocument\.\w|@import\b")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BLOCKS = ("script", "style")


def looks_like_markup(title: str) -> bool:
    """Whether a title is a piece of a scraped page (`<span id…`, script) instead of a name."""
    return _TITLE_HTML.search(title) is not None or _TITLE_SCRIPT.search(title) is not None


def clean_title(title: str) -> str:
    """Entities unescaped, blanks collapsed, surrounding blanks, quotes and a stray `" />` removed (METHOD 1.2)."""
    return _collapse(html.unescape(title.rstrip().removesuffix("/>"))).strip(" \"'")


def title_words(title: str) -> int:
    """Words of a raw title as MiniOneRec counts them: split at single blanks, entities left as they are."""
    return len(title.strip().split(" "))


def clean_text(text: str) -> str:
    """Plain text of an HTML fragment: no tags, comments, scripts or styles; entities unescaped.

    Deviation from MiniOneRec, which leaves markup in: a style sheet says nothing about an item.
    """
    # Escaped markup shows only after unescaping. What tags inside tags leave over is pulled apart.
    plain = _strip_markup(html.unescape(_strip_markup(text[:MAX_FIELD])))
    return _collapse(_OPENING.sub("< ", plain))


def clean_value(value: object) -> str:
    """Plain text of a field that may be a string, a list of strings, or a string holding a list."""
    if isinstance(value, str):
        value = _list_literal(value) if value.lstrip()[:1] == "[" else value
    parts = value if isinstance(value, list) else [value]
    return _collapse(" ".join(clean_text(part) for part in parts if isinstance(part, str)))


def _list_literal(text: str) -> object:
    """The list that `text` writes, or the text itself. Nothing in it is ever executed."""
    if len(text) > MAX_FIELD:
        return text
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _strip_markup(text: str) -> str:
    kept: list[str] = []
    position, inside = 0, ""  # `inside`: the block that is being left out
    for match in _MARKUP.finditer(text):
        name, closing = (match[2] or match[0]).lower(), match[1] == "/"
        if not inside:
            kept.append(text[position : match.start()])
            if name == "<!--" or (name in _BLOCKS and not closing):
                inside = name
        elif (inside == "<!--" and name == "-->") or (inside == name and closing):
            inside = ""
        position = match.end()
    if not inside:
        kept.append(_CUT_TAG.sub("", text[position:]))
    return " ".join(kept)


def _collapse(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split())
