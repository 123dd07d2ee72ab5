"""The text of an item that is encoded, and its digest.

Title, a blank, description; empty fields are skipped, and an item with neither gets a fixed placeholder.
Brand and category are left out, as in the base code (docs/method.md, "Item embeddings"). Deviation: the text
is cut at a number of characters, so that one huge description cannot stall the tokenizer.
"""

from __future__ import annotations

import hashlib

PLACEHOLDER = "unknown item"


def item_text(title: str, description: str, max_chars: int) -> str:
    """Title, a blank, description, cut at `max_chars` characters."""
    text = " ".join(part for part in (title.strip(), description.strip()) if part)
    return text[:max_chars].rstrip() or PLACEHOLDER


def text_digest(text: str, encoder: str = "") -> bytes:
    """The 32 bytes of the sha256 of a text together with the settings of its encoder.

    The settings are part of it so that with another encoder every item counts as changed: a vector or a
    SID is only reused where both are equal.
    """
    return hashlib.sha256(f"{encoder}\n{text}".encode()).digest()
