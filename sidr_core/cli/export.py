"""`sidr export`: a checkpoint for another engine, and whether that engine answers as ours does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sidr_core.errors import SidrError
from sidr_core.serving.published import Published
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, ROW_ID, USER_ID
from sidr_core.tables.samples import subset

if TYPE_CHECKING:
    from sidr_core.serving.catalogues import Engine
    from sidr_core.serving.engine import Answered


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


def verify(
    folder: Path,
    lists: Path | None,
    address: str | None,
    served: str | None,
    body: str | None,
    dtype: str | None,
    k: int | None,
) -> int:
    """Print the certificate; 1 if the engine is not equivalent."""
    from sidr_core.models import checkpoint
    from sidr_core.pipeline.profile import load_profile
    from sidr_core.serving.catalogues import Catalogue
    from sidr_core.serving.certificate import certificate
    from sidr_core.serving.export import MODEL, REFERENCE, decode_folder, read_about, read_lists

    if sum(option is not None for option in (lists, address, dtype)) > 1:
        raise SidrError(
            "it is unclear whose lists are to be compared",
            expected="one of --lists, --endpoint and --dtype",
            found="more than one",
            fix="leave the others out",
        )
    about = read_about(folder)
    right = Catalogue.of(checkpoint.load(folder / MODEL, device="cpu").index)
    faults = Catalogue.read(folder).faults(right)
    reference, most = read_lists(folder / REFERENCE), min(k or about["k"], about["k"])
    reasons: Mapping[str, str] = {}
    if lists is not None:
        answered = {row["row_id"]: row["items"] for row in read_lists(lists)}
    elif address is not None:
        found = _asked(folder, address, served, {"k": most, **_fields(body)}, reference)
        answered, reasons = found.lists, found.reasons
        typer.echo(f"{len(reference):,} rows asked of {found.model} at {address}")
    else:
        decoding = load_profile().dataset(about["dataset"]).decoding
        ranked = decode_folder(folder, decoding, dtype)
        answered = dict(ranked.group_by(ROW_ID, maintain_order=True).agg(ITEM_ID).iter_rows())
    made = certificate(reference, answered, most, right, faults, reasons)
    typer.echo(str(made))
    return 0 if made.equivalent else 1


def _asked(
    folder: Path, address: str, served: str | None, fields: dict[str, Any], reference: list[dict[str, Any]]
) -> Answered:
    from sidr_core.pipeline.stage import Progress
    from sidr_core.serving.catalogues import Catalogue
    from sidr_core.serving.engine import KEY_VARIABLE, Reader, ask, served_model
    from sidr_core.serving.export import ranges_of, read_about
    from sidr_core.settings.base import Endpoint

    about = read_about(folder)
    wanted = f"{about['model']}/{about['mode']}"
    try:
        endpoint = Endpoint(base_url=address, model=served or wanted, api_key_env=KEY_VARIABLE)
    except ValueError:
        raise SidrError(
            "--endpoint is no address",
            expected="http(s)://host[:port]/v1, without user or password",
            found=address[:100],
            fix="name the engine's address up to /v1",
        ) from None
    if served is None:
        endpoint = endpoint.model_copy(update={"model": served_model(endpoint, wanted)})
    return ask(endpoint, reference, Reader(Catalogue.read(folder), ranges_of(folder)), fields, Progress())


def _fields(body: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(body or "{}")
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise SidrError(
            "--body cannot be read",
            expected='a JSON object, such as {"n": 10}',
            found=str(error),
            fix="quote it as one argument",
        ) from None
    return fields
