"""Weights that do not fit one process: FSDP2, as accelerate and the trainer drive it.

With `sharding: full` each process keeps its share of weights, gradients and optimizer states, and gathers one block at
a time in the forward and the backward pass. A pass is then one of all processes: measuring and rolling out go on in
step (:func:`in_step`), and what is saved is gathered, so checkpoints and resume points are as they always are.

Deviation from the paper's code, which shards by FSDP1 and rolls out in vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor, distribute_tensor

from sidr_core.decoding.batching import decoding
from sidr_core.errors import SidrError
from sidr_core.settings import Grpo, Training


def shards(settings: Training | Grpo) -> int:
    """Processes that share the weights of a training; 1 where each has them all."""
    return PartialState().num_processes if settings.sharding == "full" else 1


def device(settings: Training | Grpo) -> str | None:
    """Where a model is loaded to: what is to be sharded need not fit a GPU whole; None is the usual place."""
    return "cpu" if settings.sharding == "full" else None


def arguments(settings: Training | Grpo) -> dict[str, Any]:
    """The trainer's arguments that shard. Resume points hold whole tensors, which are read without pickle.

    Raises:
        SidrError: there is no other process to share with.
    """
    if settings.sharding == "none":
        return {}
    if PartialState().num_processes == 1:
        raise SidrError(
            "the weights cannot be sharded",
            expected="several processes, one per GPU (`launch: {kind: accelerate, processes: …}`)",
            found="one process",
            fix="add processes under `launch`, or set `sharding: none`",
        )
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}


def on_any_device(arguments: Any) -> None:
    """Let accelerate shard on a CPU too, where it would train unsharded without a word; for the arguments as made."""
    if arguments.fsdp and PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def is_sharded(model: Any) -> bool:
    """Whether a process has a share of the model's weights only."""
    return any(isinstance(value, DTensor) for value in model.parameters())


def refuse_unsharded(arguments: Any, model: Any) -> None:
    """Raises SidrError where a model was to be sharded by the trainer's arguments and was not."""
    if arguments.fsdp and not is_sharded(model):
        raise SidrError(
            "the weights were to be sharded and were not",
            expected="a share of each tensor in each process (`sharding: full`)",
            found=f"whole tensors, {PartialState().distributed_type.value} in accelerate's words",
            fix="install the versions of constraints.txt, or set `sharding: none`",
        )


@contextmanager
def in_step(model: Any) -> Iterator[None]:
    """Let each process call a sharded `model` as often as it needs inside the block; every process has to enter it.

    Each asks the others before a pass; one that has no more of its own joins in theirs with a single token.
    """
    if not is_sharded(model):
        yield
        return
    # Before FSDP's own hook, so that the question comes before the first block is gathered.
    hook = model.register_forward_pre_hook(lambda *_: _any_needs(True) and None, prepend=True)
    try:
        yield
    finally:
        hook.remove()
    token = torch.zeros(1, 1, dtype=torch.long, device=PartialState().device)
    with decoding(model):
        while _any_needs(False):
            model(input_ids=token, use_cache=False)


def _any_needs(this: bool) -> bool:
    """Whether any process needs a pass."""
    needed = torch.tensor(int(this), device=PartialState().device)
    torch.distributed.all_reduce(needed, torch.distributed.ReduceOp.MAX)
    return bool(needed)


def distinct(model: Any) -> dict[str, torch.Tensor]:
    """The weights, or shares, without those that are another under a second name (a head tied to the embeddings)."""
    seen: set[int] = set()
    weights = {}
    for name, value in model.state_dict().items():
        place = (value.to_local() if isinstance(value, DTensor) else value).data_ptr()
        if not place or place not in seen:  # an empty share lies nowhere
            seen.add(place)
            weights[name] = value
    return weights


def whole(model: Any) -> dict[str, torch.Tensor]:
    """The :func:`distinct` weights, gathered; every process has to call it, and the first alone is given them."""
    first, weights = PartialState().is_main_process, {}
    for name, value in distinct(model).items():
        full = value.full_tensor().cpu() if isinstance(value, DTensor) else value.contiguous()
        if first:
            weights[name] = full
    return weights


def set_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give a model, sharded or not, the :func:`distinct` weights that the first process has; every process calls it."""
    state = PartialState()
    with torch.no_grad():
        for name, target in distinct(model).items():
            value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            if state.is_main_process:
                value.copy_(weights[name])
            if isinstance(target, DTensor):
                value = distribute_tensor(value, target.device_mesh, target.placements)  # of the first process
            elif state.num_processes > 1:
                torch.distributed.broadcast(value, 0)
            target.copy_(value)
