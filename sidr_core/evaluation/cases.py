"""One list for people: history, thought, places and truth, with titles in place of ids.

The same blocks are printed in a terminal (`sidr recommend`, `sidr explain`) and written as Markdown (the stage
`reasoning_report`). Titles and thoughts are untrusted text: neither form lets them act as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from sidr_core.render.terminal import console
from sidr_core.render.text import markdown_text, printable
from sidr_core.sids.tokens import SID_PATTERN, parse_sid
from sidr_core.tables.columns import ITEM_ID, RANK, SCORE, SID

_TITLE_CHARS = 90
#: Longest line of a thought in Markdown, in characters.
_LINE_CHARS = 2000
_HEADER = ("place", "title", "item", "SID", "score")


@dataclass(frozen=True)
class Shelf:
    """Titles and SIDs of a catalogue, both by item id."""

    titles: Mapping[str, str]
    sids: Mapping[str, str]

    @cached_property
    def carriers(self) -> Mapping[str, list[str]]:
        """SID -> the items that carry it."""
        found: dict[str, list[str]] = {}
        for item, sid in self.sids.items():
            found.setdefault(sid, []).append(item)
        return found

    @cached_property
    def levels(self) -> int:
        """Codes of a whole SID."""
        return max((len(parse_sid(sid)) for sid in self.carriers), default=0)

    def title(self, item: str) -> str:
        """The item's title on one line, cut."""
        title = printable(self.titles.get(item, "(unknown item)"))
        return title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1].rstrip() + "…"

    def sid(self, item: str) -> str:
        return self.sids.get(item, "(no SID)")

    def named(self, thought: str) -> set[str]:
        """The whole SIDs that a text holds, real or not."""
        return {sid for sid in SID_PATTERN.findall(thought) if len(parse_sid(sid)) >= self.levels > 0}

    def resolve(self, thought: str) -> str:
        """A thought with the titles behind each whole SID; one that no item carries is marked.

        >>> shelf = Shelf({"A": "Chess", "B": "Go"}, {"A": "<a_0><b_1>", "B": "<a_0><b_2>"})
        >>> shelf.resolve("Likes <a_0><b_1>.")
        'Likes <a_0><b_1> (Chess).'
        >>> shelf.resolve("So <a_9><b_9>; all of <a_0>.")
        'So <a_9><b_9> (no item); all of <a_0>.'
        """

        def titled(match: Any) -> str:
            sid = match[0]
            if len(parse_sid(sid)) < self.levels:
                return sid
            carried = " / ".join(self.title(item) for item in self.carriers.get(sid, []))
            return f"{sid} ({carried or 'no item'})"

        return SID_PATTERN.sub(titled, thought)


@dataclass(frozen=True)
class Case:
    """One list and what is known about it.

    Args:
        heading: whose list it is.
        history: item ids, oldest first.
        places: rank, item_id, sid, score of the places to show.
        thought: None where the model did not think.
        unclosed: the model did not end the thought: the limit of tokens, or an end token, came first.
        target: the item that was bought, if it is known.
        ranks: where each model put the target, in words.
    """

    heading: str
    history: Sequence[str]
    places: pl.DataFrame
    thought: str | None = None
    unclosed: bool = False
    target: str | None = None
    ranks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Block:
    """A titled part of a case: lines, or the rows of the list; `marked` are the rows of the target."""

    title: str
    lines: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    marked: frozenset[int] = frozenset()


def _blocks(case: Case, shelf: Shelf) -> list[_Block]:
    """The parts of a case in reading order, as plain text."""
    found = [_Block("History, oldest first", tuple(f"{shelf.title(i)}  {shelf.sid(i)}" for i in case.history))]
    if case.thought is not None:
        told = tuple(shelf.resolve(case.thought).splitlines()) or ("(empty)",)
        found.append(_Block("Thought" + (" (not closed by the model)" if case.unclosed else ""), told))
    places = case.places.sort(RANK).rows(named=True)
    rows = [(str(p[RANK]), shelf.title(p[ITEM_ID]), p[ITEM_ID], p[SID], f"{p[SCORE]:.3f}") for p in places]
    marked = frozenset(n for n, place in enumerate(places) if place[ITEM_ID] == case.target)
    found.append(_Block("List", rows=tuple(rows), marked=marked))
    if case.target is not None:
        found.append(_Block("Truth", (f"{shelf.title(case.target)}  {case.target}  {shelf.sid(case.target)}",)))
    if case.ranks:
        found.append(_Block("Place of the truth", tuple(f"{name}: {rank}" for name, rank in case.ranks.items())))
    return found


def markdown(case: Case, shelf: Shelf, level: int = 3) -> str:
    """The case under a heading of this level; the target's place is bold."""
    parts = [f"{'#' * level} {_escaped(case.heading, 200)}"]
    for block in _blocks(case, shelf):
        parts.append(f"**{block.title}**")
        if block.rows:
            lines = [f"| {' | '.join(_HEADER)} |", "| ---: | --- | --- | --- | ---: |"]
            for number, row in enumerate(block.rows):
                cells = [_escaped(cell, 200) for cell in row]
                shown = [f"**{cell}**" for cell in cells] if number in block.marked else cells
                lines.append(f"| {' | '.join(shown)} |")
            parts.append("\n".join(lines))
        else:
            parts.append("\n".join(f"- {_escaped(line, _LINE_CHARS)}" for line in block.lines))
    return "\n\n".join(parts)


def _escaped(text: str, max_chars: int) -> str:
    return markdown_text(printable(text), max_chars)


def show(case: Case, shelf: Shelf) -> None:
    """Print the case to the terminal; the target's place is green."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    screen = console()
    screen.print(Text(printable(case.heading), style="bold"))
    for block in _blocks(case, shelf):
        if not block.rows:
            screen.print(Text(f"\n{block.title}", style="bold"))
            for line in block.lines:
                screen.print(Text(f"  {printable(line)}"))
            continue
        table = Table(box=box.SIMPLE_HEAD)
        for name in _HEADER:
            table.add_column(name, justify="right" if name in ("place", "score") else "left", overflow="fold")
        for number, row in enumerate(block.rows):
            style = "bold green" if number in block.marked else None
            table.add_row(*(Text(printable(cell)) for cell in row), style=style)
        screen.print(table)
