"""The client against a real HTTP server on loopback that misbehaves by script."""

import hashlib
import sqlite3
import threading

import pytest

from builders.remote import PRICE, Note, ScriptedServer, client, endpoint, note, notes
from builders.stage import QUIET
from sidr_core.errors import SidrError
from sidr_core.pipeline.stage import Progress
from sidr_core.remote import retry
from sidr_core.remote.client import Client, Estimate
from sidr_core.remote.errors import BudgetExhausted, EndpointError, TeacherUnavailable
from sidr_core.remote.ledger import Ledger
from sidr_core.settings import Budget, Price


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(retry, "LONGEST", 0.05)


def test_replies_come_in_order_and_equal_requests_are_asked_once(path):
    lines = []
    with ScriptedServer(latency=0.01) as server:
        asking = client(server, path)
        replies = asking.ask([note(2), note(1), note(2), note(1, kind="other label")], Progress(lines.append))
    assert [reply.value for reply in replies] == [
        replies[0].value,
        replies[1].value,
        replies[0].value,
        replies[1].value,
    ]
    assert server.calls == 2
    text = hashlib.sha256(b"about 2").hexdigest()[:12]
    assert replies[0].value == Note(text=f"about {text}", score=7)
    assert replies[0].value != replies[1].value
    assert not any(reply.reused or reply.reason for reply in replies)
    assert lines[-1].startswith("2 of 2 replies, 0.000")


def test_a_second_run_makes_no_call_and_gives_the_same(path):
    with ScriptedServer() as server:
        first = client(server, path).ask(notes(9), QUIET)
        again = client(server, path, concurrency=1, retries=0).ask(notes(9), QUIET)
        more = client(server, path).ask(notes(12), QUIET)
        assert server.calls == 12 and server.repeated == 0
    assert [reply.value for reply in again] == [reply.value for reply in first]
    assert all(reply.reused for reply in again) and sum(reply.reused for reply in more) == 9
    assert again[0].usd == first[0].usd > 0


def test_a_reply_is_paid_for_once_wherever_the_server_moves_but_not_for_another_model(path):
    with ScriptedServer() as server:
        client(server, path).ask(notes(3), QUIET)
    with ScriptedServer() as moved:
        client(moved, path).ask(notes(3), QUIET)
        assert moved.calls == 0
        client(moved, path, model="another").ask(notes(3), QUIET)
        assert moved.calls == 3


def test_the_account_is_what_the_server_charged(path):
    with ScriptedServer() as server:
        asking = client(server, path)
        replies = asking.ask(notes(8), QUIET)
        assert asking.ledger.total.usd == pytest.approx(server.usd(PRICE.input, PRICE.output))
        assert asking.ledger.total.tokens == server.input_tokens + server.output_tokens
        assert sum(reply.usd for reply in replies) == pytest.approx(asking.ledger.total.usd)
    assert asking.ledger.unconfirmed.tokens == 0


@pytest.mark.parametrize("form", ["json_schema", "json_object", "prompt"])
@pytest.mark.parametrize("fault", ["ok", "fenced", "thinking", "no_usage"])
def test_replies_that_are_fine(path, fault, form):
    with ScriptedServer(fault=fault) as server:
        replies = client(server, path, form=form).ask(notes(3), QUIET)
    assert all(reply.value for reply in replies)


@pytest.mark.parametrize(
    "fault", ["429", "429_date", "408", "500", "503", "hang", "drip", "truncated", "cut", "reset", "empty_choices",
              "error_200", "not_json", "wrong_schema"],
)  # fmt: skip
def test_faults_that_pass(path, fault):
    """Three times, then well: every reply comes, and the account covers what was charged."""
    seconds = 0.3 if fault in ("hang", "drip") else 5
    with ScriptedServer(fault=fault, times=3) as server:
        asking = client(server, path, timeout_seconds=seconds, retries=5)
        replies = asking.ask(notes(8), QUIET)
        charged = server.usd(PRICE.input, PRICE.output)
        assert server.requests == 11
        assert asking.ledger.total.usd >= charged - 1e-9
    assert all(reply.value for reply in replies)
    with ScriptedServer() as server:
        assert client(server, path).ask(notes(8), QUIET) == [
            reply.__class__(**{**vars(reply), "reused": True}) for reply in replies
        ]
        assert server.requests == 0


