"""Stages 1 and 2: supervised fine-tuning with TRL's SFTTrainer.

Stage 1 (alignment, METHOD 5) teaches the SID vocabulary by the corpus' tasks, mixed by weight. Stage 2
(reasoning activation, METHOD 6) teaches the form "thought, then SID". Deviations: the end-of-turn
token is trained in both stages (METHOD 10.7); the epoch is chosen by NDCG@10 on valid rows in the
mode that is trained, not by the loss of another task (METHOD 10.17).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core import columns as c
from sidr_core import tables
from sidr_core.errors import InputError
from sidr_core.models import base, checkpoint
from sidr_core.models.prompt import PromptRenderer
from sidr_core.models.quiet import quiet
from sidr_core.settings import REASONING_TASK, Training
from sidr_core.stage import Inputs, Progress, Report
from sidr_core.training import cards
from sidr_core.training.examples import tokenise, weighted
from sidr_core.training.resume import LengthGrouped, train, workplace
from sidr_core.training.select import Selector

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

NEXT_ITEM_TASK = "sids_to_sid"


def build_alignment(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage 1: base model and corpus -> checkpoint that recommends directly."""
    settings = config.sft
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    corpus = tables.read(inputs["synthetic_corpus"].path("synthetic_corpus.parquet"))
    rows = weighted(corpus.filter(pl.col(c.TASK) != REASONING_TASK), settings.tasks, settings.seed)
    model, tokenizer = base.build_base(config.base_model, _texts(corpus), codebook)
    renderer = PromptRenderer(tokenizer)
    selector = _selector(inputs, codebook, renderer, settings, c.DIRECT)
    log = _train(inputs, model, tokenizer, renderer, rows, settings, selector, progress, out_dir)
    meta = {
        "stage": "alignment",
        "base": config.base_model.model_dump(mode="json"),
        "recipe": settings.model_dump(mode="json"),
        "examples": dict(rows.group_by(c.TASK).len().sort(c.TASK).iter_rows()),
        **cards.provenance(inputs),
    }
    return cards.finish(out_dir, model, tokenizer, codebook, meta, log, inputs.synthetic)


