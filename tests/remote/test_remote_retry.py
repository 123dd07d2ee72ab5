"""The retry layer, the breaker and the pool, with fakes in place of a server; and the rules for the key."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from builders.remote import endpoint
from sidr_core.remote import retry
from sidr_core.remote.endpoint import PLACEHOLDER, host_of, is_loopback, make_openai_client, read_key, redact
from sidr_core.remote.errors import EndpointError, TeacherUnavailable
from sidr_core.remote.retry import Breaker, CallFailed, Stopped, call_with_retries, refusal, retry_after, run_pool


def failing(times, error=None):
    """An attempt that fails so many times, and a list of its attempts."""
    attempts = []

    async def attempt():
        attempts.append(1)
        if len(attempts) <= times:
            raise error or CallFailed("down", free=True)
        return "reply"

    return attempt, attempts


@pytest.mark.parametrize(("times", "retries", "made"), [(0, 2, 1), (2, 2, 3), (3, 2, None), (1, 0, None)])
def test_attempts_are_counted(times, retries, made):
    attempt, attempts = failing(times)
    call = call_with_retries(attempt, endpoint(retries=retries))
    if made is None:
        with pytest.raises(CallFailed, match="down"):
            asyncio.run(call)
        assert len(attempts) == retries + 1
    else:
        assert asyncio.run(call) == "reply"
        assert len(attempts) == made


@pytest.mark.parametrize(
    "error",
    [
        EndpointError("no", expected="", found="", fix=""),
        CallFailed("own", free=True, retry=False),
        ZeroDivisionError(),
    ],
)
def test_what_cannot_be_mended_is_not_retried(error):
    attempt, attempts = failing(9, error)
    with pytest.raises(type(error)):
        asyncio.run(call_with_retries(attempt, endpoint()))
    assert len(attempts) == 1


def test_an_attempt_is_bounded_in_total():
    attempts = []

    async def drip():
        attempts.append(1)
        while True:
            await asyncio.sleep(0.001)

    with pytest.raises(CallFailed, match=r"no complete reply within 0\.02 s") as failed:
        asyncio.run(call_with_retries(drip, endpoint(timeout_seconds=0.02)))
    assert len(attempts) == 3 and not failed.value.free


def test_waiting_before_an_attempt_is_outside_its_bound():
    calls = []

    async def before():
        await asyncio.sleep(0.05)
        calls.append("before")

    attempt, _ = failing(1)
    call = call_with_retries(attempt, endpoint(timeout_seconds=0.02), None, before, lambda: calls.append("failed"))
    assert asyncio.run(call) == "reply"
    assert calls == ["before", "failed", "before"]


def test_waits_have_full_jitter_and_add_to_retry_after(monkeypatch):
    waits, asked = [], []
    monkeypatch.setattr(retry, "BASE", 0.5)
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: asked.append((low, high)) or high)

    async def wait(self, seconds):
        waits.append(seconds)

    monkeypatch.setattr(Breaker, "wait", wait)
    attempt, _ = failing(7, CallFailed("busy", free=True, wait=3.0))
    assert asyncio.run(call_with_retries(attempt, endpoint(retries=7))) == "reply"
    assert asked == [(0, 0.5), (0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 20)]
    assert waits == [3.5, 4, 5, 7, 11, 19, 23]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0), ({"retry-after": "2.5"}, 2.5), ({"retry-after": "9999"}, 60), ({"retry-after": "-1"}, 0),
        ({"retry-after": "nonsense"}, 0), ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "nan"}, 0), ({"retry-after": "inf"}, 60), ({"retry-after-ms": "soon"}, 0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0), ({"retry-after": "Fri, 31 Dec 2099 23:59:59 GMT"}, 60),
    ],
)  # fmt: skip
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date():
    in_ten = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    assert 8 < retry_after({"retry-after": in_ten}) <= 10


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (408, "", "again"), (409, "", "again"), (429, "", "again"), (429, "rate_limit_exceeded", "again"),
        (500, "", "again"), (502, "", "again"), (503, "", "again"), (529, "", "again"),
        (429, "insufficient_quota", "end"), (400, "", "end"), (401, "", "end"), (402, "", "end"), (403, "", "end"),
        (404, "", "end"), (413, "", "end"), (418, "", "end"), (422, "", "end"),
        (400, "context_length_exceeded", "this prompt"), (400, "content_filter", "this prompt"),
    ],
)  # fmt: skip
def test_which_errors_are_retried(status, code, kind):
    found = refusal(status, code, "what it said", endpoint(api_key_env="MY_KEY"))
    if kind == "end":
        assert isinstance(found, EndpointError)
        assert f"HTTP {status}: what it said" in found.found
        assert status != 401 or "MY_KEY" in found.fix
    else:
        assert isinstance(found, CallFailed) and found.free
        assert (found.retry, found.own_fault) == ((True, False) if kind == "again" else (False, True))


def test_vllm_tells_a_long_prompt_by_its_text_alone():
    found = refusal(400, "400", "This model's maximum context length is 4096 tokens.", endpoint())
    assert isinstance(found, CallFailed) and found.own_fault


def pooled(outcomes, **fields):
    """Run a pool over outcomes: True succeeds, False fails with all attempts, an exception is raised."""
    begun, most, at_once = [], 0, 0

    async def work(session, number):
        nonlocal most, at_once
        begun.append(number)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1
        outcome = outcomes[number]
        if isinstance(outcome, Exception):
            raise outcome

        async def attempt():
            if not outcome:
                raise CallFailed("HTTP 503", free=True)

        await session.call(attempt)

    drawn = iter(range(len(outcomes)))
    error = None
    try:
        run_pool(endpoint(**{"retries": 0, **fields}), drawn, work)
    except Exception as found:
        error = found
    return begun, most, error


def test_the_pool_keeps_exactly_as_many_in_flight_as_asked():
    begun, most, error = pooled([True] * 40, concurrency=7)
    assert (sorted(begun), most, error) == (list(range(40)), 7, None)


def test_single_failures_do_not_stop_the_rest_and_are_told_at_the_end():
    begun, _, error = pooled([n % 3 > 0 for n in range(30)])
    assert len(begun) == 30
    assert isinstance(error, TeacherUnavailable)
    assert "10 requests, and all others were answered" in error.what and error.found == "HTTP 503"


def test_the_breaker_opens_after_so_many_in_a_row_and_lets_calls_in_flight_end():
    begun, _, error = pooled([True] * 8 + [False] * 100, concurrency=4, give_up_after=6)
    assert isinstance(error, TeacherUnavailable) and "nothing more was sent" in error.what
    assert 14 <= len(begun) <= 14 + 4
    begun, _, error = pooled(([False] * 3 + [True]) * 10, concurrency=1, give_up_after=4)
    assert len(begun) == 40


def test_an_error_on_principle_stops_the_pool():
    refused = EndpointError("no", expected="", found="", fix="")
    begun, _, error = pooled([True] * 4 + [refused] + [True] * 100, concurrency=4)
    assert error is refused and len(begun) < 13


def test_a_mistake_of_ours_is_raised_as_it_is():
    assert isinstance(pooled([True, KeyError("x")])[2], KeyError)


def test_a_stopped_run_wakes_those_that_wait():
    async def run():
        breaker = Breaker(5)
        attempt, attempts = failing(9, CallFailed("busy", free=True, wait=60))
        waiting = asyncio.create_task(call_with_retries(attempt, endpoint(), breaker))
        await asyncio.sleep(0.01)
        breaker.stop(KeyError("the reason"))
        breaker.stop(KeyError("a later one"))
        with pytest.raises(Stopped):
            await asyncio.wait_for(waiting, 1)
        assert len(attempts) == 1 and str(breaker.error) == "'the reason'"

    asyncio.run(run())


# -- the key -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "key", "sent"),
    [
        ("http://127.0.0.1:8000/v1", None, PLACEHOLDER),
        ("http://127.0.0.1:8000/v1", "local", "local"),
        ("http://[::1]:8000/v1", "local", "local"),
        ("http://localhost/v1", "local", "local"),
        ("https://api.openai.com/v1", " sk-1 \n", "sk-1"),
        ("https://llm.example/v1", None, PLACEHOLDER),
        ("http://llm.example/v1", None, PLACEHOLDER),
        ("http://llm.example/v1", "sk-1", "clear text"),
        ("http://10.0.0.7/v1", "sk-1", "clear text"),
        ("https://api.openai.com/v1", None, "no key for api.openai.com"),
        ("https://api.openai.com/v1", "", "no key for api.openai.com"),
        ("https://llm.example/v1", "sk-1\nX: y", "cannot be sent"),
        ("https://llm.example/v1", "sk-é", "cannot be sent"),
    ],
)
def test_which_key_is_sent_where(monkeypatch, url, key, sent):
    monkeypatch.delenv("MY_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("MY_KEY", key)
    place = endpoint(url, api_key_env="MY_KEY")
    try:
        assert read_key(place) == sent
        assert make_openai_client(place).max_retries == 0
    except EndpointError as error:
        assert sent in error.what
        assert key is None or key.strip() == "" or key.strip() not in str(error)


def test_hosts():
    assert host_of(endpoint("https://API.Example:8443/v1")) == "api.example"
    assert [is_loopback(h) for h in ("localhost", "127.9.9.9", "::1", "10.0.0.1", "localhost.evil.example")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_redaction(monkeypatch):
    monkeypatch.setenv("MY_KEY", "plain-secret")
    said = "Incorrect API key provided: plain-secret, sk-abc***xyz; Authorization: Bearer abc.def\x1b[2J " + "x" * 400
    shown = redact(said, endpoint(api_key_env="MY_KEY"))
    assert not any(part in shown for part in ("plain-secret", "sk-abc", "abc.def", "\x1b"))
    assert shown.startswith("Incorrect API key provided: [key], [key]; Authorization: [key]") and len(shown) == 300
