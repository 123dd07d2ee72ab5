"""Fixtures shared by all tests."""

import errno
import os
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_machine():
    """No request of a test leaves this machine: one that tries fails as it does without a network."""

    def here(address: object) -> bool:
        host = address[0] if isinstance(address, tuple) else address  # a path: a Unix socket
        host = host.decode(errors="replace") if isinstance(host, bytes) else host
        local = ("localhost", "0.0.0.0", "::", "::1", "", None, socket.gethostname())
        return not isinstance(address, tuple) or host in local or str(host).startswith(("127.", "::ffff:127."))

    def refuse(address: object) -> OSError:
        return OSError(errno.ENETUNREACH, f"tests stay on this machine: {address!r} is not of it")

    with pytest.MonkeyPatch.context() as patch:
        connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

        def guarded(self, address):
            if not here(address):
                raise refuse(address)
            return connect(self, address)

        def guarded_ex(self, address):
            return connect_ex(self, address) if here(address) else errno.ENETUNREACH

        def guarded_look_up(host, *args, **kwargs):
            if not here((host,)):
                raise socket.gaierror(socket.EAI_NONAME, f"tests stay on this machine: {host!r} is not of it")
            return look_up(host, *args, **kwargs)

        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket.socket, "connect_ex", guarded_ex)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """A test that names no working folder writes into none of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDR_HOME", str(tmp_path_factory.mktemp("own") / "home"))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real Amazon data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("SIDR_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "README.md").is_file():
        pytest.skip(f"real data not found at {folder}; set SIDR_REAL_DATA")
    return folder
