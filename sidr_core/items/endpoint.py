"""Vectors from an OpenAI-compatible `/embeddings`.

Retries, the circuit breaker, the bounds of a reply and what happens to the key: `sidr_core/remote`. Replies are not
trusted: their number, order, length and values are checked. A server may round differently from call to call; what
came once is kept in the vector cache and used from there on. Only `batch_size`, `max_tokens` (as a cap on characters,
the server cuts tokens) and `normalize` of the encoder's settings apply here.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sidr_core.remote.endpoint import MOST_REPLY_BYTES, host_of, redact
from sidr_core.remote.errors import CallFailed, EndpointError
from sidr_core.remote.retry import Session, check_body, parse_json, run_pool

if TYPE_CHECKING:
    from sidr_core.items.cache import Keep
    from sidr_core.settings import Encoder, Endpoint

#: Bytes of a reply for each text of a request: a vector of 8,192 numbers in decimals takes 180 KB.
_BYTES_PER_TEXT = 2**18
#: HTTP statuses with which servers refuse too many texts or too long ones.
_TOO_MUCH = (400, 413, 422)


class EndpointEncoder:
    """Texts to vectors over HTTP, `endpoint.concurrency` requests of `config.batch_size` texts at a time.

    A request that the server refuses is halved, since many servers limit the texts or tokens of one request, and the
    smaller size holds for the rest of the run.
    """

    def __init__(self, config: Encoder, endpoint: Endpoint) -> None:
        self._config, self._endpoint = config, endpoint
        self._size = config.batch_size
        self._form = {"encoding_format": "float"}  # until a server says that it does not know it
        self._width: int | None = None

    def encode(self, texts: Sequence[str], keep: Keep) -> None:
        """See :class:`sidr_core.items.encoders.TextEncoder`.

        Raises:
            TeacherUnavailable: requests failed with all their attempts; all others were kept.
            EndpointError: the server refuses, or its reply is no list of vectors.
        """
        order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))

        def batches() -> Iterator[list[int]]:
            start = 0
            while start < len(order):
                rows = order[start : start + self._size]
                start += len(rows)
                yield rows

        async def work(session: Session, rows: list[int]) -> None:
            pending = [rows]
            while pending:
                rows = pending.pop()
                try:
                    reply = await self._ask(session, [texts[row] for row in rows])
                except (CallFailed, EndpointError) as failure:
                    # What refuses the request as it is might take a smaller one.
                    refused = failure.own_fault if isinstance(failure, CallFailed) else failure.status in _TOO_MUCH
                    if not refused:
                        raise
                    if len(rows) == 1:
                        raise self._explained(failure) from None
                    half = -(-len(rows) // 2)
                    self._size = min(self._size, half)
                    pending += [rows[half:], rows[:half]]
                else:
                    keep(rows, self._vectors(reply, len(rows)))

        most_bytes = MOST_REPLY_BYTES + _BYTES_PER_TEXT * self._size
        run_pool(self._endpoint, batches(), work, "encoder", most_bytes)

    async def _ask(self, session: Session, batch: list[str]) -> Any:
        """The body of the reply to one request."""
        import httpx2
        from openai import BadRequestError, UnprocessableEntityError

        async def post() -> str:
            # Not the SDK's `embeddings.create`, which cannot leave `encoding_format` out.
            body = {"model": self._endpoint.model, "input": batch, **self._form}
            return (await session.client.post("/embeddings", body=body, cast_to=httpx2.Response)).text

        async def attempt() -> Any:
            try:
                text = await post()
            except (BadRequestError, UnprocessableEntityError) as error:
                if "encoding_format" not in error.response.text:
                    raise
                self._form = {}
                text = await post()
            return check_body(parse_json(text, self._endpoint, "encoder"), self._endpoint, "encoder")

        return await session.call(attempt)

    def _vectors(self, reply: Any, count: int) -> np.ndarray:
        """(count, D) float32 of a reply, in the order of the request, of length 1 if so configured."""
        try:
            data = list(reply["data"])
            numbered = any("index" in entry for entry in data)
            numbers = [int(entry["index"]) for entry in data] if numbered else range(len(data))
            by_index = {n: _numbers(entry["embedding"]) for n, entry in zip(numbers, data, strict=True)}
            lengths = {len(vector) for vector in by_index.values()}
        except (KeyError, TypeError, ValueError):
            raise self._bad(f"{count} vectors", redact(f"no list of them: {str(reply)[:80]}", self._endpoint)) from None
        if sorted(by_index) != list(range(count)) or len(data) != count:
            raise self._bad(f"{count} vectors, numbered from 0", f"{len(data)} of them: {sorted(by_index)[:10]}")
        width = self._width or max(lengths)
        if lengths != {width} or width == 0:
            raise self._bad(f"vectors of {width or 'some'} numbers", f"lengths {sorted(lengths)}")
        try:
            vectors = np.array([by_index[n] for n in range(count)], dtype=np.float64)
        except (TypeError, ValueError):
            raise self._bad("numbers", "something else inside a vector") from None
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise self._bad("finite vectors that are not zero", "a vector with NaN or infinity, or of zeros")
        self._width = width
        return (vectors / norms if self._config.normalize else vectors).astype(np.float32)

    def _bad(self, expected: str, received: str) -> EndpointError:
        return EndpointError(
            f"{host_of(self._endpoint)} sent no usable embeddings for {self._endpoint.model}",
            expected=expected,
            found=received,
            fix="check that `encoder.endpoint` names an embeddings model; what came before is kept",
        )

    def _explained(self, failure: CallFailed | EndpointError) -> EndpointError:
        """The error of a text that is refused even alone."""
        if isinstance(failure, EndpointError):
            return failure
        return EndpointError(
            f"{host_of(self._endpoint)} refuses the text of an item",
            expected="an embedding",
            found=failure.reason,
            fix="lower `encoder.max_tokens`, which caps the text; what came before is kept",
        )


def _numbers(embedding: Any) -> Any:
    """A vector as numbers: some servers send float32 in base64, whatever was asked for."""
    return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4") if isinstance(embedding, str) else embedding
