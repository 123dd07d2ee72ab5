"""`catalog.duckdb`: every published table as a view, one schema per dataset.

`<dataset>.<table>` shows the newest snapshot, `<dataset>.<table>_all_snapshots` all of them with
their snapshot key in `snapshot_key`. The file is written under a temporary name and renamed, so a
reader never opens a half-written one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sidr_core.pipeline.graph import OPTIONAL, STAGES
from sidr_core.pipeline.store import Artifact, Store, canonical_json
from sidr_core.tables.atomic import replacing

if TYPE_CHECKING:
    import duckdb

_ALL = "_all_snapshots"
_MADE_FOR = "_made_for"

#: Version of how the views are made: raising it rewrites every catalog.
LAYOUT = 2


def path(store: Store) -> Path:
    """Where the catalog of a store lies."""
    return store.home / "catalog.duckdb"


def refresh(store: Store, *, if_other: bool = False) -> None:
    """Rewrite the catalog from the current outputs of every dataset in the store; no output is fetched for it.

    Args:
        if_other: only if the current outputs changed since it was written, or if it is damaged.
    """
    from filelock import FileLock

    target = path(store)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        # We hold the lock, so their writer is dead. Ours leaves no WAL: one beside the catalog is of another program,
        # and no reader could open the catalog with it.
        for leftover in (*target.parent.glob(f".{target.name}.*"), target.with_name(f"{target.name}.wal")):
            leftover.unlink(missing_ok=True)
        if if_other and is_current(store):
            return
        import duckdb

        digest = _digest(store)  # taken first: an output that becomes current now is not in it
        with replacing(target, durable=False) as partial, duckdb.connect(str(partial)) as connection:
            for statement in _view_statements(store):
                connection.execute(statement)
            connection.execute(f"create view main.{_MADE_FOR} as select {_text(digest)} as digest")
            connection.execute("checkpoint")  # closing does it too, but silently if the disk is full


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """The catalog, read-only; where it is not of the current outputs and cannot be rewritten, one in memory.

    Raises:
        duckdb.Error: the files of an output cannot be read.
    """
    import duckdb

    with suppress(OSError, duckdb.Error):  # a home that cannot be written
        refresh(store, if_other=True)  # a run that was killed may have left an outdated one
    if is_current(store):
        return duckdb.connect(str(path(store)), read_only=True)
    connection = duckdb.connect()
    for statement in _view_statements(store):
        connection.execute(statement)
    return connection


def files(store: Store, dataset: str, view: str) -> Iterator[Path]:
    """The files that a view reads, each verified; none for a view that is not in the catalog.

    Raises:
        StoreError: one is damaged. DuckDB itself might read over the damage, or raise anything.
    """
    from sidr_core.pipeline.digest import digest

    base, every = view.lower().removesuffix(_ALL), view.lower().endswith(_ALL)
    for stage in (*STAGES, *OPTIONAL):
        if base != stage.name and not base.startswith(f"{stage.name}_"):
            continue
        name = stage.name if base == stage.name else base.removeprefix(f"{stage.name}_")
        refs = [ref for ref in store.refs() if (ref[0].lower(), ref[2]) == (dataset.lower(), stage.name)]
        for ref in refs if every else refs[-1:]:
            artifact = store.require(*ref)
            for file in artifact.files:
                if _table(file) == name:
                    yield artifact.path(file, digest)


def is_current(store: Store) -> bool:
    """Whether there is a sound catalog, made from the outputs that are current now."""
    file = path(store)
    if not file.is_file():
        return False
    stat = file.stat()
    return _made_for(file, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)) == _digest(store)


@lru_cache(maxsize=1)
def _made_for(file: Path, state: tuple[int, ...]) -> str | None:
    """The digest in a catalog file, None if it is damaged; read once as long as the file's `state` stays."""
    import duckdb

    try:
        with duckdb.connect(str(file), read_only=True) as connection:
            row = connection.execute(f"select digest from main.{_MADE_FOR}").fetchone()
    except duckdb.Error:
        return None
    return row[0] if row else None


def _digest(store: Store) -> str:
    """Digest of everything that a catalog is made from: the store's place and its current outputs."""
    current = [[*where, store.ref(*where)] for where in store.refs()]
    text = canonical_json([LAYOUT, str(store.root), current])
    return hashlib.sha256(text.encode()).hexdigest()


def _view_statements(store: Store) -> list[str]:
    tables: dict[tuple[str, str], list[tuple[str, str, Artifact]]] = defaultdict(list)
    names = {stage.name for stage in (*STAGES, *OPTIONAL)}
    for dataset, snapshot, stage in store.refs():
        artifact = store.current(dataset, snapshot, stage)
        if artifact is None or stage not in names:
            continue
        for table in dict.fromkeys(table for file in artifact.files if (table := _table(file))):
            view = stage if table == stage else f"{stage}_{table}"
            parts = [artifact.schema_only(file) for file in artifact.files if _table(file) == table]
            tables[dataset, view].append((snapshot, f"[{', '.join(map(_text, parts))}]", artifact))
    statements = [f"create schema if not exists {_name(dataset)}" for dataset in sorted({d for d, _ in tables})]
    for (dataset, view), versions in sorted(tables.items()):
        versions.sort(key=lambda version: version[0])
        newest, parts, artifact = versions[-1]
        name = f"{_name(dataset)}.{_name(view)}"
        statements.append(f"create view {name} as select * from read_parquet({parts})")
        label = "synthetic sample data; " if artifact.synthetic else ""
        statements.append(f"comment on view {name} is {_text(f'{label}snapshot {newest}')}")
        union = " union all by name ".join(
            f"select *, {_text(snapshot)} as snapshot_key from read_parquet({parts})" for snapshot, parts, _ in versions
        )
        statements.append(f"create view {_name(dataset)}.{_name(view + _ALL)} as {union}")
    return statements


def _table(file: str) -> str | None:
    """The table that a file holds: itself, or with the other files of its folder a part of it; None if it is none."""
    folder, _, name = file.rpartition("/")
    return (folder or name.removesuffix(".parquet")) if name.endswith(".parquet") else None


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
