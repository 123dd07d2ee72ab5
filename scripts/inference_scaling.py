"""NDCG against tokens of thought, from a published checkpoint: N sampled thoughts x cap on their length.

    .venv/bin/python scripts/inference_scaling.py --dataset games --model grpo
    .venv/bin/python scripts/inference_scaling.py --dataset games --rows 200 --traces 1,2,4 --caps 16,32 --split valid

Reads the checkpoint, the codebook and the rows of a split (default: test; a fixed set of users where `--rows` limits
it), and refuses what `recommendations` refuses. Writes nothing to the store, and chooses nothing:
`inference_scaling.png` and `.md` go to `--out`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import thought_scaling as scaling

from sidr_core.models import checkpoint
from sidr_core.pipeline.profile import home, load_profile
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.pipeline.status import newest_published
from sidr_core.pipeline.store import Store
from sidr_core.recommending import leakage
from sidr_core.recommending.rows import chosen_rows
from sidr_core.tables import files as tables
from sidr_core.tables.columns import TEST, THINKING, VALID


def numbers(text: str) -> list[int]:
    """`1,2,4` as a list."""
    return [int(part) for part in text.split(",")]


def grid(traces: list[int], caps: list[int]) -> Iterator[tuple[int, int]]:
    """All pairs, the cheap ones first."""
    return iter(sorted(((n, cap) for n in traces for cap in caps), key=lambda pair: pair[0] * pair[1]))


def main() -> None:
    """Measure, write the curve, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="default: the profile's default dataset")
    parser.add_argument("--snapshot", help="default: the newest one published")
    parser.add_argument("--model", default="grpo", choices=("activation", "grpo"))
    parser.add_argument("--split", default=TEST, choices=(VALID, TEST))
    parser.add_argument("--rows", type=int, help="at most so many rows, of whole users; default: all")
    parser.add_argument("--traces", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--caps", type=numbers, default=[16, 32, 64])
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()

    profile, store = load_profile(), Store(home() / "store")
    dataset = arguments.dataset or profile.default_dataset
    config = profile.dataset(dataset)
    if not 1 <= arguments.k <= config.decoding.beam_width:
        parser.error(f"-k is {arguments.k}: it must be from 1 to the beam width, {config.decoding.beam_width}")
    stage = f"{arguments.model}_checkpoint"
    snapshot = newest_published(profile, store, dataset, stage, arguments.snapshot)
    artifact = store.require(dataset, snapshot, stage)
    interactions, coded = (store.require(dataset, snapshot, name) for name in ("interactions", "sid_codebook"))
    rows = chosen_rows(tables.read(interactions.path(f"{arguments.split}.parquet")), arguments.rows)
    codebook = tables.read(coded.path("sid_codebook.parquet"))
    sources = {stage: artifact, "interactions": interactions}
    inputs = Inputs({name: StageInput(of, ("*",), "inference_scaling") for name, of in sources.items()}, store)
    # Training may know days after the first valid row, so only test rows are held against its horizon.
    judged = rows if arguments.split == TEST else rows.clear()
    leakage.check_checkpoints(inputs, [f"{arguments.model}/{THINKING}"], judged, codebook)
    loaded = checkpoint.load(artifact.verified_folder())
    started = time.monotonic()
    measured = scaling.measure(
        loaded,
        rows,
        codebook,
        config.decoding,
        grid(arguments.traces, arguments.caps),
        arguments.k,
        Progress(),
    )
    table = scaling.table(measured, config.evaluation)
    caption = (
        f"{dataset}, snapshot {snapshot}, {arguments.model} ({artifact.digest[:12]}): {rows.height:,} "
        f"{arguments.split} rows of {rows['user_id'].n_unique():,} users, beam width {config.decoding.beam_width}"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = scaling.page(
        table, arguments.k, config.evaluation, config.decoding.trace_temperature, caption, artifact.synthetic
    )
    (arguments.out / "inference_scaling.md").write_text(text)
    scaling.curve(table, arguments.k, arguments.out / "inference_scaling.png", caption)
    print(text)
    print(f"measured in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
