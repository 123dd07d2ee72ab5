"""The ledger: append-only, exact sums, budgets that hold over processes, and damage that is told."""

import multiprocessing
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core.remote.errors import LedgerError
from sidr_core.remote.ledger import Cost, Label, Ledger, Stored, ledger_path, price_of
from sidr_core.settings import Budget, Price

LABEL = Label("m", "h", "note", 100)
FREE_OF_LIMIT = Budget()


def stored(key="k", text="{}", usd=7, status="complete"):
    return Stored(key, status, text, 3, 4, usd)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite")


def test_place(monkeypatch, tmp_path):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path))
    assert ledger_path() == tmp_path / "ledger.sqlite"


@pytest.mark.parametrize(
    ("tokens", "discount", "nano"),
    [((1000, 100), 1.0, 210_000), ((1000, 100), 0.5, 105_000), ((1, 0), 1.0, 150), ((0, 0), 1.0, 0)],
)
def test_prices_by_hand(tokens, discount, nano):
    # 0.15 USD per million = 150 nano-USD per token; 0.60 = 600.
    cost = price_of(Price(input=0.15, output=0.6), *tokens, discount)
    assert cost == Cost(sum(tokens), nano)
    assert cost.usd == nano / 1e9


def test_a_fraction_of_a_nano_usd_rounds_up():
    assert price_of(Price(input=0.0004, output=0), 3, 0).nano_usd == 2  # 1.2


def test_a_reply_is_read_as_written_and_the_first_wins(ledger, tmp_path):
    first, second = ledger.reserve("k", Cost(9, 20), FREE_OF_LIMIT), ledger.reserve("k", Cost(9, 20), FREE_OF_LIMIT)
    assert ledger.find("k") is None
    ledger.record(first, stored(text="first"), LABEL)
    ledger.record(second, stored(text="second", usd=5), LABEL)
    assert ledger.find("k") == stored(text="first")
    assert Ledger(tmp_path / "ledger.sqlite").find("k") == stored(text="first")
    assert ledger.total == Cost(14, 12)  # both were paid: 3 + 4 tokens twice, 7 + 5 nano-USD


def test_the_account_holds_the_worst_case_until_the_outcome_is_known(ledger):
    paid, free, lost = (ledger.reserve(key, Cost(100, 1000), FREE_OF_LIMIT) for key in "abc")
    assert ledger.total == ledger.unconfirmed == Cost(300, 3000)
    ledger.record(paid, stored("a"), LABEL)
    ledger.free(free)
    ledger.free(free, paid)  # what is settled stays settled
    assert ledger.total == Cost(107, 1007)
    assert ledger.unconfirmed == Cost(100, 1000)
    assert lost is not None


def test_nothing_can_be_changed_or_removed(ledger, tmp_path):
    ledger.record(ledger.reserve("k", Cost(1, 1), FREE_OF_LIMIT), stored(), LABEL)
    ledger.plan_batch("t", "s", [("x", "note", 1, Cost(1, 1))], FREE_OF_LIMIT)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        for table in ("replies", "account", "batches"):
            for statement in (f"UPDATE {table} SET created = 0", f"DELETE FROM {table}"):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    db.execute(statement)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


