"""One list for people: history, thought, ranking and truth, with titles in place of ids.

The same blocks are printed in a terminal (`sidr recommend`, `sidr explain`) and written as Markdown (the stage
`reasoning_report`). Titles and thoughts are untrusted text: neither form lets them act as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from sidr_core.render.grid import markdown_table
from sidr_core.render.terminal import console
from sidr_core.render.text import markdown_text, printable
from sidr_core.sids.tokens import SID_PATTERN, parse_sid
from sidr_core.tables.columns import ITEM_ID, RANK, SCORE, SID

_TITLE_CHARS = 90
#: Longest line of a thought in Markdown, in characters.
_LINE_CHARS = 2000
_HEADER = ("place", "title", "item", "SID", "score")


@dataclass(frozen=True)
class ItemTitles:
    """Titles and SIDs of a catalogue, both by item id."""

    titles: Mapping[str, str]
    sids: Mapping[str, str]

    @cached_property
    def carriers(self) -> Mapping[str, list[str]]:
        """SID -> the items that carry it."""
        items: dict[str, list[str]] = {}
        for item, sid in self.sids.items():
            items.setdefault(sid, []).append(item)
        return items

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

        >>> titles = ItemTitles({"A": "Chess", "B": "Go"}, {"A": "<a_0><b_1>", "B": "<a_0><b_2>"})
        >>> titles.resolve("Likes <a_0><b_1>.")
        'Likes <a_0><b_1> (Chess).'
        >>> titles.resolve("So <a_9><b_9>; all of <a_0>.")
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
        ranking: rank, item_id, sid, score of the ranks to show.
        thought: None where the model did not think.
        unclosed: the model did not close the thought: the limit of tokens, or an end token, came first.
        target: the item that was bought, if it is known.
        ranks: where each model put the target, in words.
    """

    heading: str
    history: Sequence[str]
    ranking: pl.DataFrame
    thought: str | None = None
    unclosed: bool = False
    target: str | None = None
    ranks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Block:
    """A titled part of a case: lines, or the rows of the list; `target_rows` are those of the target."""

    title: str
    lines: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    target_rows: frozenset[int] = frozenset()


def _blocks(case: Case, titles: ItemTitles) -> list[_Block]:
    """The parts of a case in reading order, as plain text."""
    blocks = [_Block("History, oldest first", tuple(f"{titles.title(i)}  {titles.sid(i)}" for i in case.history))]
    if case.thought is not None:
        lines = tuple(titles.resolve(case.thought).splitlines()) or ("(empty)",)
        blocks.append(_Block("Thought" + (" (not closed by the model)" if case.unclosed else ""), lines))
    ranking = case.ranking.sort(RANK).rows(named=True)
    rows = [(str(r[RANK]), titles.title(r[ITEM_ID]), r[ITEM_ID], r[SID], f"{r[SCORE]:.3f}") for r in ranking]
    target_rows = frozenset(n for n, row in enumerate(ranking) if row[ITEM_ID] == case.target)
    blocks.append(_Block("List", rows=tuple(rows), target_rows=target_rows))
    if case.target is not None:
        blocks.append(_Block("Truth", (f"{titles.title(case.target)}  {case.target}  {titles.sid(case.target)}",)))
    if case.ranks:
        blocks.append(_Block("Place of the truth", tuple(f"{name}: {rank}" for name, rank in case.ranks.items())))
    return blocks


def markdown(case: Case, titles: ItemTitles) -> str:
    """The case under a heading of the third level; the target's row is bold."""

    def escaped(text: str, max_chars: int = 200) -> str:
        return markdown_text(printable(text), max_chars)

    parts = [f"### {escaped(case.heading)}"]
    for block in _blocks(case, titles):
        parts.append(f"**{block.title}**")
        if block.rows:
            rows = [[escaped(cell) for cell in row] for row in block.rows]
            bold = [[f"**{cell}**" for cell in row] if n in block.target_rows else row for n, row in enumerate(rows)]
            parts.append(markdown_table(_HEADER, bold, "rlllr"))
        else:
            parts.append("\n".join(f"- {escaped(line, _LINE_CHARS)}" for line in block.lines))
    return "\n\n".join(parts)


def show(case: Case, titles: ItemTitles) -> None:
    """Print the case to the terminal; the target's row is green."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    screen = console()
    screen.print(Text(printable(case.heading), style="bold"))
    for block in _blocks(case, titles):
        if not block.rows:
            screen.print(Text(f"\n{block.title}", style="bold"))
            for line in block.lines:
                screen.print(Text(f"  {printable(line)}"))
            continue
        table = Table(box=box.SIMPLE_HEAD)
        for name in _HEADER:
            table.add_column(name, justify="right" if name in ("place", "score") else "left", overflow="fold")
        for number, row in enumerate(block.rows):
            style = "bold green" if number in block.target_rows else None
            table.add_row(*(Text(printable(cell)) for cell in row), style=style)
        screen.print(table)
