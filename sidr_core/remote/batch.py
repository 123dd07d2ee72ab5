"""The Batch API: the same requests for half the price, in hours instead of minutes.

A batch is planned in the ledger under a name of our own before anything is sent, and that name travels as the batch's
metadata. After a restart the name is looked up among the server's batches, which finds the batch wherever the process
died; if it is not there, nothing was submitted. Requests that a batch did not answer (expired, or an error of the
server) go into the next one, as do repairs. One process at a time does this on one ledger; others wait.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from sidr_core.pipeline.stage import Progress
from sidr_core.remote.client import Client
from sidr_core.remote.dialect import Dialect
from sidr_core.remote.dialogue import Call, Done, Request, read_completion
from sidr_core.remote.endpoint import redact
from sidr_core.remote.errors import CallFailed, EndpointError, TeacherUnavailable
from sidr_core.remote.ledger import Label, Member, OpenBatch, Stored
from sidr_core.remote.retry import Session, check_body, parse_json, refusal, run_pool

if TYPE_CHECKING:
    from openai.types import Batch

#: The API's limits are 50,000 requests and 200 MB in one batch.
MOST_REQUESTS = 50_000
MOST_BYTES = 150_000_000
POLL_SECONDS = 30.0
#: Seconds that one attempt at moving a file may take.
FILE_SECONDS = 600.0
#: Bytes that a file of replies may hold beside what the requests allow: it may be of an earlier run.
LEAST_FILE_BYTES = 2**28
#: Batches in a row without a reply, after which we give up.
MOST_BARREN = 2
_ENDED = ("completed", "failed", "expired", "cancelled")


class BatchClient(Client):
    """A client whose requests go through the server's Batch API, at its discount."""

    @property
    def discount(self) -> float:
        return self.price.batch_discount

    def finish(self, missing: Sequence[Request], any_usable: bool, progress: Progress) -> dict[Request, Done]:
        """See :meth:`Client.finish`."""
        lock = self.ledger.batches_lock()
        try:
            lock.acquire(timeout=0.05)
        except Timeout:
            progress.say("waiting for another process, which has batches under way")
            lock.acquire()
        try:
            patient = self.endpoint.model_copy(update={"timeout_seconds": FILE_SECONDS, "concurrency": 1})
            rounds = _Rounds(self, missing, progress)
            most_bytes = LEAST_FILE_BYTES + sum(16 * one.max_output_tokens + 8192 for one in missing)
            run_pool(patient, [None], rounds.work, most_bytes=most_bytes)
            return rounds.done
        finally:
            lock.release()


