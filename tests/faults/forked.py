"""Stages in forked children: a kill costs about the time of the stage, since the parent has imported all it needs.

The parent imports and does nothing else: thread pools (polars, OpenMP, DuckDB) do not live through a fork, so every
piece of work is done in a child, and a suite that forks is run in a new process (:func:`afresh`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

#: A child that takes longer than this hangs.
PATIENCE_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Failed:
    """What a child raised: its class, those above it, and what it says."""

    kind: str
    bases: tuple[str, ...]
    text: str
    stack: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        bases = tuple(base.__name__ for base in type(error).__mro__)
        return cls(type(error).__name__, bases, str(error), "".join(traceback.format_exception(error)))


class Child:
    """`function(*args)` in a forked process, in a process group of its own; its output goes to `log`."""

    def __init__(self, log: Path, function: Callable[..., Any], *args: Any) -> None:
        sys.stdout.flush()
        self._answer, told = os.pipe()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid:
            os.close(told)
            self.status: int | None = None
            return
        try:
            os.close(self._answer)
            os.setpgid(0, 0)
            _die_with_the_parent()
            with log.open("ab") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            try:
                result: Any = function(*args)
            except BaseException as error:
                traceback.print_exc()
                result = Failed.of(error)
            with open(told, "wb") as pipe:  # closed, so that the answer has left before the process ends
                pickle.dump(result, pipe)
        finally:
            os._exit(0)

    def kill(self) -> None:
        """`kill -9`, to the process and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.result()

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end at most so long."""
        return bool(select.select([self._answer], [], [], max(0.0, seconds))[0])

    def result(self) -> Any:
        """What the function gave; a :class:`Failed` where it raised or the process died without a word."""
        if not self.ends_within(PATIENCE_SECONDS):
            os.killpg(self.pid, signal.SIGKILL)
        with open(self._answer, "rb") as pipe:
            told = pipe.read()
        _, self.status = os.waitpid(self.pid, 0)
        self.seconds = time.monotonic() - self.started
        if told:
            with contextlib.suppress(EOFError, pickle.UnpicklingError):  # killed while it answered
                return pickle.loads(told)
        return Failed("Died", (), f"the process ended with status {self.status} and no answer", "")


def _die_with_the_parent() -> None:
    """On Linux a child is killed when its parent ends, so that a suite that is interrupted leaves nothing behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def afresh(function: str, *args: Any, prefix: tuple[str, ...] = ()) -> int:
    """The number that `module:function` gives for arguments that JSON can say, in a new process that has done nothing.

    Args:
        prefix: a command that starts the process.
    """
    module, _, name = function.partition(":")
    code = f"import json, sys, {module}; print({module}.{name}(*json.loads(sys.argv[1])), file=open(sys.argv[2], 'w'))"
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile("r") as told:
        command = [*prefix, sys.executable, "-c", code, json.dumps(args), told.name]
        subprocess.run(command, check=True, env=environment)
        return int(told.read())


def learn(function: Callable[..., Any], *args: Any) -> tuple[Any, list[str]]:
    """For a child: what the function gives, and the modules that it imported."""
    before = set(sys.modules)
    return function(*args), [name for name in list(sys.modules) if name not in before]


def preload(modules: list[str]) -> None:
    """Import in this process what a child had to import, so that the next one need not."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
