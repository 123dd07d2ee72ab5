"""Training that resumes after a crash and ends exactly as it would have without one.

Resume points are the trainer's own checkpoints (weights, optimizer, scheduler, random states, log) in a folder that
belongs to one fingerprint, so to one set of data, configuration and code. A point is valid once its mark is written,
which is done last, and as long as its files are as the mark says. Points are saved between two pieces of work: after
a step whose log is written, and after the evaluation that ends an epoch.

Several processes train as one: they share the micro batches of a step. All of them measure, so that none waits for
another's measurement, and the first one's figures count. Best weights and marks the first one writes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerCallback

from sidr_core.errors import StoreError
from sidr_core.pipeline.resume_mirror import MARK
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.pipeline.store import sha256_file
from sidr_core.tables.atomic import fsync
from sidr_core.tables.tensors import read_tensors, unreadable
from sidr_core.training import sharding, tracking

OWNER = "owner.json"
#: Of a file that is sent to another machine, at a time.
_SENT_BYTES = 64 * 2**20
_NUMBERED = re.compile(r"checkpoint-[0-9]{1,18}", re.ASCII)


class LengthGrouped(torch.utils.data.Sampler[int]):
    """Examples in random order, in batches of like length; the order depends on (seed, epoch) alone.

    The trainer's own sampler draws from the global random state, so an epoch that is resumed in its
    middle would see other batches.

    The last batch is filled up with the index `len(lengths)`, which is to be an example without loss: every
    batch splits into the same micro batches for any number of processes, and no example counts twice.

    Args:
        lengths: tokens of each example; all alike gives batches in random order.
        batch_size: examples of one optimizer step, over all processes.
    """

    _POOL = 50  # batches that are sorted together: enough to pad little, few enough to stay random

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = torch.tensor(lengths), batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size) * self._batch_size

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=random)
        batches: list[torch.Tensor] = []
        for pool in order.split(self._POOL * self._batch_size):
            by_length = pool[torch.argsort(self._lengths[pool], descending=True, stable=True)]
            batches += by_length.split(self._batch_size)
        whole = [n for n, batch in enumerate(batches) if len(batch) == self._batch_size]
        rest = [n for n, batch in enumerate(batches) if len(batch) < self._batch_size]
        shuffled = [whole[n] for n in torch.randperm(len(whole), generator=random).tolist()]
        # The short batch comes last: in the middle it would shift the borders of all that follow.
        for n in shuffled + rest:
            yield from batches[n].tolist()
        yield from [len(self._lengths)] * (len(self) - len(self._lengths))


@contextmanager
def resume_dir(inputs: Inputs, out_dir: Path, progress: Progress) -> Iterator[tuple[Path, str | None]]:
    """The folder for resume points, and the newest point to resume from, if there is one.

    Without a store there is no such folder: resume points then lie in `out_dir` and go with the training.
    """
    if inputs.resume is not None:
        yield inputs.resume, newest_point(inputs.resume, inputs.resume.name, progress)
        return
    folder = out_dir / ".trainer"
    try:
        yield folder, None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class ResumePoints(TrainerCallback):
    """Has the trainer save a point every `every` steps and after each epoch, and marks it once it is complete.

    Nothing older is needed then: earlier points are removed, and the weights of all but the best measurement with them.
    """

    def __init__(self, folder: Path, every: int, best: BestCheckpoint | None = None) -> None:
        self._folder, self._every, self._best = folder, every, best
        self._digests: dict[Path, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        sharding.refuse_unsharded(args, model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The last step of an epoch is saved after the epoch's evaluation instead.
        # A training that is about to stop is not saved: resumed, it would take another step.
        ends_epoch = abs(state.epoch - round(state.epoch)) < 1e-9
        if state.global_step % self._every == 0 and not ends_epoch and not control.should_training_stop:
            control.should_log = control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log, control.should_save = True, not control.should_training_stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes = PartialState()
        point = self._folder / f"checkpoint-{state.global_step}"
        _gather_random_states(point)
        if not processes.is_main_process:
            return
        mark(point, self._best.files(state) if self._best is not None else (), self._digests)
        for other in self._folder.glob("checkpoint-*"):
            if other != point:
                shutil.rmtree(other, ignore_errors=True)
        if self._best is not None:
            self._best.prune(state)


def _gather_random_states(point: Path) -> None:
    """Bring the random state that each process has written to the first one, which may be on another machine."""
    processes = PartialState()
    if processes.num_processes == 1:
        return
    own = point / f"rng_state_{processes.process_index}.pth"
    for name, content in gather_object([(own.name, own.read_bytes())]):
        if processes.is_main_process and not (point / name).is_file():
            (point / name).write_bytes(content)


def mark(point: Path, beside: Iterable[Path] = (), known: dict[Path, str] | None = None) -> None:
    """Declare a point whole, last: the mark holds the sha256 of its files and of those beside it that it needs.

    Args:
        known: digests of the files beside, which never change under their name; added to, so each is read once.
    """
    files = _files(point)
    for path in files:
        fsync(path)
    known = {} if known is None else known
    for path in beside:
        known[path] = known.get(path) or sha256_file(path)
        files.append(path)
    digests = {os.path.relpath(path, point): known.get(path) or sha256_file(path) for path in files}
    (point / MARK).write_text(json.dumps(digests))
    fsync(point / MARK)
    fsync(point)


def _files(point: Path) -> list[Path]:
    """Every file of a point, also in folders below it, but for its mark."""
    return sorted(path for path in point.rglob("*") if not path.is_dir() and path != point / MARK)


def _damaged(point: Path) -> str | None:
    """A file that is not as the mark of a point says, or the mark itself; None where all are."""
    try:
        digests = json.loads((point / MARK).read_text())
        here = {name: sha256_file(point / name) for name in digests if (point / name).is_file()}
        wrong = [name for name, digest in digests.items() if name not in here or here[name] != digest]
        wrong += [name for path in _files(point) if (name := os.path.relpath(path, point)) not in digests]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return MARK
    if not digests or not _NUMBERED.fullmatch(point.name):  # not by our hand
        return point.name
    return wrong[0] if wrong else None


def newest_point(folder: Path, owner: str, progress: Progress) -> str | None:
    """The newest whole resume point of `folder`, or None; others are removed. The first process looks, and machines
    that lack the point are sent it.

    Args:
        owner: what this training is made from (the fingerprint); written on first use.

    Raises:
        StoreError: the folder belongs to other data or another configuration.
    """
    found = [_newest_point(folder, owner, progress) if PartialState().is_main_process else None]
    broadcast_object_list(found)
    if found[0] is None:
        return None
    point = folder / Path(found[0]).name
    send_point(point)
    return str(point)


def send_point(point: Path) -> None:
    """Copy a resume point from the first process's machine to those that do not have it as its mark says.

    The first process of a machine writes; every process has to call it.
    """
    processes = PartialState()
    lacks = processes.is_local_main_process and not processes.is_main_process and _damaged(point) is not None
    if not any(gather_object([lacks])):
        return
    names: list[Any] = [None]
    if processes.is_main_process:
        names = [[*json.loads((point / MARK).read_text()), MARK]]
    broadcast_object_list(names)
    for name in names[0]:
        path = point / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") if processes.is_main_process else path.open("wb") if lacks else nullcontext() as file:
            while True:
                part: list[Any] = [file.read(_SENT_BYTES) if file is not None and processes.is_main_process else b""]
                broadcast_object_list(part)
                if not part[0]:
                    break
                if lacks and file is not None:
                    file.write(part[0])


def _newest_point(folder: Path, owner: str, progress: Progress) -> str | None:
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / OWNER
    if note.exists():
        try:
            noted = json.loads(note.read_text())["owner"]
        except (OSError, ValueError, TypeError, KeyError):
            noted = f"an unreadable {OWNER}"
        if noted != owner:
            raise StoreError(
                f"the resume points in {folder} belong to another training",
                expected=f"data, configuration and code with the fingerprint {owner}",
                found=str(noted),
                fix=f"remove {folder}: training then starts from its first step",
            )
    else:
        for litter in folder.glob(f"{OWNER}.*"):
            litter.unlink()
        partial = note.with_name(f"{OWNER}.{os.getpid()}")
        partial.write_text(json.dumps({"owner": owner}))
        fsync(partial)
        os.replace(partial, note)
    whole = []
    for point in folder.glob("checkpoint-*"):
        wrong = _damaged(point)
        if wrong is None:
            whole.append((int(point.name.rpartition("-")[2]), point))
            continue
        if (point / MARK).exists():
            progress.say(f"resume point {point.name} is damaged ({wrong}) and is not used")
        shutil.rmtree(point, ignore_errors=True)
    if not whole:
        return None
    step, point = max(whole)
    progress.say(f"resuming after step {step}")
    return str(point)


class BestCheckpoint(TrainerCallback):
    """Measures the model on schedule, keeps the weights of the best measurement, and stops early.

    The start is measured too. With `at_epochs` it cannot be chosen: an activation that changed nothing may rank well,
    but does not think. With `every` it can: RL that does not help is discarded.

    Measurements are records of the trainer's log, which is part of a resume point; no other state has to be restored.

    Args:
        measure: model -> metrics, among them `ndcg@10`.
        every: steps between measurements; 0: after each epoch instead.
        patience: measurements without a gain after which training stops; None never.
    """

    def __init__(
        self,
        trainer: Any,
        measure: Callable[[Any], dict[str, float]],
        folder: Path,
        progress: Progress,
        *,
        every: int = 0,
        at_epochs: bool = False,
        patience: int | None = None,
    ) -> None:
        self._trainer, self._measure, self._folder, self._progress = trainer, measure, folder, progress
        self._every, self._at_epochs, self._patience = every, at_epochs, patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._take(state, control)  # what training starts from

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.global_step >= state.max_steps and not self._at_epochs
        if last or (self._every and state.global_step % self._every == 0):
            self._take(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._at_epochs:
            self._take(state, control)

    def _take(self, state: Any, control: Any) -> None:
        metrics = self._metrics()
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._progress.say(f"step {state.global_step}: valid {text}")
        state.log_history.append({"step": state.global_step, **{f"eval_{k}": v for k, v in metrics.items()}})
        records = self._records(state)
        if not records:
            return
        best = self._best(records)
        if best == len(records) - 1:
            self._save(state.global_step)
        if self._patience is not None and len(records) - 1 - best >= self._patience:
            control.should_training_stop = True

    def _metrics(self) -> dict[str, float]:
        """Measured by all processes; the first one's count, since all have to stop at the same step."""
        with sharding.in_step(self._trainer.model):
            metrics: list[Any] = [self._measure(self._trainer.model)]
        broadcast_object_list(metrics)
        return metrics[0]

    def load(self) -> None:
        """Give the trainer's model the weights of the best measurement."""
        PartialState().wait_for_everyone()
        records = self._records(self._trainer.state)
        step = int(records[self._best(records)]["step"])
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        weights = {}
        if PartialState().is_main_process:
            weights, _ = read_tensors(self._file(step), "pt")
            shapes = {name: value.shape for name, value in sharding.distinct(model).items()}
            if shapes != {name: value.shape for name, value in weights.items()}:
                raise unreadable(self._file(step), "another model's weights")
        sharding.set_weights(model, weights)

    def files(self, state: Any) -> list[Path]:
        """The file with the weights of the best measurement so far; none before the first."""
        records = self._records(state)
        return [self._file(int(records[self._best(records)]["step"]))] if records else []

    def prune(self, state: Any) -> None:
        """Remove the weights of earlier bests; the first process calls it when a point names the one of now."""
        if best := self.files(state):
            for other in self._folder.glob("best-*.safetensors"):
                if other not in best:
                    other.unlink()

    def _records(self, state: Any) -> list[dict[str, float]]:
        first = 1 if self._at_epochs else 0
        return [record for record in state.log_history if "eval_ndcg@10" in record and record["step"] >= first]

    @staticmethod
    def _best(records: Sequence[dict[str, float]]) -> int:
        """The first of the highest."""
        values = [record["eval_ndcg@10"] for record in records]
        return values.index(max(values))

    def _save(self, step: int) -> None:
        weights = sharding.whole(self._trainer.accelerator.unwrap_model(self._trainer.model))
        if not PartialState().is_main_process:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._file(step).with_suffix(".part")
        save_file(weights, partial)
        fsync(partial)
        os.replace(partial, self._file(step))

    def _file(self, step: int) -> Path:
        return self._folder / f"best-{step}.safetensors"


def train(
    trainer: Any,
    folder: Path,
    point: str | None,
    save_every: int,
    measure: Callable[[Any], dict[str, float]] | None,
    progress: Progress,
    **schedule: Any,
) -> list[dict[str, float]]:
    """Train from `point` (None: the start) and return the log; a model that is measured ends at its best measurement.

    Args:
        folder, point: of :func:`resume_dir`.
        measure, schedule: of :class:`BestCheckpoint`; without `measure` the last weights stay.
    """
    best = BestCheckpoint(trainer, measure, folder, progress, **schedule) if measure is not None else None
    if best is not None:
        trainer.add_callback(best)
    trainer.add_callback(ResumePoints(folder, save_every, best))
    tracking.attach(trainer, folder)
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=point)
    except UnpicklingError as error:  # the trainer reads tensors and plain values only
        raise StoreError(
            f"the resume point {point} cannot be read",
            expected="tensors and random states, as the trainer saved them",
            found=str(error).splitlines()[0][:300],
            fix=f"remove {folder}: training then starts from its first step",
        ) from None
    finally:
        tracking.detach(trainer)
    if best is not None:
        best.load()
    return trainer.state.log_history