@pytest.mark.parametrize("fault", ["500", "hang", "drip", "truncated", "reset", "empty_choices", "error_200"])
def test_faults_for_ever_end_in_bounded_time_and_can_be_resumed(path, fault):
    """Well for four requests, then never again; then the server is mended."""
    with ScriptedServer(behave=lambda number, body: fault if number >= 4 else "ok") as server:
        asking = client(server, path, timeout_seconds=0.3, retries=1, give_up_after=3)
        with pytest.raises(TeacherUnavailable):
            asking.ask(notes(40), QUIET)
        assert server.requests < 4 + 2 * (3 + 4)
        assert asking.ledger.total.usd >= server.usd(PRICE.input, PRICE.output) - 1e-9
    with ScriptedServer() as server:
        replies = client(server, path).ask(notes(40), QUIET)
        assert server.requests == 36 and all(reply.value for reply in replies)


def test_a_refused_connection_costs_nothing_and_can_be_resumed(path):
    server = ScriptedServer()
    asking = client(server, path)
    with pytest.raises(TeacherUnavailable, match="no connection"):
        asking.ask(notes(8), QUIET)
    assert asking.ledger.total.tokens == 0
    with server:
        assert all(reply.value for reply in asking.ask(notes(8), QUIET))


@pytest.mark.parametrize(
    ("fault", "told"),
    [("400", "HTTP 400"), ("401", "HTTP 401"), ("404", "base_url"), ("422", "HTTP 422"), ("quota", "add credit")],
)
def test_refusals_on_principle_end_at_once(path, fault, told):
    with ScriptedServer(fault=fault) as server:
        with pytest.raises(EndpointError, match=told):
            client(server, path).ask(notes(40), QUIET)
        assert server.requests <= 4  # those in flight


@pytest.mark.parametrize(
    ("fault", "reason", "calls"),
    [("refusal", "refusal", 1), ("length", "truncated", 1), ("content_filter", "content_filter", 1),
     ("too_long", "rejected", 0), ("wrong_schema", "wrong_schema", 2), ("not_json", "no_json", 2)],
)  # fmt: skip
def test_quarantine_is_paid_once(path, fault, reason, calls):
    """One prompt never gets a usable reply; it is not asked again, the others are not touched."""

    def behave(number, body):
        return fault if body["messages"][1]["content"] == "about 3" else "ok"

    with ScriptedServer(behave=behave) as server:
        asking = client(server, path)
        replies = asking.ask(notes(6), QUIET)
        assert [reply.reason for reply in replies] == ["", "", "", reason, "", ""]
        assert replies[3].value is None
        assert server.calls == 5 + calls
        before = server.requests
        again = asking.ask(notes(6), QUIET)
        assert server.requests == before and again[3].reason == reason
    assert asking.answered(note(3)) is None
    assert asking.answered(note(4)) == replies[4].value


def test_the_repair_is_one_request_with_its_own_record(path):
    with ScriptedServer(fault="not_json", times=1) as server:
        asking = client(server, path)
        (reply,) = asking.ask([note(1)], QUIET)
        assert server.requests == 2 and reply.value and reply.output_tokens > 0
        assert reply.usd == pytest.approx(server.usd(PRICE.input, PRICE.output))
    assert list(asking.ledger.usage("m", "127.0.0.1")) == ["note", "repair of note"]


def test_a_model_that_never_writes_the_form_is_given_up_before_it_costs_everything(path):
    with ScriptedServer(fault="wrong_schema") as server:
        with pytest.raises(TeacherUnavailable, match="none of the first"):
            client(server, path, give_up_after=5).ask(notes(200), QUIET)
        assert server.requests <= 2 * (5 + 4)
    with ScriptedServer(behave=lambda number, body: "ok" if number == 0 else "refusal") as server:
        replies = client(server, path, give_up_after=5, model="weak").ask(notes(30), QUIET)
        assert sum(reply.value is not None for reply in replies) == 1


