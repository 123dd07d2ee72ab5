"""The client of the teacher's endpoint, and what the corpus of a snapshot would cost before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidr_core.pipeline.store import Store
    from sidr_core.remote.client import Client, Estimate
    from sidr_core.settings import Teacher


@contextmanager
def teacher_client(settings: Teacher) -> Iterator[Client]:
    """A client of the teacher's endpoint with its ledger, closed at the end; nothing is called yet."""
    from sidr_core.remote.ledger import Ledger, ledger_path

    if settings.batch:
        from sidr_core.remote.batch import BatchClient as Client
    else:
        from sidr_core.remote.client import Client
    assert settings.endpoint is not None
    ledger = Ledger(ledger_path())
    try:
        yield Client(settings.endpoint, ledger, settings.budget, settings.price, settings.reply)
    finally:
        ledger.close()


def estimates(client: Client, store: Store, dataset: str, snapshot: str, settings: Teacher) -> dict[str, Estimate]:
    """Estimate of each kind of request: what is in the ledger, and what the other calls would cost.

    The requests are those that the stage would make now: the same plan from the same tables.
    """
    from sidr_core.corpus import tasks
    from sidr_core.corpus.catalogue import Catalogue
    from sidr_core.corpus.teacher.requests import plan
    from sidr_core.tables import files as tables

    interactions = store.require(dataset, snapshot, "interactions")
    codebook = tables.read(store.require(dataset, snapshot, "sid_codebook").path("sid_codebook.parquet"))
    catalogue = Catalogue.read(tables.read(interactions.path("items.parquet")), codebook)
    rows = tasks.read_rows(tables.read(interactions.path("train.parquet")), catalogue)
    requests = plan(rows, catalogue, settings, client.answered)
    kinds = dict.fromkeys(request.kind for request in requests)
    return {kind: client.estimate([r for r in requests if r.kind == kind]) for kind in kinds}


def corpus_usd(store: Store, dataset: str, snapshot: str, settings: Teacher) -> float:
    """USD that the calls of a snapshot's corpus would cost now; 0 where the teacher has no price.

    Raises:
        NotMaterialized: `interactions` or `sid_codebook` is not published for the snapshot.
        LedgerError: the ledger cannot be read.
    """
    if settings.kind == "rules" or not (settings.price.input or settings.price.output):
        return 0.0
    with teacher_client(settings) as client:
        return sum(one.usd for one in estimates(client, store, dataset, snapshot, settings).values())