def build_activation(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Stage 2: stage-1 checkpoint and reasoning traces -> checkpoint that thinks before it answers."""
    settings = config.activation
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    corpus = tables.read(inputs["synthetic_corpus"].path("synthetic_corpus.parquet"))
    loaded = checkpoint.load(inputs["sft_checkpoint"].folder())
    traces = corpus.filter(pl.col(c.TASK) == REASONING_TASK)
    if traces.is_empty():
        raise InputError(
            "the corpus holds no reasoning trace",
            expected="rows of task 'reasoning'",
            found="none",
            do="let the teacher write traces (teacher section of the profile)",
        )
    replay = corpus.filter(pl.col(c.TASK) == NEXT_ITEM_TASK)
    share = min(1.0, settings.replay * len(traces) / max(len(replay), 1))
    rows = pl.concat([traces, weighted(replay, {NEXT_ITEM_TASK: share}, settings.seed)])
    selector = _selector(
        inputs, codebook, loaded.renderer, settings, c.THINKING, max_tokens=config.decoding.max_thought_tokens
    )
    log = _train(inputs, loaded.model, loaded.tokenizer, loaded.renderer, rows, settings, selector, progress, out_dir)
    meta = {
        "stage": "activation",
        "base": loaded.meta["base"],
        "recipe": settings.model_dump(mode="json"),
        "examples": dict(rows.group_by(c.TASK).len().sort(c.TASK).iter_rows()),
        **cards.provenance(inputs),
    }
    return cards.finish(out_dir, loaded.model, loaded.tokenizer, codebook, meta, log, inputs.synthetic)


def _texts(corpus: pl.DataFrame) -> list[str]:
    """What the tokenizer of a tiny model is trained on: everything the model will read or write."""
    parts = [corpus[c.PROMPT], corpus[c.COMPLETION], corpus[c.THOUGHT].drop_nulls()]
    return pl.concat([part.unique(maintain_order=True) for part in parts]).to_list()


def _selector(
    inputs: Inputs, codebook: pl.DataFrame, renderer: Any, settings: Training, mode: str, max_tokens: int = 0
) -> Selector | None:
    if settings.select_rows == 0:
        return None
    valid = tables.read(inputs["interactions"].path("valid.parquet"))
    return Selector(
        valid,
        codebook,
        renderer,
        rows=settings.select_rows,
        mode=mode,
        max_thought_tokens=max_tokens,
        seed=settings.seed,
    )


def _train(
    inputs: Inputs,
    model: Any,
    tokenizer: Any,
    renderer: Any,
    rows: pl.DataFrame,
    settings: Training,
    selector: Selector | None,
    progress: Progress,
    out_dir: Path,
) -> pl.DataFrame:
    """Train `model` in place, leave it at its best epoch, and return the log (one row per record)."""
    from datasets import Dataset

    data = Dataset.from_list(tokenise(rows, renderer, settings.max_length))
    progress.say(f"{len(data):,} examples, {sum(data['length']):,} tokens per epoch")
    with workplace(inputs, out_dir, progress) as (folder, point), quiet():
        trainer = _trainer_class()(
            model=model,
            args=_arguments(settings, str(folder), selector is not None),
            train_dataset=data,
            eval_dataset=_valid_examples(selector, renderer) if selector is not None else None,
            processing_class=tokenizer,
            callbacks=[cards.ProgressCallback(progress)],
        )
        how = {"at_epochs": True, "patience": settings.patience}
        return cards.log_table(train(trainer, folder, point, settings.save_every, selector, progress, **how))


def _valid_examples(selector: Selector, renderer: Any) -> Any:
    """Direct next-item examples of the selector's valid rows: the evaluation loss of the log."""
    from datasets import Dataset

    examples = []
    for user, leaf in zip(selector.users, selector.targets, strict=True):
        head, tail = renderer.prompt(user, c.DIRECT), renderer.completion(selector.index.sids[leaf], None)
        examples.append({"input_ids": head + tail, "labels": [-100] * len(head) + tail})
    return Dataset.from_list(examples)


def _arguments(settings: Training, scratch: str, select: bool) -> Any:
    from trl.trainer.sft_config import SFTConfig

    micro = min(settings.micro_batch, settings.batch_size)
    return SFTConfig(
        **cards.common_arguments(settings, scratch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=128,
        gradient_accumulation_steps=settings.batch_size // micro,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type=settings.schedule,
        max_length=settings.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="epoch" if select else "no",
        save_strategy="no",  # resume points are asked for by ResumePoints
        logging_steps=10,
        logging_nan_inf_filter=False,
    )


def answer_loss(model: Any, inputs: Any, n_items: Any = None) -> Any:
    """Mean cross-entropy of the labelled positions; those before the batch's first label are not projected.

    Args:
        inputs: `input_ids`, `attention_mask`, `labels`, each (B, T), padded on the right; labels -100 carry no loss.
        n_items: what the sum is divided by; default the number of labelled positions.
    """
    import torch

    labels = inputs["labels"]
    labelled = labels != -100
    first = max(int(labelled.any(dim=0).nonzero()[0]), 1)
    output = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        use_cache=False,
        logits_to_keep=labels.shape[1] - first + 1,
    )
    picked = labelled[:, first:]
    logits = output.logits[:, :-1][picked].float()
    total = torch.nn.functional.cross_entropy(logits, labels[:, first:][picked], reduction="sum")
    return total / (picked.sum() if n_items is None else n_items)


def _trainer_class() -> Any:
    """SFTTrainer with an order of examples that can be resumed, and a loss that is fast on a CPU."""
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            args = self.args
            return LengthGrouped(
                self.train_dataset["length"],  # type: ignore[index]
                args.train_batch_size * args.gradient_accumulation_steps,
                args.seed,
            )

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """On a CPU, project only the positions that carry loss: TRL does so on GPUs and scores every
            position elsewhere, which on a small model is half of the time.
            """
            if return_outputs or inputs["input_ids"].device.type != "cpu":
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = answer_loss(model, inputs, num_items_in_batch)
            if num_items_in_batch is not None:  # counted over all processes, whose gradients are averaged
                loss = loss * self.accelerator.num_processes
            return loss

    return Trainer
