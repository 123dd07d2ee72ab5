"""Stage 3: GRPO on thinking rollouts, with TRL's GRPOTrainer.

METHOD 7.1 in TRL's terms: token-level loss over the batch, rewards scaled per group, one on-policy
update per batch, k3 KL against the stage-2 model. Rollouts are free: the model may write anything,
and a rollout whose answer is no SID earns nothing. Deviations: checkpoints are measured and chosen
on valid rows, never on test (METHOD 10.16); prompts are rebuilt from train rows under the same
history cap (METHOD 10.19); the start is measured too, so RL that does not help is not kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from transformers import TrainerCallback

from sidr_core import columns as c
from sidr_core import tables
from sidr_core.models import checkpoint
from sidr_core.models.quiet import quiet
from sidr_core.stage import Inputs, Progress, Report
from sidr_core.training import cards
from sidr_core.training.examples import history_prompts, subset
from sidr_core.training.resume import Keeper, ResumePoints, workplace
from sidr_core.training.rewards import Scored, step_rule
from sidr_core.training.select import Selector

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Grpo

CURVES = ("reward", "thought_tokens", "frac_reward_zero_std", "eval_ndcg@10")


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage-2 checkpoint and train rows -> checkpoint rewarded for thoughts that lead to the item."""
    settings = config.grpo
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    loaded = checkpoint.load(inputs["activation_checkpoint"].folder())
    train = tables.read(inputs["interactions"].path("train.parquet"))
    valid = tables.read(inputs["interactions"].path("valid.parquet"))
    rows = subset(train, settings.steps * settings.prompts_per_step, settings.seed)
    selector = None
    if settings.select_rows:
        selector = Selector(
            valid,
            codebook,
            loaded.renderer,
            rows=settings.select_rows,
            mode=c.THINKING,
            max_thought_tokens=config.decoding.max_thought_tokens,
            seed=settings.seed,
        )
    log = _train(inputs, loaded, rows, codebook, settings, selector, progress, out_dir)
    meta = {
        "stage": "grpo",
        "base": loaded.meta["base"],
        "recipe": settings.model_dump(mode="json"),
        **cards.provenance(inputs),
    }
    return cards.finish(out_dir, loaded.model, loaded.tokenizer, codebook, meta, log, inputs.synthetic, CURVES)


class Rewarder:
    """The reward function given to the trainer; keeps the parts of each step for the log."""

    __name__ = "step_rule"

    def __init__(self, codebook: pl.DataFrame) -> None:
        self._catalogue = {tuple(codes) for codes in codebook[c.CODES]}
        self._levels = len(codebook[c.CODES][0])
        self.last: list[Scored] = []

    def __call__(self, completions: list[str], target_codes: list[list[int]], **_: Any) -> list[float | None]:
        self.last = [
            step_rule(text, tuple(codes), self._catalogue)
            for text, codes in zip(completions, target_codes, strict=True)
        ]
        return [scored.reward for scored in self.last]

    def parts(self) -> dict[str, float]:
        """Means over the last batch: the reward's parts."""
        return {
            "parsed": float(np.mean([s.parsed for s in self.last])),
            "valid": float(np.mean([s.valid for s in self.last])),
            **{f"matched_{n}": float(np.mean([s.matched >= n for s in self.last])) for n in range(1, self._levels + 1)},
        }


