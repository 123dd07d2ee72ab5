"""Stage 3: GRPO on thinking rollouts, with TRL's GRPOTrainer.

METHOD 7.1 in TRL's terms: token-level loss over the batch, rewards scaled per group, one on-policy
update per batch, k3 KL against the stage-2 model. Rollouts and rewards: `rollouts.py`, `rewards.py`;
the defaults are the paper's. Deviations: checkpoints are measured and chosen
on valid rows, never on test (METHOD 10.16); prompts are rebuilt from train rows under the same
history cap (METHOD 10.19); the start is measured too, so RL that does not help is not kept.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from sidr_core.errors import SidrError
from sidr_core.models import checkpoint, parameters
from sidr_core.models.quiet import quiet
from sidr_core.models.vocabulary import own_token_ids
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.reviews.domains import of_domains
from sidr_core.sids.tokens import format_sid
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.training import cards, dropout, memory
from sidr_core.training.examples import history_prompts
from sidr_core.training.resume import train, workplace
from sidr_core.training.rewards import CLOSE, REWARDS, Rollout, Scored, zero_variance
from sidr_core.training.rollouts import Written, as_written, longest, roll_out
from sidr_core.training.select import Selector

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidr_core.settings import DatasetConfig, Grpo

CURVES = (
    "reward",
    "matched_1",
    "valid",
    "zero_variance",
    "kl",
    "entropy",
    "thought_tokens",
    "thought_tokens_p95",
    "close_rate",
    "eval_ndcg@10",
    "eval_direct_ndcg@10",
    "eval_thinking_ndcg@10",
)


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage-2 checkpoint and train rows -> checkpoint rewarded for thoughts that lead to the item.

    Raises:
        SidrError: the trial before the start shows that nothing can be learned (`grpo.preflight`), the training
            does not fit into memory, or vLLM is asked for and not installed.
    """
    settings = config.grpo
    _refuse_missing_engine(settings)
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    loaded = checkpoint.load(inputs["activation_checkpoint"].folder())
    rows, valid = (_rows_of(inputs, split, settings) for split in (c.TRAIN, c.VALID))
    rollouts = Rollouts(_met(rows, settings), codebook, loaded, settings)
    selectors = _selectors(valid, codebook, loaded, config) if settings.select_rows else []
    measure = _measure(selectors) if selectors else None
    with workplace(inputs, out_dir, progress) as (folder, point):
        if point is None and settings.preflight:
            preflight(loaded.model, rollouts, settings, progress)
        model = parameters.prepare(loaded.model, settings, own_token_ids(loaded.tokenizer))
        estimated = memory.announce(model, settings, rollouts.longest(), progress)
        log = _train(model, loaded, rollouts, settings, measure, progress, folder, point)
    meta = {
        "stage": "grpo",
        "base": loaded.meta["base"],
        "recipe": settings.model_dump(mode="json"),
        **cards.provenance(inputs),
    }
    model = parameters.finish(model)
    trained = cards.Trained(model, log, cards.valid_figures(selectors, model, settings.seed), estimated)
    return cards.finish(out_dir, trained, loaded.tokenizer, codebook, meta, inputs.synthetic, CURVES)


def _rows_of(inputs: Inputs, split: str, settings: Grpo) -> pl.DataFrame:
    """The rows of a split, of the members of `grpo.train_only` alone where it names some. Raises SidrError."""
    rows = of_domains(tables.read(inputs["interactions"].path(f"{split}.parquet")), settings.train_only)
    if rows.is_empty():
        raise SidrError(
            f"GRPO has no {split} row",
            expected=f"{split} rows of users of {', '.join(settings.train_only)} (`grpo.train_only`)",
            found="none",
            fix="name a member with more reviews before the snapshot's last ones",
        )
    return rows


