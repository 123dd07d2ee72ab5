"""The ledger on Postgres: the same account for several machines, never past the budget, append-only."""

import json
import subprocess
import sys
import textwrap

import pytest
from filelock import Timeout

from builders import postgres
from sidr_core.cli.doctor import check_ledger
from sidr_core.remote.errors import LedgerError
from sidr_core.remote.ledger import Cost, Label, Ledger, Stored
from sidr_core.settings import Budget

if postgres.binaries() is None:
    pytest.skip("there is no Postgres here: apt-get install postgresql", allow_module_level=True)
psycopg2 = pytest.importorskip("psycopg2", reason="the extra `cluster` is not installed: pip install '.[cluster]'")

LABEL = Label("model", "host", "kind", 7)


@pytest.fixture(scope="module")
def url():
    """An empty database; user and password stand in the environment only."""
    with postgres.running() as environment, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGUSER", environment["SIDR_PG_USER"])
        patch.setenv("PGPASSWORD", environment["SIDR_PG_PASSWORD"])
        yield f"postgresql://127.0.0.1:{environment['SIDR_PG_PORT']}/postgres"


def test_a_reply_is_filed_once_and_seen_by_others(url):
    one, two = Ledger(url), Ledger(url)
    send = one.reserve("k", Cost(100, 1000), Budget(tokens=500))
    one.record(send, Stored("k", "complete", "50 % of a\0text?", 10, 20, 300), LABEL)
    two.record(None, Stored("k", "complete", "a second", 10, 20, 300), LABEL)
    assert two.find("k") == Stored("k", "complete", "50 % of a\ufffdtext?", 10, 20, 300)
    assert two.find("other") is None
    assert two.total == one.total == Cost(30, 300)
    assert two.usage("model", "host") == {"kind": (1, 7, 10, 20)}
    lost = two.reserve("lost", Cost(5, 50), Budget())
    assert one.unconfirmed == Cost(5, 50)
    one.free(lost)
    assert (two.unconfirmed, two.total) == (Cost(0, 0), Cost(30, 300))
    one.verify()
    for ledger in (one, two):
        ledger.close()


@pytest.mark.cluster("T6")
def test_batches_are_planned_within_the_budget_and_found_again(url):
    ledger = Ledger(url)
    room = ledger.total.tokens + 250
    calls = [(f"b{n}", "kind", 9, Cost(100, 0)) for n in range(3)]
    planned = ledger.plan_batch("token", "scope", calls, Budget(tokens=room))
    assert list(planned) == ["b0", "b1"]
    ledger.batch_submitted("token", "server-7")
    (batch,) = ledger.open_batches("scope")
    assert (batch.identifier, batch.members) == ("server-7", planned)
    assert ledger.open_batches("another scope") == []
    ledger.batch_closed("token")
    assert ledger.open_batches("scope") == []
    lock, other = ledger.batches_lock(), ledger.batches_lock()
    lock.acquire()
    with pytest.raises(Timeout):
        other.acquire(timeout=0.05)
    lock.release()
    other.acquire(timeout=0.05)
    other.release()
    ledger.free(*(member.send for member in planned.values()))
    ledger.close()


SPENDER = """
import json, sys
from sidr_core.remote.ledger import Cost, Ledger
from sidr_core.settings import Budget

ledger, limit = Ledger(sys.argv[1]), int(sys.argv[2])
sends = [ledger.reserve("race", Cost(10, 0), Budget(tokens=limit)) for _ in range(120)]
print(json.dumps(sum(send is not None for send in sends)))
"""


@pytest.mark.cluster("T6")
def test_two_machines_never_spend_more_than_the_budget(url):
    ledger = Ledger(url)
    before = ledger.total.tokens
    command = [sys.executable, "-c", textwrap.dedent(SPENDER), url, str(before + 1500)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    taken = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(taken) == 150 and min(taken) > 0
    assert ledger.total.tokens == before + 1500
    ledger.verify()
    ledger.close()


@pytest.mark.cluster("T6")
@pytest.mark.parametrize("statement", ["update account set tokens = 0", "delete from replies", "truncate batches"])
def test_the_ledger_is_append_only(url, statement):
    Ledger(url).close()
    with pytest.raises(psycopg2.Error, match="append-only"), psycopg2.connect(url) as connection:
        connection.cursor().execute(statement)


def test_a_ledger_of_another_version_is_refused(url):
    Ledger(url).close()
    with psycopg2.connect(url) as connection:
        connection.cursor().execute("update ledger_version set version = 99")
    with pytest.raises(LedgerError, match="of another version"):
        Ledger(url)
    with psycopg2.connect(url) as connection:
        connection.cursor().execute("update ledger_version set version = 1")


def test_errors_show_no_password(url, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "wrong-secret")
    with pytest.raises(LedgerError, match="cannot be used") as caught:
        Ledger(url)
    assert "wrong-secret" not in str(caught.value) and postgres.PASSWORD not in str(caught.value)
    monkeypatch.setenv("SIDR_LEDGER", "postgresql://me:wrong-secret@host/db")
    finding, spent = check_ledger()
    assert (finding.state, spent) == ("fail", None) and "wrong-secret" not in finding.found


def test_the_environment_names_the_ledger(url, monkeypatch):
    monkeypatch.setenv("SIDR_LEDGER", url)
    finding, spent = check_ledger()
    assert finding.state == "ok" and spent is not None
