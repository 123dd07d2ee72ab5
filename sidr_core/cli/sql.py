"""`sidr sql`: one SELECT against the catalog, which is opened read-only and can read only files of the store.

The files behind the views of the query are verified first: DuckDB might read over a flipped byte.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidr_core.errors import NotMaterialized, SidrError, StoreError
from sidr_core.pipeline import catalog
from sidr_core.pipeline.place import open_store
from sidr_core.render.terminal import console
from sidr_core.render.text import printable
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
    path = catalog.path(store)
    if not path.is_file() and not store.refs():
        raise NotMaterialized(
            "nothing is published yet, so there is no catalog",
            expected=f"a catalog at {path}",
            found="none",
            fix="run: make run   (or materialize an asset, or set SIDR_HOME)",
        )
    with suppress(OSError):  # a store that is not writable
        catalog.refresh(store, if_other=True)  # a run that was killed may have left an outdated one
    try:
        with _open(path, store.root) as connection:
            statements = connection.extract_statements(query)
            # COPY, EXPLAIN ANALYZE COPY and EXPORT could write into the store.
            kinds = [str(statement.type).rpartition(".")[2] for statement in statements]
            if kinds != ["SELECT"]:
                raise duckdb.InvalidInputException(" and ".join(kinds) or "no statement")
            for dataset, view in _views(connection, query):
                for _ in catalog.files(store, dataset, view):
                    pass
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


def _open(path: Path, store: Path) -> duckdb.DuckDBPyConnection:
    """The catalog, read-only; its statements can read the store's files and nothing else, here or on the network."""
    import duckdb

    try:
        connection = duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        raise StoreError(
            f"the catalog {path.name} is damaged",
            expected="a DuckDB file, as the last run wrote it",
            found=str(error).strip().splitlines()[0][:300],
            fix="materialize any asset again, even if it is reused: each run rewrites the catalog",
        ) from None
    connection.execute(f"SET allowed_directories = [{quoted(str(store))}]")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")  # no other file, no ATTACH, no extension
    connection.execute("SET lock_configuration = true")
    return connection


def _views(connection: duckdb.DuckDBPyConnection, query: str) -> set[tuple[str, str]]:
    """Schema and name of every table or view in a SELECT; all views of the catalog if it cannot be parsed."""
    (text,) = connection.execute("select json_serialize_sql(?::varchar)", [query]).fetchone() or ("{}",)
    tree = json.loads(text)
    if tree.get("error", True):
        views = "select schema_name, view_name from duckdb_views() where not internal"
        return set(connection.execute(views).fetchall())
    return set(_tables_in(tree))


def _tables_in(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            yield node["schema_name"], node["table_name"]
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from _tables_in(part)


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
