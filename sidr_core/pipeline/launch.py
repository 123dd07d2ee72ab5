"""Stages in child processes: the spec a child gets, how several train together, how they end.

A launcher writes a spec and starts `python -m sidr_core.pipeline.run <spec.json>`, directly or through
`accelerate launch`; a job of a Ray cluster gets the spec as a variable of its environment, since it may run on another
machine. Each child of this machine watches the launcher and exits with it, so nothing keeps running after
Ctrl-C, SIGTERM or a `kill -9` of Dagster. Of several processes the first owns the store: it tells the
others whether there is work; they take part in the training and write nothing.
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
from sidr_core.pipeline.host import is_alive
from sidr_core.pipeline.place import store_url
from sidr_core.pipeline.profile import Profile
from sidr_core.settings import Launch
from sidr_core.settings.models import TRAINING_STAGES

#: File beside the spec in which the first process that fails reports why.
FAILURE = "failure.json"
#: The spec of a job on another machine.
SPEC_VARIABLE = "SIDR_SPEC"
#: Seconds that a stopped process has to clean up before it is ended.
GRACE_SECONDS = 3.0
_POLL_SECONDS = 0.5
#: Seconds between two signs of life of the first process, which may wait for hours for another run of the same output.
_SIGN_SECONDS = 5.0
#: What the first process says before it knows whether there is work.
_WAIT = "wait"


def rank() -> int:
    """Rank of this process among those of its stage; 0 if it is the only one."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes share the work of this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# -- the launcher's side ---------------------------------------------------------------------


def write_spec(folder: Path, profile: Profile, dataset: str, snapshot: str, stage: str, home: Path) -> Path:
    """Write the spec of a child of this process, which reports its failure into `folder`; returns its path.

    It contains the profile itself, not its name, so the child uses what this process has read.
    """
    path = folder / "spec.json"
    spec = _spec(profile, dataset, snapshot, stage) | {
        "home": str(home),
        "launcher": os.getpid(),
        "failure": str(folder / FAILURE),
    }
    path.write_text(json.dumps(spec, default=str))
    return path


def _spec(profile: Profile, dataset: str, snapshot: str, stage: str) -> dict[str, Any]:
    return {
        "profile": {"name": profile.name, "raw": profile.raw},
        "dataset": dataset,
        "snapshot": snapshot,
        "stage": stage,
        "store": store_url(profile) or "",
    }


def command(launch: Launch, kind: str, spec: Path) -> list[str]:
    """The command line that runs a spec."""
    run = ["-m", "sidr_core.pipeline.run", str(spec)]
    if kind == "subprocess":
        return [sys.executable, *run]
    # `--multi_gpu` is the only way to several processes on one machine; without a GPU they connect over gloo.
    # Port 0: any free one. The rest overrides the user's `accelerate config`.
    threads = max(1, (os.cpu_count() or 1) // launch.processes)
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *(("--multi_gpu",) if launch.processes > 1 else ()),
        *("--num_machines", "1", "--num_processes", str(launch.processes), "--main_process_port", "0"),
        *("--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS") or str(threads)),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *run,
    ]


def ray_job(profile: Profile, dataset: str, snapshot: str, stage: str, fingerprint: str, home: Path) -> dict[str, Any]:
    """The arguments with which a stage is submitted as a job of a Ray cluster.

    A node has caches and scratch in its own `SIDR_HOME`, and its own keys. Without a bucket it has to have this
    machine's folder.

    Args:
        fingerprint: of the output as it is computed here; a node that computes another one has other code.
    """
    launch = profile.dataset(dataset).launch
    spec = _spec(profile, dataset, snapshot, stage) | {"fingerprint": fingerprint}
    if not spec["store"]:
        spec["home"] = str(home)
    takes, entry = dict(launch.resources), "-m sidr_core.pipeline.run"
    if stage in TRAINING_STAGES and launch.processes > 1:
        spec["workers"], takes = launch.processes, {"CPU": 0.0}  # the workers take the resources
        entry = "-c 'from sidr_core.pipeline.on_ray import main; main()'"
    known = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
    job: dict[str, Any] = {name: takes.pop(key) for key, name in known.items() if key in takes}
    if "entrypoint_memory" in job:
        job["entrypoint_memory"] = int(job["entrypoint_memory"])
    if takes:
        job["entrypoint_resources"] = takes
    variables = {SPEC_VARIABLE: json.dumps(spec, default=str)}
    return job | {"entrypoint": f"python {entry}", "runtime_env": {"env_vars": variables}}