# -- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["ok", "hang", "reset", "wrong_schema", "no_usage"])
@pytest.mark.parametrize("limit", [Budget(usd=0.003), Budget(tokens=1500)])
def test_the_budget_is_never_exceeded_and_can_be_raised(path, fault, limit):
    with ScriptedServer(fault=fault, times=None if fault == "ok" else 4) as server:
        asking = client(server, path, budget=limit, timeout_seconds=0.3, concurrency=8)
        with pytest.raises(BudgetExhausted, match=r"incomplete \(budget\)"):
            asking.ask(notes(100), QUIET)
        total = asking.ledger.total
        assert server.usd(PRICE.input, PRICE.output) <= total.usd + 1e-9
        assert limit.usd is None or total.usd <= limit.usd
        assert limit.tokens is None or total.tokens <= limit.tokens
        filed = client(server, path).estimate(notes(100)).reused
    with ScriptedServer() as server:
        replies = client(server, path, budget=Budget(usd=1)).ask(notes(100), QUIET)
        assert all(reply.value for reply in replies)
        # A reply of the wrong form is on file without being done: it has its repair left.
        assert 100 - filed - 4 <= server.requests <= 100 - filed


def test_the_budget_is_used_up_to_less_than_one_worst_case(path):
    with ScriptedServer(latency=0.005) as server:
        asking = client(server, path, budget=Budget(tokens=3000), concurrency=8)
        with pytest.raises(BudgetExhausted):
            asking.ask(notes(300), QUIET)
    step = asking.dialogue.next(note(1), lambda key: None)
    worst = asking.worst(step).tokens
    assert 3000 - worst - 60 < asking.ledger.total.tokens <= 3000  # the repair of no call is pending
    assert worst > 4 * (step.size // 4 + 10)


def test_a_budget_of_nothing_calls_nothing(path):
    with ScriptedServer() as server:
        with pytest.raises(BudgetExhausted):
            client(server, path, budget=Budget(tokens=0)).ask(notes(3), QUIET)
        assert server.requests == 0


def test_two_clients_at_once_share_the_budget_and_the_replies(path):
    """Two threads with ledgers of their own, as two processes would have: together within the budget."""
    with ScriptedServer(latency=0.01) as server:
        ended = []

        def ask():
            try:
                client(server, path, budget=Budget(tokens=6000), concurrency=8).ask(notes(200), QUIET)
            except SidrError as error:
                ended.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(error) for error in ended] == [BudgetExhausted] * 2
        assert server.input_tokens + server.output_tokens <= Ledger(path).total.tokens <= 6000


def test_a_budget_in_usd_needs_a_price_elsewhere_than_here(path):
    ledger = Ledger(path)
    with pytest.raises(SidrError, match="no price"):
        Client(endpoint("https://llm.example/v1"), ledger, Budget(usd=1), Price())
    Client(endpoint("http://127.0.0.1:1/v1"), ledger, Budget(usd=1), Price())
    Client(endpoint("https://llm.example/v1"), ledger, Budget(tokens=1), Price())


# -- estimates -----------------------------------------------------------------------------------


def test_an_estimate_counts_replies_at_their_longest_until_something_is_measured(path):
    with ScriptedServer() as server:
        asking = client(server, path)
        guess = asking.estimate(notes(20))
        assert (guess.calls, guess.reused, guess.output_tokens, guess.measured) == (20, 0, 20 * 48, 0)
        assert guess.usd == pytest.approx((guess.input_tokens * 1 + guess.output_tokens * 2) / 1e6)
        assert server.requests == 0
        asking.ask(notes(5), QUIET)
        better = asking.estimate(notes(20))
        assert (better.calls, better.reused, better.measured) == (15, 5, 5)
        spent = asking.ledger.total.usd
        asking.ask(notes(20), QUIET)
        assert better.usd == pytest.approx(asking.ledger.total.usd - spent, rel=0.05)
        assert asking.estimate(notes(20)) == Estimate(0, 20, 0, 0, 0.0, 0)


def test_an_estimate_of_a_batch_is_half(path):
    whole, half = (client("http://127.0.0.1:1/v1", path, batch=batch).estimate(notes(4)).usd for batch in (False, True))
    assert half == pytest.approx(whole / 2)


def test_what_the_ledger_holds_is_told_in_its_columns(path):
    with ScriptedServer() as server:
        client(server, path).ask([note(1)], QUIET)
    with sqlite3.connect(path) as db:
        db.row_factory = sqlite3.Row
        row = dict(db.execute("SELECT * FROM replies").fetchone())
    assert (row["model"], row["host"], row["kind"], row["status"]) == ("m", "127.0.0.1", "note", "complete")
    assert row["input_tokens"] > 0 < row["output_tokens"] and row["created"] > 1_700_000_000
    assert row["nano_usd"] == 1000 * row["input_tokens"] + 2000 * row["output_tokens"]
