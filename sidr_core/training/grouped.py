"""TRL's GRPOTrainer with an update that computes the prompt of a group once, and no padding that can be cut off.

A group is one prompt with G completions. TRL runs prompt and completion of every rollout through the model
and, on a CPU, scores the positions of the prompt as well. Here the keys and values of a prompt are computed
once, with gradient, and read by all of its completions; only completions are scored, by TRL's own head. Groups
of similar length share a micro-batch, and padding common to a micro-batch is cut off. Loss and gradients are
TRL's up to rounding; a test compares them.

Shapes: R rollouts, U distinct prompts, P tokens of the padded prompts, C of the padded completions, W <= C of the
longest completion of a micro-batch.
"""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from sidr_core.training import sharding


class GroupedTrainer(GRPOTrainer):
    """One update per generated batch (`num_iterations` 1), so the order of its rows is free."""

    args: Any
    num_generations: Any

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        head: Any = self.model.get_output_embeddings()  # type: ignore[union-attr]
        if not hasattr(head, "bias"):  # peft's wrapper of an output layer without one, which TRL asks for it
            head.register_parameter("bias", None)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """The next micro-batch; a new batch is generated after the last one."""
        part = self._step % self.args.steps_per_generation
        if part == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = micro_batches(batch, self.num_generations, self.args.steps_per_generation)
        return self._buffered_inputs[part]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, computed without the rows that add nothing to it (groups left out for lack of variance)."""
        if "tool_mask" in inputs and self.accelerator.num_processes == 1:  # TRL gathers one number per row
            live = (inputs["completion_mask"] * inputs["tool_mask"]).any(dim=1)  # (R,)
            if not live.any():
                return next(weight for weight in model.parameters() if weight.requires_grad).sum() * 0.0
            inputs = {name: value[live] if _per_row(value) else value for name, value in inputs.items()}
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities and entropies (R, C) of the last C = `logits_to_keep` tokens; 0 where masked.

        Args:
            input_ids, attention_mask: (R, P + C), prompts padded on the left, completions on the right.
            batch_size: rows per forward pass.
        """
        checkpointing = torch.is_grad_enabled() and self.accelerator.unwrap_model(model).is_activation_checkpointing
        # Activation checkpointing keeps no keys and values, and FSDP gathers no block for gradients that come by them.
        if checkpointing or sharding.is_sharded(model) or compute_aux_loss:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, **rest
            )
        logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        entropies = torch.zeros_like(logps) if compute_entropy else None
        for rows in torch.arange(len(input_ids), device=input_ids.device).split(batch_size or len(input_ids)):
            with self.accelerator.autocast():
                scored = score(model, input_ids[rows], attention_mask[rows], logits_to_keep)
            width = scored.log_probs.shape[1]
            logps[rows, :width] = scored.log_probs.float()
            if entropies is not None:
                entropies[rows, :width] = scored.entropy.float()
        return logps, entropies, None


def score(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int) -> Any:
    """TRL's fused head on the completions of a batch, after one pass over each different prompt.

    Args:
        model: with TRL's fused head.
        input_ids, attention_mask: (R, P + C), prompts padded on the left, completions on the right.
        keep: C.

    Returns:
        its output with `log_probs` and `entropy` (R, W).
    """
    completion_mask = attention_mask[:, -keep:]  # (R, C)
    width = max(int(completion_mask.sum(dim=1).max()), 1)
    start = int(attention_mask[:, :-keep].any(dim=0).int().argmax())
    end = input_ids.shape[1] - keep
    # prompts: (2, U, end - start), ids and mask; group: (R,), the prompt of each rollout
    prompts, group = torch.unique(
        torch.stack([input_ids[:, start:end], attention_mask[:, start:end]]), dim=1, return_inverse=True
    )
    # The last token of the prompt is computed with the completion, since its position predicts the first token.
    cache = model(
        input_ids=prompts[0, :, :-1], attention_mask=prompts[1, :, :-1], use_cache=True, logits_to_keep=1
    ).past_key_values
    cache.batch_select_indices(group)  # U prompts -> R rollouts
    tail = slice(end - 1, end - 1 + width)
    labels = input_ids[:, end : end + width].masked_fill(completion_mask[:, :width] == 0, -100)
    return model(
        input_ids=input_ids[:, tail],
        attention_mask=attention_mask[:, start : tail.stop],
        past_key_values=cache,
        shift_labels=labels,
        fused_lm_head=True,
    )


def micro_batches(batch: dict[str, Any], generations: int, parts: int) -> list[dict[str, Any]]:
    """Split a generated batch into `parts` of whole groups, the longest groups first, those without loss last.

    Args:
        batch: TRL's tensors, (R, ...) for R rollouts whose groups are neighbours; scalars go to every part.
    """
    mask = batch["completion_mask"]  # (R, C)
    longest = mask.sum(dim=1).view(-1, generations).amax(dim=1)  # (R / G,)
    live = (mask * batch.get("tool_mask", mask)).view(len(longest), -1).any(dim=1)  # (R / G,)
    order = torch.argsort(longest * live, descending=True, stable=True)
    rows = (order[:, None] * generations + torch.arange(generations, device=order.device)).flatten()
    return [
        {name: value[part] if _per_row(value) else value for name, value in batch.items()} for part in rows.chunk(parts)
    ]


def _per_row(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0
