"""The guard of the UI: what a page of another site may not do."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from ui import Guard, refusal

HERE = {"host": "127.0.0.1:3000"}
OWN = "http://127.0.0.1:3000"
COOKIE = {"cookie": "sidr_ui_3000=secret"}
HOSTS = ("127.0.0.1", "localhost", "::1")


def refused(method: str, headers: dict[str, str], path: str = "/graphql", query: str = "") -> str | None:
    return refusal(method, path, query, Headers(headers), HOSTS, "secret")


@pytest.mark.parametrize(
    ("method", "headers", "query"),
    [
        ("GET", {"host": "evil.example:3000"}, ""),  # DNS rebinding
        ("GET", {}, ""),
        ("GET", {"host": "127.0.0.1.evil.example"}, ""),
        ("GET", {"host": "evil@[::1"}, ""),
        ("POST", HERE | COOKIE | {"origin": "http://evil.example"}, ""),
        ("POST", HERE | COOKIE | {"origin": "http://127.0.0.1:8000"}, ""),  # another server of this machine
        ("POST", HERE | COOKIE | {"origin": "null"}, ""),
        ("WEBSOCKET", HERE | COOKIE | {"origin": "http://evil.example"}, ""),
        ("OPTIONS", HERE | {"origin": "http://evil.example"}, ""),
        ("GET", HERE | COOKIE, "query=mutation%20%7B%20startSensor%20%7D"),  # an image tag
        ("GET", HERE | COOKIE, "query="),
        ("POST", HERE | {"origin": OWN}, ""),  # no cookie
        ("POST", HERE | {"origin": OWN, "cookie": "sidr_ui_3000=guessed"}, ""),
        ("POST", HERE | {"origin": OWN, "cookie": "sidr_ui_3001=secret"}, ""),
        ("POST", HERE | {"sec-fetch-site": "cross-site"}, ""),
        ("POST", HERE | {"referer": "http://evil.example/"}, ""),
        ("WEBSOCKET", HERE | {"origin": OWN}, ""),
    ],
)
def test_a_foreign_page_is_refused(method, headers, query) -> None:
    assert refused(method, headers, query=query)
    assert query or refused(method, headers, "/report_asset_materialization/games/evaluation")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", HERE),
        ("GET", {"host": "localhost"}),
        ("GET", {"host": "[::1]:3000"}),
        ("POST", HERE | COOKIE | {"origin": OWN}),
        ("POST", HERE | {"cookie": "a=b; sidr_ui_3000=secret", "sec-fetch-site": "same-origin"}),
        ("WEBSOCKET", HERE | COOKIE | {"origin": OWN}),
        ("POST", HERE),  # a program that is no browser
    ],
)
def test_the_page_of_the_server_and_programs_are_answered(method, headers) -> None:
    assert refused(method, headers) is None


def ask(guard: Guard, headers: dict[str, str], method: str = "GET", kind: str = "http") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    scope = {"type": kind, "path": "/", "query_string": b"", "http_version": "1.1"}
    scope |= {"method": method} if kind == "http" else {}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard(scope, receive, send))
    return sent


def test_a_page_brings_its_cookie_and_a_foreign_one_gets_none(monkeypatch) -> None:
    monkeypatch.setenv("SIDR_UI_HOSTS", "ui.example")
    guard = Guard(PlainTextResponse("page"))
    start, body = ask(guard, HERE | {"sec-fetch-site": "none"})
    assert (start["status"], body["body"]) == (200, b"page")
    cookie = dict(start["headers"])[b"set-cookie"].decode()
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    own = HERE | {"origin": OWN, "cookie": cookie.partition(";")[0]}
    assert ask(guard, own, "POST")[0]["status"] == 200
    assert ask(guard, HERE | {"origin": OWN}, "POST")[0]["status"] == 403
    assert b"set-cookie" not in dict(ask(guard, HERE | {"sec-fetch-site": "cross-site"})[0]["headers"])
    assert ask(guard, {"host": "ui.example"})[0]["status"] == 200
    assert ask(guard, {"host": "other.example"})[0]["status"] == 403
    assert ask(guard, HERE | {"origin": "http://evil.example"}, kind="websocket")[0]["type"] == "websocket.close"
