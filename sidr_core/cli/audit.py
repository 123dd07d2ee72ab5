"""`sidr audit`: what a table of SIDs is worth, against the train rows of a dataset."""

from __future__ import annotations

from pathlib import Path

import typer

from sidr_core.render.grid import markdown_table
from sidr_core.serving.published import Published
from sidr_core.sids import audit as audits
from sidr_core.tables import files as tables
from sidr_core.tables.columns import HISTORY, ITEM_ID, SID, TARGET


def audit(dataset: str | None, snapshot: str | None, index: Path | None) -> None:
    """Print the audit of a snapshot's codebook, or of `index`, as Markdown.

    Args:
        dataset: whose train rows, and whose codebook without `index`.
        snapshot: default: the newest published one.
        index: a file of another's SIDs.

    Raises:
        InputError: the file is no index, or has nothing to do with the dataset's items.
    """
    published = Published.of(dataset, snapshot, "interactions" if index else "sid_codebook")
    train = tables.read(published.file("interactions", "train.parquet"), [HISTORY, TARGET])
    before = None
    if index is None:
        table = tables.read(published.file("sid_codebook", "sid_codebook.parquet"), [ITEM_ID, SID])
        for key in published.config.snapshots.before(published.snapshot)[:1]:
            if (earlier := published.store.find(published.dataset, key, "sid_codebook")) is not None:
                before = tables.read(earlier.path("sid_codebook.parquet"), [ITEM_ID, SID])
    else:
        table = audits.read_index(index)
    audited = audits.audit(table, train, before)
    (rate, most), (without, distinct) = audited.collisions, audited.without_sid
    typer.echo(f"{published.heading('interactions', index.name if index else 'the codebook')}\n")
    typer.echo(markdown_table(audits.HEADER, audits.lines(audited)))
    typer.echo(
        f"\n{audited.items:,} items; {rate:.3%} without a SID of their own, at most {most:,} to one SID; {without:,} "
        f"of {distinct:,} train targets have none. {audited.pairs:,} train pairs (last item of the history, target; "
        f"repeats left out), against {audits.SHUFFLES} shuffles of the SIDs among the items."
    )
