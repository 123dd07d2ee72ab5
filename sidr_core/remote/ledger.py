"""What was asked and what it cost: one SQLite file, append-only (triggers refuse anything else); or, for several
machines, the same tables in a database of Postgres (`postgres.py`).

- `replies`: one row per request key: the reply, its tokens, its price. The first one wins; none is ever asked again.
- `account`: every change of what is or may be owed, with the running total after it. Before a call is sent its worst
  case is added; when its outcome is known a second row corrects that to the true cost. A call whose outcome never
  becomes known (a time-out, a `kill -9`) keeps its worst case: it may have been charged. The check against the budget
  and the addition are one transaction, over all processes, so the total never exceeds the budget.
- `batches`: what was handed to a Batch API, so that a restart polls it instead of submitting again.

WAL with synchronous=FULL: a commit that returned survives a crash and a power cut. WAL needs all its processes on one
machine. Money is in whole nano-USD, so sums are exact.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from sidr_core.remote.errors import LedgerError
from sidr_core.remote.postgres import BatchesLock, PostgresConnection, checked_url
from sidr_core.settings.corpus import Budget, Price

NANO = 1_000_000_000
_VERSION = 1
_BUSY_SECONDS = 60.0
#: Characters of a reply that are read back.
MOST_TEXT = 2**20

_TABLES = """
CREATE TABLE replies (
  key TEXT PRIMARY KEY, model TEXT NOT NULL, host TEXT NOT NULL, kind TEXT NOT NULL,
  status TEXT NOT NULL, text TEXT NOT NULL, request_bytes INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, nano_usd INTEGER NOT NULL, created INTEGER NOT NULL);
CREATE INDEX replies_of ON replies (model, host, kind);
CREATE TABLE account (
  id INTEGER PRIMARY KEY, send INTEGER UNIQUE REFERENCES account (id), key TEXT NOT NULL, what TEXT NOT NULL,
  tokens INTEGER NOT NULL, nano_usd INTEGER NOT NULL,
  total_tokens INTEGER NOT NULL, total_nano_usd INTEGER NOT NULL, created INTEGER NOT NULL);
CREATE TABLE batches (
  id INTEGER PRIMARY KEY, token TEXT NOT NULL, event TEXT NOT NULL, content TEXT NOT NULL, created INTEGER NOT NULL);
"""
_NAMES = ("replies", "account", "batches")
_GUARD = (
    "CREATE TRIGGER {table}_{event} BEFORE {event} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;"
)

_DAMAGED = (
    "keep the file: it holds replies that were paid for. Copy it (with its -wal) aside, save what can be read with: "
    "sqlite3 <copy> .recover | sqlite3 ledger.sqlite   and put the result in its place"
)


@dataclass(frozen=True)
class Cost:
    """Tokens (input and output together) and nano-USD."""

    tokens: int
    nano_usd: int

    @property
    def usd(self) -> float:
        return self.nano_usd / NANO


@dataclass(frozen=True)
class Stored:
    """A reply as it came. `status`: complete, truncated, refusal, content_filter or rejected."""

    key: str
    status: str
    text: str
    input_tokens: int
    output_tokens: int
    nano_usd: int


@dataclass(frozen=True)
class Label:
    """What a reply is filed under besides its key, for estimates."""

    model: str
    host: str
    kind: str
    request_bytes: int


class Member(NamedTuple):
    """A request in a batch: its row in the account, and what its reply is filed under."""

    send: int
    kind: str
    size: int


@dataclass(frozen=True)
class OpenBatch:
    """A batch that was planned and not closed: our name of it, the server's once known, its requests by key."""

    token: str
    identifier: str | None
    members: dict[str, Member]


def ledger_path() -> Path | str:
    """`$SIDR_HOME/ledger.sqlite`, or the URL in `SIDR_LEDGER`. Raises LedgerError where that is no URL of a ledger."""
    from sidr_core.pipeline.profile import home

    url = os.environ.get("SIDR_LEDGER")
    return checked_url(url) if url else home() / "ledger.sqlite"


def price_of(price: Price, input_tokens: int, output_tokens: int, discount: float = 1.0) -> Cost:
    """Cost of a call, rounded up to a nano-USD; `price` is in USD per million tokens.

    >>> price_of(Price(input=0.15, output=0.6), 1000, 100).nano_usd  # 150 + 60 micro-USD
    210000
    """
    usd = (input_tokens * price.input + output_tokens * price.output) / 1e6 * discount
    return Cost(input_tokens + output_tokens, math.ceil(round(usd * NANO, 6)))


