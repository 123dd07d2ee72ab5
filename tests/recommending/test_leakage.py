"""Wrong uses of test rows, each refused before anything is decoded or scored."""

from dataclasses import replace

import polars as pl
import pytest

from builders import small_world
from builders.small_world import SNAPSHOT, edit_meta, spoil
from sidr_core.errors import InputError
from sidr_core.recommending import leakage
from sidr_core.recommending.rows import chosen_rows
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

TEST, TRAIN = small_world.samples(4, 2), small_world.samples(1, 2)


def told(error: InputError) -> str:
    assert error.expected and error.found and error.fix
    return f"{error.what}; {error.found}; {error.fix}"


# -- rows ----------------------------------------------------------------------------------------


def test_honest_rows_pass():
    leakage.check_rows(TEST, TRAIN)


def test_a_test_row_seen_in_training_is_named():
    with pytest.raises(InputError, match="1 test rows were seen in training") as refused:
        leakage.check_rows(TEST, pl.concat([TRAIN, TEST.filter(pl.col("row_id") == "user3:5")]))
    assert "user3:5" in told(refused.value)


def test_with_leave_one_out_the_order_of_each_user_holds_and_times_may_cross():
    late = TRAIN.with_columns(pl.col("target_timestamp") + 86_400 * 10)
    leakage.check_rows(TEST, late, leave_one_out=True)
    behind = TRAIN.head(1).with_columns(position=pl.lit(9, pl.Int32), row_id=pl.lit("user0:9"))
    with pytest.raises(InputError, match="what its user did after the test row") as refused:
        leakage.check_rows(TEST, pl.concat([TRAIN, behind]), leave_one_out=True)
    assert "user0:9" in told(refused.value)


def test_training_after_the_first_test_row_is_refused():
    late = TRAIN.with_columns(pl.col("target_timestamp") + 86_400 * 10)
    with pytest.raises(InputError, match="what came after the first test row") as refused:
        leakage.check_rows(TEST, late)
    assert "2020-02-07" in told(refused.value)
    # Rows of a published split carry no times, and equal times are no proof.
    leakage.check_rows(TEST, late.with_columns(target_timestamp=pl.lit(None, pl.Int64)))
    leakage.check_rows(TEST, TRAIN.with_columns(target_timestamp=pl.lit(TEST["target_timestamp"].min())))


def test_one_user_and_no_rows_are_refused():
    with pytest.raises(InputError, match="interval over users"):
        leakage.check_rows(TEST.head(2), TRAIN)
    with pytest.raises(InputError, match="test split is empty"):
        chosen_rows(TEST.clear(), None)


def test_the_evaluation_refuses_rows_that_train_holds(world):
    """The published interactions are replaced by leaking ones; the lists are those made before."""

    def leak(folder) -> None:
        both = pl.concat([TRAIN, TEST.filter(pl.col("row_id") == "user0:4")])
        tables.write(both, folder / "train.parquet", contracts.Samples)

    spoil(world, "interactions", leak)
    with pytest.raises(InputError, match="seen in training"):
        world.run("evaluation")


# -- checkpoints ---------------------------------------------------------------------------------


def test_a_token_map_that_is_not_the_codebook_s_is_refused(world):
    book = small_world.codebook().with_columns(
        pl.when(pl.col("item_id") == "A00").then(pl.lit("<a_3><b_3>")).otherwise("sid").alias("sid"),
        pl.when(pl.col("item_id") == "A00")
        .then(pl.lit([3, 3]))
        .otherwise("codes")
        .cast(pl.List(pl.Int32))
        .alias("codes"),
    )
    spoil(world, "sid_codebook", lambda f: tables.write(book, f / "sid_codebook.parquet", contracts.Codebook))
    with pytest.raises(InputError, match="token map of sft_checkpoint is not that of the codebook") as refused:
        world.run("recommendations")
    assert "1 of the codebook absent or with another SID" in told(refused.value)
    assert "materialize sft_checkpoint again" in told(refused.value)


def test_a_checkpoint_of_other_interactions_is_refused(world):
    spoil(world, "grpo_checkpoint", edit_meta(made_from={"interactions": "f" * 64}))
    with pytest.raises(InputError, match="grpo_checkpoint was trained on other interactions") as refused:
        world.run("recommendations")
    assert "ffffffffffff" in told(refused.value)


def test_a_checkpoint_made_from_the_interactions_at_hand_passes(world):
    artifact = world.store.require("toys", SNAPSHOT, "interactions")
    digest = artifact.digest_of(("train.parquet", "valid.parquet", "items.parquet"))
    spoil(world, "grpo_checkpoint", edit_meta(made_from={"interactions": digest}))
    assert not world.run("recommendations").reused


def test_a_checkpoint_that_has_seen_later_days_is_refused(world):
    spoil(world, "activation_checkpoint", edit_meta(seen_until="2020-02-28"))
    with pytest.raises(InputError, match="activation_checkpoint has seen what came after") as refused:
        world.run("recommendations")
    assert "2020-02-28" in told(refused.value)


def test_only_checkpoints_that_are_decoded_are_looked_at(world):
    spoil(world, "grpo_checkpoint", edit_meta(seen_until="2030-01-01"))
    few = small_world.profile(models=["sft/direct", "popularity/direct"])
    assert not world.run("recommendations", few).reused


# -- lists ---------------------------------------------------------------------------------------


def test_a_cut_off_beyond_the_beam_that_made_the_lists_is_refused(world):
    """The profile was changed after decoding: what counts is the width of the lists at hand."""
    config = world.profile.dataset("toys")
    wide = config.model_copy(
        update={
            "evaluation": config.evaluation.model_copy(update={"ks": (1, 9)}),
            "decoding": config.decoding.model_copy(update={"beam_width": 10}),
        }
    )
    with pytest.raises(InputError, match="metrics at 9") as refused:
        world.run("evaluation", replace(world.profile, datasets={"toys": wide}))
    assert "k = 9" in told(refused.value)
