"""`sidr gc`: what nothing needs any more goes, if told so; else it is only listed."""

from __future__ import annotations

from collections import Counter

from sidr_core.pipeline import gc as garbage
from sidr_core.pipeline.status import open_store
from sidr_core.render.terminal import console
from sidr_core.render.text import printable

_SHOWN = 100


def gc(yes: bool, deep: bool, cache: bool, days: float) -> None:
    """List what can go, with its size; with `yes` delete it. See :func:`sidr_core.pipeline.gc.find`."""
    from rich.table import Table

    store = open_store()
    count: Counter[str] = Counter()
    freed: Counter[str] = Counter()
    skipped = 0
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    for name in ("kind", "path", "why"):
        table.add_column(name, overflow="fold")
    table.add_column("MB", justify="right", no_wrap=True)
    for litter in garbage.find(store, days, deep=deep, cache=cache):
        if yes and not garbage.drop(store, litter):
            skipped += 1
            continue
        count[litter.kind] += 1
        freed[litter.kind] += litter.bytes
        if count.total() <= _SHOWN:
            where = printable(litter.path.relative_to(store.root.parent))
            table.add_row(litter.kind, where, litter.why, f"{litter.bytes / 1e6:,.1f}")
    screen = console()
    screen.print(f"{store.root.parent}", soft_wrap=True, markup=False)
    if count:
        screen.print(table)
    if count.total() > _SHOWN:
        screen.print(f"… and {count.total() - _SHOWN:,} more")
    screen.print("\n".join(_summary(yes, count, freed, skipped)), markup=False)


def _summary(yes: bool, count: Counter[str], freed: Counter[str], skipped: int) -> list[str]:
    if not count:
        lines = ["nothing to delete"]
    else:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(count.items()))
        done = "deleted" if yes else "would go"
        lines = [f"{done}: {kinds}; {freed.total() / 1e6:,.1f} MB ({freed.total():,} bytes)"]
        if not yes:
            lines.append("nothing was deleted; to do it, say: sidr gc --yes")
    if skipped:
        lines.append(f"{skipped:,} left alone: a running stage has come to need them")
    return lines
