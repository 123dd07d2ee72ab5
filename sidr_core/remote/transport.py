"""The HTTP client below the OpenAI SDK: replies of bounded size, and no prompt or key sent on to another host.

A server may be broken or hostile, so a body is read up to a number of bytes, compressed or not, and a redirect is
followed on the same host only. The time of an attempt is bounded by the caller (`retry`).
"""

from __future__ import annotations

from typing import Any

import httpx2
from openai import DefaultAsyncHttpxClient

from sidr_core.remote.errors import CallFailed, EndpointError

_MOST_REDIRECTS = 3
#: Encodings that httpx decodes a network read (64 KiB) at a time, so that a bomb is noticed within 64 MiB.
_DECODED = ("", "identity", "gzip", "deflate")


class BoundedClient(DefaultAsyncHttpxClient):
    """An httpx client whose bodies hold at most `most_bytes`; a larger one raises :class:`CallFailed`."""

    def __init__(self, most_bytes: int, **fields: Any) -> None:
        super().__init__(follow_redirects=False, **fields)
        self._most_bytes = most_bytes

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send, follow redirects on the same host, and read the body; a streamed response is read here as well."""
        for _ in range(_MOST_REDIRECTS + 1):
            request.headers["Accept-Encoding"] = "identity"
            response = await super().send(request, stream=True, **options)
            try:
                if response.next_request is None:
                    return await self._read(response)
            finally:
                await response.aclose()
            request = _on_same_host(request, response.next_request)
        raise CallFailed(f"more than {_MOST_REDIRECTS} redirects", free=True, retry=False)

    async def _read(self, response: httpx2.Response) -> httpx2.Response:
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in _DECODED:
            raise CallFailed(f"the reply is compressed as {encoding[:40]!r}, unasked", free=False, retry=False)
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > self._most_bytes:
                limit = f"{self._most_bytes / 2**20:.0f} MiB"
                raise CallFailed(
                    f"the reply is longer than {limit}",
                    free=False,
                    retry=False,
                    fix="ask the operator of the server what it sends: no sound reply is as long",
                )
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _OF_TRANSFER]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)


#: Headers that describe how the body came, which the body in memory no longer fits.
_OF_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")


def _on_same_host(request: httpx2.Request, following: httpx2.Request) -> httpx2.Request:
    """The request that a redirect asks for. Raises EndpointError where it leads to another host or out of TLS."""
    here, there = request.url, following.url
    if here.host == there.host and there.scheme in ("https", here.scheme):
        return following
    target = f"{there.scheme}://{there.host}"
    raise EndpointError(
        f"{here.host} redirects to another host",
        expected="a reply from the host that the profile names",
        found=f"a redirect to {target[:200]}; nothing was sent there",
        fix="if that is the server you mean, put its address into `endpoint.base_url`",
    )
