"""`sidr gc`: lists, or deletes, what no snapshot needs."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from sidr_core.pipeline import gc as garbage
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.render.terminal import console
from sidr_core.render.text import printable

_MAX_LISTED = 100


def gc(yes: bool, deep: bool, cache: bool, days: float, unlisted: bool = False) -> None:
    """List what can be deleted, with its size; with `yes` delete it. See :func:`sidr_core.pipeline.gc.find`.

    Args:
        unlisted: also what the profile does not list; see :func:`sidr_core.pipeline.gc.unlisted`.
    """
    from rich.table import Table

    store = open_store()
    count: Counter[str] = Counter()
    freed: Counter[str] = Counter()
    skipped = 0
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    for name in ("kind", "path", "why"):
        table.add_column(name, overflow="fold")
    table.add_column("MB", justify="right", no_wrap=True)
    retired = ()
    if unlisted:
        profile = load_profile()
        retired = garbage.unlisted(store, {name: profile.dataset(name).snapshots.keys() for name in profile})
    for removable in chain(retired, garbage.find(store, days, deep=deep, cache=cache)):
        if yes and not garbage.drop(store, removable):
            skipped += 1
            continue
        count[removable.kind] += 1
        freed[removable.kind] += removable.bytes
        if count.total() <= _MAX_LISTED:
            base, prefix = (store.root, f"{store.place}/") if removable.in_bucket else (store.home, "")
            path = printable(f"{prefix}{removable.path.relative_to(base).as_posix()}")
            table.add_row(removable.kind, path, removable.why, f"{removable.bytes / 1e6:,.1f}")
    screen = console()
    screen.print(f"{store.home}", soft_wrap=True, markup=False)
    if count:
        screen.print(table)
    if count.total() > _MAX_LISTED:
        screen.print(f"… and {count.total() - _MAX_LISTED:,} more")
    lines = ["nothing to delete"]
    if count:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(count.items()))
        verb = "deleted" if yes else "would go"
        lines = [f"{verb}: {kinds}; {freed.total() / 1e6:,.1f} MB ({freed.total():,} bytes)"]
        lines += [] if yes else ["nothing was deleted; to delete it: sidr gc --yes"]
    if skipped:
        lines.append(f"{skipped:,} left alone: a running stage needs them now")
    screen.print("\n".join(lines), markup=False)
