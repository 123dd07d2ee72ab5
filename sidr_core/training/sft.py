"""Stages 1 and 2: supervised fine-tuning with TRL's SFTTrainer.

Stage 1 (alignment) teaches the SID vocabulary through the tasks of the corpus, mixed by weight. Stage 2 (reasoning
activation) teaches the form "thought, then SID". The method and where this deviates: docs/method.md, "Stage 1:
alignment" and "Stage 2: activation".

Shapes: B rows of a batch, T tokens of a row, P positions with a label, V the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from accelerate import PartialState

from sidr_core.errors import InputError, SidrError
from sidr_core.models import base, checkpoint, parameters
from sidr_core.models.prompt import PromptRenderer
from sidr_core.models.quiet import quiet
from sidr_core.models.sources import described
from sidr_core.models.vocabulary import own_token_ids
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.settings import NEXT_ITEM_TASK, REASONING_TASK, Training
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.training import cards, dropout, memory, sharding
from sidr_core.training.examples import IGNORED, tokenise, weighted
from sidr_core.training.packing import PackedCollator, PrefixGrouped, groups
from sidr_core.training.resume import LengthGrouped, resume_dir, train
from sidr_core.training.select import Selector

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig


#: Optimizer in the profile -> its name in the trainer's arguments.
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adafactor": "adafactor",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
    "adagrad": "adagrad",
}


def build_alignment(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage 1: base model and corpus -> checkpoint that recommends directly."""
    settings = config.sft
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    corpus = tables.read(inputs["synthetic_corpus"].path("synthetic_corpus.parquet"))
    rows = weighted(corpus.filter(pl.col(c.TASK) != REASONING_TASK), settings.tasks, settings.seed)
    titles = tables.read(inputs["interactions"].path("items.parquet"), [c.ITEM_ID, c.TITLE])
    # All text that the model will read or write: the tokenizer of a tiny model is trained on it.
    parts = [corpus[c.PROMPT], corpus[c.COMPLETION], corpus[c.THOUGHT].drop_nulls()]
    texts = pl.concat([part.unique(maintain_order=True) for part in parts]).to_list()
    model, tokenizer = base.build_base(
        config.base_model, texts, codebook, dict(titles.iter_rows()), inputs.cache("models")
    )
    renderer = PromptRenderer(tokenizer)
    selectors = _selectors(inputs, codebook, renderer, settings, [c.DIRECT])
    trained = _train(inputs, model, renderer, rows, settings, selectors, progress, out_dir)
    meta = _meta("alignment", described(config.base_model), settings, rows, inputs)
    return cards.finish(out_dir, trained, tokenizer, codebook, meta, inputs.synthetic)


