"""What every training stage publishes besides the weights (log, curves, model card, checks), and its progress lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from accelerate import PartialState
from transformers import TrainerCallback

from sidr_core.metrics.intervals import bootstrap
from sidr_core.models import checkpoint
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.render.figures import curves
from sidr_core.render.grid import markdown_table
from sidr_core.settings import Grpo, Training
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.training import sharding, tracking
from sidr_core.training.select import METRICS, MergedSelector, Selector

#: Bootstrap draws and confidence of the intervals on a card.
DRAWS, CONFIDENCE = 1000, 0.95

#: Records of a trainer that depend on the clock or on where it was resumed. They are kept out of the published files,
#: whose bytes depend on the seed alone.
_TIMED = ("runtime", "per_second", "flos", "_time", "train_loss")


class ProgressCallback(TrainerCallback):
    """One line per logged record."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        names = ("loss", "eval_loss", "eval_ndcg@10", "reward", "completions/mean_length", "frac_reward_zero_std")
        text = ", ".join(f"{name} {logs[name]:.4f}" for name in names if logs and name in logs)
        if text:
            self._progress.tick(state.global_step, max(state.max_steps, 1), "steps", text)


def log_table(history: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """A trainer's log as a table: one row per step, sorted, without the records that depend on the clock."""
    rows: dict[int, dict[str, float]] = {}
    for record in history:
        row = rows.setdefault(int(record["step"]), {})
        for name, value in record.items():
            if name != "step" and not any(word in name for word in _TIMED) and isinstance(value, (int, float)):
                row[name] = float(value)
    names = sorted({name for row in rows.values() for name in row})
    return pl.DataFrame(
        [{"step": step, **{name: row.get(name) for name in names}} for step, row in sorted(rows.items())],
        schema={"step": pl.Int64, **dict.fromkeys(names, pl.Float64)},
    )


@dataclass(frozen=True)
class Trained:
    """The result of a training: the plain model, its log, and figures for card and UI.

    Args:
        valid: of :func:`valid_figures`.
        metrics: further numbers for the UI.
    """

    model: Any
    log: pl.DataFrame
    valid: Sequence[Figure] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A metric on valid rows with its interval over users; `low` and `high` are None with a single user."""

    mode: str
    metric: str
    value: float
    low: float | None
    high: float | None
    rows: int
    users: int

    def __str__(self) -> str:
        return f"{self.value:.4f}" + (f" [{self.low:.4f}, {self.high:.4f}]" if self.low is not None else "")


def valid_figures(selectors: Sequence[Selector | MergedSelector], model: Any, seed: int) -> list[Figure]:
    """The selectors' metrics of a model with bootstrap intervals clustered by user; measured by all processes."""
    figures: list[Figure] = []
    for selector in selectors:
        with sharding.in_step(model):
            values, _ = selector.rows(model)
        users = selector.samples[c.USER_ID]
        low = high = None
        if users.n_unique() > 1:
            interval = bootstrap(values, users.to_list(), draws=DRAWS, confidence=CONFIDENCE, seed=seed)
            low, high = interval.low.tolist(), interval.high.tolist()
        for n, (metric, value) in enumerate(zip(METRICS, values.mean(axis=0).tolist(), strict=True)):
            ends = (low[n], high[n]) if low and high else (None, None)
            figures.append(Figure(selector.mode, metric, value, *ends, len(users), users.n_unique()))
    return figures


def finish(
    out_dir: Path,
    trained: Trained,
    tokenizer: Any,
    codebook: pl.DataFrame,
    meta: dict[str, Any],
    synthetic: bool,
    figures: Sequence[str] = ("loss", "eval_loss", "eval_ndcg@10"),
) -> Report:
    """Write checkpoint, `training_log.parquet`, `curves.png` and card, and verify what was written.

    The first process does this; the others give their share of the weights and return an empty report, which nobody
    reads.
    """
    weights = sharding.whole(trained.model) if sharding.is_sharded(trained.model) else None
    if not PartialState().is_main_process:
        return Report()
    model, log = trained.model, trained.log
    meta = {**meta, "synthetic": synthetic, "seed": meta["recipe"]["seed"]}
    meta["valid"] = [asdict(figure) for figure in trained.valid]
    card = model_card(meta, log, trained.valid)
    checkpoint.save(out_dir, model, tokenizer, codebook, meta, card, weights)
    tables.write_table(log, out_dir / "training_log.parquet")
    logged = [name for name in figures if name in log.columns]
    curves(log, "step", logged, out_dir / "curves.png", f"{meta['stage']}: training curves")
    checks = (checkpoint.check_loads_plain(out_dir), checkpoint.check_token_map(out_dir, codebook))
    metrics: dict[str, Any] = {
        "steps": int(log["step"].max() or 0),  # type: ignore[arg-type]
        "parameters": sum(p.numel() for p in model.parameters()),
        "seen_until": meta["seen_until"],
        **trained.metrics,
    }
    for figure in trained.valid:
        metrics[f"valid {figure.mode} {figure.metric}"] = figure.value
    for name in logged:
        values = log[name].drop_nulls().drop_nans()
        if values.is_empty():
            continue
        metrics[f"first {name}"], metrics[f"last {name}"] = values[0], values[-1]
        if "ndcg" in name:
            metrics[f"best {name}"] = values.max()
    return Report(metrics=metrics, checks=checks, markdown={"model card": card})


def model_card(meta: Mapping[str, Any], log: pl.DataFrame, valid: Sequence[Figure] = ()) -> str:
    """Markdown card: what it is, data, recipe, how training went, valid metrics with intervals, limits."""
    lines = [f"# SIDR checkpoint: {meta['stage']}", ""]
    if meta["synthetic"]:
        lines += ["**Trained on synthetic sample data.** Its numbers say nothing about real shops.", ""]
    lines += [
        "Recommends the next item as a Semantic ID of three tokens, after an optional thought.",
        "Load with `AutoModelForCausalLM.from_pretrained`; no remote code. Decode with the trie of",
        "`sid_index.parquet`; free generation may name no item.",
        "",
        "## Data",
        "",
        f"- trained on rows up to: {meta['seen_until']}",
        *(f"- made from {name}: `{digest}`" for name, digest in sorted(meta.get("made_from", {}).items())),
        *(f"- examples of {task}: {count:,}" for task, count in meta.get("examples", {}).items()),
        "",
        "## Recipe",
        "",
        f"- base: `{json.dumps(meta['base'], sort_keys=True)}`",
        *(f"- {name}: {value}" for name, value in sorted(meta["recipe"].items())),
        "",
        "## Training",
        "",
        *([f"**Not trained, this is its start: {meta['not_trained']}**", ""] if "not_trained" in meta else []),
        "![curves](curves.png)",
        "",
        "Every record is in `training_log.parquet`.",
        "",
        markdown_table(("record", "first", "last"), _first_and_last(log), "l"),
        "",
        *_valid_section(valid),
        "## Limits",
        "",
        "- Test metrics with intervals, at item and SID level, are in the `evaluation` asset of the same snapshot.",
        "- It knows the items and SIDs of `sid_index.parquet` alone; a newer codebook needs another training.",
        f"- Nothing after {meta['seen_until']} was seen; tastes and assortments that changed since are not known.",
        "- A thought is a text that helped or hurt the ranking; it is no proof of why a person buys.",
        f"- One training with seed {meta['seed']}: intervals cover the choice of users, not that of the seed.",
        "",
    ]
    return "\n".join(lines)


def _first_and_last(log: pl.DataFrame) -> list[tuple[str, str, str]]:
    """Each column of the log with its first and its last value."""
    columns = {name: log[name].drop_nulls() for name in log.columns if name != "step"}
    return [(name, f"{values[0]:.4f}", f"{values[-1]:.4f}") for name, values in columns.items() if len(values)]


def _valid_section(valid: Sequence[Figure]) -> list[str]:
    if not valid:
        return []
    by_mode: dict[str, list[Figure]] = {}
    for figure in valid:
        by_mode.setdefault(figure.mode, []).append(figure)
    names = [figure.metric.upper() for figure in next(iter(by_mode.values()))]
    first = valid[0]
    rows = [(mode, *map(str, figures)) for mode, figures in by_mode.items()]
    return [
        "## Metrics on valid rows",
        "",
        markdown_table(("mode", *names), rows, "l"),
        "",
        f"SID level, constrained beam, {first.rows:,} rows of {first.users:,} users; intervals: {CONFIDENCE:.0%}, "
        f"{DRAWS:,} bootstrap draws of users.",
        f"The weights were chosen by NDCG@10 of mode {first.mode} on these very rows, so it is somewhat too high.",
        "",
    ]


def provenance(inputs: Inputs) -> dict[str, Any]:
    """What a checkpoint was trained on: the date of the newest train target, and the digests of its inputs."""
    train = tables.read(inputs["interactions"].path("train.parquet"), [c.TARGET_TIME])
    return {
        "seen_until": tables.iso_date(train[c.TARGET_TIME].max()),  # type: ignore[arg-type]
        "made_from": {name: item.digest for name, item in inputs.items()},
    }


def one_device(arguments: Any) -> Any:
    """The same arguments for one GPU, where a single process sees several; `launch: {kind: accelerate}` uses all."""
    sharding.on_any_device(arguments)
    if PartialState().num_processes == 1 and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # what the trainer itself does where a model was spread by hand
    return arguments


def common_arguments(settings: Training | Grpo, scratch: str) -> dict[str, Any]:
    """Arguments common to all trainers: precision, seeds, device; no progress bar, since progress is reported here."""
    import torch

    return {
        "output_dir": scratch,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "bf16": settings.bf16,
        "activation_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,  # every weight that is trained takes part in every pass
        "disable_tqdm": True,
        **tracking.arguments(settings, scratch),
        **sharding.arguments(settings),
    }
