"""An S3 server in this process, one lock around all objects, so its conditions are atomic.

It knows what the store needs: PUT with `If-None-Match: *` and `If-Match`, uploads in parts, GET with ranges, HEAD,
DELETE and listings. It counts requests and bytes, and can be told to ignore conditions or to lose the network.
"""

import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from builders.loopback import Background

KEY, SECRET = "TESTKEY0123456789", "test-secret-that-nobody-may-see"


class S3Server(Background):
    """Objects by name; `requests` counts methods, `received` and `sent` count bytes of bodies.

    Args:
        conditions: False takes conditions and ignores them.
    """

    def __init__(self, conditions: bool = True) -> None:
        self.conditions = conditions
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.requests: Counter[str] = Counter()
        self.received = self.sent = 0
        #: Asked before each request is answered: (method, name) -> whether the connection breaks here.
        self.breaks: Callable[[str, str], bool] = lambda method, name: False
        self.lock = threading.RLock()
        self._uploads: dict[str, dict[int, bytes]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            server_version = "Objects"

            def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                length = (headers or {}).get("Content-Length", str(len(body)))
                for name, value in {**(headers or {}), "Content-Length": length}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    outer.sent += len(body)
                    self.wfile.write(body)

            def refuse(self, status: int, code: str) -> None:
                text = f"<Error><Code>{code}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
                self.answer(status, text.encode())

            def handle_one(self) -> None:
                parts = urlsplit(self.path)
                _, _, name = unquote(parts.path).lstrip("/").partition("/")
                query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with outer.lock:
                    outer.requests[self.command] += 1
                    outer.received += len(body)
                    if outer.breaks(self.command, name):
                        self.close_connection = True
                        self.connection.close()
                        return
                    if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
                        self.refuse(403, "InvalidAccessKeyId")
                        return
                    outer.answer(self, name, query, body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_one

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._http.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def answer(self, handler, name: str, query: dict[str, str], body: bytes) -> None:
        """Answer one request; the lock is held."""
        method = handler.command
        if method == "GET" and "list-type" in query:
            handler.answer(200, self._listing(query))
        elif method == "POST" and "delete" in query:
            keys = re.findall(r"<Key>([^<]*)</Key>", body.decode())
            for key in keys:
                self.objects.pop(unescape(key), None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            handler.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        elif method == "POST" and "uploads" in query:
            upload = f"upload{len(self._uploads)}"
            self._uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            handler.answer(200, text.encode())
        elif method == "POST" and "uploadId" in query:
            parts = self._uploads.pop(query["uploadId"])
            self._write(name, b"".join(parts[number] for number in sorted(parts)))
            tag = escape(e_tag(self.objects[name][0]))
            text = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            handler.answer(200, text.encode())
        elif method == "PUT" and "uploadId" in query:
            self._uploads[query["uploadId"]][int(query["partNumber"])] = body
            handler.answer(200, headers={"ETag": e_tag(body)})
        elif method == "PUT":
            self._put(handler, name, body)
        elif method == "DELETE":
            self.objects.pop(name, None)
            self._uploads.pop(query.get("uploadId", ""), None)
            handler.answer(204)
        elif name in self.objects:
            self._get(handler, name)
        else:
            handler.refuse(404, "NoSuchKey")

    def _write(self, name: str, body: bytes) -> None:
        self.objects[name] = (body, time.time())

    def _put(self, handler, name: str, body: bytes) -> None:
        old = self.objects.get(name)
        if self.conditions and handler.headers.get("If-None-Match") == "*" and old is not None:
            handler.refuse(412, "PreconditionFailed")
        elif self.conditions and (wanted := handler.headers.get("If-Match")) and (not old or e_tag(old[0]) != wanted):
            handler.refuse(412 if old else 404, "PreconditionFailed" if old else "NoSuchKey")
        else:
            self._write(name, body)
            handler.answer(200, headers={"ETag": e_tag(body)})

    def _get(self, handler, name: str) -> None:
        body, written = self.objects[name]
        headers = {"ETag": e_tag(body), "Last-Modified": formatdate(written, usegmt=True)}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(body)), len(body) - 1)
            if start >= len(body):
                handler.refuse(416, "InvalidRange")
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            handler.answer(206, body[start : end + 1], headers)
        else:
            handler.answer(200, body, headers | {"Content-Length": str(len(body))})

    def _listing(self, query: dict[str, str]) -> bytes:
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(body)}</Size><ETag>{escape(e_tag(body))}</ETag>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(written))}</LastModified></Contents>"
            for name, (body, written) in sorted(self.objects.items())
            if name.startswith(query.get("prefix", ""))
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def e_tag(body: bytes) -> str:
    """Version of an object: a digest of its content, in quotes."""
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
