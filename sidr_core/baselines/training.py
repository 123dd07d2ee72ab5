"""One trainer for all trained baselines: a few settings are tried, each stopped early, and the best one is kept.

Models are fitted on train rows and chosen on valid rows; no other file is opened. NDCG@10 is the item-level one of
`sidr_core.metrics.ranking`, on lists over the whole catalogue. The outcome depends on rows, settings and seed, and
on the kind of machine and its number of threads.

A published folder holds `model.safetensors`, `meta.json` (how to build the model again, what was chosen) and
`items.parquet` (the item of each number); its main table is the log of all trials.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from sidr_core.baselines.popularity import Popularity
from sidr_core.baselines.ranking import Ranker, rankings
from sidr_core.baselines.sequences import Catalogue
from sidr_core.errors import SidrError
from sidr_core.metrics.ranking import HR, NDCG, column, per_row
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DIRECT, ITEM_ID, ITEM_LEVEL, MODE, MODEL, TARGET_TIME
from sidr_core.tables.samples import subset
from sidr_core.tables.tensors import read_tensors

if TYPE_CHECKING:
    from pandera.polars import DataFrameModel

    from sidr_core.settings import TrainedBaseline, Trial

#: Length of the lists that choose.
K = 10
WEIGHTS, META, ITEMS = "model.safetensors", "meta.json", "items.parquet"
#: The learning rate rises over so many optimizer steps, then falls evenly to this share of it.
_WARM_UP, _LEAST_RATE = 50, 0.1
_CLIP = 1.0
#: Batches among which sequences are sorted by length.
_POOL = 32


class Learner(Ranker, Protocol):
    """What the trainer needs of a model."""

    @property
    def module(self) -> torch.nn.Module:
        """What is trained and saved."""
        ...

    def lengths(self) -> Sequence[int]:
        """Length of each training sequence."""
        ...

    def backward(self, rows: list[int]) -> float:
        """Add the gradients of the mean loss of these sequences to the parameters; returns the loss."""
        ...


L = TypeVar("L", bound=Learner)
R = TypeVar("R", bound=Ranker)


@dataclass(frozen=True)
class Fitted(Generic[R]):
    """The chosen model.

    Attributes:
        ranker: the model, with the weights of its best epoch.
        weights: the tensors that are saved of it.
        best: the record of `log` that was chosen, with valid `ndcg@10` and `hr@10`.
        log: one row per epoch of each trial.
        cut: trials that used up all their `epochs` and might have improved further; the others stopped early.
    """

    ranker: R
    weights: Mapping[str, torch.Tensor]
    best: Mapping[str, Any]
    log: pl.DataFrame
    cut: int = 0


@dataclass(frozen=True)
class Rows:
    """What a baseline may see: train rows, the valid rows that choose, and all items."""

    train: pl.DataFrame
    valid: pl.DataFrame
    counts: pl.DataFrame
    catalogue: Catalogue

    @classmethod
    def of(cls, inputs: Inputs, select_rows: int, seed: int) -> Rows:
        source = inputs["interactions"]
        counts = tables.read(inputs["baseline_popularity"].path("baseline_popularity.parquet"))
        valid = subset(tables.read(source.path("valid.parquet")), select_rows, seed)
        return cls(tables.read(source.path("train.parquet")), valid, counts, Catalogue.of(counts))


def device() -> torch.device:
    """The accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(ranker: Ranker, rows: pl.DataFrame, codebook: pl.DataFrame) -> dict[str, float]:
    """Item-level `ndcg@10` and `hr@10` of a ranker on `rows` (the contract `Samples`), lists in SIDs of `codebook`."""
    lists = rankings(ranker, rows, codebook, min(K, codebook.height))
    scores = per_row(lists.with_columns(pl.lit("").alias(MODEL), pl.lit(DIRECT).alias(MODE)), rows, codebook, (K,))
    assert scores.height == rows.height, f"{scores.height} lists for {rows.height} rows"
    means = {metric: scores[column(ITEM_LEVEL, metric, K)].mean() for metric in (NDCG, HR)}
    return {f"{metric}@{K}": float(value) for metric, value in means.items()}  # type: ignore[arg-type]


