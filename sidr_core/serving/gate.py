"""Who may ask, and how much: the checks of every request before its body is looked at.

A page of another site could reach a server on this machine through the reader's browser, by a name that it makes
point here. So the Host header has to be a known one, and an Origin the server's own.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse

from sidr_core.errors import SidrError
from sidr_core.serving.messages import Refusal, Trouble

#: Names of this machine for itself.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: What anyone may see: the page has no data in it, and a probe has no token.
OPEN = ("/", "/health")

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def refusal(status: int, error: SidrError, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as the body of an answer."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = Refusal(
        error=Trouble(message=error.what, type=kind, expected=error.expected, found=error.found, fix=error.fix)
    )
    return JSONResponse(body.model_dump(), status, headers)


class Refused(Exception):
    """A request is answered with a status and an error."""

    def __init__(self, status: int, error: SidrError) -> None:
        self.status, self.error = status, error


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Attributes:
        hosts: names in the Host header that are answered, any port.
        token: what `Authorization: Bearer …` has to hold; None asks for none.
        body_bytes: of a body. body_seconds: to send it.
    """

    hosts: frozenset[str]
    token: str | None = None
    body_bytes: int = 4 << 20
    body_seconds: float = 10.0


class Gate:
    """The application behind its checks (ASGI). `answered` is told the route and the status of every answer."""

    def __init__(
        self, app: Callable[..., Awaitable[None]], limits: Limits, answered: Callable[[str, int], None]
    ) -> None:
        self._app, self._limits, self._answered = app, limits, answered

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                # Only names of routes: a path from outside would make a figure of its own each.
                self._answered(getattr(scope.get("route"), "path", "none"), message["status"])
            await send(message)

        try:
            await self._pass(scope, receive, counted)
        except Exception:  # it is answered, and logged, outside of this
            self._answered(getattr(scope.get("route"), "path", "none"), 500)
            raise

    async def _pass(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(headers, scope["path"])
            body = await asyncio.wait_for(self._body(headers, receive), self._limits.body_seconds)
        except Refused as refused:
            challenge = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
            answer = refusal(refused.status, refused.error, challenge | {"Connection": "close"})
            await answer(scope, receive, send)
            return
        except TimeoutError:
            error = SidrError(
                "the body did not arrive in time",
                expected=f"a whole body within {self._limits.body_seconds:g} s",
                found="a part of one",
                fix="send it again",
            )
            await refusal(408, error, {"Connection": "close"})(scope, receive, send)
            return
        if body is None:  # the client is gone
            return
        sent = False

        async def again() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _check(self, headers: dict[str, str], path: str) -> None:
        limits = self._limits
        host = _host_of(f"//{headers.get('host', '')}")
        if host not in limits.hosts:
            raise Refused(400, _foreign("the Host header names another machine", limits.hosts, host))
        origin = headers.get("origin")
        if origin is not None and (_host_of(origin) not in limits.hosts or urlsplit(origin).netloc != headers["host"]):
            raise Refused(403, _foreign("the request comes from a page of another site", limits.hosts, origin))
        if limits.token is None or path in OPEN:
            return
        given = headers.get("authorization", "").partition("Bearer ")[2]
        if not hmac.compare_digest(given.strip().encode(), limits.token.encode()):
            error = SidrError(
                "the token is missing or wrong",
                expected="the header `Authorization: Bearer <token>`",
                found="another token" if given else "none",
                fix="use the token that the server was started with",
            )
            raise Refused(401, error)

    async def _body(self, headers: dict[str, str], receive: _Receive) -> bytes | None:
        most = self._limits.body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise Refused(413, _too_long(most, f"{int(declared):,} bytes"))
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                raise Refused(413, _too_long(most, f"more than {most:,} bytes"))
            if not message.get("more_body"):
                return bytes(body)


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _foreign(what: str, hosts: frozenset[str], found: str) -> SidrError:
    return SidrError(
        what,
        expected=f"one of {', '.join(sorted(hosts))}",
        found=repr(found[:100]),
        fix="ask under one of these names, or start the server with --allow-host",
    )


def _too_long(most: int, found: str) -> SidrError:
    return SidrError(
        "the body is too long", expected=f"at most {most:,} bytes", found=found, fix="ask for less at a time"
    )
