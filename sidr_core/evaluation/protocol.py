"""What is compared with what, and which cut-offs come first: shared by every table of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from sidr_core.settings.models import LANGUAGE_MODELS, MODELS, SASREC_MIXED, is_mixed, language_model, split_name
from sidr_core.tables.columns import DIRECT, MERGED, MODE, MODEL, THINKING

#: Baselines that language models are compared with, where the profile has them; without any, with POPULARITY.
REFERENCES = tuple(model.name for model in MODELS if model.is_reference)
POPULARITY = "popularity"
#: Baselines that only count, the best first: a claim about a list is its margin over the first that the table has.
COUNTED = ("shortcut", "item_item", POPULARITY)
#: Cut-offs of the headline and of the paired comparisons, where the profile evaluates them.
HEADLINE_KS = (5, 10)


def headline(ks: Sequence[int]) -> list[int]:
    """The cut-offs to show first: 5 and 10, or the largest that there is."""
    return [k for k in HEADLINE_KS if k in ks] or [max(ks)]


def protocol_line(leave_one_out: bool, recommended: Mapping[str, Any]) -> str:
    """How rows were split, and whether items of the history may be listed: what every table says.

    Args:
        recommended: the metrics of the stage `recommendations`.
    """
    split = (
        "Leave-one-out: the last item of every user is tested, and only the order of each user's own items holds, so "
        "others may have trained on later ones"
        if leave_one_out
        else "Split by the time of the targets"
    )
    seen, by = (recommended.get(f"items_of_the_history{end}") for end in ("", "_by"))
    return f"{split}. Items of the history {seen or 'may be listed'}" + (
        f", as {by} say." if by == "valid rows" else "."
    )


def list_name(row: Mapping[str, Any]) -> str:
    """`<model>/<mode>` of a row with both columns."""
    return f"{row[MODEL]}/{row[MODE]}"


def lists_of(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of a table that belong to one `<model>/<mode>`."""
    model, mode = split_name(name)
    return frame.filter((pl.col(MODEL) == model) & (pl.col(MODE) == mode))


def comparisons(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (a, b) whose difference a - b is reported, of `<model>/<mode>` names that are both in `names`.

    Thinking, always or where unsure, merged lists and mixtures against direct mode of the same checkpoint; each
    training stage against the nearest one before it that has lists in the same mode; every neural list against each of
    REFERENCES; the shortcut with SASRec against the shortcut, and combined lists against that.
    No "best" model is picked first: picking on test rows flatters. All pairs are one family for the correction of
    p-values, so there are no others.
    """
    neural = [name for name in names if language_model(split_name(name)[0])]
    with_direct, with_stage_before = [], []
    for name in neural:
        model, mode = split_name(name)
        if mode in (THINKING, MERGED) or model not in LANGUAGE_MODELS:
            with_direct.append((name, f"{language_model(model)}/{DIRECT}"))
        earlier = LANGUAGE_MODELS[: LANGUAGE_MODELS.index(model)] if model in LANGUAGE_MODELS else ()
        before = [f"{stage}/{mode}" for stage in reversed(earlier) if f"{stage}/{mode}" in names]
        with_stage_before += [(name, other) for other in before[:1]]
    references = [f"{name}/{DIRECT}" for name in REFERENCES if f"{name}/{DIRECT}" in names]
    with_references = [(name, other) for other in references or [f"{POPULARITY}/{DIRECT}"] for name in neural]
    # What a combined list adds to the shortcut, and a language model to both.
    mixed = [name for name in names if is_mixed(split_name(name)[0])]
    combined = [(SASREC_MIXED, f"shortcut/{DIRECT}")] if SASREC_MIXED in names else []
    combined += [(name, SASREC_MIXED) for name in mixed if name != SASREC_MIXED]
    pairs = (*with_direct, *with_stage_before, *with_references, *combined)
    return [pair for pair in pairs if pair[1] in names]


def counting_baseline(names: Sequence[str]) -> str | None:
    """The best counting baseline of a table of `<model>/<mode>` names; None where it has none.

    >>> counting_baseline(("sft/direct", "popularity/direct", "item_item/direct"))
    'item_item/direct'
    """
    return next((f"{model}/{DIRECT}" for model in COUNTED if f"{model}/{DIRECT}" in names), None)


def claims(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (a, b): each list and the best counting baseline, whose difference a - b is claimed."""
    baseline = counting_baseline(names)
    return [(name, baseline) for name in names if baseline not in (None, name)]


def thinking_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Those of :func:`comparisons` that are a checkpoint's thinking against its direct mode."""
    return [
        (a, b)
        for a, b in comparisons(names)
        if language_model(split_name(a)[0]) == language_model(split_name(b)[0]) and split_name(a)[1] != split_name(b)[1]
    ]
