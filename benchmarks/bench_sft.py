"""Supervised fine-tuning: examples and tokens per second and peak memory beside TRL's own trainer.

    .venv/bin/python benchmarks/bench_sft.py --steps 60 --threads 2

The examples are those that stage 1 of the dataset `office_published` (profile `real`, SIDR_REAL_DATA) trains on,
made by the stages themselves in a temporary working folder; where the real data is absent, or with --sample, those
of the generated catalogue of profile `quickstart`. --dataset takes another dataset of `real`, --next-item its next-item
examples alone, and --home a working folder in which stages are built already. The model is the dataset's, with the
tokenizer trained on its corpus; all variants start from the same weights and use the same optimizer, precision and
number of examples per step.

`TRL`: SFTTrainer as it comes: random batches, padded. `TRL, by length`: with its sampler `group_by_length`.
`TRL, packing`: its packing (`bfd`), rows of `max_length` tokens, as many of them as hold a step's tokens on average.
`ours`, `ours, packing`: the trainer of `sidr_core/training/sft.py`; packed rows hold a shared beginning once.

Tokens are those of the examples, each read alone and without padding, over the steps after the first two. `laid` is
what is computed for one of them: more than 100 % is padding, less is what was shared. Seconds are the processor's, so
that other work on the machine counts little. Variants take turns, each round in a process of its own; peak memory is
that of the whole process, and what it grew by in training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from machine import hardware

from sidr_core.render.grid import markdown_table

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("TRL", "TRL, by length", "TRL, packing", "ours", "ours, packing")
WARMUP = 2


def prepare(folder: Path, args: argparse.Namespace) -> str:
    """Write the model, its tokenizer and the examples of stage 1; says what they are."""
    os.environ["SIDR_HOME"] = str(args.home or folder / "home")
    import polars as pl

    from sidr_core.models import base
    from sidr_core.models.prompt import PromptRenderer
    from sidr_core.pipeline.graph import STAGES, stage_named
    from sidr_core.pipeline.profile import home, load_profile
    from sidr_core.pipeline.run import run_stage
    from sidr_core.pipeline.stage import Progress
    from sidr_core.pipeline.store import Store
    from sidr_core.settings import NEXT_ITEM_TASK, REASONING_TASK
    from sidr_core.tables import columns as c
    from sidr_core.tables import files as tables
    from sidr_core.training.examples import tokenise, weighted

    profile = load_profile("quickstart" if args.sample else "real")
    dataset = profile.default_dataset if args.sample else args.dataset
    config, snapshot, store = profile.dataset(dataset), profile.newest(dataset), Store(home() / "store")
    needed, waiting = set(), ["synthetic_corpus"]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += stage_named(name).reads(config)
    for stage in STAGES:
        if stage.name in needed:
            run_stage(profile, dataset, snapshot, stage, store, Progress())
    corpus = tables.read(store.require(dataset, snapshot, "synthetic_corpus").path("synthetic_corpus.parquet"))
    codebook = tables.read(store.require(dataset, snapshot, "sid_codebook").path("sid_codebook.parquet"))
    corpus = corpus.filter(pl.col(c.TASK) != REASONING_TASK)
    texts = pl.concat([corpus[c.PROMPT], corpus[c.COMPLETION]]).unique(maintain_order=True).to_list()
    model, tokenizer = base.build_base(config.base_model, texts, codebook)
    rows = weighted(corpus, config.sft.tasks, config.sft.seed)
    if args.next_item:
        rows = rows.filter(pl.col(c.TASK) == NEXT_ITEM_TASK)
    examples = tokenise(rows, PromptRenderer(tokenizer), config.sft.max_length)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "examples.json").write_text(json.dumps(examples))
    (folder / "settings.json").write_text(config.sft.model_dump_json())
    lengths = sorted(example["length"] for example in examples)
    answers = sum(label != -100 for example in examples for label in example["labels"])
    return (
        f"{dataset} of profile {profile.name}: {len(examples):,} examples of {lengths[0]} to {lengths[-1]} tokens, "
        f"median {lengths[len(lengths) // 2]}, mean {sum(lengths) / len(lengths):.0f}; "
        f"{answers / sum(lengths):.0%} of tokens carry loss. {model.num_parameters():,} parameters, "
        f"vocabulary {len(tokenizer):,}; {config.sft.batch_size} examples per step"
    )


def worker(folder: Path, variant: str, steps: int, threads: int) -> None:
    """Train a few steps; print examples, tokens, seconds and memory as JSON."""
    import torch

    torch.set_num_threads(threads)
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from sidr_core.models.quiet import quiet

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        trainer = _trainer(folder, variant, steps, model, tokenizer)

    counted = {"examples": 0, "tokens": 0, "computed": 0, "started": 0.0, "seconds": 0.0}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARMUP:
                counted.update(examples=0, tokens=0, computed=0, started=time.process_time())
            counted["seconds"] = time.process_time() - counted["started"]

    loader = trainer.get_train_dataloader()
    reader = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader that lays the batches
    collate = reader.collate_fn

    def counting(rows: Any) -> Any:
        """Batches are laid one ahead of the training, so it is the next step's that is counted."""
        batch = collate(rows)
        counted["examples"] += sum(len(row.get("seq_lengths", [1])) for row in rows)
        counted["tokens"] += sum(len(row["input_ids"]) for row in rows)
        counted["computed"] += batch["input_ids"].numel()
        return batch

    reader.collate_fn = counting
    trainer.get_train_dataloader = lambda: loader
    trainer.add_callback(Clock())
    before = _peak()
    with quiet():
        trainer.train()
    peak = _peak()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    print(json.dumps({**counted, "peak": peak, "grown": peak - before, "loss": losses[-1]}))


