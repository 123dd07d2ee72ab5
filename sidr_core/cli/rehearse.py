"""`sidr rehearse`: the whole graph on stand-ins, in minutes, and what the real run would take."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.stage import Progress
from sidr_core.render.terminal import console

if TYPE_CHECKING:
    from sidr_core.rehearsal.estimate import Money, Size, Step
    from sidr_core.rehearsal.play import Scene
    from sidr_core.settings import DatasetConfig

#: What stays unknown after the best rehearsal.
UNSEEN = (
    "whether the sources, the hub and the teacher's server can be reached from the real machine, with the key",
    "the real files: their damage, their size, their texts, the time that they take to be parsed",
    "the real tokenizer (lengths against `max_length`), the real weights, and what they learn",
    "whether the real teacher's replies are accepted, and how many of them",
    "GPUs: memory, speed, bfloat16 kernels, NCCL, `compile` on them, vLLM, and the wires between nodes",
    "quality: no figure of the stand-ins says anything about it",
)


def rehearse(profile_name: str | None, dataset: str | None, items: int | None, rows: int | None) -> None:
    """Rehearse a dataset of a profile, and print what was played, the estimate, and what was not shown.

    Raises:
        ProfileError: unknown profile or dataset.
        SidrError: a stage fails, as it would in the real run.
    """
    profile = load_profile(profile_name)
    dataset = dataset or profile.default_dataset
    real = profile.dataset(dataset)
    screen = console()
    screen.print(f"rehearsing {dataset} of {profile.name} on stand-ins; nothing outside this machine is asked")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from sidr_core.rehearsal import estimate
    from sidr_core.rehearsal.play import rehearsed

    size = estimate.size_of(open_store(), dataset, profile.newest(dataset), items, rows)
    progress = Progress(lambda line: screen.print(line, markup=False, highlight=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rehearsed(profile, dataset, progress) as played:
            _print_scenes(played.scenes, played.replaced)
            _print_estimate(estimate.trainings(played, real, size), estimate.money(played, real, size), size, real)
    screen.print("\nA rehearsal cannot show:", *(f"- {line}" for line in UNSEEN), sep="\n", markup=False)


def _print_scenes(scenes: Sequence[Scene], replaced: Sequence[str]) -> None:
    screen = console()
    seconds = sum(scene.seconds for scene in scenes)
    screen.print(f"\nplayed: {len(scenes)} stages in {seconds:,.0f} s, every blocking check holds", highlight=False)
    for line in replaced:
        screen.print(f"- {line}", markup=False, highlight=False)
    for scene in scenes:
        warned = [check["name"] for check in scene.artifact.manifest["checks"] if not check["passed"]]
        if warned:
            screen.print(
                f"- {scene.stage}: {', '.join(warned)} did not hold (a warning; an untrained model)", markup=False
            )


def _print_estimate(steps: Sequence[Step], money: Sequence[Money], size: Size, real: DatasetConfig) -> None:
    from rich import box
    from rich.table import Table

    from sidr_core.rehearsal import estimate

    screen = console()
    screen.print(
        f"\nThe real run, for {size.items:,} items, {size.users:,} users and {size.rows:,} train rows ({size.source}):",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("training")
    for name in ("steps", "tokens", "GiB per process", "hours"):
        table.add_column(name, justify="right")
    for step in steps:
        table.add_row(
            step.stage, f"{step.steps:,}", f"{step.tokens / 1e6:,.1f} M", f"{step.gib:,.1f}", f"{step.hours:,.1f}"
        )
    screen.print(table)
    processes = real.launch.processes if real.launch.kind not in ("process", "subprocess") else 1
    screen.print(
        f"Hours: {processes} GPUs of {estimate.TRAINING_SPEED / 1e12:.0f} Tflop/s in training; decoding reads the "
        f"weights at {estimate.BYTES_PER_SECOND / 1e12:.0f} TB/s and takes {estimate.PASS_SECONDS * 1000:.0f} ms a "
        "token at least, thoughts as long as they may be. Assumed, not measured: right within a factor of two or "
        "three. Memory within 1.5; measurements on valid rows and lists come on top.",
        highlight=False,
    )
    if not money:
        screen.print("Money: the teacher writes by rules, which costs nothing.")
        return
    total = sum(one.usd for one in money)
    for one in money:
        screen.print(
            f"- {one.kind}: {one.calls:,} calls, {one.input_tokens:,} tokens read, {one.output_tokens:,} written, "
            f"{one.usd:,.2f} USD",
            highlight=False,
        )
    budget = real.teacher.budget.usd
    held = "no budget is set" if budget is None else f"the budget is {budget:,} USD"
    screen.print(
        f"Money: {total:,.2f} USD at the profile's price; {held}. Real texts are longer than the stand-in's: up to "
        "twice the tokens read. `sidr estimate` counts exactly once interactions and sid_codebook are published.",
        highlight=False,
    )
