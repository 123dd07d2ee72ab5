"""What is compared with what, and on which rows: shared by the lists and their evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import polars as pl

from sidr_core.columns import DIRECT, HISTORY, ITEM_ID, ROW_ID, SID, THINKING, USER_ID
from sidr_core.errors import InputError
from sidr_core.evaluation.names import split_name, trained
from sidr_core.settings.evaluation import NEURAL

#: Baselines that neural lists are compared with, where the profile has them; without any, with POPULARITY.
REFERENCES = ("item_item", "sasrec", "tiger")
POPULARITY = "popularity"
#: Cut-offs of the headline and of the paired comparisons, where the profile evaluates them.
HEADLINE_KS = (5, 10)

_SEED = 42


def headline(ks: Sequence[int]) -> list[int]:
    """The cut-offs to show first: 5 and 10, or the largest that there is."""
    return [k for k in HEADLINE_KS if k in ks] or [max(ks)]


def chosen_rows(test: pl.DataFrame, limit: int | None) -> pl.DataFrame:
    """The test rows to evaluate, sorted by row_id: all, or those of a fixed pseudo-random set of users.

    Whole users are taken while their rows fit into `limit` (at least one user), since intervals are
    clustered by user. The set depends on user ids alone, so every variant of a dataset gets the same.

    Raises:
        InputError: the split is empty.
    """
    if test.is_empty():
        raise InputError(
            "the test split is empty",
            expected="at least one test row",
            found="none",
            do="widen the snapshot or loosen `filters`, so that more interactions survive",
        )
    if limit is None or test.height <= limit:
        return test.sort(ROW_ID)
    sizes = test.group_by(USER_ID).len().rows()
    sizes.sort(key=lambda entry: hashlib.sha256(f"{_SEED}|{entry[0]}".encode()).digest())
    users, rows = [sizes[0][0]], sizes[0][1]
    for user, size in sizes[1:]:
        if rows + size > limit:
            break
        users.append(user)
        rows += size
    return test.filter(pl.col(USER_ID).is_in(users)).sort(ROW_ID)


def history_sids(samples: pl.DataFrame, codebook: pl.DataFrame) -> list[list[str]]:
    """The SIDs of each sample's history, oldest first.

    Raises:
        InputError: a history holds an item without a SID.
    """
    sid_of = dict(codebook.select(ITEM_ID, SID).iter_rows())
    histories = samples[HISTORY].to_list()
    if missing := sorted({item for history in histories for item in history} - sid_of.keys()):
        raise InputError(
            f"{len(missing)} items of test histories have no SID",
            expected="every item of a history in sid_codebook",
            found=", ".join(missing[:5]),
            do="materialize sid_codebook again from this snapshot's interactions",
        )
    return [[sid_of[item] for item in history] for history in histories]


def comparisons(models: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (a, b) whose difference a - b is reported, of `<model>/<mode>` names that are both in `models`.

    Thinking, always or where unsure, and mixtures against direct mode of the same checkpoint; each training stage
    against the nearest one before it that has lists in the same mode; every neural list against each of REFERENCES.
    No "best" model is picked first: picking on test rows flatters. All pairs are one family for the correction of
    p-values, so there are no others.
    """
    neural = [name for name in models if trained(split_name(name)[0])]
    pairs = []
    for name in neural:
        model, mode = split_name(name)
        other = mode == THINKING or model not in NEURAL
        pairs += [(name, f"{trained(model)}/{DIRECT}")] if other else []
    for name in neural:
        model, mode = split_name(name)
        before = NEURAL[: NEURAL.index(model)] if model in NEURAL else ()
        pairs += [(name, f"{other}/{mode}") for other in reversed(before) if f"{other}/{mode}" in models][:1]
    references = [f"{name}/{DIRECT}" for name in REFERENCES if f"{name}/{DIRECT}" in models]
    for reference in references or [f"{POPULARITY}/{DIRECT}"]:
        pairs += [(name, reference) for name in neural]
    return [(a, b) for a, b in pairs if a in models and b in models]


def with_horizons(verdict: str, seen_a: str, seen_b: str) -> str:
    """A verdict on two models, and that they know data of different periods, where they do.

    >>> with_horizons("higher", "2018-06-01", "2018-01-01")
    'higher (different horizons)'
    """
    return verdict if seen_a == seen_b else f"{verdict} (different horizons)"


def thinking_pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Those of :func:`comparisons` that are a checkpoint's thinking against its direct mode."""
    return [
        (a, b)
        for a, b in comparisons(models)
        if trained(split_name(a)[0]) == trained(split_name(b)[0]) and split_name(a)[1] != split_name(b)[1]
    ]
