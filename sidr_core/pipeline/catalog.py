"""`catalog.duckdb`: every published table as a view, one schema per dataset.

`<dataset>.<table>` shows the newest snapshot, `<dataset>.<table>_all_snapshots` all of them with
their snapshot key in `snapshot_key`. The file is rewritten aside and moved into place, so readers
never meet a half-written one.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.store import Artifact, Store, canonical_json

_ALL = "_all_snapshots"
_MADE_FOR = "_made_for"

#: Raised when the views are made in another way.
LAYOUT = 1


def path(store: Store) -> Path:
    """Where the catalog of a store lies."""
    return store.root.parent / "catalog.duckdb"


def refresh(store: Store, *, if_other: bool = False) -> None:
    """Rewrite the catalog from the current outputs of every dataset in the store.

    Args:
        if_other: only where another output is current somewhere than when it was written, or it is damaged.
    """
    import duckdb
    from filelock import FileLock

    target = path(store)
    with FileLock(target.with_suffix(".lock")):
        for litter in target.parent.glob(f".{target.name}.*"):  # we hold the lock: its writer is dead
            litter.unlink(missing_ok=True)
        told = _digest(store)
        if if_other and _made_for(target) == told:
            return
        tmp = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        try:
            with duckdb.connect(str(tmp)) as connection:
                for statement in _statements(store):
                    connection.execute(statement)
                connection.execute(f"create view main.{_MADE_FOR} as select {_text(told)} as digest")
                connection.execute("checkpoint")  # closing does it too, and is silent where the disk is full
            os.replace(tmp, target)
        finally:
            tmp.unlink(missing_ok=True)


def files(store: Store, dataset: str, view: str) -> Iterator[Path]:
    """The files that a view shows, each checked; none for a view that is not in the catalog.

    Raises:
        StoreError: one is damaged. The engine itself would read on, or tell of anything.
    """
    from sidr_core.pipeline.digest import digest

    base, every = view.lower().removesuffix(_ALL), view.lower().endswith(_ALL)
    for stage in STAGES:
        if base != stage.name and not base.startswith(f"{stage.name}_"):
            continue
        name = f"{stage.name if base == stage.name else base.removeprefix(f'{stage.name}_')}.parquet"
        where = [ref for ref in store.refs() if (ref[0].lower(), ref[2]) == (dataset.lower(), stage.name)]
        for ref in where if every else where[-1:]:
            artifact = store.require(*ref)
            if name in artifact.files:
                yield artifact.path(name, digest)


def _digest(store: Store) -> str:
    """Of all that a catalog is made from: where the store lies and which output is current where."""
    current = [[*where, store.ref(*where)] for where in store.refs()]
    text = canonical_json([LAYOUT, str(store.root), current])
    return hashlib.sha256(text.encode()).hexdigest()


def _made_for(target: Path) -> str | None:
    """The digest that a catalog was made for; None where there is none or it is damaged."""
    import duckdb

    if not target.is_file():
        return None
    try:
        with duckdb.connect(str(target), read_only=True) as connection:
            found = connection.execute(f"select digest from main.{_MADE_FOR}").fetchone()
    except duckdb.Error:
        return None
    return found[0] if found else None


def _statements(store: Store) -> list[str]:
    tables: dict[tuple[str, str], list[tuple[str, Path, Artifact]]] = defaultdict(list)
    names = {stage.name for stage in STAGES}
    for dataset, snapshot, stage in store.refs():
        artifact = store.current(dataset, snapshot, stage)
        if artifact is None or stage not in names:
            continue
        for file in artifact.files:
            if file.endswith(".parquet") and "/" not in file:
                view = stage if file == f"{stage}.parquet" else f"{stage}_{file.removesuffix('.parquet')}"
                tables[dataset, view].append((snapshot, artifact.folder / file, artifact))
    statements = [f"create schema if not exists {_name(dataset)}" for dataset in sorted({d for d, _ in tables})]
    for (dataset, view), found in sorted(tables.items()):
        found.sort(key=lambda entry: entry[0])
        newest = found[-1]
        where = f"{_name(dataset)}.{_name(view)}"
        statements.append(f"create view {where} as select * from read_parquet({_text(newest[1])})")
        label = "synthetic sample data; " if newest[2].synthetic else ""
        statements.append(f"comment on view {where} is {_text(f'{label}snapshot {newest[0]}')}")
        union = " union all by name ".join(
            f"select *, {_text(snapshot)} as snapshot_key from read_parquet({_text(file)})"
            for snapshot, file, _ in found
        )
        statements.append(f"create view {_name(dataset)}.{_name(view + _ALL)} as {union}")
    return statements


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
