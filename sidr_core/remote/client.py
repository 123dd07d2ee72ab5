"""Asks a language model for JSON, pays once per request, and keeps every reply.

A request is looked up in the ledger first. What is missing is asked by a pool of `concurrency` workers; each reply is
written to the ledger before it is used. A reply that is not the JSON asked for gets one repair (a request of its own,
with its own record); after that it is quarantined with the reason and, being paid for, not asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel

from sidr_core.errors import SidrError
from sidr_core.pipeline.stage import Progress
from sidr_core.remote.dialect import Dialect
from sidr_core.remote.dialogue import Call, Dialogue, Done, ReplyFormat, Request, read_completion
from sidr_core.remote.endpoint import OPENAI_HOST, host_of, is_loopback, redact
from sidr_core.remote.errors import BudgetExhausted, CallFailed, Stopped, TeacherUnavailable
from sidr_core.remote.estimate import Estimate, Reply, estimate, reply_of
from sidr_core.remote.ledger import NANO, Cost, Label, Ledger, Stored, price_of
from sidr_core.remote.retry import Session, check_body, classify, parse_json, run_pool
from sidr_core.settings.base import Endpoint
from sidr_core.settings.corpus import Budget, Price

__all__ = ["Client", "Estimate", "Reply", "ReplyFormat", "Request"]

T = TypeVar("T")

#: What to do where no reply can be used, by the reason of the last one.
_OTHER_FORM = (
    "try another `teacher.reply` or another model; a weak model may need a larger `teacher.endpoint.give_up_after`"
)
_ADVICE = {
    "truncated": "raise `teacher.max_output_tokens`, within which a reasoning model also thinks",
    "overlong": "use another server or model: its texts are longer than `teacher.max_output_tokens` allows",
}


class Client:
    """Asks one model on one server, within one budget.

    Args:
        budget: over the whole ledger, whoever spent it.
        price: USD per million tokens.
        reply_format: how JSON is asked for.

    Raises:
        SidrError: a budget in USD for a server elsewhere, and no price to hold it against.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        budget: Budget,
        price: Price,
        reply_format: ReplyFormat = "json_schema",
    ) -> None:
        self.endpoint, self.ledger, self.budget, self.price = endpoint, ledger, budget, price
        self.host = host_of(endpoint)
        self.dialogue = Dialogue(endpoint.model, self.host, reply_format)
        self.dialect = Dialect("max_completion_tokens" if self.host == OPENAI_HOST else "max_tokens")
        if budget.usd is not None and not (price.input or price.output) and not is_loopback(self.host):
            raise SidrError(
                f"a budget of {budget.usd} USD for {self.host}, and no price",
                expected="`teacher.price: {input: …, output: …}` in USD per million tokens",
                found="0 and 0",
                fix="add the model's price, or limit `teacher.budget.tokens` instead",
            )

    @property
    def discount(self) -> float:
        """The factor on the price of this way of asking."""
        return 1.0

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        """A reply for each request, in order; equal requests are asked once.

        Raises:
            BudgetExhausted: incomplete (budget).
            TeacherUnavailable: the server did not answer, or answered nothing usable.
            EndpointError: the server refuses on principle, or the key is missing.
            In each case every reply that came is in the ledger, and asking again continues from there.
        """
        done: dict[Request, Done] = {}
        missing = self.next_calls(requests, done)
        reused = set(done)
        while missing:
            any_usable = any(step.value is not None for step in done.values())
            done.update(self.finish([request for request, _ in missing], any_usable, progress))
            missing = self.next_calls(requests, done)
        return [reply_of(done[request], request in reused) for request in requests]

    def next_calls(self, requests: Sequence[Request], done: dict[Request, Done]) -> list[tuple[Request, Call]]:
        """Each call that is to be made next, with one request that needs it; finished dialogues go into `done`."""
        calls: dict[str, tuple[Request, Call]] = {}
        for request in dict.fromkeys(requests):
            if request not in done:
                step = self.dialogue.next(request, self.ledger.find)
                if isinstance(step, Done):
                    done[request] = step
                else:
                    calls.setdefault(step.key, (request, step))
        return list(calls.values())

    def finish(self, missing: Sequence[Request], any_usable: bool, progress: Progress) -> dict[Request, Done]:
        """Send what the dialogues of `missing` lack. Raises as :meth:`ask` says.

        Args:
            any_usable: whether a usable reply is on file already; a model without one is given up early.
        """
        return _Run(self, progress, len(missing), any_usable).ask(missing)

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What :meth:`ask` would cost now, repairs and retries aside. Nothing is called.

        Equal requests count each: planned on replies of usual length, they are equal now and will differ then.
        """
        steps = [self.dialogue.next(request, self.ledger.find) for request in requests]
        calls = [step for step in steps if isinstance(step, Call)]
        measured = self.ledger.usage(self.endpoint.model, self.host)
        return estimate(calls, len(steps) - len(calls), measured, self.price, self.discount)

    def answered(self, request: Request) -> BaseModel | None:
        """The usable reply that is on file for a request, if any. Nothing is called."""
        step = self.dialogue.next(request, self.ledger.find)
        return step.value if isinstance(step, Done) else None

    def worst(self, call: Call) -> Cost:
        """The most that a call can cost: its bytes as input tokens, and all the output it is allowed."""
        return price_of(self.price, call.most_input_tokens, call.most_output_tokens, self.discount)

    def priced(self, reply: Stored) -> Stored:
        """A reply with what it costs at the current price."""
        cost = price_of(self.price, reply.input_tokens, reply.output_tokens, self.discount)
        return replace(reply, nano_usd=cost.nano_usd)

    def label(self, call: Call) -> Label:
        """What the reply to a call is filed under."""
        return Label(self.endpoint.model, self.host, call.kind, call.size)

    def adapt(self, used: Dialect, refusal: str, progress: Progress) -> bool:
        """Whether a request that was refused in the dialect `used` can be sent in another; that one is kept."""
        if self.dialect != used:  # another call has learnt it meanwhile
            return True
        if (adapted := used.adapted(refusal)) is None:
            return False
        self.dialect, note = adapted
        progress.say(f"{self.host} wants {note}; so for the rest of this run")
        return True

    def exhausted(self) -> BudgetExhausted:
        """The error that says how much of the budget is spent."""
        total, lost = self.ledger.total, self.ledger.unconfirmed
        limit = [f"{self.budget.usd:g} USD"] if self.budget.usd is not None else []
        limit += [f"{self.budget.tokens:,} tokens"] if self.budget.tokens is not None else []
        return BudgetExhausted(
            "incomplete (budget): the next call could exceed it",
            expected=f"room within {' and '.join(limit)}",
            found=f"{total.usd:.4f} USD and {total.tokens:,} tokens are spent (of these {lost.usd:.4f} USD and "
            f"{lost.tokens:,} tokens for calls without an answer, which may have been charged)",
            fix="raise `teacher.budget` and run again: what came is kept and only the rest is asked",
        )


class _Run:
    """One run of :meth:`Client.ask` over the requests that are missing."""

    def __init__(self, client: Client, progress: Progress, total: int, any_usable: bool) -> None:
        self._client, self._progress, self._total, self._any_usable = client, progress, total, any_usable
        self._done: dict[Request, Done] = {}
        self._reserved = 0  # calls of this process that hold a reservation
        self._nano_usd = 0
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()
        # One thread writes the ledger, so that a slow disk does not hold up the event loop.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    def ask(self, missing: Sequence[Request]) -> dict[Request, Done]:
        with self._writer:
            run_pool(self._client.endpoint, missing, self._dialogue)
        return self._done

    async def _dialogue(self, session: Session, request: Request) -> None:
        client = self._client
        step = client.dialogue.next(request, client.ledger.find)
        while isinstance(step, Call):
            await self._call(session, step)
            step = client.dialogue.next(request, client.ledger.find)
        self._done[request] = step
        self._any_usable = self._any_usable or step.value is not None
        self._progress.tick(len(self._done), self._total, "replies", f"{self._nano_usd / NANO:.4f} USD")
        if not self._any_usable and len(self._done) >= client.endpoint.give_up_after:
            text = step.replies[-1].text if step.replies else ""
            error = TeacherUnavailable(
                f"none of the first {len(self._done)} replies of {client.endpoint.model} can be used",
                expected="JSON that fits the schema",
                found=f"{step.reason}: {redact(text, client.endpoint, 80) or 'an empty reply'}",
                fix=_ADVICE.get(step.reason, _OTHER_FORM),
            )
            session.breaker.stop(error)

    async def _call(self, session: Session, call: Call) -> None:
        """Send one call and file its reply, or the server's refusal of it."""
        client, send = self._client, 0

        async def reserve() -> None:
            nonlocal send
            send = await self._reserve(session, call)

        async def attempt() -> Stored:
            try:
                return await self._send(session, call)
            except Exception as error:
                if classify(error, client.endpoint).free:
                    await self._in_thread(client.ledger.free, send)
                raise

        try:
            reply = client.priced(await session.call(attempt, reserve, self._release))
            await self._in_thread(client.ledger.record, send, reply, client.label(call))
            self._nano_usd += reply.nano_usd
            self._release()
        except CallFailed as failure:
            if not failure.own_fault:
                raise
            refused = Stored(call.key, "rejected", failure.reason, 0, 0, 0)
            await self._in_thread(client.ledger.record, None, refused, client.label(call))

    async def _send(self, session: Session, call: Call) -> Stored:
        """Send one call, again where the server wants it in other words."""
        from openai import BadRequestError, UnprocessableEntityError

        client = self._client
        while True:
            dialect = client.dialect
            try:
                create = session.client.chat.completions.with_raw_response.create
                raw = await create(**dialect.wire(call.body))
                body = check_body(parse_json(raw.text, client.endpoint), client.endpoint)
                return read_completion(body, call.key, call.size)
            except (BadRequestError, UnprocessableEntityError) as error:
                if not client.adapt(dialect, error.response.text, self._progress):
                    raise

    async def _reserve(self, session: Session, call: Call) -> int:
        """Reserve a call's worst case. Calls in flight may turn out cheaper than reserved: those are waited for."""
        client = self._client
        async with self._turn:
            while not session.breaker.stopped:
                in_flight = self._reserved
                self._freed.clear()
                send = await self._in_thread(client.ledger.reserve, call.key, client.worst(call), client.budget)
                if send is not None:
                    self._reserved += 1
                    return send
                if not in_flight:
                    session.breaker.stop(client.exhausted())
                    break
                await self._freed.wait()
        raise Stopped

    def _release(self) -> None:
        self._reserved -= 1
        self._freed.set()

    async def _in_thread(self, fn: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, fn, *args)
