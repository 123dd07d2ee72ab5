"""Untrusted text in Markdown."""

from __future__ import annotations

import html
import re


def markdown_text(text: str, max_chars: int = 80) -> str:
    """Untrusted text for a Markdown table or list: one line, cut, no markup."""
    line = " ".join(text.split())
    line = line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", html.escape(line, quote=False))