def _peak() -> float:
    """Highest resident size in MiB; `getrusage` would count the parent's before this program was loaded."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _trainer(folder: Path, variant: str, steps: int, model: Any, tokenizer: Any) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from sidr_core.settings import Sft
    from sidr_core.training import sft

    fields = json.loads((folder / "settings.json").read_text())
    settings = Sft(**{**fields, "packing": variant == "ours, packing", "tracking": "none"})
    examples = json.loads((folder / "examples.json").read_text())
    scratch = str(folder / "scratch")
    if variant.startswith("ours"):
        filler = {"input_ids": [tokenizer.pad_token_id], "labels": [-100], "length": 1, "user": None}
        arguments = sft._arguments(settings, scratch, select=False)
        kinds: dict[str, Any] = {"settings": settings, "order": sft.order(examples, settings)}
        data, kind = Dataset.from_list([*examples, filler]), sft._trainer_class()
    else:
        more: dict[str, Any] = {"dataset_kwargs": {"skip_prepare_dataset": True}}
        rows = settings.micro_batch
        if variant == "TRL, by length":
            more["train_sampling_strategy"] = "group_by_length"
        if variant == "TRL, packing":
            mean = sum(example["length"] for example in examples) / len(examples)
            rows, more = max(1, round(rows * mean / settings.max_length)), {"packing": True}
        arguments = SFTConfig(
            output_dir=scratch,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=settings.warmup_steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=settings.batch_size // settings.micro_batch,
            max_length=settings.max_length,
            bf16=settings.bf16,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to=[],
            save_strategy="no",
            seed=settings.seed,
            **more,
        )
        kinds, data, kind = {}, Dataset.from_list(examples), SFTTrainer
    arguments.max_steps, arguments.logging_steps = steps + WARMUP, steps + WARMUP
    trainer = kind(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, **kinds)
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure(folder: Path, variant: str, args: argparse.Namespace) -> dict[str, Any] | str:
    """The worker's figures, or the last line of its output if it failed."""
    command = [sys.executable, __file__, "--worker", variant, "--data", str(folder)]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
    return json.loads(lines[-1]) if done.returncode == 0 else lines[-1][:200]


def table(folder: Path, args: argparse.Namespace) -> str:
    """Markdown table, one row per variant: sums, and highest memory, over its rounds."""
    rounds = [{variant: measure(folder, variant, args) for variant in args.variants} for _ in range(args.rounds)]
    lines, first = [], None
    for variant in args.variants:
        runs, failed = [], ""
        for figures in (of_round[variant] for of_round in rounds):
            if isinstance(figures, str):
                failed = figures
            else:
                runs.append(figures)
        if failed:
            lines.append((variant, f"failed: {failed}", *[""] * 7))
            continue
        examples, tokens, computed, seconds = (
            sum(run[name] for run in runs) for name in ("examples", "tokens", "computed", "seconds")
        )
        first = first or examples / seconds
        cells = (f"{examples / seconds:,.1f}", f"{examples / seconds / first:.2f}", f"{tokens / seconds:,.0f}")
        cells += (f"{computed / tokens:.0%}", f"{seconds / args.steps / args.rounds:.3f}")
        cells += tuple(f"{max(run[name] for run in runs):.0f}" for name in ("peak", "grown"))
        lines.append((variant, *cells, f"{runs[0]['loss']:.3f}"))
    header = ("variant", "examples/s", "over TRL", "tokens/s", "laid", "seconds/step", "peak MiB", "grown by MiB")
    return markdown_table((*header, "loss"), lines, "l")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sample", action="store_true", help="generated data although the real one is there")
    parser.add_argument("--dataset", default="office_published", help="of the profile `real`")
    parser.add_argument("--next-item", action="store_true", help="next-item examples alone")
    parser.add_argument("--home", type=Path, help="working folder whose outputs are reused")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.data, args.worker, args.steps, args.threads)
        return
    real = Path(os.environ.get("SIDR_REAL_DATA") or ROOT.parent / "shared" / "data")
    os.environ.setdefault("SIDR_REAL_DATA", str(real))
    with tempfile.TemporaryDirectory() as folder:
        args.sample = args.sample or not (real / "minionerec").is_dir()
        what = prepare(Path(folder), args)
        names = ("torch", "transformers", "trl", "accelerate")
        print(f"{hardware()}; {args.threads} threads; {', '.join(f'{n} {metadata.version(n)}' for n in names)}\n")
        print(f"`.venv/bin/python benchmarks/bench_sft.py {' '.join(sys.argv[1:])}`\n\n{what}\n")
        print(table(Path(folder), args))


if __name__ == "__main__":
    main()
