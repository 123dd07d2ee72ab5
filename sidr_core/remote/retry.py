"""The one retry layer and the one worker pool of every call to a server.

An attempt is bounded by `timeout_seconds` in total, so a server that drips a byte a second ends it too. A request
has `retries` further attempts, with full jitter: uniform between 0 and min(LONGEST, BASE · 2^attempt) seconds, on top
of what Retry-After asks for (at most LONGEST_RETRY_AFTER). After `give_up_after` requests in a row that failed with all
their attempts nothing new is sent; calls in flight finish. So a dead server holds a run for at most
ceil(give_up_after / concurrency) · (retries + 1) · (timeout_seconds + longest wait) seconds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from sidr_core.remote.endpoint import host_of, make_openai_client, redact
from sidr_core.remote.errors import EndpointError, TeacherUnavailable
from sidr_core.settings.base import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

#: Seconds.
BASE = 0.5
LONGEST = 20.0
LONGEST_RETRY_AFTER = 60.0

#: 429 with these codes does not pass by waiting.
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
#: 400 and 422 with these codes are the fault of one prompt, not of the settings.
_OWN_FAULT = ("content_filter", "context_length_exceeded", "invalid_prompt", "string_above_max_length")
_ADVICE = {
    400: "the server does not take a parameter: see `teacher.reply`, `temperature` and `max_output_tokens`",
    401: "set the right key in the environment variable {key}",
    402: "add credit with the provider, then run again",
    403: "ask the provider for access to the model, or name another one in `endpoint.model`",
    404: "correct `endpoint.base_url` (with its /v1) or `endpoint.model`",
    413: "lower `teacher.input_chars`",
    422: "the server does not take a parameter: see `teacher.reply`, `temperature` and `max_output_tokens`",
    429: "add credit with the provider, then run again",
}


class Limits(Protocol):
    """What bounds a request; an :class:`Endpoint` is one. Without `timeout_seconds` an attempt bounds itself."""

    @property
    def retries(self) -> int: ...
    @property
    def timeout_seconds(self) -> float | None: ...
    @property
    def give_up_after(self) -> int: ...


class CallFailed(Exception):
    """A request, or one attempt at it, gave no reply.

    Args:
        reason: a few words, without secrets.
        free: whether it is certain that nothing was charged.
        retry: whether another attempt may help.
        wait: seconds the server asked for.
        own_fault: whether the server refuses this one prompt and would take others.
    """

    def __init__(
        self, reason: str, *, free: bool, retry: bool = True, wait: float = 0.0, own_fault: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.free, self.retry, self.wait, self.own_fault = reason, free, retry, wait, own_fault


class Stopped(Exception):
    """The run ends for a reason that is reported elsewhere; this request was not finished."""


def classify(error: BaseException, endpoint: Endpoint) -> CallFailed | EndpointError:
    """What an exception of an attempt means. An exception that is no failure of a call is raised again."""
    import httpx2
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, CallFailed):
        return error
    if isinstance(error, TimeoutError):
        return CallFailed(f"no complete reply within {endpoint.timeout_seconds:g} s", free=False)
    if isinstance(error, APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        message = redact(str(body.get("message") or error.message), endpoint)
        failure = refusal(error.status_code, error.code or "", message, endpoint)
        if isinstance(failure, CallFailed):
            failure.wait = retry_after(error.response.headers)
        return failure
    if isinstance(error, APIConnectionError):
        unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
        free = isinstance(error.__cause__, unsent)
        return CallFailed("no connection" if free else "the connection broke off", free=free)
    raise error


def refusal(status: int, code: str, message: str, endpoint: Endpoint) -> CallFailed | EndpointError:
    """What an HTTP error means, apart from Retry-After. `message` is printed, so it must be redacted."""
    if may_pass(status) and code not in _NO_CREDIT:
        return CallFailed(f"HTTP {status}", free=True)
    if status in (400, 422) and (code in _OWN_FAULT or "context length" in message):
        return CallFailed(f"rejected: {message}", free=True, retry=False, own_fault=True)
    advice = _ADVICE.get(status, "see what the server says above")
    return EndpointError(
        f"{host_of(endpoint)} refuses calls to {endpoint.model}",
        expected="a reply",
        found=f"HTTP {status}: {message}",
        fix=advice.format(key=endpoint.api_key_env),
    )


def may_pass(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in (408, 409, 425, 429) or status >= 500


def retry_after(headers: Any) -> float:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or an HTTP date) ask for, at most a minute; else 0.

    >>> retry_after({"retry-after": "7"}), retry_after({"retry-after": "86400"}), retry_after({"retry-after": "soon"})
    (7.0, 60.0, 0.0)
    """
    wait = 0.0
    try:
        if millis := headers.get("retry-after-ms"):
            wait = float(millis) / 1000
        elif text := headers.get("retry-after"):
            try:
                wait = float(text)
            except ValueError:
                wait = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(wait, LONGEST_RETRY_AFTER) if wait > 0 else 0.0


