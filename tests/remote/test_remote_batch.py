"""The Batch API: half the price, one submission whatever happens, and failures that go into the next batch."""

import inspect
import threading
import time

import pytest

from builders.remote import PRICE, ScriptedServer, client, note, notes
from builders.stage import QUIET
from sidr_core.pipeline.stage import Progress
from sidr_core.remote import batch
from sidr_core.remote.errors import BudgetExhausted, EndpointError, TeacherUnavailable
from sidr_core.settings import Budget


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(batch, "POLL_SECONDS", 0.01)


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(monkeypatch, owner, name, after=False):
    """Make a method end the process before it does its work, or after it."""
    real = getattr(owner, name)

    def dying(*args, **kwargs):
        if after:
            real(*args, **kwargs)
        raise Killed

    async def dying_later(*args, **kwargs):
        if after:
            await real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, dying_later if inspect.iscoroutinefunction(real) else dying)


def test_a_batch_costs_half_and_gives_the_same_replies(path, tmp_path):
    with ScriptedServer() as server:
        asking = client(server, path, batch=True)
        lines = []
        replies = asking.ask(notes(9), Progress(lines.append))
        assert (server.requests, server.calls, len(server.batches)) == (0, 9, 1)
        assert asking.ledger.total.usd == pytest.approx(server.usd(PRICE.input, PRICE.output))  # it charges half
        whole = client(server, tmp_path / "other.sqlite").ask(notes(9), QUIET)
        assert [reply.value for reply in replies] == [reply.value for reply in whole]
        assert sum(reply.usd for reply in replies) == pytest.approx(sum(reply.usd for reply in whole) / 2)
        assert any("9 of 9 replies of batch" in line for line in lines)
        assert all(reply.reused for reply in asking.ask(notes(9), QUIET)) and len(server.batches) == 1
        # What a batch brought is on file for calls, too.
        assert all(reply.reused for reply in client(server, path).ask(notes(9), QUIET))
    assert asking.ledger.unconfirmed.tokens == 0


@pytest.mark.parametrize(
    ("owner", "name", "after", "batches"),
    [
        ("ledger", "plan_batch", True, 1),  # planned, not submitted: submitted once by the restart
        ("ledger", "batch_submitted", False, 1),  # submitted, the server's id not noted: found by our name
        ("ledger", "batch_submitted", True, 1),  # noted, not polled
        ("ledger", "record", False, 1),  # half way through the output
        ("ledger", "batch_closed", False, 1),  # all filed, not closed
    ],
)
def test_a_restart_goes_on_with_the_batch(path, monkeypatch, owner, name, after, batches):
    with ScriptedServer() as server:
        with monkeypatch.context() as patch:
            asking = client(server, path, batch=True)
            patch.setattr(batch, "POLL_SECONDS", 0.01)
            kill_at(patch, asking.ledger if owner == "ledger" else batch, name, after)
            with pytest.raises(BaseExceptionGroup):
                asking.ask(notes(5), QUIET)
        replies = client(server, path, batch=True).ask(notes(5), QUIET)
        assert all(reply.value for reply in replies)
        assert (len(server.batches), server.calls, server.repeated) == (batches, 5, 0)
        ledger = client(server, path).ledger
        assert ledger.total.usd == pytest.approx(server.usd(PRICE.input, PRICE.output))
        client(server, path, batch=True).ask([note(99)], QUIET)  # the next run closes what is left open
        assert ledger.open_batches("127.0.0.1 m") == [] and len(server.batches) == batches + 1


def test_a_batch_that_the_server_forgot_is_asked_anew_and_counted_as_paid(path, monkeypatch):
    with ScriptedServer() as server, monkeypatch.context() as patch:
        asking = client(server, path, batch=True)
        kill_at(patch, asking.ledger, "batch_submitted", after=True)
        with pytest.raises(BaseExceptionGroup):
            asking.ask(notes(5), QUIET)
    with ScriptedServer() as forgetful:
        replies = client(forgetful, path, batch=True).ask(notes(5), QUIET)
        assert all(reply.value for reply in replies) and len(forgetful.batches) == 1
        ledger = client(forgetful, path).ledger
        assert ledger.open_batches("127.0.0.1 m") == [] and ledger.unconfirmed.tokens > 5 * 48


