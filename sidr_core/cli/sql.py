"""`sidr sql`: one SELECT against the catalog, which is opened read-only and reads files of the store alone.

The files behind the views that it names are checked first: the engine may read over a flipped byte.
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
from sidr_core.pipeline.status import open_store
from sidr_core.render.terminal import console
from sidr_core.render.text import printable
from sidr_core.tables.sql import quoted

if TYPE_CHECKING:
    import duckdb

FORMATS = ("table", "csv", "json")
_BLOCK = 10_000
_SHOWN = 100


def sql(query: str, form: str) -> None:
    """Print the result of `query` as a table (the first 100 rows), CSV or a JSON array of objects."""
    import duckdb

    if form not in FORMATS:
        raise SidrError(
            f"unknown format {form!r}", expected=" or ".join(FORMATS), found=repr(form), fix="name one of these"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in query):  # bytes of the command line that are no UTF-8
        raise SidrError("the query is no text", expected="UTF-8", found=ascii(query)[:200], fix="write it in UTF-8")
    store = open_store()
    path = catalog.path(store)
    if not path.is_file():
        raise NotMaterialized(
            "nothing is published yet, so there is no catalog",
            expected=f"a catalog at {path}",
            found="none",
            fix="run: make run   (or materialize an asset, or set SIDR_HOME)",
        )
    with suppress(OSError):  # a store that cannot be written to
        catalog.refresh(store, if_other=True)  # a run that was killed may have left one of before
    try:
        with _open(path) as connection:
            _confine(connection, store.root)
            statement = _select(connection, query)
            for dataset, view in _views(connection, query):
                for _ in catalog.files(store, dataset, view):
                    pass
            result = connection.execute(statement)
            columns = [column[0] for column in result.description or ()]
            {"table": _table, "csv": _csv, "json": _json}[form](result, columns)
    except duckdb.Error as error:
        raise SidrError(
            "the query failed",
            expected="one SELECT on published tables; the catalog is read-only",
            found=str(error).strip().replace("\n", "\n            "),
            fix="list the tables with: sidr sql 'show all tables'",
        ) from None


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    import duckdb

    try:
        return duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        raise StoreError(
            f"the catalog {path.name} is damaged",
            expected="a DuckDB file, as the last run wrote it",
            found=str(error).strip().splitlines()[0][:300],
            fix="materialize any asset again, if only to reuse it: each run writes the catalog anew",
        ) from None


def _views(connection: duckdb.DuckDBPyConnection, query: str) -> set[tuple[str, str]]:
    """Schema and name of every table or view that a SELECT names; all there are where that cannot be told."""
    (text,) = connection.execute("select json_serialize_sql(?::varchar)", [query]).fetchone() or ("{}",)
    told = json.loads(text)
    if told.get("error", True):
        every = "select schema_name, view_name from duckdb_views() where not internal"
        return set(connection.execute(every).fetchall())
    return set(_tables_in(told))


def _tables_in(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            yield node["schema_name"], node["table_name"]
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from _tables_in(part)


def _confine(connection: duckdb.DuckDBPyConnection, store: Path) -> None:
    """Let statements read the store's files and nothing else on this machine or the network."""
    connection.execute(f"SET allowed_directories = [{quoted(str(store))}]")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")  # no other file, no ATTACH, no extension
    connection.execute("SET lock_configuration = true")


def _select(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.Statement:
    """The statement of `query`. Others than SELECT (COPY, EXPLAIN ANALYZE COPY, EXPORT) could write into the store."""
    import duckdb

    statements = connection.extract_statements(query)
    kinds = [str(statement.type).rpartition(".")[2] for statement in statements]
    if kinds != ["SELECT"]:
        raise duckdb.InvalidInputException(" and ".join(kinds) or "no statement")
    return statements[0]


def _table(result: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    rows = result.fetchmany(_SHOWN + 1)
    for row in rows[:_SHOWN]:
        table.add_row(*(Text(printable(value)) for value in row))
    console().print(table)
    if len(rows) > _SHOWN:
        console().print(f"the first {_SHOWN} rows; --format csv or json gives all")


def _csv(result: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    while rows := result.fetchmany(_BLOCK):
        writer.writerows(rows)


def _json(result: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
    separator = "[\n"
    while rows := result.fetchmany(_BLOCK):
        for row in rows:
            record = dict(zip(columns, row, strict=True))
            print(separator + json.dumps(record, ensure_ascii=False, default=str), end="")
            separator = ",\n"
    print("[]" if separator == "[\n" else "\n]")
