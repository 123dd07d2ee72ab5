"""Which parameters a training changes: all, LoRA and the rows of our own tokens, or these rows alone.

Both cheaper ways go through peft with one configuration. The trained rows are parameters of their own, so
weight decay and the optimizer's state never touch the rest of the table, and a tied head follows its
embeddings. Deviation from the paper's code, which trains everything and whose way of freezing the language
model cannot run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sidr_core.errors import SidrError

if TYPE_CHECKING:
    from sidr_core.settings import Grpo, Training


def prepare(model: Any, settings: Training | Grpo, token_ids: list[int]) -> Any:
    """The model to give to the trainer: the same, or a `PeftModel` around it with the rest frozen.

    What it computes is unchanged. TRL's trainers take either; a reference model is then the frozen part. Resume
    points hold the trained part only; `state_dict` and `load_state_dict` work on all of it as on a plain model.

    Args:
        model: plain; changed in place.
        settings: `parameters`, `lora` and `seed` are read.
        token_ids: rows that are trained whatever happens to the rest: `vocabulary.own_token_ids`.

    Raises:
        SidrError: the output layer has a bias, which peft's trained rows would leave out.
    """
    if settings.parameters == "all":
        # bfloat16 swallows updates below 1/256 of a weight, and AdamW's second moment then never decays.
        return model.float() if model.dtype in (torch.bfloat16, torch.float16) else model
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    lora = settings.lora
    chosen = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if settings.parameters == "lora" else DUMMY_TARGET_MODULES,
        trainable_token_indices=dict.fromkeys(_vocabulary_layers(model), token_ids),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():  # the caller's random state is not spent on the start of the LoRA matrices
        torch.manual_seed(settings.seed)
        wrapped = get_peft_model(model, chosen)
    # TRL reads weight and bias of the output layer; peft's wrapper passes on the first alone.
    wrapped.get_output_embeddings().bias = None
    # Saving would look this name up, on the hub if need be, and compare vocabularies that do differ.
    wrapped.peft_config["default"].base_model_name_or_path = ""
    return wrapped


def finish(model: Any) -> Any:
    """The plain model with what was trained merged into its weights, so that a checkpoint stays a plain folder."""
    from peft import PeftModel

    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def _vocabulary_layers(model: Any) -> list[str]:
    """Names of the input embedding and, where it is not tied, of the output layer."""
    inner, head = model.get_input_embeddings(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise SidrError(
            "parameters: lora and new_rows do not fit this model",
            expected="an output layer without a bias",
            found=f"{type(model).__name__} with one",
            fix="use parameters: all, or another base model",
        )
    layers = [inner] if head is None or head.weight is inner.weight else [inner, head]
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
