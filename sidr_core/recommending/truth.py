"""How true the thoughts are: facts and candidates of each, held against its history and the catalogue.

A thought is judged by what its history supports, never by its target (`sidr_core.corpus.thoughts`). A model that never
writes "Next:" thinks in another form, so nothing of its thoughts is judged: their columns are null.
"""

from __future__ import annotations

import polars as pl

from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.relations import Relations, learn_relations
from sidr_core.corpus.thoughts import NEXT_IS, judge
from sidr_core.tables.columns import HISTORY, MODEL, REASONING, ROW_ID, TARGET

FACTS, FACTS_RIGHT, CANDIDATES, CANDIDATES_REAL, TRUE = "facts", "facts_right", "candidates", "candidates_real", "true"
_COLUMNS = {
    FACTS: pl.Int32, FACTS_RIGHT: pl.Int32, CANDIDATES: pl.Int32, CANDIDATES_REAL: pl.Int32, TRUE: pl.Boolean,
}  # fmt: skip


def learned(catalogue: Catalogue, train: pl.DataFrame) -> Relations:
    """The relations of train rows (the contract `Samples`) between items of the catalogue."""
    rows = train.select(HISTORY, TARGET).iter_rows()
    return learn_relations(
        catalogue, [([catalogue[item] for item in history], catalogue[target]) for history, target in rows]
    )


def judged(
    thoughts: pl.DataFrame, rows: pl.DataFrame, items: pl.DataFrame, codebook: pl.DataFrame, train: pl.DataFrame
) -> pl.DataFrame:
    """The thoughts with what of each is true, less their text.

    Args:
        thoughts: row_id, model and `reasoning`, one line per thought.
        rows: the contract `Samples`, with the histories of these rows.
        items: the contract `Items`. codebook: item_id -> sid. train: the contract `Samples`.
    """
    formed = thoughts.filter(pl.col(REASONING).str.contains(NEXT_IS, literal=True))[MODEL].unique().to_list()
    verdicts: list[tuple[int, int, int, int, bool] | None] = [None] * thoughts.height
    if formed:
        catalogue = Catalogue.read(items, codebook)
        relations = learned(catalogue, train)
        history_of = dict(rows.select(ROW_ID, HISTORY).iter_rows())
        for n, (model, row_id, text) in enumerate(thoughts.select(MODEL, ROW_ID, REASONING).iter_rows()):
            if model in formed:
                verdict = judge(text or "", relations, [catalogue[item] for item in history_of[row_id]])
                verdicts[n] = (verdict.facts, verdict.right, verdict.candidates, verdict.real, verdict.true)
    columns = [
        pl.Series(name, [figures and figures[n] for figures in verdicts], dtype=kind)
        for n, (name, kind) in enumerate(_COLUMNS.items())
    ]
    return thoughts.drop(REASONING).with_columns(columns)


def shares(thoughts: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Of each model whose thoughts are judged: shares of facts that are right, of thoughts that are wholly true and of
    candidates that are real. A share of nothing is left out.

    Args:
        thoughts: the contract `Thoughts`.
    """
    found: dict[str, dict[str, float]] = {}
    for (model,), of_model in thoughts.filter(pl.col(TRUE).is_not_null()).group_by([MODEL], maintain_order=True):
        sums = of_model.select(pl.col(name).cast(pl.Int64).sum() for name in _COLUMNS).row(0, named=True)
        parts = {
            "facts_right": (sums[FACTS_RIGHT], sums[FACTS]),
            "thoughts_true": (sums[TRUE], of_model.height),
            "candidates_real": (sums[CANDIDATES_REAL], sums[CANDIDATES]),
        }
        found[str(model)] = {name: part / whole for name, (part, whole) in parts.items() if whole}
    return found
