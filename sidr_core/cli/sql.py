"""`sidr sql`: one SELECT against the catalog, which is opened read-only and can read only files of the store.

The files behind the views of the query are verified first: DuckDB might read over a flipped byte.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sidr_core.errors import NotMaterialized, SidrError
from sidr_core.pipeline import catalog
from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.store import Store
from sidr_core.render.terminal import console
from sidr_core.render.text import printable
from sidr_core.serving.published import tell_if_stale
from sidr_core.tables.sql import quoted

if TYPE_CHECKING:
    import duckdb

_BATCH_ROWS = 10_000
_MAX_ROWS_SHOWN = 100


def sql(query: str, form: str) -> None:
    """Print the result of `query`.

    Args:
        form: `table` (the first 100 rows), `csv`, or `json` (an array of objects).
    """
    import duckdb

    if any("\ud800" <= character <= "\udfff" for character in query):  # undecodable bytes of the command line
        raise SidrError("the query is not text", expected="UTF-8", found=ascii(query)[:200], fix="write it in UTF-8")
    store = open_store()
    if not store.refs():
        raise NotMaterialized(
            "nothing is published yet, so there is no catalog",
            expected=f"outputs below {store.root}",
            found="none",
            fix="run: make run   (or materialize an asset, or set SIDR_HOME)",
        )
    try:
        with _open(store) as connection:
            statements = connection.extract_statements(query)
            # COPY, EXPLAIN ANALYZE COPY and EXPORT could write into the store.
            kinds = [str(statement.type).rpartition(".")[2] for statement in statements]
            if kinds != ["SELECT"]:
                raise duckdb.InvalidInputException(" and ".join(kinds) or "no statement")
            views = _views(connection, query)
            for dataset, view in views:
                for _ in catalog.files(store, dataset, view):
                    pass
            _tell_if_stale(store, views)
            result = connection.execute(statements[0])
            columns = [column[0] for column in result.description or ()]
            {"table": _print_table, "csv": _print_csv, "json": _print_json}[form](result, columns)
    except duckdb.Error as error:
        raise SidrError(
            "the query failed",
            expected="one SELECT on published tables; the catalog is read-only",
            found=str(error).strip().replace("\n", "\n            "),
            fix="list the tables with: sidr sql 'show all tables'",
        ) from None


def _open(store: Store) -> duckdb.DuckDBPyConnection:
    """The catalog, read-only; its statements can read the store's files and nothing else, here or on the network."""
    connection = catalog.connect(store)
    connection.execute(f"SET allowed_directories = [{quoted(str(store.root))}]")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")  # no other file, no ATTACH, no extension
    connection.execute("SET lock_configuration = true")
    return connection


def _views(connection: duckdb.DuckDBPyConnection, query: str) -> set[tuple[str, str]]:
    """Schema and name of every table or view in a SELECT; all views of the catalog if it cannot be parsed, or calls a
    function that may read any of them (`query`, `query_table`).
    """
    (text,) = connection.execute("select json_serialize_sql(?::varchar)", [query]).fetchone() or ("{}",)
    tree = json.loads(text)
    named = None if tree.get("error", True) else list(_tables_in(tree))
    if named is None or None in named:
        views = "select schema_name, view_name from duckdb_views() where not internal"
        return set(connection.execute(views).fetchall())
    return {view for view in named if view is not None}


def _tables_in(node: Any) -> Iterator[tuple[str, str] | None]:
    """The tables below a node; None for a table function."""
    if isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            yield node["schema_name"], node["table_name"]
        elif node.get("type") == "TABLE_FUNCTION":
            yield None
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from _tables_in(part)


def _tell_if_stale(store: Store, views: set[tuple[str, str]]) -> None:
    """Say of each view of a newest snapshot whether the profile would make something else now."""
    profile, refs = load_profile(), store.refs()
    for dataset, view in sorted(views):
        stages = (stage.name for stage in STAGES if view == stage.name or view.startswith(f"{stage.name}_"))
        stage = max(stages, key=len, default=None)
        newest = max((ref[1] for ref in refs if (ref[0], ref[2]) == (dataset, stage)), default=None)
        if stage is None or newest is None:
            continue
        known = profile.dataset(dataset).snapshots.keys() if dataset in profile else []
        if newest not in known:
            print(f"note: {dataset} of {newest} is not in profile {profile.name}, but was once", file=sys.stderr)
        else:
            tell_if_stale(profile, store, dataset, newest, stage)


def _print_table(result: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    rows = result.fetchmany(_MAX_ROWS_SHOWN + 1)
    for row in rows[:_MAX_ROWS_SHOWN]:
        table.add_row(*(Text(printable(value)) for value in row))
    console().print(table)
    if len(rows) > _MAX_ROWS_SHOWN:
        console().print(f"the first {_MAX_ROWS_SHOWN} rows; --format csv or json gives all")


def _print_csv(result: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    while rows := result.fetchmany(_BATCH_ROWS):
        writer.writerows(rows)


def _print_json(result: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
    separator = "[\n"
    while rows := result.fetchmany(_BATCH_ROWS):
        for row in rows:
            record = dict(zip(columns, row, strict=True))
            print(separator + json.dumps(record, ensure_ascii=False, default=str), end="")
            separator = ",\n"
    print("[]" if separator == "[\n" else "\n]")
