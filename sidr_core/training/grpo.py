"""Stage 3: GRPO on thinking rollouts, with TRL's GRPOTrainer.

METHOD 7.1 in TRL's terms: token-level loss over the batch, rewards scaled per group, one on-policy
update per batch, k3 KL against the stage-2 model. Rollouts and rewards: `rollouts.py`, `rewards.py`;
the defaults are the paper's. Deviations: checkpoints are measured and chosen
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
from sidr_core.errors import SidrError
from sidr_core.models import checkpoint
from sidr_core.models.quiet import quiet
from sidr_core.sids.tokens import format_sid
from sidr_core.stage import Inputs, Progress, Report
from sidr_core.training import cards
from sidr_core.training.examples import history_prompts
from sidr_core.training.resume import train, workplace
from sidr_core.training.rewards import CLOSE, REWARDS, Rollout, Scored, zero_variance
from sidr_core.training.rollouts import Written, roll_out
from sidr_core.training.select import Selector

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Grpo

CURVES = ("reward", "thought_tokens", "zero_variance", "kl", "entropy", "eval_ndcg@10")


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage-2 checkpoint and train rows -> checkpoint rewarded for thoughts that lead to the item.

    Raises:
        SidrError: the trial before the start shows that nothing can be learned (`grpo.preflight`).
    """
    settings = config.grpo
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    loaded = checkpoint.load(inputs["activation_checkpoint"].folder())
    rows = tables.read(inputs["interactions"].path("train.parquet"))
    valid = tables.read(inputs["interactions"].path("valid.parquet"))
    rollouts = Rollouts(_met(rows, settings), codebook, loaded, settings)
    measure = _measure(valid, codebook, loaded, config) if settings.select_rows else None
    with workplace(inputs, out_dir, progress) as (folder, point):
        if point is None and settings.preflight:
            preflight(loaded.model, rollouts, settings, progress)
        log = _train(loaded, rollouts, settings, measure, progress, folder, point)
    meta = {
        "stage": "grpo",
        "base": loaded.meta["base"],
        "recipe": settings.model_dump(mode="json"),
        **cards.provenance(inputs),
    }
    return cards.finish(out_dir, loaded.model, loaded.tokenizer, codebook, meta, log, inputs.synthetic, CURVES)