class Breaker:
    """Counts the failed requests of one run and says when it ends early."""

    def __init__(self, give_up_after: int) -> None:
        self._give_up_after = give_up_after
        self._in_a_row = 0
        self.failed, self.reason = 0, ""
        self.error: Exception | None = None
        self._stopped = asyncio.Event()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def count(self, failure: CallFailed | None) -> None:
        """Take note of a finished request; None is a success."""
        if failure is None:
            self._in_a_row = 0
            return
        self.failed, self.reason = self.failed + 1, failure.reason
        self._in_a_row += 1
        if self._in_a_row >= self._give_up_after:
            self._stopped.set()

    def stop(self, error: Exception) -> None:
        """Send nothing new; the first reason is the one that is reported."""
        self.error = self.error or error
        self._stopped.set()

    async def wait(self, seconds: float) -> None:
        """Sleep, but not longer than until the run ends."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)


async def call_with_retries(
    fn: Callable[[], Awaitable[T]],
    endpoint: Limits,
    breaker: Breaker | None = None,
    before: Callable[[], Awaitable[None]] | None = None,
    failed: Callable[[], None] | None = None,
    means: Callable[[BaseException], Exception] | None = None,
) -> T:
    """Await `fn()`, one attempt at a request, until it succeeds or the endpoint's retries are used up.

    Args:
        breaker: of the run; without one the request stands alone.
        before: awaited before each attempt, outside its time limit. failed: called after each that failed.
        means: what an exception of an attempt means, if `endpoint` is none (default: :func:`classify`).

    Raises:
        CallFailed: no attempt succeeded, or the server refuses this one prompt (`own_fault`).
        EndpointError: the server refuses on principle.
        Stopped: the run ended while this request waited for another attempt.
    """
    breaker = breaker or Breaker(endpoint.give_up_after)
    for attempt in range(endpoint.retries + 1):
        if breaker.stopped:
            raise Stopped
        if before is not None:
            await before()
        try:
            async with asyncio.timeout(endpoint.timeout_seconds):
                result = await fn()
        except BaseException as error:
            if failed is not None:
                failed()
            failure = means(error) if means else classify(error, cast("Endpoint", endpoint))
        else:
            breaker.count(None)
            return result
        if not isinstance(failure, CallFailed):
            raise failure from None
        if failure.own_fault:
            breaker.count(None)  # the server is well
            raise failure from None
        if not failure.retry or attempt == endpoint.retries:
            breaker.count(failure)
            raise failure from None
        await breaker.wait(failure.wait + random.uniform(0, min(LONGEST, BASE * 2**attempt)))
    raise AssertionError("unreachable: the last attempt returns or raises")


class Session:
    """One run against one endpoint: its client and its breaker."""

    def __init__(self, endpoint: Endpoint, client: AsyncOpenAI) -> None:
        self.endpoint, self.client = endpoint, client
        self.breaker = Breaker(endpoint.give_up_after)

    async def call(
        self,
        fn: Callable[[], Awaitable[T]],
        before: Callable[[], Awaitable[None]] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> T:
        """:func:`call_with_retries` with this run's breaker."""
        return await call_with_retries(fn, self.endpoint, self.breaker, before, failed)


def run_pool(endpoint: Endpoint, items: Iterable[T], work: Callable[[Session, T], Awaitable[None]]) -> None:
    """Do `await work(session, item)` for all items, `endpoint.concurrency` at a time, drawn when a worker is free.

    `work` keeps its own results; it lets :class:`CallFailed` and :class:`Stopped` pass.

    Raises:
        TeacherUnavailable: requests failed; everything else was done or, if too many failed in a row, begun.
        SidrError: what `work` raised; calls in flight were finished first.
    """
    asyncio.run(_run_pool(endpoint, items, work))


async def _run_pool(endpoint: Endpoint, items: Iterable[T], work: Callable[[Session, T], Awaitable[None]]) -> None:
    source = iter(items)
    async with make_openai_client(endpoint) as client:
        session = Session(endpoint, client)
        breaker = session.breaker

        async def worker() -> None:
            while not breaker.stopped:
                try:
                    item = next(source)
                except StopIteration:
                    return
                try:
                    await work(session, item)
                except (CallFailed, Stopped):
                    pass  # counted by the breaker
                except Exception as error:
                    breaker.stop(error)

        async with asyncio.TaskGroup() as group:
            for _ in range(endpoint.concurrency):
                group.create_task(worker())
    if breaker.error is not None:
        raise breaker.error from None
    if breaker.failed:
        rest = "and nothing more was sent" if breaker.stopped else "and all others were answered"
        raise TeacherUnavailable(
            f"{host_of(endpoint)} did not answer {breaker.failed} requests, {rest}",
            expected=f"a reply within {endpoint.retries + 1} attempts",
            found=breaker.reason,
            fix="run again when the server is well: what came is kept and only the rest is asked",
        )
