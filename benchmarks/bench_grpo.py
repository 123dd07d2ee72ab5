"""GRPO: seconds per step and where they go, beside plain TRL with its own rollouts.

    .venv/bin/python benchmarks/bench_grpo.py --home /tmp/grpo --steps 6 --prompts 32 --generations 8

Builds (or reuses) everything down to the activation checkpoint of `--profile` in `--home`, then takes `--steps`
steps of GRPO from it, each competitor in a process of its own with `--threads` threads: the same model, prompts,
reward, arguments of the trainer, prompts per step and generations. The first step is left out of the means.

- **sidr**: free rollouts by our decoder, the update of `sidr_core.training.grouped`;
- **sidr, constrained**: the SID drawn from the beam, reward `rank`: other work than the rest, for its price;
- **TRL's update**: our rollouts, TRL's GRPOTrainer otherwise;
- **TRL**: plain GRPOTrainer, rollouts by `generate` and the same reward as a reward function.

*rollout* is the writing of completions, *reward* their scoring, *update* all the rest of a step (the reference
model's pass, loss, gradients, optimizer); *measure* is one measurement of `--measure` valid rows in both modes.
Peak memory is that of the whole process. Rollouts are sampled, so competitors write texts of other lengths: tokens
per completion stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from machine import hardware

from sidr_core.render.grid import markdown_table

STAGES = (
    "raw_reviews",
    "raw_items",
    "interactions",
    "item_embeddings",
    "sid_codebook",
    "synthetic_corpus",
    "sft_checkpoint",
    "activation_checkpoint",
)
COMPETITORS = ("sidr", "sidr, constrained", "TRL's update", "TRL")


def peak_memory() -> int:
    """Peak resident bytes of this process since it began; unlike `ru_maxrss` it is not inherited."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Clock:
    """Seconds per step, in all and inside of the functions that were wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time added to `name`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

        return run

    def callback(self) -> Any:
        """Tells the clock of steps."""
        from transformers import TrainerCallback

        clock = self

        class Steps(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.seconds = {}
                self._started = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.steps.append({**clock.seconds, "step": time.perf_counter() - self._started})

        return Steps()


def worker(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Train as one competitor; means per step."""
    import polars as pl
    from datasets import Dataset
    from trl.trainer.grpo_trainer import GRPOTrainer

    from sidr_core.models import checkpoint
    from sidr_core.models.quiet import quiet
    from sidr_core.pipeline.profile import load_profile
    from sidr_core.settings import Grpo
    from sidr_core.tables import files as tables
    from sidr_core.training import grpo
    from sidr_core.training.grouped import GroupedTrainer
    from sidr_core.training.rollouts import longest

    fields = {**given["grpo"], **({"rollouts": "constrained", "reward": "rank"} if "constrained" in name else {})}
    settings = Grpo(**fields, tracking="none")
    codebook = tables.read(Path(given["codebook"]))
    loaded = checkpoint.load(Path(given["checkpoint"]), "cpu")
    interactions = Path(given["interactions"])
    rows = grpo._in_order(tables.read(interactions / "train.parquet"), settings)
    rollouts = grpo.Rollouts(rows, codebook, loaded, settings)
    clock = Clock()
    if name == "TRL":
        data, how = plain(rollouts, loaded, settings, clock)
    else:
        grpo.roll_out = clock.timed("rollout", grpo.roll_out)
        rollouts._score = clock.timed("reward", rollouts._score)  # type: ignore[method-assign]
        data = [{"prompt": str(n)} for n in range(len(rows))]
        how = {"reward_funcs": [grpo.earned], "rollout_func": rollouts}
    kind = GRPOTrainer if name.startswith("TRL") else GroupedTrainer
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = kind(
            model=loaded.model,
            args=grpo.arguments(settings, folder, longest(loaded.renderer, loaded.index, settings)),
            train_dataset=Dataset.from_list(data),
            processing_class=loaded.tokenizer,
            callbacks=[clock.callback()],
            **how,
        )
        if name == "TRL":
            trainer._generate = clock.timed("rollout", trainer._generate)  # type: ignore[method-assign]
        trainer.train()
    log = pl.DataFrame([r for r in trainer.state.log_history if "reward" in r], infer_schema_length=None)
    figures = {"peak": peak_memory(), **means(clock.steps)}
    figures |= {"reward_mean": float(log["reward"].mean()), "tokens": float(log["completions/mean_length"].mean())}  # type: ignore[arg-type]
    if name == "sidr" and given["measure"]:
        config = (
            load_profile(given["profile"])
            .datasets[given["dataset"]]
            .model_copy(update={"grpo": settings.model_copy(update={"select_rows": given["measure"]})})
        )
        measure = grpo._measure(grpo._selectors(tables.read(interactions / "valid.parquet"), codebook, loaded, config))
        started = time.perf_counter()
        measure(loaded.model)
        figures["measure"] = time.perf_counter() - started
    return figures