def fit(
    make: Callable[[Trial], L],
    settings: TrainedBaseline,
    valid: pl.DataFrame,
    codebook: pl.DataFrame,
    progress: Progress,
) -> Fitted[L]:
    """Train each of `settings.trials` and keep the weights of the best epoch of all.

    Args:
        make: a fresh model for a trial; its random numbers are seeded here.
        valid: rows that choose.
        codebook: item_id -> sid, in whose terms the lists are.

    Raises:
        SidrError: a loss is not a number.
    """
    log: list[dict[str, Any]] = []
    best: tuple[L, dict[str, Any]] | None = None
    cut = 0
    for number, trial in enumerate(settings.trials, start=1):
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            learner = make(trial)
            epochs = _train(learner, trial, settings, valid, codebook, progress.named(f"trial {number}"))
        head = {"trial": number, **trial.model_dump(mode="json")}
        log += [{**head, **epoch} for epoch in epochs]
        top = {**head, **max(epochs, key=lambda row: row[f"{NDCG}@{K}"])}
        cut += len(epochs) - top["epoch"] < settings.patience
        if best is None or top[f"{NDCG}@{K}"] > best[1][f"{NDCG}@{K}"]:
            best = learner, top
    assert best is not None
    frame = pl.DataFrame(log, schema_overrides=dict.fromkeys(("trial", "epoch", "hidden_size"), pl.Int32))
    here = (pl.col("trial") == best[1]["trial"]) & (pl.col("epoch") == best[1]["epoch"])
    log_table = frame.with_columns(here.alias("chosen"))
    learner, record = best
    return Fitted(learner, _untied(learner.module), record, log_table, cut)