class _Rounds:
    """Rounds of batches until every dialogue is done."""

    def __init__(self, client: BatchClient, missing: Sequence[Request], progress: Progress) -> None:
        self._client, self._missing, self._progress = client, missing, progress
        self._scope = f"{client.host} {client.endpoint.model}"
        self.done: dict[Request, Done] = {}

    async def work(self, session: Session, _: None) -> None:
        ledger, barren = self._client.ledger, 0
        for batch in ledger.open_batches(self._scope):
            identifier = await session.call(lambda batch=batch: _find(session, batch.token))
            if identifier is not None:
                await self._collect(session, batch, identifier)
                continue
            if batch.identifier is None:  # planned, and never submitted
                ledger.free(*(member.send for member in batch.members.values()))
            else:  # perhaps paid for, and its replies are lost
                self._progress.say(f"batch {batch.identifier} is no longer on the server; its requests are asked again")
            ledger.batch_closed(batch.token)
        while calls := [call for _, call in self._client.next_calls(self._missing, self.done)]:
            barren = 0 if await self._round(session, calls) else barren + 1
            if barren == MOST_BARREN:
                raise TeacherUnavailable(
                    f"{self._client.host} ended {MOST_BARREN} batches in a row without a reply",
                    expected="replies",
                    found="expired requests or errors of the server",
                    fix="run again later, or set `teacher.batch: false`",
                )

    async def _round(self, session: Session, calls: Sequence[Call]) -> int:
        """Plan, submit and collect one batch of the first calls that fit; returns how many replies it brought."""
        client, token = self._client, uuid.uuid4().hex
        fitting, size = list[Call](), 0
        for call in calls[:MOST_REQUESTS]:
            size += call.size + 200
            if size > MOST_BYTES:
                break
            fitting.append(call)
        planned = [(call.key, call.kind, call.size, client.worst(call)) for call in fitting]
        members = client.ledger.plan_batch(token, self._scope, planned, client.budget)
        if not members:
            raise client.exhausted()
        dialect = client.dialect
        lines = (
            {"custom_id": call.key, "method": "POST", "url": "/v1/chat/completions", "body": dialect.wire(call.body)}
            for call in fitting
            if call.key in members
        )
        content = "".join(f"{json.dumps(line)}\n" for line in lines)
        identifier = await _submit(session, token, content.encode())
        client.ledger.batch_submitted(token, identifier)
        filed = await self._collect(session, OpenBatch(token, identifier, members), identifier)
        return filed or client.dialect != dialect

    async def _collect(self, session: Session, batch: OpenBatch, identifier: str) -> int:
        """Wait for the end of a batch and file its replies; returns how many there are."""
        ledger, dialect = self._client.ledger, self._client.dialect
        ended = await self._poll(session, identifier, len(batch.members))
        waiting, filed = dict(batch.members), 0
        refused: Exception | None = None
        for file in (ended.output_file_id, ended.error_file_id):
            if file is None:
                continue
            content = await session.call(lambda file=file: session.client.files.content(file))
            for line in filter(None, content.text.split("\n")):
                entry = parse_json(line, self._client.endpoint)
                if (member := waiting.pop(entry.get("custom_id"), None)) is None:
                    continue
                try:
                    filed += self._file(entry, member, dialect)
                except EndpointError as error:
                    refused = refused or error
        ledger.free(*(member.send for member in waiting.values()))
        ledger.batch_closed(batch.token)
        if refused is None and ended.status == "failed":
            errors = ended.errors.data if ended.errors else None
            reason = "; ".join(error.message or "" for error in errors or ())
            refused = EndpointError(
                f"{self._client.host} refuses the batch",
                expected="a batch that runs",
                found=redact(reason or "no reason", self._client.endpoint),
                fix="correct what it names, or set `teacher.batch: false`; nothing of it was charged",
            )
        if refused is not None:
            raise refused
        return filed

    async def _poll(self, session: Session, identifier: str, total: int) -> Batch:
        while True:
            batch = await session.call(lambda: session.client.batches.retrieve(identifier))
            counts = batch.request_counts
            if counts is not None:
                self._progress.tick(counts.completed + counts.failed, total, f"replies of batch {identifier}")
            if batch.status in _ENDED:
                return batch
            await session.breaker.wait(POLL_SECONDS)

    def _file(self, entry: dict[str, Any], member: Member, dialect: Dialect) -> int:
        """File one line of an output or error file; 1 if it holds a reply. Raises EndpointError as a call would."""
        client, key = self._client, entry["custom_id"]
        label = Label(client.endpoint.model, client.host, member.kind, member.size)
        response = entry.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            try:
                reply = read_completion(check_body(body, client.endpoint), key, member.size)
            except CallFailed:  # it may have been charged, so its worst case stays
                return 0
            client.ledger.record(member.send, client.priced(reply), label)
            return 1
        client.ledger.free(member.send)
        error = (body or {}).get("error") or entry.get("error") or {}
        message, code = redact(str(error.get("message", "")), client.endpoint), str(error.get("code") or "")
        if status in (400, 422) and client.adapt(dialect, json.dumps(error), self._progress):
            return 0  # it goes into the next batch, in the words that the server wants
        failure = refusal(status, code, message, client.endpoint) if isinstance(status, int) else None
        if isinstance(failure, EndpointError):
            raise failure
        if failure is not None and failure.own_fault:
            client.ledger.record(None, Stored(key, "rejected", failure.reason, 0, 0, 0), label)
            return 1
        return 0  # expired, or an error of the server: it goes into the next batch


async def _submit(session: Session, token: str, content: bytes) -> str:
    """Hand over a batch once, and return the server's id."""
    files, batches = session.client.files, session.client.batches
    file = await session.call(lambda: files.create(file=("requests.jsonl", content), purpose="batch"))

    async def create() -> str:
        # An attempt whose answer was lost may have made the batch: look before making it.
        if (identifier := await _find(session, token)) is not None:
            return identifier
        batch = await batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"sidr": token},
        )
        return batch.id

    return await session.call(create)


async def _find(session: Session, token: str) -> str | None:
    """The server's id of the batch that carries our name, if there is one."""
    async for batch in session.client.batches.list(limit=100):
        if (batch.metadata or {}).get("sidr") == token:
            return batch.id
    return None
