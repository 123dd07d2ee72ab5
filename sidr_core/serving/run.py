"""Puts a server together and runs it until it is stopped."""

from __future__ import annotations

import importlib
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from sidr_core.errors import SidrError
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.serving import release
from sidr_core.serving.app import Server, application
from sidr_core.serving.batcher import Batcher
from sidr_core.serving.counts import Counts
from sidr_core.serving.follow import Follower
from sidr_core.serving.gate import LOOPBACK, Limits
from sidr_core.serving.mixer import RANKER_MODULES
from sidr_core.serving.served import Served
from sidr_core.serving.standby import keep_serving
from sidr_core.tables.columns import MIXED

TOKEN_VARIABLE = "SIDR_SERVE_TOKEN"  # noqa: S105
_LEAST_TOKEN = 16
#: Seconds that a stopping server waits for answers that it has begun.
_GRACE = 30
#: Connections that wait for a server which is busy, or is started again.
_BACKLOG = 2048


def token_of(file: Path | None) -> str | None:
    """The token from a file, or else from the environment; None without one. It is never printed.

    Raises:
        SidrError: the file cannot be read, or the token is too short to be one.
    """
    where, text = f"the variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
    if file is not None:
        where = f"the file {file}"
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SidrError(
                f"the token cannot be read from {where}",
                expected="a text file with the token",
                found=type(error).__name__,
                fix="name a file that you can read",
            ) from None
    if text is None:
        return None
    token = text.strip()
    if len(token) < _LEAST_TOKEN or not token.isascii() or any(char.isspace() for char in token):
        raise SidrError(
            f"the token in {where} cannot be used",
            expected=f"at least {_LEAST_TOKEN} ASCII characters without blanks",
            found="a shorter one" if len(token) < _LEAST_TOKEN else "other characters",
            fix="make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return token


def limits_of(host: str, token: str | None, allowed_hosts: Sequence[str]) -> Limits:
    """Who may ask a server on an address.

    Raises:
        SidrError: it is not of this machine alone, and there is no token.
    """
    if host not in LOOPBACK and token is None:
        raise SidrError(
            f"a server on {host} would answer everyone who can reach it",
            expected="a token, or an address of this machine alone such as 127.0.0.1",
            found="no token",
            fix=f"give --token-file, or set {TOKEN_VARIABLE}",
        )
    own = () if _is_every_address(host) else (host,)
    return Limits(frozenset(name.lower() for name in (*LOOPBACK, *own, *allowed_hosts)), token)


def _is_every_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def say(line: str) -> None:
    """Tell the operator."""
    print(line, file=sys.stderr, flush=True)


def assemble(
    dataset: str | None,
    model: str | None,
    limits: Limits,
    *,
    batch_size: int,
    most_waiting: int,
    seconds: float,
    reload_seconds: float,
) -> Server:
    """A server over what is published now.

    Raises:
        SidrError: nothing is published, or it is damaged.
    """
    profile, store = load_profile(), open_store()
    dataset = dataset or profile.default_dataset
    follower = Follower(
        look=lambda: release.to_serve(profile, store, dataset),
        load=lambda place: Served.load(release.opened(store, place, model)),
        say=say,
        seconds=reload_seconds,
    )
    counts: Counts
    batcher = Batcher(batch_size, most_waiting, lambda rows, seconds, mode: counts.decoded(rows, seconds, mode))
    counts = Counts(lambda: batcher.waiting, lambda: follower.swaps, lambda: follower.failures)
    return Server(follower, batcher, counts, limits, seconds)


def check(dataset: str | None, model: str | None) -> None:
    """Whether there is something to serve, by the manifests alone: a mistake is told before anything is loaded.

    What mixed lists need is imported, so that a server that is killed finds it in its parent (`standby`).

    Raises:
        SidrError: nothing is published, or not for `model`.
    """
    profile, store = load_profile(), open_store()
    found = release.opened(store, release.to_serve(profile, store, dataset or profile.default_dataset), model)
    if MIXED in found.names:
        for name in RANKER_MODULES:
            importlib.import_module(name)


def run(assembled: Callable[[], Server], host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; then answer what was accepted, and end. A server that is killed is started again.

    Raises:
        SidrError: the port cannot be opened, or what is published cannot be loaded.
    """
    listening = _port(host, port)
    shown = f"[{host}]" if ":" in host else host

    def serve() -> None:
        import uvicorn

        server = assembled()
        place = server.served.release.place
        say(f"serving {place.dataset}, snapshot {place.snapshot}, at http://{shown}:{port}")
        config = uvicorn.Config(
            application(server),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])

    keep_serving(serve, say)


def _port(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SidrError(
            f"port {port} of {host} cannot be opened",
            expected="a free port, and an address of this machine",
            found=error.strerror or str(error),
            fix="end what listens there, or name another --port",
        ) from None