# -- the child's side ------------------------------------------------------------------------


def leave_with(launcher: int) -> None:
    """End this process within seconds after its launcher or its parent ends, or after SIGINT or SIGTERM.

    A signal raises KeyboardInterrupt first, so that the stage can clean up. A thread then ends the process: the
    main one may be inside a library call that does not return.

    Args:
        launcher: pid of the process that wrote the spec; below `accelerate launch` it is not the parent.
    """
    signal_reader, signal_writer = os.pipe()
    os.set_blocking(signal_writer, False)
    signal.set_wakeup_fd(signal_writer, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parent = os.getppid()

    def watch() -> None:
        while is_alive(launcher) and os.getppid() == parent:
            if select.select([signal_reader], [], [], _POLL_SECONDS)[0]:
                # One of several would wait for others that are gone, and has nothing to clean up.
                time.sleep(GRACE_SECONDS if processes() == 1 else 0)
                break
        os._exit(1)

    threading.Thread(target=watch, name="leave_with", daemon=True).start()


def meet(minutes: float) -> None:
    """Connect the processes of a stage; afterwards none waits longer than this for another, whatever it waits for."""
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=minutes))


class Word:
    """What the first process tells the others: the fingerprint of the output to train, None if there is nothing to do.

    Until it knows, it says every few seconds that they are to wait.
    """

    def __init__(self) -> None:
        self._known = threading.Event()
        self._signs = threading.Thread(target=self._give_signs, name="word", daemon=True)
        self._signs.start()

    def _give_signs(self) -> None:
        while not self._known.wait(_SIGN_SECONDS):
            _broadcast(_WAIT)

    def give(self, fingerprint: str | None) -> None:
        """Tell the others, once."""
        if not self._known.is_set():
            self._known.set()
            self._signs.join()
            _broadcast(fingerprint)


def first_word() -> str | None:
    """What the first process said, heard by another."""
    while (word := _broadcast(None)) == _WAIT:
        pass
    return word


def _broadcast(word: str | None) -> str | None:
    """The word of the first process, in every process."""
    import torch

    broadcast = [word]
    torch.distributed.broadcast_object_list(broadcast, src=0)
    return broadcast[0]


# -- failures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """Why a process of a stage failed.

    Args:
        rank: of the process. kind: class of the error. message: its text.
        stack: its traceback, outermost call first.
        user_error: the fields of a :class:`SidrError`, None for any other error.
    """

    rank: int
    kind: str
    message: str
    stack: list[str]
    user_error: Mapping[str, str] | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        fields = ("what", "expected", "found", "fix")
        user_error = {name: getattr(error, name) for name in fields} if isinstance(error, SidrError) else None
        return cls(rank(), type(error).__name__, str(error), traceback.format_tb(error.__traceback__), user_error)

    def text(self) -> str:
        """As JSON; :meth:`of_text` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Failure:
        return cls(**json.loads(text))

    def write(self, path: Path) -> None:
        """Write it to `path`, unless another process failed before: only the first failure explains the rest."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(self.text())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()

    @classmethod
    def read(cls, path: Path) -> Failure | None:
        """The failure of the first process that failed, None if none did."""
        return cls.of_text(path.read_text()) if path.is_file() else None

    def as_user_error(self) -> SidrError | None:
        """The :class:`SidrError` that it was, None if it was another error."""
        if self.user_error is None:
            return None
        kind: Any = getattr(errors, self.kind, SidrError)
        return kind(**self.user_error)
