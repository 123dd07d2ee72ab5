"""Stage 3: GRPO on thinking rollouts, with TRL's GRPOTrainer.

In TRL's terms: token-level loss over the batch, rewards scaled per group, one on-policy update per batch, k3 KL
against the stage-2 model; the defaults are the paper's. Rollouts and rewards: `rollouts.py`, `rewards.py`. Deviations
(docs/method.md, "Stage 3: GRPO"): checkpoints are chosen on valid rows, never on test rows; prompts come from train
rows under the same history cap as everywhere; the start is measured too, so RL that does not help is discarded.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.thoughts import judge, named_items
from sidr_core.errors import SidrError
from sidr_core.models import checkpoint, parameters
from sidr_core.models.quiet import quiet
from sidr_core.models.vocabulary import own_token_ids
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import truth
from sidr_core.reviews.domains import of_domains
from sidr_core.settings.training import even_part
from sidr_core.sids.tokens import format_sid
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.training import cards, dropout, memory, sharding
from sidr_core.training.examples import history_prompts
from sidr_core.training.resume import resume_dir, train
from sidr_core.training.rewards import CLOSE, REWARDS, Completion, Scored, with_length_cost, zero_variance
from sidr_core.training.rollouts import Rollout, Shard, longest, roll_out, rollouts_of
from sidr_core.training.select import MergedSelector, Selector

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidr_core.corpus.relations import Relations
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
    "named",
    "truth",
    "eval_ndcg@10",
    "eval_direct_ndcg@10",
    "eval_thinking_ndcg@10",
)


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage-2 checkpoint and train rows -> checkpoint rewarded for thoughts that lead to the item.

    Where the trial before the start shows that nothing can be learned (`grpo.preflight`), nothing is trained: the
    checkpoint is its start, and its card and every table say so.

    Raises:
        SidrError: the training does not fit into memory, or vLLM is asked for and not installed.
    """
    settings = config.grpo
    _refuse_missing_engine(settings)
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    loaded = checkpoint.load(inputs["activation_checkpoint"].folder(), sharding.device(settings))
    rows, valid = (_rows_of(inputs, split, settings) for split in (c.TRAIN, c.VALID))
    relations = None
    if settings.reward == "named":
        items, train_rows = (tables.read(inputs["interactions"].path(f"{name}.parquet")) for name in ("items", c.TRAIN))
        relations = truth.learned(Catalogue.read(items, codebook), train_rows)
    rollouts = Rollouts(_in_order(rows, settings), codebook, loaded, settings, relations)
    selectors = _selectors(valid, codebook, loaded, config, relations) if settings.select_rows else []
    measure = _measure(selectors) if selectors else None
    meta = {
        "stage": "grpo",
        "base": loaded.meta["base"],
        "recipe": settings.model_dump(mode="json"),
        **cards.provenance(inputs),
    }
    with resume_dir(inputs, out_dir, progress) as (folder, point):
        trial = preflight(loaded.model, rollouts, settings, progress) if point is None and settings.preflight else None
        if trial is not None:
            progress.say(f"not trained, the checkpoint is its start. {trial}")
            meta["not_trained"] = f"{trial.what}: {trial.found}"
            worth = measure(loaded.model) if measure else {}
            log = cards.log_table([{"step": 0, **{f"eval_{name}": value for name, value in worth.items()}}])
            model, estimated = loaded.model, {}
        else:
            model = parameters.prepare(loaded.model, settings, own_token_ids(loaded.tokenizer))
            shards = sharding.shards(settings)
            estimated = memory.announce(model, settings, rollouts.longest(), progress, shards)
            log = _train(model, loaded, rollouts, settings, measure, progress, folder, point)
            model = parameters.finish(model)
    trained = cards.Trained(model, log, cards.valid_figures(selectors, model, settings.seed), estimated)
    return cards.finish(out_dir, trained, loaded.tokenizer, codebook, meta, inputs.synthetic, CURVES)


def _rows_of(inputs: Inputs, split: str, settings: Grpo) -> pl.DataFrame:
    """The rows of a split; only those of the domains in `grpo.train_only`, if it names any. Raises SidrError."""
    rows = of_domains(tables.read(inputs["interactions"].path(f"{split}.parquet")), settings.train_only)
    if rows.is_empty():
        raise SidrError(
            f"GRPO has no {split} row",
            expected=f"{split} rows of users of {', '.join(settings.train_only)} (`grpo.train_only`)",
            found="none",
            fix="name a domain with more reviews before the snapshot's last ones",
        )
    return rows


