"""An OpenAI-compatible server on loopback that misbehaves on demand, and counts what it would charge.

It speaks HTTP/1.1 over plain sockets, so it can also do what no framework does: drip bytes, cut a body off, reset a
connection. Its replies are a function of the request alone. It charges for every request that it works on, also when
the client never gets to see the reply; a refusal by status (4xx, 5xx) is free.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate

#: What a request can meet. The first group costs nothing.
FREE = ("429", "429_date", "quota", "400", "401", "404", "408", "422", "500", "503", "too_long")
CHARGED = (
    "ok", "hang", "drip", "truncated", "cut", "empty_choices", "not_json", "wrong_schema", "refusal", "length",
    "content_filter", "error_200", "reset", "fenced", "thinking", "no_usage",
)  # fmt: skip

_MESSAGES = {
    "quota": (429, {"code": "insufficient_quota", "message": "You exceeded your current quota."}),
    "too_long": (400, {"code": "context_length_exceeded", "message": "maximum context length is 4096 tokens"}),
}


class ScriptedServer:
    """Serves `/v1/chat/completions`, `/v1/files` and `/v1/batches`.

    Args:
        fault: what the first `times` chat requests meet (None: every one); the others get their reply.
        latency: seconds until a reply.
        retry_after: seconds that 429 and 503 ask for.
        behave: given the number of a chat request (from 0) and its body, names what it meets; replaces `fault`.
        line: the same for the lines of a batch: ok, missing (no line in the output), or a name of FREE.
        polls: how often a batch is looked at before it ends. batch_status: how it ends.
        lose_batches: so many batches are made without the client being told.
    """

    def __init__(
        self,
        fault: str = "ok",
        times: int | None = None,
        latency: float = 0.0,
        retry_after: float = 0.05,
        behave: Callable[[int, dict], str] | None = None,
        line: Callable[[int, dict], str] = lambda number, body: "ok",
        polls: int = 2,
        batch_status: str = "completed",
        lose_batches: int = 0,
    ) -> None:
        self._behave = behave or (lambda number, body: fault if times is None or number < times else "ok")
        self._latency, self._retry_after = latency, retry_after
        self._line, self._polls, self._batch_status, self._lose = line, polls, batch_status, lose_batches
        self.requests = 0  # of chat
        self.input_tokens = self.output_tokens = 0
        self.charged: Counter[str] = Counter()  # sha256 of a body -> how often it was charged
        self.most_at_once = self._at_once = 0
        self.authorizations: set[str] = set()
        self.batches: dict[str, dict] = {}
        self.most_polls: Counter[str] = Counter()
        self._files: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def calls(self) -> int:
        """Requests that were charged."""
        return sum(self.charged.values())

    @property
    def repeated(self) -> int:
        """Charged requests beyond the first of each body."""
        return self.calls - len(self.charged)

    def usd(self, per_million_input: float, per_million_output: float) -> float:
        return (self.input_tokens * per_million_input + self.output_tokens * per_million_output) / 1e6

    # -- life --------------------------------------------------------------------------------

    def start(self, after: float = 0.0) -> ScriptedServer:
        """Listen; `after` so many seconds, during which connections are refused."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(after, ready), daemon=True)
        self._thread.start()
        if not after:
            ready.wait(10)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def __enter__(self) -> ScriptedServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self, after: float, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def listen() -> None:
            await asyncio.sleep(after)
            self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
            ready.set()

        starting = self._loop.create_task(listen())
        self._loop.run_forever()
        starting.cancel()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        if hasattr(self, "_server"):
            self._server.close()
        self._loop.close()

    # -- HTTP --------------------------------------------------------------------------------

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:] if x)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.authorizations.add(headers.get("authorization", ""))
                if not await self._route(method, path.partition("?")[0], headers, body, writer):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _route(self, method: str, path: str, headers: dict, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False closes the connection."""
        if path == "/v1/chat/completions":
            return await self._chat(json.loads(body), writer)
        if (method, path) == ("POST", "/v1/files"):
            return _send(writer, 200, self._new_file(_part(headers, body)))
        if path.startswith("/v1/files/"):
            return _send(writer, 200, self._files[path.split("/")[3]])
        if (method, path) == ("POST", "/v1/batches"):
            made = self._new_batch(json.loads(body))
            if self._lose > 0:
                self._lose -= 1
                return _reset(writer)
            return _send(writer, 200, made)
        if path == "/v1/batches":
            return _send(writer, 200, {"object": "list", "data": list(self.batches.values()), "has_more": False})
        if path.startswith("/v1/batches/"):
            return _send(writer, 200, self._look_at(path.split("/")[3]))
        return _send(writer, 404, {"error": {"message": f"no {path} here"}})

    async def _chat(self, body: dict, writer: asyncio.StreamWriter) -> bool:
        fault = self._behave(self.requests, body)
        self.requests += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if fault in FREE:
                return self._refuse(fault, writer)
            self._charge(body, 1.0)
            await asyncio.sleep(self._latency)
            return await self._reply(fault, body, writer)
        finally:
            self._at_once -= 1

    def _refuse(self, fault: str, writer: asyncio.StreamWriter) -> bool:
        status, error = _MESSAGES.get(fault) or (int(fault[:3]), {"message": f"scripted {fault}"})
        if status == 401:  # as the real one does
            given = sorted(self.authorizations)[-1].removeprefix("Bearer ")
            error = {"code": "invalid_api_key", "message": f"Incorrect API key provided: {given}. See the manual."}
        wait = formatdate(time.time() + self._retry_after, usegmt=True) if fault == "429_date" else self._retry_after
        extra = {"Retry-After": str(wait)} if status in (429, 503) else {}
        return _send(writer, status, {"error": error}, extra)

    async def _reply(self, fault: str, body: dict, writer: asyncio.StreamWriter) -> bool:
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "reset":
            return _reset(writer)
        if fault == "error_200":
            return _send(writer, 200, {"error": {"code": 502, "message": "upstream is down"}})
        text = json.dumps(completion(body, fault))
        if fault == "drip":
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {10**6}\r\n\r\n".encode()
            )
            for _ in range(10**6):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        if fault == "cut":  # the connection ends before the announced length
            _send(writer, 200, text, length=len(text.encode()) + 100)
            return False
        return _send(writer, 200, text[: len(text) // 2] if fault == "truncated" else text)

    def _charge(self, body: dict, factor: float) -> None:
        usage = _usage(body)
        self.charged[hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()] += 1
        self.input_tokens += usage["prompt_tokens"] * factor
        self.output_tokens += usage["completion_tokens"] * factor

    # -- batches -----------------------------------------------------------------------------

    def _new_file(self, content: str) -> dict:
        name = f"file-{len(self._files)}"
        self._files[name] = content
        return {"id": name, "object": "file", "bytes": len(content), "created_at": 0, "filename": "f", "purpose": "b"}

    def _new_batch(self, asked: dict) -> dict:
        lines = [json.loads(line) for line in self._files[asked["input_file_id"]].splitlines()]
        answers, errors = [], []
        for number, line in enumerate(lines if self._batch_status in ("completed", "expired") else []):
            fault = self._line(number, line["body"])
            entry: dict = {"id": f"r{number}", "custom_id": line["custom_id"], "error": None}
            if fault in FREE:
                status, error = _MESSAGES.get(fault) or (int(fault[:3]), {"message": f"scripted {fault}"})
                errors.append({**entry, "response": {"status_code": status, "body": {"error": error}}})
            elif fault != "missing":
                self._charge(line["body"], 0.5)
                body = completion(line["body"], fault)
                answers.append({**entry, "response": {"status_code": 200, "body": body}})
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name, "object": "batch", "completion_window": "24h", "created_at": 0, "status": "in_progress",
            "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"], "metadata": asked["metadata"],
            "request_counts": {"total": len(lines), "completed": len(answers), "failed": len(errors)},
            "output": "\n".join(map(json.dumps, answers)), "errors_output": "\n".join(map(json.dumps, errors)),
        }  # fmt: skip
        return self.batches[name]

    def _look_at(self, name: str) -> dict:
        batch = self.batches[name]
        self.most_polls[name] += 1
        if self.most_polls[name] >= self._polls and batch["status"] == "in_progress":
            batch["status"] = self._batch_status
            for source, target in (("output", "output_file_id"), ("errors_output", "error_file_id")):
                if batch[source]:
                    batch[target] = self._new_file(batch[source])["id"]
            if self._batch_status == "failed":
                batch["errors"] = {"object": "list", "data": [{"code": "x", "message": "the file is not good"}]}
        return batch


def answer(body: dict) -> str:
    """The JSON that the server writes: a function of the first user message, in the form of the schema asked for."""
    asked = next(message["content"] for message in body["messages"] if message["role"] == "user")
    told = "about " + hashlib.sha256(asked.encode()).hexdigest()[:12]
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is None:
        return json.dumps({"text": told, "score": len(asked) % 10})
    return json.dumps(_fill(schema, schema, told, len(asked) % 10))


def _fill(node: dict, whole: dict, text: str, number: int) -> object:
    if "$ref" in node:
        return _fill(whole["$defs"][node["$ref"].rsplit("/", 1)[1]], whole, text, number)
    if node["type"] == "object":
        return {name: _fill(part, whole, text, number) for name, part in node["properties"].items()}
    if node["type"] == "array":
        return [_fill(node["items"], whole, text, number)] * 2
    return text if node["type"] == "string" else number


def _usage(body: dict) -> dict[str, int]:
    asked = sum(len(message["content"]) for message in body["messages"])
    read, written = asked // 4 + 8, len(answer(body)) // 3
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def completion(body: dict, fault: str) -> dict:
    """A chat completion with one of the faults that lie in its body."""
    text = answer(body)
    message: dict = {"role": "assistant", "content": text}
    contents = {
        "not_json": "I would rather talk about the weather.",
        "wrong_schema": json.dumps({"text": 5, "score": "high"}),
        "length": text[: len(text) // 2],
        "content_filter": "",
        "fenced": f"Sure!\n```json\n{text}\n```\nAnything else?",
        "thinking": f"<think>\nmaybe {{\"text\": 1}}\n</think>\n\n{text}",
    }  # fmt: skip
    message["content"] = contents.get(fault, text)
    if fault == "refusal":
        message.update(content=None, refusal="I cannot help with that.")
    finish = fault if fault in ("length", "content_filter") else "stop"
    done = {
        "id": "c", "object": "chat.completion", "created": 0, "model": body["model"], "usage": _usage(body),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }  # fmt: skip
    if fault == "empty_choices":
        done["choices"] = []
    if fault == "no_usage":
        del done["usage"]
    return done


def _part(headers: dict, body: bytes) -> str:
    """The file in a multipart form."""
    mark = b"--" + headers["content-type"].split("boundary=")[1].strip('"').encode()
    for part in body.split(mark):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n").decode()
    raise ValueError("no file in the form")


def _send(
    writer: asyncio.StreamWriter, status: int, body: dict | str, extra: dict | None = None, length: int | None = None
) -> bool:
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = {"Content-Type": "application/json", "Content-Length": length or len(content), **(extra or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode() + content)
    return True


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection with RST, as a crashing server does."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
