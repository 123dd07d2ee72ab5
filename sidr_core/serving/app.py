"""The routes: what a request becomes, and what an error looks like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from sidr_core.errors import SidrError
from sidr_core.serving import chat, page
from sidr_core.serving.batcher import Batcher, Busy, Closed
from sidr_core.serving.counts import Counts
from sidr_core.serving.follow import Follower
from sidr_core.serving.gate import Gate, Limits, refusal
from sidr_core.serving.messages import Answer, ChatQuestion, Question, Refusal
from sidr_core.serving.served import Served

Search = Annotated[str, Query(max_length=200, description="What names are to hold.")]
Most = Annotated[int, Query(ge=1, le=50, description="Names to give.")]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": about}
    for status, about in (
        (400, "The Host header names another machine."),
        (401, "The token is missing or wrong."),
        (413, "The body is too long."),
        (422, "The question is unclear or impossible."),
        (429, "Too many questions are waiting; see Retry-After."),
        (504, "The answer took too long."),
    )
}


@dataclass(frozen=True)
class Server:
    """The parts of a running server.

    Attributes:
        seconds: longest time from a question to its answer.
    """

    follower: Follower
    batcher: Batcher
    counts: Counts
    limits: Limits
    seconds: float = 60.0

    @property
    def served(self) -> Served:
        return self.follower.served

    async def answer(self, question: Callable[[Served], Question]) -> tuple[Served, Answer]:
        """Understand, wait in the queue, answer; all by the release that is current now."""
        served, started = self.served, time.monotonic()
        ask = await run_in_threadpool(lambda: served.ask(question(served)))
        found = await asyncio.wait_for(asyncio.wrap_future(self.batcher.submit(ask)), self.seconds)
        answer = served.answer(ask, found)
        self.counts.seconds.labels(ask.mode).observe(time.monotonic() - started)
        return served, answer


def application(server: Server) -> FastAPI:
    """The application over a server. It owns the server: both end together."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.follower.start()
        yield
        await run_in_threadpool(server.follower.stop)
        await run_in_threadpool(server.batcher.close)

    # The pages of Swagger and ReDoc load their scripts from other servers; /openapi.json is served alone.
    app = FastAPI(
        title="SIDR",
        description="Recommendations that reason over Semantic IDs.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        version="1",
    )
    _errors(app, server)
    _recommending(app, server)
    _looking(app, server)
    app.add_middleware(Gate, limits=server.limits, answered=server.counts.answered)  # type: ignore[arg-type]
    return app


def _recommending(app: FastAPI, server: Server) -> None:
    @app.post("/recommend", response_model=None, responses={200: {"model": Answer}, **_REFUSALS})
    async def recommend(question: Question) -> Response:
        """A list for a user or a history: items with titles and scores, the thought, and what in it is true."""
        _, answer = await server.answer(lambda _: question)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post("/v1/chat/completions", response_model=None, responses=_REFUSALS)
    async def completions(conversation: ChatQuestion) -> Response:
        """The same for a client of OpenAI's API; the thought is `reasoning_content`."""
        served, answer = await server.answer(lambda served: chat.question_of(conversation, served))
        if conversation.stream:
            return StreamingResponse(chat.events(conversation, answer, served), media_type="text/event-stream")
        return JSONResponse(chat.completion(conversation, answer, served))

    @app.get("/v1/models", response_model=None)
    async def models() -> Response:
        """The lists that are served, as models."""
        return JSONResponse(chat.models(server.served))


def _looking(app: FastAPI, server: Server) -> None:
    @app.get("/health", response_model=None)
    async def health() -> Response:
        """What is served now."""
        release = server.served.release
        place = release.place
        about = {"dataset": place.dataset, "snapshot": place.snapshot, "release": place.fingerprint}
        return JSONResponse({"status": "ok", **about, "model": release.model, "modes": list(release.names)})

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Figures of the server, for Prometheus."""
        return Response(server.counts.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/about", response_model=None)
    async def about() -> Response:
        """What the page shows of the release: modes, categories, sizes, weights."""
        return JSONResponse(await run_in_threadpool(page.about, server.served))

    @app.get("/items", response_model=None)
    def items(search: Search = "", most: Most = 12) -> Response:
        """Items whose id begins with a text, or whose title holds it."""
        found = server.served.shelf.items_like(search, most)
        return JSONResponse([{"item_id": item.item_id, "title": item.title, "sid": item.sid} for item in found])

    @app.get("/users", response_model=None)
    def users(search: Search = "", most: Most = 12) -> Response:
        """Users whose id holds a text."""
        return JSONResponse(server.served.shelf.users_like(search, most))

    @app.get("/", response_model=None, include_in_schema=False)
    async def front() -> Response:
        return Response(page.HTML, media_type="text/html; charset=utf-8", headers=page.HEADERS)


def _errors(app: FastAPI, server: Server) -> None:
    """Every error in one form."""

    @app.exception_handler(SidrError)
    async def sidr(_: Request, error: SidrError) -> Response:
        if isinstance(error, Busy):
            return refusal(429, error, {"Retry-After": str(error.retry_after)})
        return refusal(503 if isinstance(error, Closed) else 422, error)

    @app.exception_handler(TimeoutError)
    async def late(_: Request, __: TimeoutError) -> Response:
        error = SidrError(
            "the answer took too long",
            expected=f"an answer within {server.seconds:g} s",
            found="none yet",
            fix="ask again, in mode direct or for fewer items",
        )
        return refusal(504, error)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        told = SidrError(
            "the server failed to answer",
            expected="an answer",
            found=type(error).__name__,
            fix="see the server's log; other questions are not concerned",
        )
        return refusal(500, told)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(_: Request, error: RequestValidationError | ValidationError) -> Response:
        return refusal(422, _of_fields(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        paths = sorted({getattr(route, "path", "") for route in app.routes} - {"", "/"})
        told = SidrError(
            f"{request.method} {request.url.path[:100]} is not served",
            expected=f"one of {', '.join(paths)}",
            found=str(error.detail),
            fix="see /openapi.json",
        )
        return refusal(error.status_code, told, dict(error.headers or {}))


def _of_fields(error: RequestValidationError | ValidationError) -> SidrError:
    """The first wrong field of a body, in our form."""
    first = error.errors()[0]
    unread = first["type"] == "json_invalid"  # its place is then that of a character
    where = "" if unread else ".".join(str(part) for part in first["loc"] if part != "body")
    where = where or "the body"
    found = repr(first.get("input"))
    unparsed = isinstance(first.get("input"), bytes)  # of a request that does not say that it is JSON
    return SidrError(
        f"{where}: {first['msg']}",
        expected="a body as /openapi.json describes it",
        found=found if len(found) <= 100 else f"{found[:100]}…",
        fix="send it with the header `Content-Type: application/json`" if unparsed else f"correct {where}",
    )
