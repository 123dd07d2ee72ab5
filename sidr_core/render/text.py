"""Makes untrusted text harmless: on a terminal, and in a Markdown page."""

from __future__ import annotations

import html
import re
from typing import Any


def printable(value: Any) -> str:
    """A value as text without control characters, which could drive the terminal; None is the empty text."""
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else " " for character in text)


def markdown_text(text: str, max_chars: int = 80) -> str:
    r"""Text for a Markdown table or list: one printable line of at most `max_chars` characters, without markup.

    >>> markdown_text("<b>a|b\n[c](d)</b>")
    '&lt;b&gt;a\\|b \\[c\\](d)&lt;/b&gt;'
    """
    line = " ".join(printable(text).split())
    line = line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", html.escape(line, quote=False))
