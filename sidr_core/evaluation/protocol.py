"""What is compared with what, and on which rows: shared by the lists and their evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from sidr_core.columns import DIRECT, HISTORY, ITEM_ID, ROW_ID, SID, THINKING, USER_ID
from sidr_core.errors import InputError

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

NEURAL = ("sft", "activation", "grpo")
COUNTERS = ("popularity", "item_item")

#: Cut-offs of the headline and of the paired comparisons, where the profile evaluates them.
HEADLINE_KS = (5, 10)

_SEED = 42


def headline(ks: Sequence[int]) -> list[int]:
    """The cut-offs to show first: 5 and 10, or the largest that there is."""
    return [k for k in HEADLINE_KS if k in ks] or [max(ks)]


def split_name(name: str) -> tuple[str, str]:
    """Model and mode of `<model>/<mode>`."""
    model, _, mode = name.partition("/")
    return model, mode


def makers(model: str) -> tuple[str, ...]:
    """The stages whose output makes a model's lists; the first is the model itself."""
    if model in NEURAL:
        return (f"{model}_checkpoint",)
    return ("baseline_popularity",) if model == "popularity" else ("baseline_item_item", "baseline_popularity")


def unused_makers(config: DatasetConfig) -> set[str]:
    """Those of all models' stages that no model of `decoding.models` needs: they need not be built."""
    everything = {stage for model in (*NEURAL, *COUNTERS) for stage in makers(model)}
    return everything - {stage for name in config.decoding.models for stage in makers(split_name(name)[0])}


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

    Thinking against direct mode of the same checkpoint; each stage against the one before; and every
    neural list against each counter. No "best" model is picked first: picking on test rows flatters.
    """
    pairs = [(f"{model}/{THINKING}", f"{model}/{DIRECT}") for model in NEURAL]
    pairs += [(f"grpo/{DIRECT}", f"sft/{DIRECT}"), (f"grpo/{THINKING}", f"activation/{THINKING}")]
    neural = [name for name in models if split_name(name)[0] in NEURAL]
    pairs += [(name, f"{counter}/{DIRECT}") for counter in reversed(COUNTERS) for name in neural]
    return [(a, b) for a, b in pairs if a in models and b in models]
