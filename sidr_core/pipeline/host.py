"""Memory and processes of this machine, and the package versions that a manifest records."""

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


def is_alive(pid: int, at: float | None = None) -> bool:
    """Whether a process runs; a zombie has ended.

    Args:
        at: unix seconds at which the process was known to have this pid; one that started later is another.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return (at is None or process.create_time() <= at + 1) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def memory() -> tuple[int, int]:
    """Total and free bytes of memory of this machine, or of this container if it has a limit."""
    import psutil

    machine = psutil.virtual_memory()
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not in a container, or in one without a limit ("max")
        return machine.total, machine.available
    used -= int(kinds.get("inactive_file", 0)) + int(kinds.get("active_file", 0))  # cached files can be dropped
    return min(machine.total, limit), min(machine.available, limit - used)


def versions() -> dict[str, str]:
    """Versions of this project, of Python, and of the packages that can change an output's bytes."""
    releases = {"sidr": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            releases[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return releases