def _met(rows: pl.DataFrame, settings: Grpo) -> pl.DataFrame:
    """Every prompt of the training in the order in which it is met: one seeded shuffle after the other.

    The order is laid out here, as one epoch, so that it does not depend on the trainer's random state.
    """
    random = np.random.default_rng(settings.seed)
    wanted = settings.steps * settings.prompts_per_step
    rounds = [random.permutation(len(rows)) for _ in range(-(-wanted // len(rows)))]
    return rows[np.concatenate(rounds)[:wanted]]


def _measure(valid: pl.DataFrame, codebook: pl.DataFrame, loaded: Any, config: DatasetConfig) -> Any:
    """Model -> valid metrics in the mode that is trained, and in the other one under its name."""
    settings = config.grpo
    modes = [settings.mode, c.DIRECT if settings.mode == c.THINKING else c.THINKING]
    trained, other = (
        Selector(
            valid,
            codebook,
            loaded.renderer,
            rows=settings.select_rows,
            mode=mode,
            max_thought_tokens=config.decoding.max_thought_tokens,
            seed=settings.seed,
        )
        for mode in modes
    )

    def measure(model: Any) -> dict[str, float]:
        beside = {f"{modes[1]}_{name}": value for name, value in other(model).items()}
        return {**trained(model), **beside}

    return measure


class Rollouts:
    """Samples and scores the completions of a batch for the trainer; keeps the last batch for the log.

    A prompt of the trainer is the number of its row, as text: user turn, target and place are columns of
    that row, and nothing is looked up by what a prompt says.

    Args:
        met: the rows of the training in the order in which they are met.
    """

    def __init__(self, met: pl.DataFrame, codebook: pl.DataFrame, loaded: Any, settings: Grpo) -> None:
        self._settings, self._renderer, self._index = settings, loaded.renderer, loaded.index
        self.users = history_prompts(met, codebook)
        codes_of = {item: tuple(codes) for item, codes in codebook.select(c.ITEM_ID, c.CODES).iter_rows()}
        self._catalogue = set(codes_of.values())
        self._codes = [codes_of[item] for item in met[c.TARGET]]
        self._leaves = [self._index.leaf_of[format_sid(codes)] for codes in self._codes]
        self.written: list[Written] = []
        self.scored: list[Scored] = []
        self.same: list[bool] = []

    def take(self, model: Any, rows: list[int], seed: int) -> None:
        """One rollout per row number; a group is one number repeated."""
        settings = self._settings
        self.written = roll_out(
            model,
            [self.users[row] for row in rows],
            [self._leaves[row] for row in rows],
            self._renderer,
            self._index,
            settings,
            seed,
        )
        texts = self._renderer.tokenizer.batch_decode([w.ids for w in self.written], skip_special_tokens=True)
        opened = "" if settings.mode == c.THINKING else CLOSE
        reward = REWARDS[settings.reward]
        self.scored = [
            reward(Rollout(opened + text, self._codes[row], written.place), self._catalogue)
            for text, row, written in zip(texts, rows, self.written, strict=True)
        ]
        self.same = zero_variance([scored.reward for scored in self.scored], settings.generations)

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What TRL asks of a rollout function; `earned` goes to :meth:`earned`."""
        rows = [int(prompt) for prompt in prompts]
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.take(model, rows, self._settings.seed * 1_000_003 + trainer.state.global_step)
        masks = [written.chosen for written in self.written]
        if self._settings.drop_zero_variance and not all(self.same):
            size = self._settings.generations
            masks = [[0] * len(mask) if self.same[n // size] else mask for n, mask in enumerate(masks)]
        return {
            "prompt_ids": [self._renderer.prompt(self.users[row], self._settings.mode) for row in rows],
            "completion_ids": [written.ids for written in self.written],
            "logprobs": None,
            "env_mask": masks,
            "earned": [scored.reward for scored in self.scored],
        }

    def parts(self) -> dict[str, float]:
        """Means over the last batch: the reward's parts, thought lengths in tokens, close rate."""
        lengths = np.array([written.thought_tokens for written in self.written])
        places = [written.place for written in self.written]
        found = {
            "parsed": float(np.mean([s.parsed for s in self.scored])),
            "valid": float(np.mean([s.valid for s in self.scored])),
            "zero_variance": float(np.mean(self.same)),
            "thought_tokens": float(lengths.mean()),
            "thought_tokens_p95": float(np.quantile(lengths, 0.95)),
            "close_rate": float(np.mean([written.closed for written in self.written])),
        }
        if self._settings.rollouts == "constrained":
            found["in_beam"] = float(np.mean([place is not None for place in places]))
        levels = range(1, self._index.levels + 1)
        return found | {f"matched_{n}": float(np.mean([s.matched >= n for s in self.scored])) for n in levels}


def earned(completions: list[str], earned: list[float | None], **_: Any) -> list[float | None]:
    """The reward function given to the trainer: the rollouts were scored when they were made."""
    return earned


def preflight(model: Any, rollouts: Rollouts, settings: Grpo, progress: Progress) -> None:
    """Roll out the first prompts once and refuse a training that could not learn from them.

    Raises:
        SidrError: too many groups without variance, or too many thoughts cut off.
    """
    rows = np.repeat(np.arange(min(settings.preflight, len(rollouts.users))), settings.generations).tolist()
    rollouts.take(model, rows, settings.seed)
    same = float(np.mean(rollouts.same))
    cut = float(np.mean([not written.closed for written in rollouts.written]))
    progress.say(f"trial of {len(rollouts.same)} prompts: {same:.0%} without variance, {cut:.0%} of thoughts cut off")
    if same > settings.preflight_same:
        raise SidrError(
            "GRPO would learn next to nothing",
            expected=f"at most {settings.preflight_same:.0%} of groups whose rollouts all earn the same "
            "(`grpo.preflight_same`)",
            found=f"{same:.0%} of {len(rollouts.same)} groups of {settings.generations}",
            do="raise `grpo.generations` or `grpo.temperature`, choose a denser reward (`rank` with constrained "
            "rollouts, or `step_rule`), or train the activation longer",
        )
    if cut > settings.preflight_cut:
        raise SidrError(
            "GRPO would score thoughts that were cut off",
            expected=f"at most {settings.preflight_cut:.0%} of thoughts without a closing tag (`grpo.preflight_cut`)",
            found=f"{cut:.0%} at {settings.max_thought_tokens} tokens",
            do="raise `grpo.max_thought_tokens`, lower `grpo.temperature`, or train the activation longer",
        )


class Parts(TrainerCallback):
    """Adds to the log of each step what its rollouts were like."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.log_history.append({"step": state.global_step, **self._rollouts.parts()})


def _train(
    loaded: Any,
    rollouts: Rollouts,
    settings: Grpo,
    measure: Any,
    progress: Progress,
    folder: Path,
    point: str | None,
) -> pl.DataFrame:
    """Run GRPO on `loaded.model` in place, leave it at its best measured step, return the log."""
    from datasets import Dataset
    from trl.trainer.grpo_trainer import GRPOTrainer

    with quiet():
        trainer = GRPOTrainer(
            model=loaded.model,
            reward_funcs=[earned],
            args=_arguments(settings, str(folder)),
            train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(rollouts.users))]}),
            processing_class=loaded.tokenizer,
            rollout_func=rollouts,
            callbacks=[cards.ProgressCallback(progress), Parts(rollouts)],
        )
        log = train(trainer, folder, point, settings.save_every, measure, progress, every=settings.select_every)
    return cards.log_table(log)


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
        logging_steps=1,
        save_strategy="no",
    )
