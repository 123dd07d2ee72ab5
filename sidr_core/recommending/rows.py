"""The rows that are evaluated and those that choose, their histories as SIDs, and whether lists may repeat these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import polars as pl

from sidr_core.errors import InputError
from sidr_core.recommending.mixture import SHORTCUT
from sidr_core.tables.columns import HISTORY, ITEM_ID, ROW_ID, SID, USER_ID
from sidr_core.tables.samples import subset

if TYPE_CHECKING:
    from sidr_core.pipeline.stage import StageInput
    from sidr_core.pipeline.store import Artifact
    from sidr_core.settings import Decoding

_SEED = 42


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
            fix="widen the snapshot or loosen `filters`, so that more interactions survive",
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


def lists_repeat(inputs: Mapping[str, StageInput | Artifact], decoding: Decoding) -> bool:
    """Whether items of the history may be listed: as `decoding.seen` says, or as the shortcut chose on valid rows."""
    if decoding.seen != "choose":
        return decoding.seen == "keep"
    return json.loads(inputs[f"baseline_{SHORTCUT}"].path("meta.json").read_text())["model"]["repeats"]


def choice_rows(valid: pl.DataFrame, decoding: Decoding, seed: int) -> pl.DataFrame:
    """The valid rows that choose something about decoding: `decoding.choice_rows`, drawn by the checkpoint's seed."""
    return subset(valid.sort(ROW_ID), decoding.choice_rows, seed)


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
            fix="materialize sid_codebook again from this snapshot's interactions",
        )
    return [[sid_of[item] for item in history] for history in histories]
