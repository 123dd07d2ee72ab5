"""A server that is killed comes back; one that is told to end, or fails, does not."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

PROGRAM = """
import os, signal, sys
from sidr_core.errors import SidrError
from sidr_core.serving import standby

standby._HEAVY, standby._can_fork = (), lambda: True  # nothing is imported that takes seconds

def serve():
    print(os.getpid(), flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "fail":
        raise SidrError("no lists", expected="lists", found="none", fix="make some")
    signal.pause()

standby.keep_serving(serve, lambda line: print(line, file=sys.stderr))
"""


@pytest.fixture
def standby():
    """Starts a parent; whatever is left of it is killed at the end."""
    started = []

    def start(how: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, how]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_server_that_is_killed_is_started_again_and_one_that_is_told_to_end_is_not(standby):
    parent = standby("wait")
    first = int(parent.stdout.readline())
    os.kill(first, signal.SIGKILL)
    second = int(parent.stdout.readline())
    assert second not in (first, parent.pid)
    parent.send_signal(signal.SIGTERM)
    _, told = parent.communicate(timeout=10)
    assert parent.returncode == 0 and gone(second)
    assert told.splitlines() == ["the server was ended by SIGKILL; it is started again"]


def test_without_its_parent_a_server_ends(standby):
    parent = standby("wait")
    child = int(parent.stdout.readline())
    parent.kill()
    assert gone(child)


def test_a_server_that_dies_again_and_again_stays_down(standby):
    parent = standby("die")
    pids, told = parent.communicate(timeout=20)
    assert parent.returncode == 1 and len(pids.splitlines()) == 5
    assert told.splitlines()[-1] == "the server was ended by SIGKILL 5 times within 60 s; it stays down"


def test_a_server_that_fails_is_not_started_again(standby):
    parent = standby("fail")
    pids, told = parent.communicate(timeout=10)
    assert parent.returncode == 1 and len(pids.splitlines()) == 1
    assert told.startswith("error: no lists") and "make some" in told
