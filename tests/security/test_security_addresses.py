"""Where requests may go, what goes with them, and what a redirect may not reach."""

import asyncio
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sidr_core.errors import SidrError
from sidr_core.remote.endpoint import make_openai_client, read_key
from sidr_core.reviews import downloads
from sidr_core.settings.base import Endpoint

KEY = "hunter2-hunter2"


@contextlib.contextmanager
def server(location: str | None):
    """A server on loopback that sends everyone to `location`, or, without one, answers; with the heads of requests."""
    heads: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            heads.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(307 if location else 200)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", heads
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1]:8000/v1", "https://[2001:db8::1]/v1", "http://127.0.0.1/v1", "https://169.254.169.254/v1"),
        "HTTPS://api.example.org/v1/",
    ],
)
def test_addresses_that_are_plain(url):
    assert Endpoint(model="m", base_url=url).base_url == url.rstrip("/")


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "[fe80::1]", "[::ffff:10.0.0.1]", "127.0.0.1.example.org", "localhost.example.org"),
        *("10.0.0.1", "0.0.0.0", "2130706433", "example.org", "[2001:db8::1]", "xn--lcalhost-54a"),
    ],
)
def test_a_key_does_not_travel_in_clear_text(host, monkeypatch):
    monkeypatch.setenv("EVIL_KEY", KEY)
    with pytest.raises(SidrError, match="clear text") as told:
        read_key(Endpoint(model="m", base_url=f"http://{host}/v1", api_key_env="EVIL_KEY"))
    assert KEY not in str(told.value)


def test_a_redirect_does_not_carry_the_key(monkeypatch):
    """A teacher that sends its callers to another host does not send their key there."""
    monkeypatch.setenv("EVIL_KEY", KEY)

    async def ask(base: str) -> None:
        settings = Endpoint(model="m", base_url=f"{base}/v1", api_key_env="EVIL_KEY", retries=0)
        async with make_openai_client(settings) as client:
            with contextlib.suppress(Exception):  # whatever the other host answers
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "q"}])

    with server(None) as (other, there), server(f"{other}/v1/chat/completions") as (base, here):
        asyncio.run(ask(base))
    assert KEY in here[0]["authorization"], "the first host is the one that the profile names"
    assert all(KEY not in str(head) for head in there)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:alert(1)", "data:text/plain,x", "http://[::1", ""],
)
def test_a_redirect_reaches_no_other_scheme(location, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "PATIENCE", downloads.Patience(retries=0))
    with server(location or "file:") as (base, _), pytest.raises(SidrError, match="cannot download"):
        downloads.download(f"{base}/reviews.json.gz")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".lock", "")]
