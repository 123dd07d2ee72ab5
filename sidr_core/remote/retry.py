"""The one retry layer and the one worker pool of every call to a server.

An attempt is bounded by `timeout_seconds` in total, so a server that drips a byte a second ends it too. A request
has `retries` further attempts, with full jitter: uniform between 0 and min(LONGEST, BASE · 2^attempt) seconds, on top
of what Retry-After asks for (at most LONGEST_RETRY_AFTER). After `give_up_after` requests in a row that failed with all
their attempts nothing new is sent; calls in flight finish. So a dead server holds a run for at most
ceil(give_up_after / concurrency) · (retries + 1) · (timeout_seconds + longest wait) seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from sidr_core.remote.endpoint import MOST_REPLY_BYTES, host_of, make_openai_client, redact
from sidr_core.remote.errors import CallFailed, EndpointError, Stopped, TeacherUnavailable
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
#: The two uses of an endpoint, by the section of the profile that sets it.
Section = Literal["teacher", "encoder"]
_TEACHER_PARAMETERS = (
    "the server does not take what is sent: see `teacher.reply` (`json_object` or `prompt`), `teacher.temperature` "
    "(`null` leaves it out) and `teacher.max_output_tokens`"
)
_ENCODER_PARAMETERS = (
    "lower `encoder.batch_size` or `encoder.max_tokens`; if one text alone is refused, check that "
    "`encoder.endpoint.model` is an embeddings model"
)
_ADVICE: Mapping[Section, Mapping[int, str]] = {
    "teacher": {400: _TEACHER_PARAMETERS, 413: "lower `teacher.input_chars`", 422: _TEACHER_PARAMETERS},
    "encoder": {400: _ENCODER_PARAMETERS, 413: _ENCODER_PARAMETERS, 422: _ENCODER_PARAMETERS},
}
_ADVICE_OF_ALL = {
    401: "set the right key in the environment variable {key}",
    402: "add credit with the provider, then run again",
    403: "ask the provider for access to the model, or name another one in `{section}.endpoint.model`",
    404: "correct `{section}.endpoint.base_url` or `{section}.endpoint.model`",
    405: "correct `{section}.endpoint.base_url`",
    429: "add credit with the provider, then run again",
}
#: What a server says of a path that it does not serve.
_NO_SUCH_PATH = re.compile(
    r"unexpected endpoint|(?:unknown|invalid|no such) (?:url|path|endpoint|route)|cannot post", re.I
)


class Limits(Protocol):
    """What bounds a request; an :class:`Endpoint` is one. Without `timeout_seconds` an attempt bounds itself."""

    @property
    def retries(self) -> int: ...
    @property
    def timeout_seconds(self) -> float | None: ...
    @property
    def give_up_after(self) -> int: ...


def classify(error: BaseException, endpoint: Endpoint, section: Section = "teacher") -> CallFailed | EndpointError:
    """What an exception of an attempt means. An exception that is no failure of a call is raised again."""
    import httpx2
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, (CallFailed, EndpointError)):
        return error
    if isinstance(error, TimeoutError):
        return CallFailed(f"no complete reply within {endpoint.timeout_seconds:g} s", free=False)
    if isinstance(error, APIStatusError):
        body = error.body  # its `error`, if it has one
        words = body.get("message") or body.get("detail") if isinstance(body, dict) else body
        message = redact(str(words or error.response.text or "no reason"), endpoint)
        failure = refusal(error.status_code, error.code or "", message, endpoint, section)
        if isinstance(failure, CallFailed):
            failure.wait = retry_after(error.response.headers)
        return failure
    if isinstance(error, APIConnectionError):
        if isinstance(error.__cause__, (CallFailed, EndpointError)):  # of our own transport
            return error.__cause__
        unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
        free = isinstance(error.__cause__, unsent)
        return CallFailed("no connection" if free else "the connection broke off", free=free)
    raise error


def refusal(
    status: int, code: str, message: str, endpoint: Endpoint, section: Section = "teacher"
) -> CallFailed | EndpointError:
    """What an HTTP error means, apart from Retry-After. `message` is printed, so it must be redacted."""
    if may_pass(status) and code not in _NO_CREDIT:
        return CallFailed(f"HTTP {status}", free=True)
    if status in (400, 422) and (code in _OWN_FAULT or "context length" in message):
        return CallFailed(f"rejected: {message}", free=True, retry=False, own_fault=True)
    advice = _ADVICE[section].get(status) or _ADVICE_OF_ALL.get(status, "see what the server says above")
    if status in (404, 405) and (path_advice := _path_advice(endpoint, section)):
        advice = path_advice
    return _refused(f"HTTP {status}: {message}", advice, endpoint, section, status)


def _refused(reason: str, advice: str, endpoint: Endpoint, section: Section, status: int | None) -> EndpointError:
    error = EndpointError(
        f"{host_of(endpoint)} refuses calls to {endpoint.model}",
        expected="a reply",
        found=reason,
        fix=advice.format(key=endpoint.api_key_env, section=section),
    )
    error.status = status
    return error


def _path_advice(endpoint: Endpoint, section: Section) -> str:
    """What to do about a `base_url` whose path cannot be right; "" where it has its version and no more."""
    path = urlsplit(endpoint.base_url).path
    if call := re.search(r"(?:/chat)?/completions$|/embeddings$", path):
        base = endpoint.base_url.removesuffix(call[0])
        return f"`{section}.endpoint.base_url` ends before {call[0]}: write {base}"
    if re.search(r"/v\d", path):
        return ""
    return f"`{section}.endpoint.base_url` needs its /v1: write {endpoint.base_url}/v1"


def check_body(body: Any, endpoint: Endpoint, section: Section = "teacher") -> Any:
    """The body of a reply of HTTP 200, if it holds no `error`: proxies and local servers report theirs so.

    Raises:
        EndpointError: the server refuses on principle, as the same status of HTTP would say.
        CallFailed: any other error; the call may have been charged.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not error:
        return body
    record = error if isinstance(error, dict) else {"message": error}
    message = redact(str(record.get("message") or error), endpoint)
    code = str(record.get("code") or record.get("status") or "")
    if re.fullmatch(r"[45]\d\d", code) and isinstance(
        failure := refusal(int(code), "", message, endpoint, section), EndpointError
    ):
        raise failure
    path_advice = _path_advice(endpoint, section)
    if _NO_SUCH_PATH.search(message):
        advice = path_advice or _ADVICE_OF_ALL[405]
        raise _refused(f"HTTP 200 with an error inside: {message}", advice, endpoint, section, None)
    raise CallFailed(f"HTTP 200 with an error inside: {message}", free=False, fix=path_advice)


