"""Printing for people: a width that fits where the output goes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of a log or a pipe, where nothing need be folded to a screen.
_WIDE = 200


def console() -> Console:
    """A console on standard output: as wide as the terminal, or wide where there is none."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(width=_WIDE, highlight=False)
