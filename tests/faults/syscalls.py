"""A process that is killed just before its n-th system call that changes the file system (Linux, by ptrace)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_TRACEME, _SYSCALL, _SETOPTIONS, _SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_OPTIONS = 1 | 1 << 20  # a stop at a system call is told from a signal; the child ends with its tracer
_ENTRY = 1
_AT_CALL = signal.SIGTRAP | 0x80

#: Number -> name and which arguments are paths or descriptors, per machine.
_CALLS = {
    "x86_64": {
        1: "write", 18: "pwrite64", 20: "writev", 74: "fsync", 75: "fdatasync", 77: "ftruncate", 2: "open",
        257: "openat", 82: "rename", 264: "renameat", 316: "renameat2", 83: "mkdir", 258: "mkdirat", 84: "rmdir",
        87: "unlink", 263: "unlinkat", 86: "link", 265: "linkat", 88: "symlink", 266: "symlinkat",
    },
    "aarch64": {
        64: "write", 68: "pwrite64", 66: "writev", 82: "fsync", 83: "fdatasync", 46: "ftruncate", 56: "openat",
        38: "renameat", 276: "renameat2", 34: "mkdirat", 35: "unlinkat", 37: "linkat", 36: "symlinkat",
    },
}  # fmt: skip
_OF_DESCRIPTOR = ("write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Info(ctypes.Structure):
    """`struct ptrace_syscall_info`, as far as the entry of a call fills it."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


def available() -> str:
    """Why calls cannot be traced here; empty if they can."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return "needs Linux on x86-64 or arm64"
    try:
        run_until(lambda: None, None, Path("/"))
    except OSError as error:
        return f"ptrace is not allowed here: {error}"
    return ""


def run_until(function: Callable[[], object], stop: int | None, below: Path) -> list[str]:
    """Run `function` in a forked child and kill it before its call number `stop` (from 1; None: never).

    Returns:
        The calls that were made, and the one it was killed at, each as `name path`, of files below `below`.

    Raises:
        RuntimeError: it ended otherwise than by its end or the kill.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            function()
            os._exit(0)
        finally:
            os._exit(1)
    calls: list[str] = []
    try:
        os.waitpid(pid, 0)
        _ptrace(_SETOPTIONS, pid, None, ctypes.c_void_p(_OPTIONS))
        status = _follow(pid, calls, stop, below)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    if status not in (0, signal.SIGKILL if stop is not None else 0):
        raise RuntimeError(f"the traced process ended with status {status} after {calls[-3:]}")
    return calls


def _follow(pid: int, calls: list[str], stop: int | None, below: Path) -> int:
    """From one stop to the next until the child is no more; its status."""
    passed, info = 0, _Info()
    while True:
        _ptrace(_SYSCALL, pid, None, ctypes.c_void_p(passed))
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return status
        passed = 0
        if os.WSTOPSIG(status) != _AT_CALL:
            passed = os.WSTOPSIG(status)
            continue
        _ptrace(_SYSCALL_INFO, pid, ctypes.c_void_p(ctypes.sizeof(info)), ctypes.byref(info))
        if info.op == _ENTRY and (call := _told(pid, info, below)):
            calls.append(call)
            if len(calls) == stop:
                os.kill(pid, signal.SIGKILL)
                return os.waitpid(pid, 0)[1]


def _told(pid: int, info: _Info, below: Path) -> str | None:
    """What a call does to which file, if it changes one below the folder."""
    name = _CALLS[platform.machine()].get(info.nr)
    if name is None:
        return None
    if name in _OF_DESCRIPTOR:
        path = os.readlink(f"/proc/{pid}/fd/{info.args[0]}")
        return f"{name} {path}" if path.startswith(str(below)) else None
    if name in ("open", "openat") and not info.args[1 if name == "open" else 2] & _WRITING:
        return None
    places = {"rename": (0, 1), "renameat": (1, 3), "renameat2": (1, 3), "link": (0, 1), "linkat": (1, 3)}
    first = 1 if name.endswith("at") else 0
    paths = [_text(pid, info.args[place]) for place in places.get(name, (first,))]
    if not paths[0].startswith("/") and first:  # relative to an open folder, as rmtree does it
        folder = os.readlink(f"/proc/{pid}/fd/{ctypes.c_int(info.args[0]).value}")
        paths = [f"{folder}/{paths[0]}"]
    return f"{name} {' -> '.join(paths)}" if paths[0].startswith(str(below)) else None


def _text(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        memory.seek(address)
        return memory.read(4096 - address % 4096 or 4096).split(b"\0")[0].decode()


def _ptrace(request: int, pid: int, address: object, data: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype, libc.ptrace.argtypes = ctypes.c_long, (ctypes.c_long, ctypes.c_int, *[ctypes.c_void_p] * 2)
    if libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