def _in_order(rows: pl.DataFrame, settings: Grpo) -> pl.DataFrame:
    """The rows in the order of the training, one seeded shuffle of them after the other.

    The order is fixed here, as one epoch, so that it does not depend on the trainer's random state.
    """
    random = np.random.default_rng(settings.seed)
    prompts = settings.steps * settings.prompts_per_step
    rounds = [random.permutation(len(rows)) for _ in range(-(-prompts // len(rows)))]
    return rows[np.concatenate(rounds)[:prompts]]


def _selectors(
    valid: pl.DataFrame,
    codebook: pl.DataFrame,
    loaded: Any,
    config: DatasetConfig,
    relations: Relations | None = None,
) -> list[Selector | MergedSelector]:
    """A selector of the trained mode and one of the other mode, on the same valid rows. With `relations`, so with the
    reward `named`, merged lists are what is trained for, and their selector comes first.
    """
    settings = config.grpo
    modes = [settings.mode, c.DIRECT if settings.mode == c.THINKING else c.THINKING]
    max_tokens = config.decoding.max_thought_tokens
    common = {"rows": settings.select_rows, "max_thought_tokens": max_tokens, "seed": settings.seed}
    selectors = [Selector(valid, codebook, loaded.renderer, mode=mode, **common) for mode in modes]
    if relations is not None:
        thinking, direct = selectors
        return [MergedSelector(direct, thinking, relations.catalogue, codebook), *selectors]
    return [*selectors]


def _measure(selectors: list[Selector | MergedSelector]) -> Any:
    """Model -> valid metrics in the trained mode, and those of the other modes with their names before theirs."""
    if isinstance(selectors[0], MergedSelector):
        return selectors[0]
    trained, other = selectors

    def measure(model: Any) -> dict[str, float]:
        other_metrics = {f"{other.mode}_{name}": value for name, value in other(model).items()}
        return {**trained(model), **other_metrics}

    return measure


class Rollouts:
    """Samples and scores the completions of a batch for the trainer, and holds the last batch for the log.

    The trainer's prompts are row numbers, written as text. User turn and target are looked up by that number, never
    by the text of a prompt.

    Args:
        rows: the rows of the training, in its order.
        relations: reads what a thought says and names, for the reward `named`.
    """

    def __init__(
        self,
        rows: pl.DataFrame,
        codebook: pl.DataFrame,
        loaded: Any,
        settings: Grpo,
        relations: Relations | None = None,
    ) -> None:
        self._settings, self._renderer, self._index = settings, loaded.renderer, loaded.index
        self._relations, self._rows = relations, rows.select(c.HISTORY, c.TARGET).rows()
        self.users = history_prompts(rows, codebook)
        codes_of = {item: tuple(codes) for item, codes in codebook.select(c.ITEM_ID, c.CODES).iter_rows()}
        self._catalogue = set(codes_of.values())
        self._codes = [codes_of[item] for item in rows[c.TARGET]]
        self._leaves = [self._index.leaf_of[format_sid(codes)] for codes in self._codes]
        self.rollouts: list[Rollout] = []
        self.read: list[tuple[int | None, float]] = []
        self.scored: list[Scored] = []
        self.same: list[bool] = []

    def longest(self) -> int:
        """Tokens of the longest prompt plus those of the longest rollout."""
        prompts = (len(self._renderer.prompt(user, self._settings.mode)) for user in set(self.users))
        return max(prompts) + longest(self._renderer, self._index, self._settings)

    def take(self, model: Any, rows: list[int], seed: int, shard: Shard = (0, 1)) -> None:
        """One rollout per row number; a group is one number repeated. `shard`: see :func:`roll_out`."""
        users, leaves = [self.users[row] for row in rows], [self._leaves[row] for row in rows]
        self._score(rows, roll_out(model, users, leaves, self._renderer, self._index, self._settings, seed, shard))

    def _score(self, rows: list[int], rollouts: list[Rollout]) -> None:
        settings = self._settings
        self.rollouts = rollouts
        texts = self._renderer.tokenizer.batch_decode([rollout.ids for rollout in rollouts], skip_special_tokens=True)
        opened = "" if settings.mode == c.THINKING else CLOSE
        reward = REWARDS[settings.reward]
        self.read = [self._read(text, row) for text, row in zip(texts, rows, strict=True)]
        scored = [
            reward(Completion(opened + text, self._codes[row], rollout.place, *read), self._catalogue)
            for text, row, rollout, read in zip(texts, rows, rollouts, self.read, strict=True)
        ]
        rewards = [one.reward for one in scored]
        if settings.length_cost:
            lengths = [rollout.thought_tokens for rollout in rollouts]
            rewards = with_length_cost(rewards, lengths, settings.generations, settings.length_cost)
        self.scored = [replace(one, reward=value) for one, value in zip(scored, rewards, strict=True)]
        self.same = zero_variance(rewards, settings.generations)

    def _read(self, text: str, row: int) -> tuple[int | None, float]:
        """`named` and `truth` of a completion, as :class:`Completion` has them."""
        if self._relations is None:
            return None, 1.0
        thought, catalogue = text.rpartition(CLOSE)[0], self._relations.catalogue
        history, target = self._rows[row]
        verdict = judge(thought, self._relations, [catalogue[item] for item in history])
        item_ids = named_items(thought, catalogue)
        return item_ids.index(target) if target in item_ids else None, verdict.share

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's rollout function, for this process's shard of the prompts; `earned` is passed on to :func:`earned`."""
        rows = [int(prompt) for prompt in prompts]
        prompt_ids = [self._renderer.prompt(self.users[row], self._settings.mode) for row in rows]
        logprobs = None
        if self._settings.vllm is None:
            accelerator, seed = trainer.accelerator, self._settings.seed * 1_000_003 + trainer.state.global_step
            shard = (accelerator.process_index, accelerator.num_processes)
            model = accelerator.unwrap_model(trainer.model)
            with sharding.in_step(model):
                self.take(model, rows, seed, shard)
        else:
            _, completions, drawn, _ = trainer.vllm_generation.generate(
                prompts=prompt_ids, images=None, num_generations=self._settings.generations
            )
            logprobs = [[token[0] for token in row] for row in drawn]  # for TRL's importance correction
            self._score(rows, rollouts_of(completions, self._renderer, self._settings))
        masks = [rollout.chosen for rollout in self.rollouts]
        # Decided over all processes, as a single process would.
        if self._drops(gather_object(self.same)):
            size = self._settings.generations
            masks = [[0] * len(mask) if self.same[n // size] else mask for n, mask in enumerate(masks)]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [rollout.ids for rollout in self.rollouts],
            "logprobs": logprobs,
            "env_mask": masks,
            "earned": [scored.reward for scored in self.scored],
        }

    def _drops(self, everywhere: list[bool]) -> bool:
        """Whether groups without variance are left out; not if the step would then have no group at all."""
        return self._settings.drop_zero_variance and not all(everywhere)

    def statistics(self, gather: Callable[[list[Any]], list[Any]] = list) -> dict[str, float]:
        """Shares and means over the last batch: the reward's parts, groups, thought lengths in tokens, close rate.

        Args:
            gather: joins a list over all processes.
        """
        rollouts, scored, same = gather(self.rollouts), gather(self.scored), gather(self.same)
        trained = [alike for alike in same if not alike] if self._drops(same) else same
        lengths = np.array([rollout.thought_tokens for rollout in rollouts])
        statistics = {
            "parsed": float(np.mean([s.parsed for s in scored])),
            "valid": float(np.mean([s.valid for s in scored])),
            "zero_variance": float(np.mean(same)),
            "zero_variance_trained": float(np.mean(trained)),
            "thought_tokens": float(lengths.mean()),
            "thought_tokens_p95": float(np.quantile(lengths, 0.95)),
            "close_rate": float(np.mean([rollout.closed for rollout in rollouts])),
        }
        if self._settings.rollouts == "constrained":
            statistics["in_beam"] = float(np.mean([rollout.place is not None for rollout in rollouts]))
        if self._relations is not None:
            read = gather(self.read)
            statistics["named"] = float(np.mean([place is not None for place, _ in read]))
            statistics["truth"] = float(np.mean([share for _, share in read]))
        levels = range(1, self._index.levels + 1)
        return statistics | {f"matched_{n}": float(np.mean([s.matched >= n for s in scored])) for n in levels}


def earned(completions: list[str], earned: list[float | None], **_: Any) -> list[float | None]:
    """The reward function of the trainer: passes on the rewards that :class:`Rollouts` computed."""
    return earned


def preflight(model: Any, rollouts: Rollouts, settings: Grpo, progress: Progress) -> SidrError | None:
    """Roll out the first prompts once.

    Returns:
        Why a training could not learn from such rollouts, too many groups without variance or too many thoughts cut
        off, and what to change; None where it could.
    """
    rows = np.repeat(np.arange(min(settings.preflight, len(rollouts.users))), settings.generations).tolist()
    rollouts.take(model, rows, settings.seed)
    same = float(np.mean(rollouts.same))
    cut = float(np.mean([not rollout.closed for rollout in rollouts.rollouts]))
    progress.say(f"trial of {len(rollouts.same)} prompts: {same:.0%} without variance, {cut:.0%} of thoughts cut off")
    if same > settings.preflight_same:
        return SidrError(
            "GRPO would learn next to nothing",
            expected=f"at most {settings.preflight_same:.0%} of groups whose rollouts all earn the same "
            "(`grpo.preflight_same`)",
            found=f"{same:.0%} of {len(rollouts.same)} groups of {settings.generations}",
            fix="raise `grpo.generations` or `grpo.temperature`, choose a denser reward (`rank` with constrained "
            "rollouts, or `step_rule`), or train the activation longer",
        )
    if cut > settings.preflight_cut:
        return SidrError(
            "GRPO would score thoughts that were cut off",
            expected=f"at most {settings.preflight_cut:.0%} of thoughts without a closing tag (`grpo.preflight_cut`)",
            found=f"{cut:.0%} at {settings.max_thought_tokens} tokens",
            fix="raise `grpo.max_thought_tokens`, lower `grpo.temperature`, or train the activation longer",
        )
    return None


class RolloutStatistics(TrainerCallback):
    """Adds the statistics of its rollouts to the log of each step."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.log_history.append({"step": state.global_step, **self._rollouts.statistics(gather_object)})


def _refuse_missing_engine(settings: Grpo) -> None:
    if settings.vllm is not None and find_spec("vllm") is None:
        raise SidrError(
            "vLLM cannot write the rollouts",
            expected="the package vllm, which needs a GPU (`grpo.vllm`)",
            found="it is not installed",
            fix="pip install 'trl[vllm]', or leave `grpo.vllm` out: rollouts then come from the built-in decoder",
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
            callbacks=[cards.ProgressCallback(progress), RolloutStatistics(rollouts)],
        )
        schedule = {"every": settings.select_every, "patience": settings.patience}
        log = train(trainer, folder, point, settings.save_every, measure, progress, **schedule)
    return cards.log_table(log)


def arguments(settings: Grpo, scratch: str, max_tokens: int) -> Any:
    """The trainer's arguments. A step's rollouts are divided over the processes, in whole groups.

    Raises:
        SidrError: the prompts of a step do not divide evenly.
    """
    from trl.trainer.grpo_config import GRPOConfig

    processes = PartialState().num_processes
    if settings.prompts_per_step % processes:
        raise SidrError(
            "a step of GRPO does not divide evenly",
            expected=f"`grpo.prompts_per_step` to be a multiple of the {processes} processes",
            found=str(settings.prompts_per_step),
            fix="change `grpo.prompts_per_step` or the number of processes",
        )
    per_process = settings.prompts_per_step * settings.generations // processes
    micro = even_part(per_process, settings.micro_batch)
    vllm: dict[str, Any] = {}
    if settings.vllm is not None:
        vllm = {"use_vllm": True, "vllm_mode": settings.vllm.mode}
        if settings.vllm.mode == "server":
            vllm["vllm_server_base_url"] = settings.vllm.url
        else:
            vllm["vllm_gpu_memory_utilization"] = settings.vllm.memory
    config = GRPOConfig(
        **cards.common_arguments(settings, scratch),
        **vllm,
        max_steps=settings.steps,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_process // micro,
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
    return cards.one_device(config)
