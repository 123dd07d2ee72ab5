"""A real HTTP server of one file on loopback that misbehaves as told, request by request."""

from __future__ import annotations

import contextlib
import http.server
import socket
import struct
import threading
from collections.abc import Sequence

BODY = bytes(range(256)) * 1200


class FileServer:
    """Serves :data:`BODY` at every path, with ranges and an ETag.

    Args:
        faults: what the requests meet, in order: a status (`"503"`), `cut`, `reset`, `hang`, `drip` (from the half
            on), `drip_head`, `empty`, `other_range` (of whatever version), or `ok`. The last one counts for all others.
        later: what the file holds from the second request on.
        retry_after: what a status comes with.
    """

    def __init__(self, *faults: str, later: bytes = b"", retry_after: str = "") -> None:
        self.faults: Sequence[str] = faults or ("ok",)
        self.body, self.etag, self.retry_after = BODY, '"one"', retry_after
        self.ranges: list[str | None] = []
        self._ended = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fault = outer.faults[min(len(outer.ranges), len(outer.faults) - 1)]
                outer.ranges.append(self.headers.get("Range"))
                with contextlib.suppress(OSError):  # the client has gone
                    outer._answer(self, fault)
                if later:
                    outer.body, outer.etag = later, '"two"'
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/reviews.json"

    def __enter__(self) -> FileServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, to: http.server.BaseHTTPRequestHandler, fault: str) -> None:
        if fault == "hang":
            self._ended.wait()
        elif fault == "drip_head":
            self._drip(to, b"HTTP/1.1 200 OK\r\nX-Long: ")
        elif fault == "reset":
            to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            to.connection.close()
        elif fault.isdecimal():
            to.send_response(int(fault))
            if self.retry_after:
                to.send_header("Retry-After", self.retry_after)
            to.send_header("Content-Length", "0")
            to.end_headers()
        else:
            self._send(to, fault)

    def _send(self, to: http.server.BaseHTTPRequestHandler, fault: str) -> None:
        body, begin, wanted = (b"" if fault == "empty" else self.body), 0, to.headers.get("Range")
        if wanted and (to.headers.get("If-Range") == self.etag or fault == "other_range"):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(body):
                to.send_error(416)
                return
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            to.send_response(200)
        to.send_header("ETag", self.etag)
        to.send_header("Content-Length", str(len(body) - begin))
        to.end_headers()
        rest = body[begin:]
        if fault == "drip":
            to.wfile.write(rest[: len(rest) // 2])
            self._drip(to, rest[len(rest) // 2 :])
        to.wfile.write(rest[: len(rest) // 2] if fault == "cut" else rest)

    def _drip(self, to: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        for place in range(len(data)):
            to.wfile.write(data[place : place + 1])
            to.wfile.flush()
            if self._ended.wait(0.02):
                return
        while not self._ended.wait(0.02):
            to.wfile.write(b"x")
