"""A real HTTP server on the loopback interface whose every answer the test writes."""

import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: Given the number of the request (from 1) and its JSON body: status, body and perhaps headers. A body may be bytes,
#: an iterable of bytes (sent in chunks until the client leaves), or what becomes JSON.
Answer = Callable[[int, dict[str, Any]], tuple]


class Background:
    """An HTTP server, `_http`, that a thread serves inside a `with` block."""

    _http: ThreadingHTTPServer

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class Loopback(Background):
    """Answers every POST by `answer`, keeps what was `asked` (with its `path`) and the `keys` that came along."""

    def __init__(self, answer: Answer, address: str = "127.0.0.1") -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(body | {"path": self.path})
                    outer.keys.add(self.headers["Authorization"])
                    status, reply, *headers = outer.answer(len(outer.asked), body)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers[0] if headers else {})}.items():
                    self.send_header(name, value)
                try:
                    self.write(reply)
                except ConnectionError:  # the client has seen enough
                    self.close_connection = True

            def write(self, reply: Any) -> None:
                if isinstance(reply, Iterable) and not isinstance(reply, bytes | str | dict | list):
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for part in reply:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    self.wfile.write(b"0\r\n\r\n")
                    return
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer((address, 0), Handler)
        self._http.daemon_threads = True
        self.root = f"http://{address}:{self._http.server_port}"
        self.base_url = f"{self.root}/v1"
