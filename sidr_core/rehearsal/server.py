"""The stand-in of every paid server: an OpenAI-compatible one on loopback that writes by rules.

It answers `/chat/completions`, `/embeddings` and the Batch API in the forms that the teacher and the encoder ask for,
so that client, retries, ledger, budget, parsing and judging run as they will. Now and then it refuses for a moment or
answers something else than JSON, as real ones do. What it writes is built from the request and says nothing new.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from sidr_core.corpus.teacher.accept import ITEM, NEXT

#: Numbers of a vector that it makes from the words of a text.
WIDTH = 64
#: One in so many requests is refused for a moment, and one in so many is answered in prose; each once.
_REFUSED, _PROSE = 25, 40
_BYTES_PER_TOKEN = 4


@contextmanager
def serving() -> Iterator[str]:
    """The server, listening inside the block on a free port; gives its base URL."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(user: str) -> dict[str, Any]:
    r"""The reply to a user turn of the teacher, in the form that its kind has.

    >>> answer("<data>\n[1] A lamp\n[2] A bulb\n</data>\nreasoning")["reasoning"][:37]
    'With [1] and [2] I followed one plan.'
    """
    data, _, asked = user.partition("</data>")
    numbers = re.findall(r"^\[(\d+)\]", data, re.MULTILINE)
    fields = dict(re.findall(r"^(\w+): (.+)$", data, re.MULTILINE))
    if "use_cases" in asked:
        return _analysis(fields)
    if NEXT in asked:
        return {"narrative": f"{_listed(numbers)} were chosen one after the other by somebody with a plain plan, who "
                f"kept what worked and added what was missing; the same plan leads on to {NEXT}."}  # fmt: skip
    if "reasoning" in asked:
        return {"reasoning": f"With {_listed(numbers)} I followed one plan. Each of them does its own part of a larger "
                "whole, and I looked for things that go together rather than for a bargain."}  # fmt: skip
    kind = fields.get("category", "its own kind").rpartition("/")[2].strip()
    return {"narrative": f"{ITEM} belongs to {kind} and does there what its buyers expect of it. Whoever cares about "
            f"{fields.get('features', 'plain quality')} will put {ITEM} beside similar goods and compare with a calm "
            "eye."}  # fmt: skip


def _analysis(fields: dict[str, str]) -> dict[str, Any]:
    words = re.findall(r"[a-z]{4,}", fields.get("description", "").lower()) or ["useful", "plain", "sound"]
    named = sorted(dict.fromkeys(words), key=lambda word: (-len(word), word))[:4]
    return {
        "description": f"A product that stands for {', '.join(named)} and is sold to those who look for it.",
        "use_cases": ["at home in the evening", "as a present"],
        "audience": "people who know what they want",
        "features": named,
        "keywords": named,
    }


def _listed(numbers: list[str]) -> str:
    names = [f"[{number}]" for number in numbers]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ITEM


def vector(text: str) -> list[float]:
    """A vector of length 1 in which texts that share words are near each other."""
    total = np.zeros(WIDTH)
    for word in re.findall(r"\w+", text.lower()) or [""]:
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        total += np.random.default_rng(seed).standard_normal(WIDTH)
    return [round(float(value), 6) for value in total / np.linalg.norm(total)]


def completion(body: dict[str, Any], prose: bool = False) -> dict[str, Any]:
    """A chat completion with its usage; `prose` answers in words where JSON was asked for."""
    user = next(message["content"] for message in body["messages"] if message["role"] == "user")
    text = "I would rather say it in my own words." if prose else json.dumps(answer(user))
    read = sum(len(message["content"]) for message in body["messages"]) // _BYTES_PER_TOKEN
    return {
        "id": "rehearsal", "object": "chat.completion", "created": 0, "model": body["model"],
        "usage": {"prompt_tokens": read, "completion_tokens": len(text) // _BYTES_PER_TOKEN,
                  "total_tokens": read + len(text) // _BYTES_PER_TOKEN},
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    }  # fmt: skip


class _Server(ThreadingHTTPServer):
    """Holds files, batches and the count of requests; a batch is done when it is looked at."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lock = threading.Lock()
        self.requests = 0
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    def number(self) -> int:
        with self.lock:
            self.requests += 1
            return self.requests

    def keep(self, content: str) -> dict[str, Any]:
        with self.lock:
            name = f"file-{len(self.files)}"
            self.files[name] = content
        return {"id": name, "object": "file", "bytes": len(content), "created_at": 0, "filename": "f", "purpose": "b"}

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        replies = [
            {"id": f"r{n}", "custom_id": line["custom_id"], "error": None,
             "response": {"status_code": 200, "body": completion(line["body"], prose=n == 1)}}
            for n, line in enumerate(lines)
        ]  # fmt: skip
        output = self.keep("\n".join(json.dumps(reply) for reply in replies))
        made = {
            "id": f"batch-{len(self.batches)}", "object": "batch", "completion_window": "24h", "created_at": 0,
            "status": "completed", "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"],
            "metadata": asked.get("metadata"), "output_file_id": output["id"],
            "request_counts": {"total": len(lines), "completed": len(lines), "failed": 0},
        }  # fmt: skip
        self.batches[made["id"]] = made
        return made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the run's own log says what happens."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/v1/").split("/")
        if path[0] == "files":
            return self._send(200, self.server.files[path[1]].encode(), "application/octet-stream")
        if path == ["batches"]:
            return self._json({"object": "list", "data": list(self.server.batches.values()), "has_more": False})
        return self._json(self.server.batches[path[1]])

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        what = self.path.removeprefix("/v1/")
        if what == "files":
            return self._json(self.server.keep(_form_file(self.headers["content-type"], content)))
        body = json.loads(content)
        if what == "batches":
            return self._json(self.server.batch(body))
        number = self.server.number()
        if number % _REFUSED == 0:
            return self._send(429, b'{"error": {"message": "too many at once"}}', "application/json")
        if what == "embeddings":
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            data = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(texts)]
            return self._json({"object": "list", "model": body["model"], "data": data, "usage": _NO_USAGE})
        return self._json(completion(body, prose=number % _PROSE == 0))

    def _json(self, value: dict[str, Any]) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "0.05")
        self.end_headers()
        self.wfile.write(content)


_NO_USAGE = {"prompt_tokens": 0, "total_tokens": 0}


def _form_file(kind: str, content: bytes) -> str:
    """The part called `file` of a multipart form."""
    mark = b"--" + kind.split("boundary=")[1].strip('"').encode()
    for part in content.split(mark):
        head, _, body = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return body.removesuffix(b"\r\n").decode()
    raise ValueError("the form holds no file")
