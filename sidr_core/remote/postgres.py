"""The ledger's statements on Postgres, for several machines that spend one budget.

A transaction begins with an advisory lock: without it two machines read the same total and both spend what is left.
User and password come from the environment as Postgres' own tools read them (`PGUSER`, `PGPASSWORD`, `~/.pgpass`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from filelock import Timeout

from sidr_core.remote.errors import LedgerError

#: Numbers of our advisory locks: one for transactions, one for rounds of batches.
_TRANSACTION, _BATCHES = 0x51D7_0001, 0x51D7_0002
_CONNECT_SECONDS = 10
_REFUSE = """
CREATE OR REPLACE FUNCTION sidr_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$
"""
_GUARD = (
    "CREATE TRIGGER {table}_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
    "FOR EACH STATEMENT EXECUTE FUNCTION sidr_refuse()"
)


def checked_url(url: str) -> str:
    """The URL, if it names a database of Postgres and holds no password. Raises LedgerError."""
    parts = urlsplit(url)
    secret = ", with a password or a query" if parts.password or parts.query else ""
    if parts.scheme != "postgresql" or not parts.hostname or secret:
        raise LedgerError(
            "SIDR_LEDGER is not the address of a ledger",
            expected="postgresql://host[:port]/database, without password or query",
            found=f"scheme {parts.scheme[:20]!r}{secret}",
            fix="set PGUSER and PGPASSWORD, or use ~/.pgpass",
        )
    return url


class PostgresConnection:
    """A connection that takes the ledger's statements, which are written for SQLite.

    Raises:
        LedgerError: from every method, where the server cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)
        try:
            import psycopg2
        except ImportError:
            raise LedgerError(
                "a ledger on Postgres needs the package psycopg2",
                expected="sidr with its extra `cluster`",
                found="no psycopg2",
                fix="pip install -c constraints.txt 'sidr[cluster]'",
            ) from None
        self._error = psycopg2.Error
        with self._explained():
            self._connection = psycopg2.connect(url, connect_timeout=_CONNECT_SECONDS)
            self._connection.autocommit = True  # BEGIN and COMMIT are statements here, as in SQLite
            sums = psycopg2.extensions.new_type((1700,), "SUM", lambda value, _: None if value is None else int(value))
            psycopg2.extensions.register_type(sums, self._connection)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement with `?` for its values; gives a cursor."""
        with self._explained():
            cursor = self._connection.cursor()
            clean = tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values)
            cursor.execute(statement.replace("%", "%%").replace("?", "%s"), clean)
            return cursor

    def begin(self) -> None:
        """Begin a transaction; no other one of a ledger in this database runs beside it."""
        self.execute("BEGIN")
        self.execute("SELECT pg_advisory_xact_lock(?)", (_TRANSACTION,))

    def prepare(self, tables: str, names: Sequence[str], version: int) -> int:
        """Make the tables if they are absent, inside a transaction; gives the version of the ledger that is there."""
        (there,) = self.execute("SELECT to_regclass('ledger_version') IS NOT NULL").fetchone()
        if not there:
            own_id = re.sub(r"\bid INTEGER PRIMARY KEY", "id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", tables)
            self.execute(_REFUSE)
            for statement in own_id.replace("INTEGER", "BIGINT").split(";\n"):
                if statement.strip():
                    self.execute(statement)
            for name in names:
                self.execute(_GUARD.format(table=name))
            self.execute("CREATE TABLE ledger_version (version BIGINT NOT NULL)")
            self.execute("INSERT INTO ledger_version VALUES (?)", (version,))
        return self.execute("SELECT version FROM ledger_version").fetchone()[0]

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise LedgerError(
                f"the ledger {self.url} cannot be used",
                expected="a database of Postgres that PGUSER may connect to and make tables in",
                found=f"{type(error).__name__}: {text}",
                fix="check address, PGUSER and PGPASSWORD, then run again: every reply that was filed is kept",
            ) from None


class BatchesLock:
    """The lock of those who have batches under way, with the methods of a FileLock that are used."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: PostgresConnection | None = None

    def acquire(self, timeout: float = -1) -> None:
        """Take it. With a timeout, raises Timeout at once if another process has it; without, waits."""
        self._connection = self._connection or PostgresConnection(self._url)
        if timeout < 0:
            self._connection.execute("SELECT pg_advisory_lock(?)", (_BATCHES,))
        elif not self._connection.execute("SELECT pg_try_advisory_lock(?)", (_BATCHES,)).fetchone()[0]:
            raise Timeout(self._url)

    def release(self) -> None:
        """Give it back; it goes with the connection, so also with a process that is killed."""
        if self._connection is not None:
            self._connection.execute("SELECT pg_advisory_unlock(?)", (_BATCHES,))
            self._connection.close()
            self._connection = None