class Rollouts:
    """Samples completions for the trainer through the one renderer; keeps thought lengths for the log."""

    def __init__(self, renderer: Any, settings: Grpo) -> None:
        self._renderer, self._settings = renderer, settings
        self.lengths: list[int] = []
        self.closed: list[bool] = []

    def __call__(self, users: list[str], trainer: Any) -> dict[str, Any]:
        import torch

        prompts = [self._renderer.prompt(user, c.THINKING) for user in users]
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        model.eval()
        completions: list[list[int]] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), 256):
                completions += self._sample(model, prompts[start : start + 256])
        model.train(training)
        close = self._renderer.think_close_id
        self.closed = [close in ids for ids in completions]
        self.lengths = [ids.index(close) if close in ids else len(ids) for ids in completions]
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}

    def _sample(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        pad, eos = self._renderer.pad_id, self._renderer.eos_id
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        room = len(self._renderer.close_ids) + 8  # closing tag, answer, end of turn
        settings = GenerationConfig(
            do_sample=True,
            temperature=self._settings.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self._settings.max_thought_tokens + room,
            eos_token_id=eos,
            pad_token_id=pad,
        )
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
        return [row[: row.index(eos) + 1] if eos in row else row for row in out]


class Parts(TrainerCallback):
    """Adds the parts of each step's reward and the lengths of its thoughts to the log."""

    def __init__(self, trainer: Any, rewarder: Rewarder, rollouts: Rollouts) -> None:
        self._trainer, self._rewarder, self._rollouts = trainer, rewarder, rollouts

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        lengths = np.array(self._rollouts.lengths)
        self._trainer.state.log_history.append(
            {
                "step": state.global_step,
                **self._rewarder.parts(),
                "thought_tokens": float(lengths.mean()),
                "thought_tokens_p95": float(np.quantile(lengths, 0.95)),
                "close_rate": float(np.mean(self._rollouts.closed)),
            }
        )


def _train(
    inputs: Inputs,
    loaded: Any,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    settings: Grpo,
    selector: Selector | None,
    progress: Progress,
    out_dir: Path,
) -> pl.DataFrame:
    """Run GRPO on `loaded.model` in place, leave it at its best measured step, return the log."""
    from transformers import PrinterCallback
    from trl.trainer.grpo_trainer import GRPOTrainer

    rewarder, rollouts = Rewarder(codebook), Rollouts(loaded.renderer, settings)
    with workplace(inputs, out_dir, progress) as (folder, point), quiet():
        trainer = GRPOTrainer(
            model=loaded.model,
            reward_funcs=[rewarder],
            args=_arguments(settings, str(folder)),
            train_dataset=_prompts(rows, codebook, settings),
            processing_class=loaded.tokenizer,
            rollout_func=rollouts,
            callbacks=[cards.ProgressCallback(progress)],
        )
        trainer.add_callback(Parts(trainer, rewarder, rollouts))
        keeper = None
        if selector is not None:
            keeper = Keeper(trainer, selector, folder, progress, every=settings.select_every)
            trainer.add_callback(keeper)
        trainer.add_callback(ResumePoints(folder, settings.save_every))
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=point)
        if keeper is not None:
            keeper.load_best()
        return cards.log_table(trainer.state.log_history)


def _prompts(rows: pl.DataFrame, codebook: pl.DataFrame, settings: Grpo) -> Any:
    """Every prompt of the training in the order in which it is met: one seeded shuffle after the other.

    The order is laid out here, as one epoch, so that it does not depend on the trainer's random state.
    """
    from datasets import Dataset

    random = np.random.default_rng(settings.seed)
    wanted = settings.steps * settings.prompts_per_step
    rounds = [random.permutation(len(rows)) for _ in range(-(-wanted // len(rows)))]
    met = rows[np.concatenate(rounds)[:wanted]]
    codes_of = dict(codebook.select(c.ITEM_ID, c.CODES).iter_rows())
    codes = [list(codes_of[item]) for item in met[c.TARGET]]
    return Dataset.from_dict({"prompt": history_prompts(met, codebook), "target_codes": codes})


def _arguments(settings: Grpo, scratch: str) -> Any:
    from trl.trainer.grpo_config import GRPOConfig

    rollouts = settings.prompts_per_step * settings.generations
    micro = min(settings.micro_batch, rollouts)
    return GRPOConfig(
        **cards.common_arguments(settings, scratch),
        max_steps=settings.steps,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rollouts // micro,
        num_generations=settings.generations,
        max_completion_length=settings.max_thought_tokens + 32,
        temperature=settings.temperature,
        beta=settings.beta,
        epsilon=settings.epsilon,
        loss_type="dapo",
        scale_rewards="group",
        num_iterations=1,
        shuffle_dataset=False,
        save_total_limit=2,
        logging_steps=1,
        save_strategy="no",
    )
