"""Training logs for TensorBoard, wandb or mlflow, besides the log table, by the trainer's own callbacks.

Event files hold times, so they are no part of an output. They lie in the working folder, under
`tensorboard/<stage>-<fingerprint>`, and stay after the training.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sidr_core.errors import SidrError
from sidr_core.settings import Grpo, Training

_RESUME = ".resume-"


def arguments(settings: Training | Grpo, scratch: str) -> dict[str, Any]:
    """The trainer's arguments that concern tracking.

    Raises:
        SidrError: the package of the tool is not installed.
    """
    tool = settings.tracking
    if tool == "none":
        return {"report_to": []}
    if importlib.util.find_spec(tool) is None:
        raise SidrError(
            f"training cannot be tracked by {tool}",
            expected=f"the package {tool}",
            found="it is not installed",
            fix=f"pip install {tool}, or set `tracking: none` in this section of the profile",
        )
    return {"report_to": [tool], "run_name": _name(Path(scratch))}


def attach(trainer: Any, folder: Path) -> None:
    """Give TensorBoard its folder, and pass on what callbacks add to the log: valid metrics and parts of rewards.

    Args:
        folder: where the training keeps its resume points; the folder of the event files follows from it.
            Without a store the events lie there too, and go with it.
    """
    from transformers.integrations.integration_utils import TensorBoardCallback

    trackers = [c for c in trainer.callback_handler.callbacks if type(c).__module__.startswith("transformers.integr")]
    for tracker in trackers:
        if isinstance(tracker, TensorBoardCallback):
            tracker.logging_dir = str(events(folder))
    if trackers:
        trainer.add_callback(_Additions(trackers))


def detach(trainer: Any) -> None:
    """End the run of wandb, which would take the next training of this process into this one's."""
    if trainer.args.report_to == ["wandb"]:
        import wandb  # type: ignore[import-not-found]

        wandb.finish()


def events(folder: Path) -> Path:
    """Where the event files of the training with this resume folder lie."""
    if not folder.name.startswith(_RESUME):
        return folder / "tensorboard"
    # <home>/store/<stage>/.resume-<fingerprint>, or <home>/cache/bucket-<digest>/<stage>/… beside a bucket
    home = next(parent for parent in folder.parents[2:] if parent.name != "cache")
    return home / "tensorboard" / _name(folder)


def _name(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name.removeprefix(_RESUME)}"


class _Additions(TrainerCallback):
    """Sends the trackers the records that other callbacks put into the log; the trainer sends its own.

    Has to come after those callbacks.
    """

    def __init__(self, trackers: list[Any]) -> None:
        self._trackers, self._sent = trackers, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._sent = len(state.log_history) if state.global_step else 0
        self._send(args, state, control, len(state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._send(args, state, control, len(state.log_history) - 1)
        self._sent = len(state.log_history)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._send(args, state, control, len(state.log_history))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._send(args, state, control, len(state.log_history))

    def _send(self, args: Any, state: Any, control: Any, end: int) -> None:
        for record in state.log_history[self._sent : end]:
            values = {name: value for name, value in record.items() if name != "step"}
            for tracker in self._trackers:
                tracker.on_log(args, state, control, logs=values)
        self._sent = end
