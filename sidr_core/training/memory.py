"""The memory that a training will need, estimated before it starts.

Weights, gradients and the optimizer's state are counted; what the forward pass keeps for the backward pass is
estimated from the shape of the model. The paper gives batch sizes and GPUs only.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sidr_core.errors import SidrError
from sidr_core.pipeline import host as machine
from sidr_core.settings import Grpo

if TYPE_CHECKING:
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Training

#: An estimate can be off by this factor, as measured on Qwen3 and Llama shapes with and without LoRA.
MARGIN = 1.5
GIB = 2**30
#: Numbers that an optimizer keeps per trained parameter; Adafactor keeps sums over rows and columns only.
_STATE = {"adamw": 2, "rmsprop": 1, "adagrad": 1, "adafactor": 0, "sgd": 0}
#: Positions that are projected onto the vocabulary at once where TRL computes the loss in tiles.
_TILE = 1024


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a training step. `weights` includes a frozen reference model."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate(
    model: Any, settings: Training | Grpo, longest: int, shards: int = 1, on_gpu: bool | None = None
) -> Estimate:
    """Memory of one process in a step with `micro_batch` examples of `longest` tokens.

    Not counted: the cache of decoding while valid rows are measured or rollouts are made.

    Args:
        model: as `parameters.prepare` gives it; only its shape is read.
        settings: of the stage.
        longest: tokens of the longest example, prompt and answer.
        shards: processes that share weights, gradients and states; each gathers two blocks, or the table, at once.
        on_gpu: whether it will run on one; default: whether this machine has one.
    """
    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    weights = _bytes(model.parameters())
    state = _STATE["adamw" if isinstance(settings, Grpo) else settings.optimizer]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if isinstance(settings, Grpo) and settings.beta and settings.parameters == "all":
        weights *= 2
    rows = settings.micro_batch
    if not isinstance(settings, Grpo):
        rows = min(rows, settings.batch_size)
    tokens = rows * longest
    number = 2 if settings.bf16 else model.dtype.itemsize
    activations = tokens * _kept(model.config, settings.gradient_checkpointing) * number
    table = model.get_input_embeddings().weight
    if settings.bf16 and model.dtype.itemsize > number:  # autocast keeps a copy of every matrix
        activations += _bytes(model.parameters()) // model.dtype.itemsize * number // shards
    if settings.parameters != "all":  # the table is put together with the trained rows, for input and output
        activations += 3 * table.numel() * table.element_size()
    scored = tokens if not on_gpu and not isinstance(settings, Grpo) else min(tokens, _TILE)
    if shards > 1:
        block = _bytes(model.get_decoder().layers[0].parameters())
        activations += max(2 * block, table.numel() * table.element_size())
    return Estimate(
        weights=weights // shards,
        gradients=_bytes(trained) // shards,
        optimizer=state * _bytes(trained) // shards,
        activations=activations,
        logits=scored * table.shape[0] * 3 * 4,  # logits in float32, their softmax and its gradient
    )


def announce(
    model: Any, settings: Training | Grpo, longest: int, progress: Progress, shards: int = 1
) -> dict[str, float]:
    """Estimate the memory of a training in one process, report it, and refuse what surely does not fit.

    Returns:
        the estimate as a metric.

    Raises:
        SidrError: even two thirds of the estimate are more than the machine has free.
    """
    needed = estimate(model, settings, longest, shards)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    free = free_bytes(device)
    if model.device.type == device:
        free += _bytes(model.parameters())  # the weights are in memory already
    where = "of GPU memory" if device == "cuda" else "of memory"
    text = f"about {needed.total / GIB:.1f} GiB {where} of {free / GIB:.1f} GiB free"
    parts = ", ".join(f"{name} {getattr(needed, name) / GIB:.2f}" for name in Estimate.__dataclass_fields__)
    threads = torch.get_num_threads()
    progress.say(f"training needs {text} ({parts}); threads of the processor: {threads}")
    ways = ["lower micro_batch"] if settings.micro_batch > 1 else []
    ways += [] if settings.gradient_checkpointing else ["set gradient_checkpointing: true"]
    ways += ["set parameters: lora"] if settings.parameters == "all" else []
    ways += [] if settings.bf16 else ["set bf16: true"]
    fix = ", ".join(ways) or "choose a smaller base model"
    if needed.total / MARGIN > free:
        raise SidrError("the training does not fit", expected=f"at most {free / GIB:.1f} GiB", found=text, fix=fix)
    if needed.total > free:
        progress.say(f"warning: the training may not fit; {fix}")
    return {"estimated GiB": round(needed.total / GIB, 3)}


def free_bytes(device: str) -> int:
    """Memory that is free on this machine (or in this container), or on the GPU."""
    if device == "cuda":
        gc.collect()  # an earlier trainer of this process hangs in reference cycles
        torch.cuda.empty_cache()  # what the allocator only keeps in reserve is free
        return torch.cuda.mem_get_info()[0]
    return machine.memory()[1]


def _kept(config: Any, checkpointing: bool) -> int:
    """Numbers per token that a forward pass keeps for the backward pass, over all layers.

    A layer of the Llama family keeps the input, the normalised input and the scale of its two norms, queries,
    keys and values before and after their rotation, the attention's output, and three numbers per unit of the
    feed-forward part. With checkpointing a layer keeps its input, and only the layer in work keeps all of this.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    layer = 8 * hidden + 8 * width + 4 * inner
    return hidden * layers + layer if checkpointing else layer * layers


def _bytes(parameters: Any) -> int:
    """Bytes of parameters, each once."""
    return sum({id(p): p.numel() * p.element_size() for p in parameters}.values())
