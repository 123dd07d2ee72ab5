"""`sidr export`: a checkpoint for another engine, and whether that engine answers as ours does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sidr_core.serving.published import Published
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, ROW_ID, USER_ID
from sidr_core.tables.samples import subset

if TYPE_CHECKING:
    from sidr_core.serving.catalogues import Engine


def export(dataset: str | None, snapshot: str | None, engine: Engine, model: str, rows: int, out: Path) -> None:
    """Write the folder and say what is in it."""
    stage = f"{model}_checkpoint"
    published = Published.of(dataset, snapshot, stage)
    from sidr_core.recommending.rows import history_sids
    from sidr_core.serving.export import export as write

    valid = tables.read(published.file("interactions", "valid.parquet")).sort(ROW_ID)
    chosen = subset(valid, rows, seed=0)
    codebook = tables.read(published.file("sid_codebook", "sid_codebook.parquet"))
    about = {
        "dataset": published.dataset,
        "snapshot": published.snapshot,
        "model": model,
        "checkpoint": published.artifact(stage).digest,
        "synthetic": published.artifact(stage).synthetic,
        "scoring": published.config.decoding.scoring,
    }
    ranges = write(
        published.artifact(stage).verified_folder(),
        out,
        engine,
        chosen,
        history_sids(chosen, codebook),
        published.config.decoding,
        about,
    )
    levels = ", ".join(f"{first}–{first + size - 1}" for first, size in zip(ranges.first, ranges.sizes, strict=True))
    typer.echo(published.heading(stage, f"{model} for {engine} in {out}"))
    typer.echo(
        f"token ids of the levels: {levels}; {codebook[ITEM_ID].n_unique():,} items; {len(chosen):,} reference "
        f"lists of {chosen[USER_ID].n_unique():,} users"
    )


def verify(folder: Path, lists: Path | None, dtype: str | None, k: int | None) -> int:
    """Print the certificate; 1 if the engine is not equivalent."""
    from sidr_core.models import checkpoint
    from sidr_core.pipeline.profile import load_profile
    from sidr_core.serving.catalogues import Catalogue
    from sidr_core.serving.certificate import certificate
    from sidr_core.serving.export import MODEL, REFERENCE, decode_folder, read_about, read_lists

    about = read_about(folder)
    faults = Catalogue.read(folder).faults(Catalogue.of(checkpoint.load(folder / MODEL, device="cpu").index))
    reference = read_lists(folder / REFERENCE)
    if lists is not None:
        answered = {row["row_id"]: row["items"] for row in read_lists(lists)}
    else:
        decoding = load_profile().dataset(about["dataset"]).decoding
        ranked = decode_folder(folder, decoding, dtype)
        answered = dict(ranked.group_by(ROW_ID, maintain_order=True).agg(ITEM_ID).iter_rows())
    made = certificate(reference, answered, min(k or about["k"], about["k"]), faults)
    typer.echo(str(made))
    return 0 if made.equivalent else 1
