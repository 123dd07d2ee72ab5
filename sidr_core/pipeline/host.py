"""Memory and packages: what a manifest says of the process that made an output, and what the machine has."""

from __future__ import annotations

import platform
import threading
from importlib import metadata
from pathlib import Path

from sidr_core import __version__

_VERSIONED = ("torch", "transformers", "trl", "duckdb", "polars", "faiss-cpu", "numpy")


class PeakMemory:
    """Highest resident size of this process while inside the `with` block, in bytes."""

    def __enter__(self) -> PeakMemory:
        import psutil

        self._process = psutil.Process()
        self.peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._process.memory_info().rss)


def memory() -> tuple[int, int]:
    """Bytes of memory of this machine, or of this container where it has a limit: all, and free."""
    import psutil

    machine = psutil.virtual_memory()
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return machine.total, machine.available
    used -= int(kinds.get("inactive_file", 0)) + int(kinds.get("active_file", 0))  # cached files give way
    return min(machine.total, limit), min(machine.available, limit - used)


def versions() -> dict[str, str]:
    """Releases of this project, of Python, and of the packages that can change an output's bytes."""
    found = {"sidr": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
