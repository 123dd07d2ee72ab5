"""`catalog.duckdb`: every published table as a view, one schema per dataset.

`<dataset>.<table>` shows the newest snapshot, `<dataset>.<table>_all_snapshots` all of them with
their snapshot key in `snapshot_key`. The file is rewritten aside and moved into place, so readers
never meet a half-written one.
"""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from pathlib import Path

from sidr_core.graph import STAGES
from sidr_core.profile import Profile
from sidr_core.store import Artifact, Store


def path(store: Store) -> Path:
    """Where the catalog of a store lies."""
    return store.root.parent / "catalog.duckdb"


def refresh(store: Store, profile: Profile) -> None:
    """Rewrite the catalog from the current outputs of every dataset in the store."""
    import duckdb
    from filelock import FileLock

    target = path(store)
    with FileLock(target.with_suffix(".lock")):
        tmp = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        try:
            with duckdb.connect(str(tmp)) as connection:
                for statement in _statements(store):
                    connection.execute(statement)
            os.replace(tmp, target)
        finally:
            tmp.unlink(missing_ok=True)


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
        statements.append(f"create view {_name(dataset)}.{_name(view + '_all_snapshots')} as {union}")
    return statements


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