def build_activation(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage 2: stage-1 checkpoint and reasoning traces -> checkpoint that thinks before it answers."""
    settings = config.activation
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    corpus = tables.read(inputs["synthetic_corpus"].path("synthetic_corpus.parquet"))
    loaded = checkpoint.load(inputs["sft_checkpoint"].folder(), sharding.device(settings))
    traces = corpus.filter(pl.col(c.TASK) == REASONING_TASK)
    if traces.is_empty():
        raise InputError(
            "the corpus holds no reasoning trace",
            expected="rows of task 'reasoning'",
            found="none",
            fix="let the teacher write traces (teacher section of the profile)",
        )
    replay = corpus.filter(pl.col(c.TASK) == NEXT_ITEM_TASK)
    share = min(1.0, settings.replay * len(traces) / max(len(replay), 1))
    others = corpus.filter(pl.col(c.TASK).is_in(list(settings.tasks)))
    parts = [traces, weighted(replay, {NEXT_ITEM_TASK: share}, settings.seed)]
    parts += [weighted(others, settings.tasks, settings.seed)] if others.height else []
    rows = pl.concat(parts)
    modes, longest = [c.THINKING, c.DIRECT], config.decoding.max_thought_tokens
    selectors = _selectors(inputs, codebook, loaded.renderer, settings, modes, longest)
    trained = _train(inputs, loaded.model, loaded.renderer, rows, settings, selectors, progress, out_dir)
    meta = _meta("activation", loaded.meta["base"], settings, rows, inputs)
    return cards.finish(out_dir, trained, loaded.tokenizer, codebook, meta, inputs.synthetic)


def _meta(stage: str, origin: Any, settings: Training, rows: pl.DataFrame, inputs: Inputs) -> dict[str, Any]:
    return {
        "stage": stage,
        "base": origin,
        "recipe": settings.model_dump(mode="json"),
        "examples": dict(rows.group_by(c.TASK).len().sort(c.TASK).iter_rows()),
        **cards.provenance(inputs),
    }


def _selectors(
    inputs: Inputs, codebook: pl.DataFrame, renderer: Any, settings: Training, modes: list[str], max_tokens: int = 0
) -> list[Selector]:
    """One selector per mode, on the same valid rows; the first one chooses the epoch."""
    if settings.select_rows == 0:
        return []
    valid = tables.read(inputs["interactions"].path("valid.parquet"))
    common = {"rows": settings.select_rows, "max_thought_tokens": max_tokens, "seed": settings.seed}
    return [Selector(valid, codebook, renderer, mode=mode, **common) for mode in modes]


def _train(
    inputs: Inputs,
    model: Any,
    renderer: PromptRenderer,
    rows: pl.DataFrame,
    settings: Training,
    selectors: list[Selector],
    progress: Progress,
    out_dir: Path,
) -> cards.Trained:
    """Train `model` in place; it ends with the weights of the best epoch, or of the last one without `selectors`."""
    from datasets import Dataset

    examples = tokenise(rows, renderer, settings.max_length)
    lengths = [example["length"] for example in examples]
    progress.say(f"{len(examples):,} examples, {sum(lengths):,} tokens per epoch")
    filler = {"input_ids": [renderer.pad_id], "labels": [IGNORED], "length": 1, "user": None}
    selector = selectors[0] if selectors else None
    model = parameters.prepare(model, settings, own_token_ids(renderer.tokenizer))
    metrics = memory.announce(model, settings, max(lengths), progress, sharding.shards(settings))
    with dropout.added(model, settings.dropout), resume_dir(inputs, out_dir, progress) as (folder, point), quiet():
        trainer = _trainer_class()(
            settings=settings,
            order=order(examples, settings),
            model=model,
            args=_arguments(settings, str(folder), selector is not None),
            train_dataset=Dataset.from_list([*examples, filler]),
            eval_dataset=_valid_examples(selector, renderer) if selector is not None else None,
            processing_class=renderer.tokenizer,
            callbacks=[cards.ProgressCallback(progress)],
        )
        schedule = {"at_epochs": True, "patience": settings.patience}
        history = train(trainer, folder, point, settings.save_every, selector, progress, **schedule)
    plain = parameters.finish(model)
    return cards.Trained(plain, cards.log_table(history), cards.valid_figures(selectors, plain, settings.seed), metrics)


def _valid_examples(selector: Selector, renderer: Any) -> Any:
    """Direct next-item examples of the selector's valid rows, for the evaluation loss in the log."""
    from datasets import Dataset

    examples = []
    for user, leaf in zip(selector.users, selector.targets, strict=True):
        head, tail = renderer.prompt(user, c.DIRECT), renderer.completion(selector.index.sids[leaf], None)
        examples.append({"input_ids": head + tail, "labels": [IGNORED] * len(head) + tail})
    return Dataset.from_list(examples)


def _arguments(settings: Training, scratch: str, select: bool) -> Any:
    from trl.trainer.sft_config import SFTConfig

    micro, accumulated = micro_batches(settings.batch_size, settings.micro_batch)
    arguments = SFTConfig(
        **cards.common_arguments(settings, scratch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=128,
        gradient_accumulation_steps=accumulated,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type=settings.schedule,
        optim=OPTIMIZERS[settings.optimizer],
        torch_compile=settings.compile,
        max_length=settings.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="epoch" if select else "no",
        save_strategy="no",  # resume points are asked for by ResumePoints
        logging_steps=10,
        logging_nan_inf_filter=False,
    )
    return cards.one_device(arguments)


def micro_batches(batch_size: int, micro_batch: int) -> tuple[int, int]:
    """Examples per forward pass of a process, and forward passes per step; `batch_size` counts all processes.

    Raises:
        SidrError: the batch does not divide evenly.
    """
    processes = PartialState().num_processes
    micro = min(micro_batch, max(1, batch_size // processes))
    if batch_size % (micro * processes):
        raise SidrError(
            "a training step does not divide evenly",
            expected=f"batch_size {batch_size} to be a multiple of micro_batch {micro} times {processes} processes",
            found=f"{batch_size / (micro * processes):.2f} micro batches for each process",
            fix="change `micro_batch` or `batch_size` of this stage, or the number of processes",
        )
    return micro, batch_size // (micro * processes)


def order(examples: Sequence[dict[str, Any]], settings: Training) -> LengthGrouped | PrefixGrouped:
    """In which order an epoch takes the examples; the index after them is that of an example without loss."""
    if settings.packing:
        return PrefixGrouped(groups(examples), settings.batch_size, settings.seed)
    return LengthGrouped([example["length"] for example in examples], settings.batch_size, settings.seed)


def answer_loss(model: Any, inputs: Any, n_items: Any = None) -> Any:
    """Mean cross-entropy of the labelled positions; the other positions are not projected onto the vocabulary.

    Args:
        inputs: `input_ids`, `labels` (B, T) and `attention_mask`: (B, T) of padded rows, (B, 1, T, T) of packed ones,
            which have `position_ids` (B, T) too; labels of -100 carry no loss.
        n_items: divisor of the sum of losses; by default the number of labelled positions.
    """
    import torch

    rows = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask", "position_ids")}
    next_labels = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)  # (B, T)
    labelled = next_labels != IGNORED  # (B, T)
    logits = model(**rows, use_cache=False, logits_to_keep=labelled).logits.float()  # (P, V)
    total = torch.nn.functional.cross_entropy(logits, next_labels[labelled], reduction="sum")
    return total / (labelled.sum().clamp(min=1) if n_items is None else n_items)


def _trainer_class() -> Any:
    """SFTTrainer with a resumable order of examples, packed rows, and a loss that is fast on a CPU."""
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def __init__(self, settings: Training, order: Any, **kwargs: Any) -> None:
            self._settings, self._order = settings, order
            super().__init__(**kwargs)

        def get_train_dataloader(self) -> Any:
            padded = self.data_collator
            if self._settings.packing:
                self.data_collator = PackedCollator(self.processing_class.pad_token_id)  # type: ignore[union-attr]
            try:
                return super().get_train_dataloader()
            finally:
                self.data_collator = padded

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return self._order

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """On a CPU, project only the positions that carry loss. TRL does so on GPUs alone; elsewhere it scores
            every position, which takes half of the time of a small model.
            """
            if return_outputs or inputs["input_ids"].device.type != "cpu":
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
                for metrics in self._metrics.values():
                    metrics.pop("num_tokens", None)  # of a packed batch, TRL counts the first row alone
                return loss
            loss = answer_loss(model, inputs, num_items_in_batch)
            if num_items_in_batch is not None:  # counted over all processes, whose gradients are averaged
                loss = loss * self.accelerator.num_processes
            return loss

    return Trainer
