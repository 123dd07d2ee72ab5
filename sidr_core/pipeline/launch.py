"""Processes of their own for a stage: the spec they get, their team under `accelerate launch`, their end.

A launcher writes a spec and starts `python -m sidr_core.pipeline.run <spec.json>`, once or through
`accelerate launch`. Every process that comes of it watches the launcher and leaves with it, so nothing
lives on after Ctrl-C, SIGTERM or a `kill -9` of Dagster. Of several processes the first owns the store;
the others hear from it whether there is work, lend a hand in the training, and write nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sidr_core import errors
from sidr_core.errors import SidrError
from sidr_core.pipeline.profile import Profile
from sidr_core.settings import Launch

#: What the first process to fail leaves beside the spec.
FAILURE = "failure.json"
#: Seconds that a stopped process has to clean up; then it leaves at once.
GRACE_SECONDS = 3.0
_LOOK_SECONDS = 0.5
#: How long the processes wait for one another. A measurement by the first alone, or another run that
#: writes the same output, can take hours; a process that died is noticed by `accelerate launch`.
_PATIENCE = timedelta(days=30)


def rank() -> int:
    """Number of this process within its team; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes share the work of this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# -- the launcher's side ---------------------------------------------------------------------


def write_spec(folder: Path, profile: Profile, dataset: str, snapshot: str, stage: str, home: Path) -> Path:
    """The spec of a child of this process, which reports its failure into `folder`.

    It holds the profile itself, not its name: the child runs with what this process read.
    """
    path = folder / "spec.json"
    spec = {
        "profile": {"name": profile.name, "raw": profile.raw},
        "dataset": dataset,
        "snapshot": snapshot,
        "stage": stage,
        "home": str(home),
        "launcher": os.getpid(),
        "failure": str(folder / FAILURE),
    }
    path.write_text(json.dumps(spec, default=str))
    return path


def command(launch: Launch, kind: str, spec: Path) -> list[str]:
    """The command line that runs a spec."""
    run = ["-m", "sidr_core.pipeline.run", str(spec)]
    if kind == "subprocess":
        return [sys.executable, *run]
    # `--multi_gpu` is the one way to several processes of one machine; without a GPU they meet over gloo.
    # Port 0: any free one. The rest says what the user's `accelerate config` might say otherwise.
    threads = max(1, (os.cpu_count() or 1) // launch.processes)
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *(("--multi_gpu",) if launch.processes > 1 else ()),
        *("--num_machines", "1", "--num_processes", str(launch.processes), "--main_process_port", "0"),
        *("--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS") or str(threads)),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *run,
    ]


# -- the child's side ------------------------------------------------------------------------


def leave_with(launcher: int) -> None:
    """End this process within seconds of its launcher's end, of its parent's, and of SIGINT or SIGTERM.

    A signal raises KeyboardInterrupt first, so that the stage can clean up. A thread does the rest: the
    main one may be inside a library that does not come back.

    Args:
        launcher: pid of the process that wrote the spec; below `accelerate launch` it is not the parent.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parent = os.getppid()

    def watch() -> None:
        while _alive(launcher) and os.getppid() == parent:
            if select.select([heard], [], [], _LOOK_SECONDS)[0]:
                # Of several, one that is interrupted waits for others that are gone: nothing to be cleaned up.
                time.sleep(GRACE_SECONDS if processes() == 1 else 0)
                break
        os._exit(1)

    threading.Thread(target=watch, name="leave_with", daemon=True).start()


def _alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def agree(fingerprint: str | None = None) -> str | None:
    """What the first process says: the fingerprint of the output to train for, None where there is no work.

    All processes of the team call it once; the others wait here for the first.
    """
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    word = [fingerprint]
    torch.distributed.broadcast_object_list(word, src=0)
    return word[0]


# -- failures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """Why a process of a stage failed.

    Args:
        rank: number of the process. kind: the error's class. message: what it says.
        stack: where it came from, outermost call first.
        mistake: the fields of a :class:`SidrError`, None for any other error.
    """

    rank: int
    kind: str
    message: str
    stack: list[str]
    mistake: Mapping[str, str] | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        fields = ("what", "expected", "found", "fix")
        mistake = {name: getattr(error, name) for name in fields} if isinstance(error, SidrError) else None
        return cls(rank(), type(error).__name__, str(error), traceback.format_tb(error.__traceback__), mistake)

    def write(self, path: Path) -> None:
        """Keep it, unless another process failed before: what follows from a failure explains nothing."""
        own = path.with_name(f"{path.name}.{os.getpid()}")
        own.write_text(json.dumps(asdict(self)))
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
        own.unlink()

    @classmethod
    def read(cls, path: Path) -> Failure | None:
        """What the first process to fail left behind, None if nothing."""
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def as_mistake(self) -> SidrError | None:
        """The :class:`SidrError` that it was."""
        if self.mistake is None:
            return None
        kind: Any = getattr(errors, self.kind, SidrError)
        return kind(**self.mistake)
