"""Plain text out of the HTML, Python literals and scraped pages in which catalogue texts come.

Every cleaning function takes an optional set and adds the names of the rules that changed something
(:data:`RULES`), so that cleaning can be reported and not only done.
"""

from __future__ import annotations

import ast
import html
import re

#: Longest raw field that is looked at, in characters; the encoder reads far less.
MAX_FIELD = 40_000
#: Longest Python literal that is parsed, in characters: its syntax tree takes some 500 times as many bytes.
MAX_LITERAL = 200_000

#: What counts as blank around an id, for Python's `strip` as for polars' `strip_chars`: Unicode's white space.
BLANKS = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))

#: What a cleaning rule does to a value, by its name.
RULES = {
    "cut": f"cut to {MAX_FIELD:,} characters",
    "list": "a list written as text joined",
    "blanks": "blanks collapsed, control characters removed",
    "blocks": "scripts, style sheets and comments removed",
    "tags": "HTML tags removed",
    "entities": "HTML entities unescaped",
    "quotes": 'a pair of surrounding quotes or a stray "/>" removed',
}

# Each alternative stops at the next angle bracket and never goes back: linear on hostile input too.
_MARKUP = re.compile(r"<!--|-->|<(/?)([A-Za-z][A-Za-z0-9]*+)[^<>]*+>|<[/!?][^<>]*+>")
_OPENING = re.compile(r"<(?=[/!A-Za-z])")
_CUT_TAG = re.compile(r"<[A-Za-z/!][^<>]*\Z")
_TITLE_HTML = re.compile(r"<\s*[/!A-Za-z][^<>]*(?:>|\Z|=)")
_TITLE_SCRIPT = re.compile(r"\bfunction\s*\(|\A\s*var\s+\w+\s*=|\bdocument\.\w|@import\b")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # lone surrogates cannot be written
_BLOCKS = ("script", "style")
# Strings, numbers, names of constants, brackets: no operator and no call ever reaches the compiler, so
# nesting is brackets only, of which CPython's tokenizer accepts 200.
_LITERAL = re.compile(
    r"(?:u?'(?:[^'\\]|\\.)*+'|u?\"(?:[^\"\\]|\\.)*+\"|[\[\]{}():,\s]|[+-]?[0-9][0-9.eE+-]*+|None|True|False)*+", re.S
)


def literal(text: str) -> object:
    """The value that a Python literal writes: strings, numbers, None, True, False, lists, tuples, dicts.

    Nothing in it is ever executed. Raises ValueError if it is anything else, too long or nested too deep.
    """
    if len(text) > MAX_LITERAL or _LITERAL.fullmatch(text) is None:
        raise ValueError("no short literal")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None


def looks_like_markup(title: str) -> bool:
    """Whether a title is a piece of a scraped page (`<span id…`, script) instead of a name."""
    return _TITLE_HTML.search(title) is not None or _TITLE_SCRIPT.search(title) is not None


def clean_title(title: str, changed: set[str] | None = None) -> str:
    """Entities unescaped, blanks collapsed; a stray `" />` at the end and a pair of quotes around the whole removed.

    Deviation from MiniOneRec, which cuts quotes at either end: `19"` is a size and `'Til Dawn` a name.
    """
    flat = _collapse(_cut(title, changed), changed)
    bare = flat.removesuffix("/>")
    plain = " ".join(_unescape(bare, changed).split())
    final, quote = plain, plain[:1]
    if len(plain) > 1 and quote in ('"', "'") and plain.endswith(quote) and quote not in plain[1:-1]:
        final = plain[1:-1].strip()
    elif bare != flat:
        final = plain.removesuffix('"').rstrip()
    _note(changed, "quotes", bare != flat or final != plain)
    return final


def title_words(title: str) -> int:
    """Words of a raw title as MiniOneRec counts them: split at single blanks, entities left as they are."""
    return len(title.strip().split(" "))


def clean_text(text: str, changed: set[str] | None = None) -> str:
    """Plain text of an HTML fragment: no tags, comments, scripts or styles; entities unescaped.

    Deviation from MiniOneRec, which leaves markup in: a style sheet says nothing about an item.
    """
    flat = _collapse(_cut(text, changed), changed)
    if "<" not in flat and "&" not in flat and "-->" not in flat:
        return flat
    # Escaped markup shows only after unescaping. What tags inside tags leave over is pulled apart.
    plain = _strip_markup(_unescape(_strip_markup(flat, changed), changed), changed)
    return _collapse(_OPENING.sub("< ", plain))


def clean_value(value: object, changed: set[str] | None = None) -> str:
    """Plain text of a field that may be a string, a list of strings, or a string holding a list."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = literal(value)
            _note(changed, "list", True)
        except ValueError:
            pass  # text that only begins like a list
    parts = value if isinstance(value, list) else [value]
    texts = (clean_text(part, changed) for part in parts if isinstance(part, str))
    return " ".join(filter(None, texts))


def _note(changed: set[str] | None, rule: str, applied: bool) -> None:
    if applied and changed is not None:
        changed.add(rule)


def _cut(text: str, changed: set[str] | None) -> str:
    _note(changed, "cut", len(text) > MAX_FIELD)
    return text[:MAX_FIELD]


def _unescape(text: str, changed: set[str] | None) -> str:
    plain = html.unescape(text)
    _note(changed, "entities", plain != text)
    return _CONTROL.sub(" ", plain)  # &#1; is one too


def _strip_markup(text: str, changed: set[str] | None) -> str:
    kept: list[str] = []
    position, inside = 0, ""  # `inside`: the block that is being left out
    for match in _MARKUP.finditer(text):
        name, closing = (match[2] or match[0]).lower(), match[1] == "/"
        before = inside
        if not inside:
            kept.append(text[position : match.start()])
            if name == "<!--" or (name in _BLOCKS and not closing):
                inside = name
        elif (inside == "<!--" and name == "-->") or (inside == name and closing):
            inside = ""
        _note(changed, "blocks" if inside or before else "tags", True)
        position = match.end()
    if not inside:
        rest = _CUT_TAG.sub("", text[position:])
        _note(changed, "tags", rest != text[position:])
        kept.append(rest)
    return " ".join(kept)


def _collapse(text: str, changed: set[str] | None = None) -> str:
    flat = " ".join(_CONTROL.sub(" ", text).split())
    _note(changed, "blanks", flat != text)
    return flat
