"""Vectors from an OpenAI-compatible `/embeddings`.

Retries, the circuit breaker and what happens to the key: `sidr_core/remote`. Replies are not trusted: their
number, order, length and values are checked. A server may round differently from call to call; what came once
is kept in the vector cache and used from there on. Only `batch_size`, `max_tokens` (as a cap on characters,
the server cuts tokens) and `normalize` of the encoder's settings apply here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sidr_core.remote.endpoint import host_of, redact
from sidr_core.remote.errors import EndpointError
from sidr_core.remote.retry import CallFailed, Session, run_pool

if TYPE_CHECKING:
    from sidr_core.items.cache import Keep
    from sidr_core.settings import Encoder, Endpoint


class EndpointEncoder:
    """Texts to vectors over HTTP, `endpoint.concurrency` requests of `config.batch_size` texts at a time."""

    def __init__(self, config: Encoder, endpoint: Endpoint) -> None:
        self._config, self._endpoint = config, endpoint
        self._width: int | None = None

    def encode(self, texts: Sequence[str], keep: Keep) -> None:
        """See :class:`sidr_core.items.encoders.TextEncoder`.

        Raises:
            TeacherUnavailable: requests failed with all their attempts; all others were kept.
            EndpointError: the server refuses, or its reply is no list of vectors.
        """
        order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))
        size = self._config.batch_size
        batches = (order[start : start + size] for start in range(0, len(order), size))

        async def work(session: Session, rows: list[int]) -> None:
            batch = [texts[row] for row in rows]

            async def attempt() -> Any:
                try:
                    return await session.client.embeddings.create(
                        model=self._endpoint.model, input=batch, encoding_format="float"
                    )
                except ValueError:  # of the JSON parser: a proxy's page, or a body that was cut off
                    raise CallFailed("the reply is not JSON", free=False) from None

            try:
                reply = await session.call(attempt)
            except CallFailed as failure:
                if failure.own_fault:
                    raise self._refused(failure.reason) from None
                raise
            keep(rows, self._vectors(reply, len(rows)))

        run_pool(self._endpoint, batches, work)

    def _vectors(self, reply: Any, count: int) -> np.ndarray:
        """(count, D) float32 of a reply, in the order of the request, of length 1 if so configured."""
        try:
            by_index = {int(entry.index): entry.embedding for entry in reply.data}
            lengths = {len(vector) for vector in by_index.values()}
        except (AttributeError, TypeError, ValueError):
            raise self._bad(f"{count} vectors", redact(f"no list of them: {str(reply)[:80]}", self._endpoint)) from None
        if sorted(by_index) != list(range(count)) or len(reply.data) != count:
            raise self._bad(f"{count} vectors, numbered from 0", f"{len(reply.data)} of them: {sorted(by_index)[:10]}")
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

    def _refused(self, reason: str) -> EndpointError:
        return EndpointError(
            f"{host_of(self._endpoint)} refuses the text of an item",
            expected="an embedding",
            found=reason,
            fix="lower `encoder.max_tokens`, which caps the text; what came before is kept",
        )
