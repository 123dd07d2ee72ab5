"""`dagster dev` behind a guard: what a page of another site, open in the same browser, may not do to the UI.

Dagster's web server answers any Host, takes mutations by GET, and looks at no Origin, so that any page could start
runs, write materializations and delete history. The guard is in front of the whole server, its WebSockets included:

- the Host is a name of this machine (or one of `SIDR_UI_HOSTS`, separated by commas): no rebinding of DNS;
- a request that names an Origin, names the server's own;
- nothing is asked by GET but pages and files: GraphQL by GET is refused;
- a browser changes something only with the cookie that it got with the page, which no other site can read or send. A
  program that is no browser needs none: whoever can start one here can write to the home as well.

    .venv/bin/python scripts/ui.py --host 127.0.0.1 --port 3000     # all options are those of `dagster dev`
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Further names by which the server may be asked for, as behind a proxy with a log-in.
HOSTS = "SIDR_UI_HOSTS"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_READING = ("GET", "HEAD")
#: Headers that browsers send and other programs do not.
_OF_BROWSERS = ("origin", "sec-fetch-site", "referer")
_WEB_SERVER = "--guarded-web-server"


def refusal(method: str, path: str, query: str, headers: Headers, hosts: tuple[str, ...], token: str) -> str | None:
    """Why a request is not answered; None where it is.

    Args:
        method: of HTTP, or `WEBSOCKET`.
        hosts: names by which the server may be asked for.
        token: value of the cookie that a browser has to show.
    """
    asked = headers.getlist("host")
    if len(asked) != 1 or _name(asked[0]) not in hosts:
        return f"this server answers to {', '.join(hosts)} alone; further names are listed in {HOSTS}"
    origins = headers.getlist("origin")
    if origins and origins not in ([f"http://{asked[0]}"], [f"https://{asked[0]}"]):
        return "the page that asks is of another site"
    if method in _READING:
        by_get = path.rstrip("/").endswith("/graphql") and "query" in parse_qs(query, keep_blank_values=True)
        return "GraphQL is asked by POST" if by_get else None
    if any(name in headers for name in _OF_BROWSERS) and not _has_cookie(headers, token):
        return "the cookie of this server is missing: load its page again"
    return None


def _name(host: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie_name(headers: Mapping[str, str]) -> str:
    """One per port: browsers give a cookie of one server on a machine to all others there."""
    return f"sidr_ui_{headers.get('host', '').rpartition(':')[2]}".replace(".", "_")


def _has_cookie(headers: Headers, token: str) -> bool:
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(_cookie_name(headers))
    except CookieError:
        return False
    return cookie is not None and secrets.compare_digest(cookie.value.encode(), token.encode())


class Guard:
    """A web application that answers what :func:`refusal` lets through, and gives browsers their cookie."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None = None) -> None:
        further = tuple(name.strip().lower() for name in os.environ.get(HOSTS, "").split(",") if name.strip())
        self._app, self._hosts, self._token = app, hosts or (*_LOCAL, *further), secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers, method = Headers(scope=scope), scope.get("method", "WEBSOCKET")
        query = scope.get("query_string", b"").decode("latin-1")
        why = refusal(method, scope["path"], query, headers, self._hosts, self._token)
        if why is None:
            await self._app(scope, receive, self._with_cookie(headers, method, send))
        elif method == "WEBSOCKET":
            await send({"type": "websocket.close", "code": 1008, "reason": why})
        else:
            await PlainTextResponse(f"refused: {why}\n", status_code=403)(scope, receive, send)

    def _with_cookie(self, headers: Headers, method: str, send: Send) -> Send:
        """Has a page that is opened here, not from within another site, bring the cookie."""
        from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if method != "GET" or from_elsewhere or _has_cookie(headers, self._token):
            return send
        cookie = f"{_cookie_name(headers)}={self._token}; Path=/; HttpOnly; SameSite=Strict"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        return sending


def _serve(arguments: list[str]) -> None:
    """Dagster's web server with the guard around it."""
    from dagster_webserver import cli

    make = cli.create_app_from_workspace_process_context  # type: ignore[reportPrivateImportUsage]

    def guarded(*args: Any, **options: Any) -> Guard:
        return Guard(make(*args, **options))

    cli.create_app_from_workspace_process_context = guarded  # type: ignore[reportPrivateImportUsage]
    sys.argv = ["dagster-webserver", *arguments]
    cli.main()


def _develop(arguments: list[str]) -> None:
    """`dagster dev`, whose web server is the guarded one."""
    from dagster._cli import dev, main

    start = dev.open_ipc_subprocess  # type: ignore[reportPrivateImportUsage]

    def starting(command: list[str], **options: Any) -> Any:
        if command[1:3] == ["-m", "dagster_webserver"]:
            command = [command[0], os.path.abspath(__file__), _WEB_SERVER, *command[3:]]
        return start(command, **options)

    dev.open_ipc_subprocess = starting  # type: ignore[reportPrivateImportUsage]
    sys.argv = ["dagster", "dev", *arguments]
    main()


if __name__ == "__main__":
    if sys.argv[1:2] == [_WEB_SERVER]:
        _serve(sys.argv[2:])
    else:
        _develop(sys.argv[1:])
