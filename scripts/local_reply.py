"""A JSON schema as what a reply to it is made of: fixed text, and values that a model writes.

Known are object, array, string, enum, boolean, bounded integer and optional values of these; a list gets as many
entries as the schema asks for, else three.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LIST_ITEMS = 3
_MOST_OPTIONS = 101


class Refused(Exception):
    """A request that cannot be answered; the text says why."""


@dataclass(frozen=True)
class Fixed:
    """Text that the server writes."""

    text: str


@dataclass(frozen=True)
class Text:
    """The inside of a JSON string, written by the model. `short`: it is an entry of a list."""

    short: bool = False


@dataclass(frozen=True)
class Choice:
    """One of these texts: the one whose first token the model finds likeliest."""

    options: tuple[str, ...]


Piece = Fixed | Text | Choice


def pieces(schema: Mapping[str, Any]) -> list[Piece]:
    """The parts of a reply that fits a JSON schema, in order; neighbouring fixed parts are one.

    >>> pieces({"type": "object", "properties": {"a": {"type": "string"}}})
    [Fixed(text='{"a": "'), Text(short=False), Fixed(text='"}')]

    Raises:
        Refused: the schema holds something else.
    """
    found: list[Piece] = []
    for piece in _pieces(schema, schema.get("$defs", {})):
        if isinstance(piece, Fixed) and found and isinstance(found[-1], Fixed):
            found[-1] = Fixed(found[-1].text + piece.text)
        else:
            found.append(piece)
    return found


def _pieces(schema: Mapping[str, Any], defs: Mapping[str, Any], short: bool = False) -> Iterator[Piece]:
    if "$ref" in schema:
        yield from _pieces(defs[schema["$ref"].removeprefix("#/$defs/")], defs, short)
    elif "anyOf" in schema:  # an optional value: it is given
        yield from _pieces(next(s for s in schema["anyOf"] if s.get("type") != "null"), defs, short)
    elif "enum" in schema or "const" in schema:
        yield Choice(tuple(json.dumps(value) for value in schema.get("enum", [schema.get("const")])))
    elif schema.get("type") == "object":
        for place, (name, value) in enumerate(schema.get("properties", {}).items()):
            yield Fixed(("{" if place == 0 else ", ") + json.dumps(name) + ": ")
            yield from _pieces(value, defs)
        yield Fixed("}" if schema.get("properties") else "{}")
    elif schema.get("type") == "array":
        count = max(schema.get("minItems", 0), min(_LIST_ITEMS, schema.get("maxItems", _LIST_ITEMS)))
        for place in range(count):
            yield Fixed("[" if place == 0 else ", ")
            yield from _pieces(schema["items"], defs, short=True)
        yield Fixed("]" if count else "[]")
    else:
        yield from _value(schema, short)


def _value(schema: Mapping[str, Any], short: bool) -> Iterator[Piece]:
    if schema.get("type") == "string":
        yield from (Fixed('"'), Text(short), Fixed('"'))
    elif schema.get("type") == "boolean":
        yield Choice(("true", "false"))
    elif schema.get("type") == "integer":
        first = schema.get("minimum", 0)
        last = min(schema.get("maximum", first + _MOST_OPTIONS - 1), first + _MOST_OPTIONS - 1)
        yield Choice(tuple(str(number) for number in range(first, last + 1)))
    else:
        raise Refused(f"this server cannot write a value of schema {json.dumps(schema)[:200]}")