def _train(
    learner: Learner,
    trial: Trial,
    settings: TrainedBaseline,
    valid: pl.DataFrame,
    codebook: pl.DataFrame,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train until NDCG@10 stops rising; the learner is left at its best epoch. Returns one record per epoch."""
    module = learner.module
    optimizer = torch.optim.AdamW(module.parameters(), lr=trial.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(learner.lengths()) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    generator = torch.Generator().manual_seed(settings.seed)
    records: list[dict[str, Any]] = []
    best_weights: dict[str, torch.Tensor] = {}
    for epoch in range(1, settings.epochs + 1):
        module.train()
        losses = []
        for rows in batches(learner.lengths(), settings.batch_size, generator):
            optimizer.zero_grad(set_to_none=True)
            losses.append(learner.backward(rows))
            torch.nn.utils.clip_grad_norm_(module.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise SidrError(
                "the training has diverged",
                expected="a finite loss",
                found=f"{loss} in epoch {epoch} at learning rate {trial.learning_rate}",
                fix="lower `learning_rate` of this trial",
            )
        module.eval()
        with torch.inference_mode():
            measured = measure(learner, valid, codebook)
        before = max((row[f"{NDCG}@{K}"] for row in records), default=-1.0)
        records.append({"epoch": epoch, "loss": loss, **measured})
        if measured[f"{NDCG}@{K}"] > before:
            best_weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        best_epoch = max(records, key=lambda row: row[f"{NDCG}@{K}"])["epoch"]
        progress.say(f"epoch {epoch}: loss {loss:.3f}, valid NDCG@{K} {measured[f'{NDCG}@{K}']:.4f}")
        if epoch - best_epoch >= settings.patience:
            break
    module.load_state_dict(best_weights)
    return records


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate at `step`, from 0, of at most `steps`."""
    return min((step + 1) / _WARM_UP, 1 - (1 - _LEAST_RATE) * step / steps)


def batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch: every sequence once, those of similar length together, in an order drawn anew."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    groups = []
    for first in range(0, len(order), _POOL * size):
        pool = sorted(order[first : first + _POOL * size], key=lambda row: lengths[row])
        groups += [pool[start : start + size] for start in range(0, len(pool), size)]
    return [groups[n] for n in torch.randperm(len(groups), generator=generator).tolist()]


# -- what a stage leaves behind ----------------------------------------------------------------------


def publish(
    out_dir: Path,
    stage: str,
    shape: Mapping[str, Any],
    fitted: Fitted[Any],
    rows: Rows,
    seed: int,
    synthetic: bool,
    contract: type[DataFrameModel] | None = None,
) -> Report:
    """Write a baseline's folder; equal arguments give equal bytes.

    Args:
        shape: plain values from which the module is built again.
        contract: of the log, which is the stage's main table; default: that of trained baselines.
    """
    from sidr_core.tables.contracts import (  # a second or two to import, which a server spares
        BaselineItems,
        BaselineLog,
    )

    best, log = fitted.best, fitted.log
    weights = {name: tensor.cpu().contiguous() for name, tensor in fitted.weights.items()}
    save_file(weights, out_dir / WEIGHTS)
    popular = measure(Popularity(rows.counts), rows.valid, rows.catalogue.as_codebook)
    meta = {
        "stage": stage,
        "model": dict(shape),
        "chosen": dict(best),
        "valid_rows": rows.valid.height,
        "popularity": popular,
        "seed": seed,
        "seen_until": tables.iso_date(rows.train[TARGET_TIME].max()),  # type: ignore[arg-type]
        "synthetic": synthetic,
    }
    (out_dir / META).write_text(json.dumps(meta, sort_keys=True, indent=2, allow_nan=False) + "\n")
    tables.write(pl.DataFrame({ITEM_ID: rows.catalogue.ids}), out_dir / ITEMS, BaselineItems)
    tables.write(
        log.rename({f"{NDCG}@{K}": "ndcg_10", f"{HR}@{K}": "hr_10"}),
        out_dir / f"{stage}.parquet",
        contract or BaselineLog,
    )
    ndcg, ndcg_of_popularity = float(best[f"{NDCG}@{K}"]), popular[f"{NDCG}@{K}"]
    return Report(
        metrics={
            f"valid_{NDCG}@{K}": round(ndcg, 5),
            f"valid_{HR}@{K}": round(float(best[f"{HR}@{K}"]), 5),
            "parameters": sum(tensor.numel() for tensor in weights.values()),
            "trials": log["trial"].n_unique(),
            "trials_cut_by_epochs": fitted.cut,
            "epochs": log.height,
            **{f"chosen_{name}": value for name, value in best.items() if name in ("trial", "epoch")},
        },
        checks=(
            Check(
                "learnt",
                ndcg > ndcg_of_popularity,
                f"valid NDCG@{K} {ndcg:.4f}, popularity {ndcg_of_popularity:.4f}, {rows.valid.height:,} rows",
            ),
        ),
    )


def choice_log(tried: Sequence[tuple[str, float, float]]) -> pl.DataFrame:
    """The log of settings among which valid rows chose: the setting in words, NDCG@10 and HR@10 each."""
    ndcg, hr = f"{NDCG}@{K}", f"{HR}@{K}"
    frame = pl.DataFrame(tried, schema={"setting": pl.String, ndcg: pl.Float64, hr: pl.Float64}, orient="row")
    return frame.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("trial"),
        pl.all(),
        (pl.int_range(pl.len()) == pl.col(ndcg).arg_max()).alias("chosen"),
    )


def read(folder: Path) -> tuple[dict[str, Any], Catalogue]:
    """`meta.json` and the items of a published baseline."""
    return json.loads((folder / META).read_text()), Catalogue(tables.read(folder / ITEMS)[ITEM_ID])


def load_weights(module: torch.nn.Module, folder: Path) -> None:
    """Fill a module that was built like the published one. The format holds tensors alone: it can run no code.

    Raises:
        SidrError: the file cannot be read, lacks a tensor of the module, or has one that the module lacks.
    """
    weights, _ = read_tensors(folder / WEIGHTS, "pt")
    parameters = _untied(module)
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if shapes != (in_file := {name: tuple(tensor.shape) for name, tensor in weights.items()}):
        raise SidrError(
            f"{folder / WEIGHTS} does not fit its {META}",
            expected=f"{len(shapes)} tensors of the shapes that it names",
            found=f"{len(in_file)}; the first that differs: {min(shapes.items() ^ in_file.items())[0]}",
            fix="materialize this baseline again",
        )
    with torch.no_grad():
        for name, tensor in parameters.items():
            tensor.copy_(weights[name])


def _untied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module, one name for each: T5 has three names for its table of tokens."""
    first: dict[int, str] = {}
    state = module.state_dict()
    for name, tensor in state.items():
        first.setdefault(tensor.data_ptr(), name)
    return {name: state[name] for name in first.values()}