def test_an_unfinished_batch_of_other_requests_is_collected_too(path, monkeypatch):
    with ScriptedServer() as server:
        with monkeypatch.context() as patch:
            asking = client(server, path, batch=True)
            kill_at(patch, asking.ledger, "batch_submitted", after=True)
            with pytest.raises(BaseExceptionGroup):
                asking.ask(notes(5), QUIET)
        client(server, path, batch=True).ask([note(99)], QUIET)
        assert len(server.batches) == 2
        assert all(reply.reused for reply in client(server, path).ask(notes(5), QUIET))


def test_a_lost_answer_does_not_submit_twice(path):
    with ScriptedServer(lose_batches=1) as server:
        assert all(reply.value for reply in client(server, path, batch=True).ask(notes(5), QUIET))
        assert (len(server.batches), server.repeated) == (1, 0)


def test_failures_of_lines_go_into_the_next_batch_or_into_quarantine(path):
    first = ["ok", "missing", "500", "not_json", "too_long", "429", "refusal"]
    seen = []

    def line(number, body):
        seen.append(body["messages"][1]["content"])
        return first[number] if len(seen) <= len(first) else "ok"

    with ScriptedServer(line=line) as server:
        asking = client(server, path, batch=True)
        replies = asking.ask(notes(7), QUIET)
        assert [reply.reason for reply in replies] == ["", "", "", "", "rejected", "", "refusal"]
        assert len(server.batches) == 2 and seen[7:] == ["about 1", "about 2", "about 3", "about 5"]
        assert asking.ledger.total.usd == pytest.approx(server.usd(PRICE.input, PRICE.output))
    assert asking.ledger.usage("m", "127.0.0.1")["repair of note"][0] == 1


def test_an_expired_batch_is_asked_again_and_a_barren_server_given_up(path):
    with ScriptedServer(batch_status="expired", line=lambda number, body: "ok" if number == 0 else "missing") as server:
        replies = client(server, path, batch=True).ask(notes(3), QUIET)
        assert all(reply.value for reply in replies) and len(server.batches) == 3
        assert server.repeated == 0
    with ScriptedServer(batch_status="expired", line=lambda number, body: "missing") as server:
        asking = client(server, path, batch=True)
        with pytest.raises(TeacherUnavailable, match="without a reply"):
            asking.ask(notes(6), QUIET)
        assert len(server.batches) == 2 and asking.ledger.unconfirmed.tokens == 0


@pytest.mark.parametrize("fields", [{"batch_status": "failed"}, {"line": lambda number, body: "404"}])
def test_a_batch_that_is_refused_ends_at_once_and_costs_nothing(path, fields):
    with ScriptedServer(**fields) as server:
        asking = client(server, path, batch=True)
        with pytest.raises(EndpointError):
            asking.ask(notes(3), QUIET)
        assert len(server.batches) == 1
    assert asking.ledger.total.tokens == 0 and asking.ledger.open_batches("127.0.0.1 m") == []


def test_the_budget_cuts_a_batch(path):
    with ScriptedServer() as server:
        asking = client(server, path, batch=True, budget=Budget(tokens=1500))
        with pytest.raises(BudgetExhausted):
            asking.ask(notes(60), QUIET)
        assert 0 < server.calls < 60
        assert server.input_tokens + server.output_tokens <= asking.ledger.total.tokens <= 1500
    with ScriptedServer() as server:
        replies = client(server, path, batch=True).ask(notes(60), QUIET)
        assert all(reply.value for reply in replies) and server.repeated == 0


def test_requests_are_cut_into_batches_of_the_size_that_is_taken(path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 4)
    with ScriptedServer() as server:
        assert all(reply.value for reply in client(server, path, batch=True).ask(notes(10), QUIET))
        assert [one["request_counts"]["total"] for one in server.batches.values()] == [4, 4, 2]


def test_one_process_at_a_time(path):
    """A second one waits, says so, and finds everything paid for."""
    lines = []
    with ScriptedServer(polls=20) as server:
        threads = [
            threading.Thread(
                target=lambda emit=emit: client(server, path, batch=True).ask(notes(5), Progress(emit)), daemon=True
            )
            for emit in (lambda line: None, lines.append)
        ]
        threads[0].start()
        while not server.batches:
            time.sleep(0.01)
        threads[1].start()
        for thread in threads:
            thread.join(30)
        assert (len(server.batches), server.repeated) == (1, 0)
    assert "waiting for another process, which has batches under way" in lines[0]