def parse_json(text: str, endpoint: Endpoint, section: Section = "teacher") -> Any:
    """JSON of a reply. Raises CallFailed where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        start = redact(text[:200], endpoint, 80)
        reason = f"the reply is cut off or no JSON: {start}" if start else "the reply is empty"
        fix = _path_advice(endpoint, section) or _advice_on_text(text, section)
        raise CallFailed(reason, free=False, fix=fix) from None


def _advice_on_text(text: str, section: Section) -> str:
    """What to do about a reply that is a web page, or a stream that nobody asked for; "" about any other text."""
    start = text[:100].lstrip().lower()
    if start.startswith("<"):
        return (
            f"a web page answers: correct `{section}.endpoint.base_url`, or see what log-in or proxy is in front of it"
        )
    if start.startswith(("data:", "event:")):
        return "the server streams though no stream was asked for: switch that off there, or in the proxy before it"
    return ""


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
        self.failed, self.reason, self.fix = 0, "", ""
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
        self.failed, self.reason, self.fix = self.failed + 1, failure.reason, failure.fix
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
    """One run against one endpoint: its client and its breaker. `section` of the profile sets the endpoint."""

    def __init__(self, endpoint: Endpoint, client: AsyncOpenAI, section: Section = "teacher") -> None:
        self.endpoint, self.client = endpoint, client
        self.section: Section = section
        self.breaker = Breaker(endpoint.give_up_after)

    async def call(
        self,
        fn: Callable[[], Awaitable[T]],
        before: Callable[[], Awaitable[None]] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> T:
        """:func:`call_with_retries` with this run's breaker."""
        means = partial(classify, endpoint=self.endpoint, section=self.section)
        return await call_with_retries(fn, self.endpoint, self.breaker, before, failed, means)


def run_pool(
    endpoint: Endpoint,
    items: Iterable[T],
    work: Callable[[Session, T], Awaitable[None]],
    section: Section = "teacher",
    most_bytes: int = MOST_REPLY_BYTES,
) -> None:
    """Do `await work(session, item)` for all items, `endpoint.concurrency` at a time, drawn when a worker is free.

    `work` keeps its own results; it lets :class:`CallFailed` and :class:`Stopped` pass.

    Args:
        section: of the profile, which sets the endpoint. most_bytes: of one reply.

    Raises:
        TeacherUnavailable: requests failed; everything else was done or, if too many failed in a row, begun.
        SidrError: what `work` raised; calls in flight were finished first.
    """
    breaker = asyncio.run(_run_pool(endpoint, items, work, section, most_bytes))
    if breaker.error is not None:
        raise breaker.error from None
    if breaker.failed:
        rest = "and nothing more was sent" if breaker.stopped else "and all others were answered"
        raise TeacherUnavailable(
            f"{host_of(endpoint)} did not answer {breaker.failed} requests, {rest}",
            expected=f"a reply within {endpoint.retries + 1} attempts",
            found=breaker.reason,
            fix=breaker.fix or "run again when the server is well: what came is kept and only the rest is asked",
        )


async def _run_pool(
    endpoint: Endpoint,
    items: Iterable[T],
    work: Callable[[Session, T], Awaitable[None]],
    section: Section,
    most_bytes: int,
) -> Breaker:
    source = iter(items)
    async with make_openai_client(endpoint, most_bytes) as client:
        session = Session(endpoint, client, section)
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
    return breaker