def _met(rows: pl.DataFrame, settings: Grpo) -> pl.DataFrame:
    """Every prompt of the training in the order in which it is met: one seeded shuffle after the other.

    The order is laid out here, as one epoch, so that it does not depend on the trainer's random state.
    """
    random = np.random.default_rng(settings.seed)
    wanted = settings.steps * settings.prompts_per_step
    rounds = [random.permutation(len(rows)) for _ in range(-(-wanted // len(rows)))]
    return rows[np.concatenate(rounds)[:wanted]]


def _selectors(valid: pl.DataFrame, codebook: pl.DataFrame, loaded: Any, config: DatasetConfig) -> list[Selector]:
    """One of the mode that is trained, and one of the other, on the same valid rows."""
    settings = config.grpo
    modes = [settings.mode, c.DIRECT if settings.mode == c.THINKING else c.THINKING]
    most = config.decoding.max_thought_tokens
    same = {"rows": settings.select_rows, "max_thought_tokens": most, "seed": settings.seed}
    return [Selector(valid, codebook, loaded.renderer, mode=mode, **same) for mode in modes]


def _measure(selectors: list[Selector]) -> Any:
    """Model -> valid metrics in the mode that is trained, and in the other one under its name."""
    trained, other = selectors

    def measure(model: Any) -> dict[str, float]:
        beside = {f"{other.mode}_{name}": value for name, value in other(model).items()}
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

    def longest(self) -> int:
        """Tokens of the longest prompt and the longest rollout together."""
        prompts = (len(self._renderer.prompt(user, self._settings.mode)) for user in set(self.users))
        return max(prompts) + longest(self._renderer, self._index, self._settings)

    def take(self, model: Any, rows: list[int], seed: int, share: tuple[int, int] = (0, 1)) -> None:
        """One rollout per row number; a group is one number repeated. `share`: see :func:`roll_out`."""
        users, leaves = [self.users[row] for row in rows], [self._leaves[row] for row in rows]
        self._score(rows, roll_out(model, users, leaves, self._renderer, self._index, self._settings, seed, share))

    def _score(self, rows: list[int], written: list[Written]) -> None:
        settings = self._settings
        self.written = written
        texts = self._renderer.tokenizer.batch_decode([w.ids for w in self.written], skip_special_tokens=True)
        opened = "" if settings.mode == c.THINKING else CLOSE
        reward = REWARDS[settings.reward]
        self.scored = [
            reward(Rollout(opened + text, self._codes[row], written.place), self._catalogue)
            for text, row, written in zip(texts, rows, self.written, strict=True)
        ]
        self.same = zero_variance([scored.reward for scored in self.scored], settings.generations)

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What TRL asks of a rollout function, for this process's share of the prompts.

        `earned` goes to :func:`earned`.
        """
        rows = [int(prompt) for prompt in prompts]
        prompt_ids = [self._renderer.prompt(self.users[row], self._settings.mode) for row in rows]
        logprobs = None
        if self._settings.vllm is None:
            accelerator, seed = trainer.accelerator, self._settings.seed * 1_000_003 + trainer.state.global_step
            share = (accelerator.process_index, accelerator.num_processes)
            self.take(accelerator.unwrap_model(trainer.model), rows, seed, share)
        else:
            _, written, found, _ = trainer.vllm_generation.generate(
                prompts=prompt_ids, images=None, num_generations=self._settings.generations
            )
            logprobs = [[token[0] for token in row] for row in found]  # of the drawn tokens, for TRL's correction
            self._score(rows, as_written(written, self._renderer, self._settings))
        masks = [written.chosen for written in self.written]
        # As one process would: groups are left out wherever any group of the whole step has variance.
        if self._drops(gather_object(self.same)):
            size = self._settings.generations
            masks = [[0] * len(mask) if self.same[n // size] else mask for n, mask in enumerate(masks)]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [written.ids for written in self.written],
            "logprobs": logprobs,
            "env_mask": masks,
            "earned": [scored.reward for scored in self.scored],
        }

    def _drops(self, everywhere: list[bool]) -> bool:
        """Whether groups without variance are left out: not where nothing would remain of the step."""
        return self._settings.drop_zero_variance and not all(everywhere)

    def parts(self, everyone: Callable[[list[Any]], list[Any]] = list) -> dict[str, float]:
        """Shares and means over the last batch: the reward's parts, groups, thought lengths in tokens, close rate.

        Args:
            everyone: gathers a list over all processes.
        """
        written, scored, same = everyone(self.written), everyone(self.scored), everyone(self.same)
        trained = [alike for alike in same if not alike] if self._drops(same) else same
        lengths = np.array([rollout.thought_tokens for rollout in written])
        found = {
            "parsed": float(np.mean([s.parsed for s in scored])),
            "valid": float(np.mean([s.valid for s in scored])),
            "zero_variance": float(np.mean(same)),
            "zero_variance_trained": float(np.mean(trained)),
            "thought_tokens": float(lengths.mean()),
            "thought_tokens_p95": float(np.quantile(lengths, 0.95)),
            "close_rate": float(np.mean([rollout.closed for rollout in written])),
        }
        if self._settings.rollouts == "constrained":
            found["in_beam"] = float(np.mean([rollout.place is not None for rollout in written]))
        levels = range(1, self._index.levels + 1)
        return found | {f"matched_{n}": float(np.mean([s.matched >= n for s in scored])) for n in levels}


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
            fix="raise `grpo.generations` or `grpo.temperature`, choose a denser reward (`rank` with constrained "
            "rollouts, or `step_rule`), or train the activation longer",
        )
    if cut > settings.preflight_cut:
        raise SidrError(
            "GRPO would score thoughts that were cut off",
            expected=f"at most {settings.preflight_cut:.0%} of thoughts without a closing tag (`grpo.preflight_cut`)",
            found=f"{cut:.0%} at {settings.max_thought_tokens} tokens",
            fix="raise `grpo.max_thought_tokens`, lower `grpo.temperature`, or train the activation longer",
        )


class Parts(TrainerCallback):
    """Adds to the log of each step what its rollouts were like."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.log_history.append({"step": state.global_step, **self._rollouts.parts(gather_object)})


def _refuse_missing_engine(settings: Grpo) -> None:
    if settings.vllm is not None and find_spec("vllm") is None:
        raise SidrError(
            "rollouts cannot be written with vLLM",
            expected="the package vllm, which needs a GPU (`grpo.vllm`)",
            found="it is not installed",
            fix="pip install 'trl[vllm]', or leave `grpo.vllm` out: the own decoder then writes the rollouts",
        )


def _train(
    model: Any,
    loaded: Any,
    rollouts: Rollouts,
    settings: Grpo,
    measure: Any,
    progress: Progress,
    folder: Path,
    point: str | None,
) -> pl.DataFrame:
    """Run GRPO on `model` in place, leave it at its best measured step, return the log."""
    from datasets import Dataset

    from sidr_core.training.grouped import GroupedTrainer

    with quiet(), dropout.removed(model):
        trainer = GroupedTrainer(
            model=model,
            reward_funcs=[earned],
            args=arguments(settings, str(folder), longest(loaded.renderer, loaded.index, settings)),
            train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(rollouts.users))]}),
            processing_class=loaded.tokenizer,
            rollout_func=rollouts,
            callbacks=[cards.ProgressCallback(progress), Parts(rollouts)],
        )
        how = {"every": settings.select_every, "patience": settings.patience}
        log = train(trainer, folder, point, settings.save_every, measure, progress, **how)
    return cards.log_table(log)


def arguments(settings: Grpo, scratch: str, max_tokens: int) -> Any:
    """The trainer's arguments; a step's rollouts are shared out evenly over the processes, in whole groups.

    Raises:
        SidrError: the prompts of a step cannot be shared out.
    """
    from trl.trainer.grpo_config import GRPOConfig

    processes = PartialState().num_processes
    if settings.prompts_per_step % processes:
        raise SidrError(
            "a step of GRPO cannot be shared out evenly",
            expected=f"`grpo.prompts_per_step` to be a multiple of the {processes} processes",
            found=str(settings.prompts_per_step),
            fix="change `grpo.prompts_per_step` or the number of processes",
        )
    share = settings.prompts_per_step * settings.generations // processes
    micro = max(rows for rows in range(1, settings.micro_batch + 1) if share % rows == 0)
    found = GRPOConfig(
        **cards.common_arguments(settings, scratch),
        **_engine(settings),
        max_steps=settings.steps,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        num_generations=settings.generations,
        max_completion_length=max_tokens,
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
    return cards.one_device(found)


def _engine(settings: Grpo) -> dict[str, Any]:
    vllm = settings.vllm
    if vllm is None:
        return {}
    if vllm.mode == "server":
        return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": vllm.url}
    return {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": vllm.memory}
