"""A server that is killed is back in two seconds: what takes long to import is imported once, in a parent that waits.

Nearly all of a start is importing torch and transformers. So `sidr serve` imports them in a process that does nothing
else, opens the port there, and forks the process that serves. Where that one is killed (out of memory, `kill -9`, a
crash of a library), the parent forks it anew; whoever connects meanwhile waits instead of being refused. Where the
parent is killed, the other ends as by SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

#: What is imported once; loading a checkpoint needs no more.
_HEAVY = ("torch", "transformers", "transformers.modeling_utils", "sidr_core.models.checkpoint", "uvicorn")
#: Deaths within so many seconds after which it is of no use to try again.
_DEATHS, _WITHIN = 5, 60.0


def keep_serving(serve: Callable[[], None], say: Callable[[str], object]) -> None:
    """Run `serve` until it ends by itself or by SIGINT or SIGTERM; where another signal ends it, start it again.

    Raises:
        SystemExit: it failed, or is killed again and again.
    """
    for name in _HEAVY:
        importlib.import_module(name)
    if not _can_fork():
        serve()
        return
    deaths: list[float] = []
    while (killer := _of_child(serve)) is not None:
        deaths = [*(at for at in deaths if time.monotonic() - at < _WITHIN), time.monotonic()]
        if len(deaths) == _DEATHS:
            say(f"the server was ended by {killer.name} {_DEATHS} times within {_WITHIN:.0f} s; it stays down")
            raise SystemExit(1)
        say(f"the server was ended by {killer.name}; it is started again")


def _can_fork() -> bool:
    """Whether a forked process can use what was imported: macOS and CUDA forbid it."""
    import torch

    return sys.platform == "linux" and torch.version.cuda is None and torch.version.hip is None


def _of_child(serve: Callable[[], None]) -> signal.Signals | None:
    """Serve in a forked process until it ends; the signal that killed it, None if it was told to end.

    Raises:
        SystemExit: it ended by itself, with a code other than 0.
    """
    alive, held = os.pipe()  # the parent holds the one end: where the other is told that it is closed, it is gone
    asked_to_stop = False

    def stop(*_: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        os.kill(child, signal.SIGTERM)

    child = os.fork()
    if child == 0:
        os.close(held)
        _serve_and_exit(serve, alive)
    os.close(alive)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(held)
    if os.WIFSIGNALED(status):
        killer = signal.Signals(os.WTERMSIG(status))
        return None if asked_to_stop or killer == signal.SIGTERM else killer
    if code := os.WEXITSTATUS(status):
        raise SystemExit(code)
    return None


def _serve_and_exit(serve: Callable[[], None], alive: int) -> None:
    """The life of the forked process. It has a session of its own: Ctrl-C is the parent's, which passes it on."""
    from sidr_core.errors import SidrError

    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)

    def end_with_parent() -> None:
        os.read(alive, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    code = 1
    try:
        serve()
        code = 0
    except SidrError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