def plain(rollouts: Any, loaded: Any, settings: Any, clock: Clock) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Data and reward function of plain TRL: the rendered prompt as text, and the row's number beside it."""
    from sidr_core.training.rewards import REWARDS, Completion

    prompts = [loaded.renderer.prompt(user, settings.mode) for user in rollouts.users]
    texts = loaded.tokenizer.batch_decode(prompts)
    assert loaded.tokenizer(texts)["input_ids"] == prompts, "both must train on the same tokens"
    reward = REWARDS[settings.reward]

    def score(completions: list[str], row: list[int], **_: Any) -> list[float]:
        return [
            reward(Completion(text, rollouts._codes[n]), rollouts._catalogue).reward
            for text, n in zip(completions, row, strict=True)
        ]

    data = [{"prompt": text, "row": n} for n, text in enumerate(texts)]
    return data, {"reward_funcs": [clock.timed("reward", score)]}


def means(steps: list[dict[str, float]]) -> dict[str, float]:
    """Mean seconds per step without the first; `update` is what the other parts leave."""
    later = steps[1:]
    parts = {part: float(np.mean([step[part] for step in later])) for part in ("step", "rollout", "reward")}
    return {**parts, "update": parts["step"] - parts["rollout"] - parts["reward"], "steps": len(later)}


def built(args: argparse.Namespace) -> dict[str, Any]:
    """Build or reuse the inputs; where they lie, and the settings that all competitors get."""
    from sidr_core.pipeline.graph import stage_named
    from sidr_core.pipeline.profile import load_profile
    from sidr_core.pipeline.run import run_stage
    from sidr_core.pipeline.stage import Progress
    from sidr_core.pipeline.store import Store

    os.environ["SIDR_HOME"] = str(args.home)
    profile, store = load_profile(args.profile), Store(args.home / "store")
    dataset = args.dataset or profile.default_dataset
    snapshot = profile.newest(dataset)
    made = {}
    for name in STAGES:
        outcome = run_stage(profile, dataset, snapshot, stage_named(name), store, Progress().named(name))
        made[name] = outcome.artifact.verified_folder()
    settings = profile.datasets[dataset].grpo.model_copy(
        update={
            "steps": args.steps,
            "prompts_per_step": args.prompts,
            "generations": args.generations,
            "rollouts": "free",
            "reward": "step_rule",
            "drop_zero_variance": False,
        }
    )
    return {
        "profile": args.profile,
        "dataset": dataset,
        "snapshot": snapshot,
        "interactions": str(made["interactions"]),
        "codebook": str(made["sid_codebook"] / "sid_codebook.parquet"),
        "checkpoint": str(made["activation_checkpoint"]),
        "grpo": settings.model_dump(mode="json"),
        "measure": args.measure,
    }


def table(args: argparse.Namespace, given: Path) -> str:
    """One row per competitor; one that fails says so."""
    lines = []
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    for name in args.only or COMPETITORS:
        command = [sys.executable, __file__, "--worker", name, "--given", str(given)]
        done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            lines.append((name, f"failed: exit status {done.returncode}", *[""] * 7))
            continue
        figures = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{figures[part]:.2f}" for part in ("step", "rollout", "reward", "update")]
        cells.append(f"{figures['measure']:.2f}" if "measure" in figures else "")
        cells += [f"{figures['tokens']:.1f}", f"{figures['reward_mean']:.3f}", f"{figures['peak'] / 1e6:,.0f}"]
        lines.append((name, *cells))
    parts = ("s per step", "rollout", "reward", "update", "measure")
    return markdown_table(("", *parts, "tokens per completion", "mean reward", "peak MB"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quickstart")
    parser.add_argument("--dataset", default="", help="default: that of the profile")
    parser.add_argument("--home", type=Path, help="working folder; what is there is reused")
    parser.add_argument("--steps", type=int, default=6, help="the first is left out of the means")
    parser.add_argument("--prompts", type=int, default=32, help="per step")
    parser.add_argument("--generations", type=int, default=8, help="per prompt")
    parser.add_argument("--measure", type=int, default=300, help="valid rows of the measurement; 0: none")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", action="append", choices=COMPETITORS)
    for name in ("worker", "given"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker, json.loads(Path(args.given).read_text()))))
        return
    if args.home is None or args.steps < 2:
        parser.error("--home is needed, and at least two --steps")
    args.home = args.home.absolute()
    given = built(args)
    names = ("trl", "transformers", "torch")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(f"{hardware()}; {args.threads} threads. {versions}.\n")
    print(f"`.venv/bin/python benchmarks/bench_grpo.py {' '.join(sys.argv[1:])}`\n")
    print(
        f"{given['dataset']} {given['snapshot']} of `{args.profile}`: {args.prompts} prompts × {args.generations} "
        f"generations per step, micro-batches of {given['grpo']['micro_batch']}, means of {args.steps - 1} steps\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.json"
        path.write_text(json.dumps(given))
        print(table(args, path))


if __name__ == "__main__":
    main()