@pytest.mark.parametrize(
    ("budget", "fits"),
    [(Budget(tokens=20), 2), (Budget(tokens=19), 1), (Budget(usd=3e-9), 3), (Budget(usd=0), 0), (Budget(), 5),
     (Budget(usd=3e-9, tokens=10), 1)],
)  # fmt: skip
def test_reservations_stop_at_the_budget(ledger, budget, fits):
    given = [ledger.reserve(str(n), Cost(10, 1), budget) for n in range(5)]
    assert [send is not None for send in given] == [n < fits for n in range(5)]


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 50), st.sampled_from(["free", "pay", "lose"])), max_size=30))
def test_the_total_is_the_sum_of_its_parts_and_within_the_budget(steps, tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite")
    budget, expected, lost = Budget(tokens=300), 0, 0
    for number, (worst, outcome) in enumerate(steps):
        send = ledger.reserve(str(number), Cost(worst, 10 * worst), budget)
        assert (send is None) == (expected + worst > 300)
        if send is None:
            continue
        if outcome == "free":
            ledger.free(send)
        elif outcome == "pay":
            true = worst // 2
            ledger.record(send, Stored(str(number), "complete", "", true, 0, 10 * true), LABEL)
            expected += true
        else:
            expected, lost = expected + worst, lost + worst
        assert ledger.total == Cost(expected, 10 * expected)
    assert ledger.unconfirmed.tokens == lost
    ledger.close()


def _reserve_many(path, name, count, queue):
    ledger = Ledger(path)
    queue.put(sum(ledger.reserve(f"{name}{n}", Cost(1, 1), Budget(tokens=150)) is not None for n in range(count)))


def test_two_processes_share_one_budget(tmp_path):
    spawn = multiprocessing.get_context("fork")
    queue = spawn.Queue()
    path = tmp_path / "ledger.sqlite"
    workers = [spawn.Process(target=_reserve_many, args=(path, name, 100, queue)) for name in "ab"]
    for worker in workers:
        worker.start()
    assert sum(queue.get(timeout=60) for _ in workers) == 150
    for worker in workers:
        worker.join()
    assert Ledger(path).total == Cost(150, 150)


def test_a_killed_writer_leaves_a_readable_ledger(tmp_path):
    code = (
        "import sys; from pathlib import Path; from sidr_core.settings import Budget\n"
        "from sidr_core.remote.ledger import *\n"
        "ledger = Ledger(Path(sys.argv[1])); n = 0\n"
        "while True:\n"
        "    send = ledger.reserve(str(n), Cost(10, 10), Budget())\n"
        "    ledger.record(send, Stored(str(n), 'complete', 'x' * 500, 1, 1, 2), Label('m', 'h', 'k', 1))\n"
        "    print(n, flush=True); n += 1\n"
    )
    path = tmp_path / "ledger.sqlite"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    told = [int(child.stdout.readline()) for _ in range(30)][-1]
    child.kill()
    told = max([told, *(int(line) for line in child.stdout.read().split())])
    child.wait()
    ledger = Ledger(path)
    assert all(ledger.find(str(n)) for n in range(told + 1))  # what was said to be filed is filed
    assert ledger.unconfirmed.tokens in (0, 10)
    assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    ("damage", "advice"),
    [("foreign", "keep the file"), ("torn", "keep the file"), ("newer", "version"), ("folder", "writable")],
)
def test_damage_is_told(tmp_path, damage, advice):
    path = tmp_path / "ledger.sqlite"
    if damage == "foreign":
        path.write_bytes(b"these are no pages of a database at all" * 100)
    elif damage == "folder":
        path.mkdir()
    else:
        ledger = Ledger(path)
        for n in range(60):
            ledger.record(None, stored(str(n), "x" * 500), LABEL)
        ledger.close()
        if damage == "torn":
            content = path.read_bytes()
            path.write_bytes(content[:100] + b"\xff" * 15_000 + content[15_100:])
        else:
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version=99")
    with pytest.raises(LedgerError, match=advice):
        found = Ledger(path)
        found.find("7")


def test_usage_is_summed_by_kind_of_complete_replies(ledger):
    for key, status in (("a", "complete"), ("b", "complete"), ("c", "truncated")):
        ledger.record(None, stored(key, status=status), LABEL)
    assert ledger.usage("m", "h") == {"note": (2, 200, 6, 8)}
    assert ledger.usage("m", "elsewhere") == {}


def test_batches_are_open_until_they_are_closed(ledger):
    calls = [(key, "note", 5, Cost(10, 1)) for key in "abc"]
    members = ledger.plan_batch("t1", "scope", calls, Budget(tokens=25))
    assert list(members) == ["a", "b"]  # as many as there is room for
    assert ledger.plan_batch("t2", "scope", calls, Budget(tokens=25)) == {}
    (batch,) = ledger.open_batches("scope")
    assert (batch.token, batch.identifier, batch.members) == ("t1", None, members)
    ledger.batch_submitted("t1", "server-7")
    assert ledger.open_batches("scope")[0].identifier == "server-7"
    assert ledger.open_batches("another") == []
    ledger.batch_closed("t1")
    assert ledger.open_batches("scope") == []