class Ledger:
    """The ledger at `path`, made if absent. May be used by several threads and processes at once.

    Args:
        path: a SQLite file, or `postgresql://…`.

    Raises:
        LedgerError: the file is damaged, foreign, or of a newer version; the server cannot be used.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._db: Any  # takes the same statements, whichever it is
        if isinstance(path, str):
            self._db = PostgresConnection(path)
            with self._transaction():
                self._of_version(self._db.prepare(_TABLES, _NAMES, _VERSION))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            # Two that switch a new file to WAL at once: one is told "locked" without waiting.
            with FileLock(path.with_name(f"{path.name}.lock")):
                self._prepare()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _TABLES.split(";\n"):
                    self._db.execute(statement)
                for table in _NAMES:
                    for event in ("update", "delete"):
                        self._db.execute(_GUARD.format(table=table, event=event))
                self._db.execute(f"PRAGMA user_version={_VERSION}")
            else:
                self._of_version(version)

    def _of_version(self, version: int) -> None:
        if version != _VERSION:
            raise LedgerError(
                f"the ledger {self.path} is of another version",
                expected=f"version {_VERSION}",
                found=f"version {version}",
                fix="use the version of this project that wrote it, or name another SIDR_HOME or SIDR_LEDGER",
            )

    def batches_lock(self) -> FileLock | BatchesLock:
        """The lock of the one process that has batches under way on this ledger; not taken here."""
        if isinstance(self.path, str):
            return BatchesLock(self.path)
        return FileLock(self.path.with_suffix(".batches.lock"))

    def close(self) -> None:
        """Close the file; it is complete without this."""
        with self._lock:
            self._db.close()

    def verify(self) -> None:
        """Read the whole file. Raises LedgerError where SQLite finds damage, or the running totals do not add up."""
        with self._explained(), self._lock:
            problems = ["ok"]
            if not isinstance(self.path, str):
                problems = [row[0] for row in self._db.execute("PRAGMA quick_check(3)")]
            sums = "SELECT coalesce(sum(tokens), 0), coalesce(sum(nano_usd), 0) FROM account"
            added = Cost(*self._db.execute(sums).fetchone())
            last = self._total()
        if problems == ["ok"] and added != last:
            problems = [f"changes add up to {added.tokens:,.0f} tokens and {added.usd:,.4f} USD"]
            expected = f"the total after the last change: {last.tokens:,} tokens and {last.usd:,.4f} USD"
        else:
            expected = "what was written"
        if problems != ["ok"]:
            raise LedgerError(
                f"the ledger {self.path} is damaged", expected=expected, found="; ".join(problems), fix=_DAMAGED
            )

    # -- replies -----------------------------------------------------------------------------

    def find(self, key: str) -> Stored | None:
        """The reply to a request, if it came already."""
        # A text far beyond any reply, of a server that ran wild, is not loaded: it is recognised by its length.
        columns = f"key, status, substr(text, 1, {MOST_TEXT}), input_tokens, output_tokens, nano_usd"
        with self._explained(), self._lock:
            row = self._db.execute(f"SELECT {columns} FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else Stored(*row)

    def record(self, send: int | None, reply: Stored, label: Label) -> None:
        """File a reply and settle its call, if that is not settled. A reply that was filed before stays, and this
        one is owed all the same.
        """
        with self._explained(), self._transaction():
            if send is not None:
                self._settle(send, "paid", Cost(reply.input_tokens + reply.output_tokens, reply.nano_usd))
            self._db.execute(
                "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                (reply.key, label.model, label.host, label.kind, reply.status, reply.text, label.request_bytes,
                 reply.input_tokens, reply.output_tokens, reply.nano_usd, _now()),
            )  # fmt: skip

    def usage(self, model: str, host: str) -> dict[str, tuple[int, int, int, int]]:
        """Per kind: complete replies, and the sums of their request bytes, input tokens and output tokens."""
        query = (
            "SELECT kind, count(*), sum(request_bytes), sum(input_tokens), sum(output_tokens) FROM replies "
            "WHERE model = ? AND host = ? AND status = 'complete' GROUP BY kind"
        )
        with self._explained(), self._lock:
            return {row[0]: row[1:] for row in self._db.execute(query, (model, host)).fetchall()}

    # -- the account -------------------------------------------------------------------------

    @property
    def total(self) -> Cost:
        """All that is owed, and the worst case of every call whose outcome is not known."""
        with self._explained(), self._lock:
            return self._total()

    @property
    def unconfirmed(self) -> Cost:
        """The part of :attr:`total` that belongs to calls in flight or lost: they may have been charged."""
        query = (
            "SELECT coalesce(sum(tokens), 0), coalesce(sum(nano_usd), 0) FROM account AS sent WHERE send IS NULL "
            "AND NOT EXISTS (SELECT 1 FROM account AS outcome WHERE outcome.send = sent.id)"
        )
        with self._explained(), self._lock:
            return Cost(*self._db.execute(query).fetchone())

    def reserve(self, key: str, worst: Cost, budget: Budget) -> int | None:
        """Add the worst case of a call that is about to be sent; None where the budget has no room for it."""
        with self._explained(), self._transaction():
            return self._reserve(key, worst, budget)

    def free(self, *sends: int) -> None:
        """Take back the worst case of calls that were certainly not charged."""
        with self._explained(), self._transaction():
            for send in sends:
                self._settle(send, "free", Cost(0, 0))

    def _reserve(self, key: str, worst: Cost, budget: Budget) -> int | None:
        total = self._total()
        if budget.tokens is not None and total.tokens + worst.tokens > budget.tokens:
            return None
        if budget.usd is not None and total.nano_usd + worst.nano_usd > round(budget.usd * NANO):
            return None
        return self._add(None, key, "sent", worst)

    def _settle(self, send: int, what: str, cost: Cost) -> None:
        row = self._db.execute("SELECT key, tokens, nano_usd FROM account WHERE id = ?", (send,)).fetchone()
        if self._db.execute("SELECT 1 FROM account WHERE send = ?", (send,)).fetchone() is None:
            self._add(send, row[0], what, Cost(cost.tokens - row[1], cost.nano_usd - row[2]))

    def _add(self, send: int | None, key: str, what: str, change: Cost) -> int:
        total = self._total()
        cursor = self._db.execute(
            "INSERT INTO account (send, key, what, tokens, nano_usd, total_tokens, total_nano_usd, created) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (send, key, what, change.tokens, change.nano_usd,
             total.tokens + change.tokens, total.nano_usd + change.nano_usd, _now()),
        )  # fmt: skip
        return cursor.fetchall()[0][0]  # all of it: SQLite commits no statement that is under way

    def _total(self) -> Cost:
        row = self._db.execute("SELECT total_tokens, total_nano_usd FROM account ORDER BY id DESC LIMIT 1").fetchone()
        return Cost(*row) if row else Cost(0, 0)

    # -- batches -----------------------------------------------------------------------------

    def plan_batch(
        self, token: str, scope: str, calls: Sequence[tuple[str, str, int, Cost]], budget: Budget
    ) -> dict[str, Member]:
        """Reserve as many calls (key, kind, bytes, worst case) as the budget has room for, in order, and note the plan.

        Args:
            token: our own name of the batch. scope: the host and model.

        Returns:
            Those that have room, by key; nothing is noted when there are none.
        """
        with self._explained(), self._transaction():
            members: dict[str, Member] = {}
            for key, kind, size, worst in calls:
                send = self._reserve(key, worst, budget)
                if send is None:
                    break
                members[key] = Member(send, kind, size)
            if members:
                self._batch_event(token, "planned", json.dumps({"scope": scope, "members": members}))
            return members

    def batch_submitted(self, token: str, batch: str) -> None:
        """Note the server's id of a planned batch."""
        with self._explained(), self._transaction():
            self._batch_event(token, "submitted", batch)

    def batch_closed(self, token: str) -> None:
        """Note that all replies of a batch are filed."""
        with self._explained(), self._transaction():
            self._batch_event(token, "closed", "")

    def open_batches(self, scope: str) -> list[OpenBatch]:
        """Batches of a scope that are not closed, oldest first."""
        query = (
            "SELECT token, content, (SELECT content FROM batches AS s WHERE s.token = b.token AND event = 'submitted') "
            "FROM batches AS b WHERE event = 'planned' AND NOT EXISTS "
            "(SELECT 1 FROM batches AS c WHERE c.token = b.token AND c.event = 'closed') ORDER BY id"
        )
        with self._explained(), self._lock:
            rows = self._db.execute(query).fetchall()
        plans = [(token, batch, json.loads(content)) for token, content, batch in rows]
        return [
            OpenBatch(token, batch, {key: Member(*row) for key, row in plan["members"].items()})
            for token, batch, plan in plans
            if plan["scope"] == scope
        ]

    def _batch_event(self, token: str, event: str, content: str) -> None:
        row = (token, event, content, _now())
        self._db.execute("INSERT INTO batches (token, event, content, created) VALUES (?, ?, ?, ?)", row)

    # -- mechanics ---------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            if isinstance(self._db, PostgresConnection):
                self._db.begin()
            else:
                self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if not isinstance(error, sqlite3.OperationalError):
                advice = _DAMAGED
            elif "locked" in str(error):
                advice = "end the process that holds it, then run again"
            else:
                advice = "make the file and its folder writable, with room on the disk, then run again: nothing is lost"
            raise LedgerError(
                f"the ledger {self.path} cannot be used",
                expected="the SQLite file that this project wrote, writable",
                found=str(error),
                fix=advice,
            ) from None


def _now() -> int:
    return int(time.time())
