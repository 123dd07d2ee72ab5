"""Tables of text: one form for Markdown and for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SYNTHETIC_LABEL = "synthetic sample data"


@dataclass(frozen=True)
class Grid:
    """A titled table of text. The first column is aligned left, the others right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a Markdown table under a heading of level 2."""
        lines = [f"| {' | '.join(row)} |" for row in (self.header, *self.rows)]
        rule = f"| {' | '.join(['---', *['---:'] * (len(self.header) - 1)])} |"
        return "\n".join([f"## {self.title}", "", lines[0], rule, *lines[1:]])

    def rich(self) -> Any:
        """As a `rich` table."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title, box=box.SIMPLE_HEAD, title_justify="left")
        for place, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if place else "left")
        for row in self.rows:
            table.add_row(*(Text(text) for text in row))
        return table


def ranged(row: dict[str, Any], sign: str = "", value: str = "value") -> str:
    """`0.1234 [0.1000, 0.1500]`; the value alone where there is no interval."""
    number = f"{row[value]:{sign}.4f}"
    return number if row["ci_low"] is None else f"{number} [{row['ci_low']:{sign}.4f}, {row['ci_high']:{sign}.4f}]"
