"""Tables of text: one form for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SYNTHETIC_LABEL = "synthetic sample data"

_RULES = {"l": "---", "r": "---:"}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> str:
    """A Markdown table, without a newline at its end.

    Cells are written as they are: one that holds text of the data goes through
    :func:`~sidr_core.render.text.markdown_text` first.

    Args:
        header: the names of the columns.
        rows: one cell per column.
        align: `l` (left) or `r` (right) per column; the last letter stands for all columns that follow.

    >>> print(markdown_table(("item", "count"), [("glue", "3")]))
    | item | count |
    | --- | ---: |
    | glue | 3 |
    """
    rule = [_RULES[letter] for letter in align.ljust(len(header), align[-1])[: len(header)]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


@dataclass(frozen=True)
class Grid:
    """A titled table of text. The first column is aligned left, the others right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a Markdown table under a heading of level 2."""
        return f"## {self.title}\n\n{markdown_table(self.header, self.rows)}"

    def rich(self, bare: bool = False) -> Any:
        """As a `rich` table; a bare one has neither title nor rule, so a line per row."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=None if bare else self.title,
            title_justify="left",
            box=None if bare else box.SIMPLE_HEAD,
            header_style="bold" if bare else None,
            pad_edge=not bare,
        )
        for column, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if column else "left")
        for row in self.rows:
            table.add_row(*(Text(text) for text in row))
        return table


def ranged(row: dict[str, Any], sign: str = "", value: str = "value") -> str:
    """`0.1234 [0.1000, 0.1500]`; the value alone where there is no interval."""
    number = f"{row[value]:{sign}.4f}"
    return number if row["ci_low"] is None else f"{number} [{row['ci_low']:{sign}.4f}, {row['ci_high']:{sign}.4f}]"
