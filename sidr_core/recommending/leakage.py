"""Leakage guards: wrong uses of test rows are refused before a metric is computed.

These are no promises about an output (those are checks): each is a case in which a figure would be computed and be
worthless. Published evaluations fell into them: docs/method.md, "Pitfalls".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sidr_core.errors import InputError
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.stage import Inputs, StageInput
from sidr_core.settings.models import MODEL_NAMED, language_model, split_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import CODES, ITEM_ID, MODE, MODEL, POSITION, ROW_ID, TARGET_TIME, USER_ID


def leaves_one_out(interactions: StageInput) -> bool:
    """Whether rows were split by leaving the last of each user out: then times of different users may cross."""
    return interactions.config.get("split", {}).get("kind") == "leave_one_out"


def check_rows(test: pl.DataFrame, train: pl.DataFrame, leave_one_out: bool = False) -> None:
    """Refuse test rows that training has seen, and rows of a single user.

    Args:
        test: the contract `Samples`, the rows to be evaluated.
        train: the same, of the same snapshot.
        leave_one_out: whether only the order of each user holds.

    Raises:
        InputError: a (user, position) of `test` is in `train`; a train target is later than the first of `test`, with
            `leave_one_out` than that of the same user; there are fewer than two users.
    """
    seen = test.join(train.select(USER_ID, POSITION), on=[USER_ID, POSITION], how="semi")
    if seen.height:
        raise InputError(
            f"{seen.height:,} test rows were seen in training",
            expected="no (user, position) of test in train",
            found=f"{seen[ROW_ID][0]} in both",
            fix="materialize interactions again, and all below it",
        )
    if leave_one_out:
        _check_own_order(test, train)
    else:
        _check_times(test, train)
    if (users := test[USER_ID].n_unique()) < 2:
        raise InputError(
            "an interval over users cannot be computed",
            expected="test rows of at least 2 users",
            found=f"{test.height} rows of {users} user",
            fix="widen the snapshot, loosen `filters` or raise decoding.max_test_rows",
        )


def _check_times(test: pl.DataFrame, train: pl.DataFrame) -> None:
    first, newest = test[TARGET_TIME].min(), train[TARGET_TIME].max()
    if first is not None and newest is not None and newest > first:  # type: ignore[operator]
        raise InputError(
            "training has seen what came after the first test row",
            expected=f"no train target after {tables.iso_date(first)}",  # type: ignore[arg-type]
            found=f"one of {tables.iso_date(newest)}",  # type: ignore[arg-type]
            fix="cut train and test by time, and materialize interactions and all below it again",
        )


def _check_own_order(test: pl.DataFrame, train: pl.DataFrame) -> None:
    first = test.group_by(USER_ID).agg(pl.col(POSITION).min().alias("first"))
    behind = train.join(first, on=USER_ID).filter(pl.col(POSITION) > pl.col("first"))
    if behind.height:
        raise InputError(
            "training has seen what its user did after the test row",
            expected="every train row of a user before the user's test row",
            found=f"{behind.height:,} behind it, first {behind[ROW_ID][0]}",
            fix="materialize interactions again, and all below it",
        )


def check_lists(lists: pl.DataFrame, test: pl.DataFrame, models: pl.DataFrame, names: Sequence[str], k: int) -> None:
    """Refuse lists that are too short for `k`, or that some test rows lack.

    Args:
        lists: the contract `Recommendations`.
        test: the rows to be evaluated.
        models: the contract `RecommendedModels`.
        names: `<model>/<mode>` to be evaluated.
        k: the largest cut-off.

    Raises:
        InputError: the lists are too short, or rows are missing.
    """
    test_rows = set(test[ROW_ID])
    rows_of: dict[tuple[Any, ...], set[str]] = {}
    for model, mode, row in lists.select(MODEL, MODE, ROW_ID).unique().iter_rows():
        rows_of.setdefault((model, mode), set()).add(row)
    for name in names:
        if missing := test_rows - rows_of.get(split_name(name), set()):
            raise InputError(
                f"{name} has no list for {len(missing):,} of {len(test_rows):,} test rows",
                expected="a list of every model for every test row",
                found=f"none for {', '.join(sorted(missing)[:3])}",
                fix="materialize recommendations again",
            )
    width = min(models["beam_width"])
    if k > width:
        raise InputError(
            f"metrics at {k} need lists of {k} items",
            expected=f"evaluation.ks up to decoding.beam_width, {width}",
            found=f"k = {k}",
            fix="raise the beam width or lower k",
        )


def check_checkpoints(inputs: Inputs, names: Sequence[str], test: pl.DataFrame, codebook: pl.DataFrame) -> None:
    """Refuse checkpoints that were not trained for these test rows and this codebook.

    Args:
        inputs: of the stage `recommendations`.
        names: `<model>/<mode>` to be decoded.
        test: the contract `Samples`, the rows to be decoded.
        codebook: item_id, codes.

    Raises:
        InputError: a token map is not the codebook's; a checkpoint was trained on other interactions than those
            published now, or, where time splits, on rows later than the first test target.
    """
    for model in dict.fromkeys(model for name in names if (model := language_model(split_name(name)[0]))):
        stage = MODEL_NAMED[model].stage
        source = inputs[stage]
        meta = json.loads(source.path("meta.json").read_text())
        _check_token_map(stage, source.path("sid_index.parquet"), codebook)
        declared = stage_named(stage).inputs["interactions"]
        _check_training_data(stage, meta, inputs["interactions"].digest_of(declared))
        if not leaves_one_out(inputs["interactions"]):
            _check_horizon(stage, meta, test)


def _check_token_map(name: str, path: Path, codebook: pl.DataFrame) -> None:
    from sidr_core.models.checkpoint import codebook_digest

    token_map = tables.read(path)
    if codebook_digest(token_map) != codebook_digest(codebook):
        differ = codebook.join(token_map, on=[ITEM_ID, CODES], how="anti").height
        raise InputError(
            f"the token map of {name} is not that of the codebook",
            expected=f"the {codebook.height:,} items of sid_codebook, with their SIDs",
            found=f"{token_map.height:,} items, {differ:,} of the codebook absent or with another SID",
            fix=f"materialize {name} again from this codebook",
        )


def _check_training_data(name: str, meta: dict[str, Any], interactions: str) -> None:
    made_from = meta.get("made_from", {}).get("interactions")
    if made_from not in (None, interactions):
        raise InputError(
            f"{name} was trained on other interactions than those whose test rows it would be evaluated on",
            expected=f"train, valid and items of digest {interactions[:12]}",
            found=f"{made_from[:12]}: what is a test row here may be a train row there",
            fix=f"materialize {name} again from this snapshot's interactions",
        )


def _check_horizon(name: str, meta: dict[str, Any], test: pl.DataFrame) -> None:
    first: Any = test[TARGET_TIME].min()
    if first is not None and meta["seen_until"] != "unknown" and meta["seen_until"] > tables.iso_date(first):
        raise InputError(
            f"{name} has seen what came after the first test row",
            expected=f"training up to {tables.iso_date(first)}",
            found=f"seen until {meta['seen_until']}",
            fix="evaluate it on a later snapshot, or train it on this one",
        )
