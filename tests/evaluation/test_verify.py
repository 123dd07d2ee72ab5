"""Claim cards: what they hold, that the true ones are found true, and that any other is refused."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest

from builders.small_world import MODELS, SNAPSHOT
from sidr_core.errors import InputError
from sidr_core.evaluation.claims import Card, page
from sidr_core.evaluation.evaluate import Scored, paired_table
from sidr_core.evaluation.protocol import claims, counting_baseline
from sidr_core.evaluation.verify import read_card, recounted, unequal, verify
from sidr_core.metrics.intervals import draw_means
from sidr_core.pipeline.store import _seal
from sidr_core.settings import Evaluation
from sidr_core.tables import files as tables


@pytest.fixture
def folder(world):
    """The claims of the small world's leaderboard."""
    return world.store.require("toys", SNAPSHOT, "leaderboard").folder / "claims"


@pytest.fixture
def card(folder):
    return read_card(folder / "grpo-thinking.json")


# -- what a card holds ---------------------------------------------------------------------------


def test_every_list_has_a_card_and_a_page(world, folder):
    names = {name.replace("/", "-") for name in MODELS}
    assert {path.name for path in folder.iterdir()} == {f"{name}{end}" for name in names for end in (".json", ".md")}
    leaderboard = world.store.require("toys", SNAPSHOT, "leaderboard")
    assert "Margin over item_item/direct, the counting baseline" in leaderboard.path("leaderboard.md").read_text()


def test_a_card_has_the_numbers_of_the_evaluation_and_what_they_rest_on(world, card):
    evaluation = world.store.require("toys", SNAPSHOT, "evaluation")
    table = tables.read(evaluation.path("evaluation.parquet")).filter(
        (pl.col("model") == "grpo") & (pl.col("mode") == "thinking") & (pl.col("level") == "item")
    )
    value = {(row["metric"], row["k"]): row for row in table.iter_rows(named=True)}
    assert [(one.metric, one.k) for one in card.figures] == [(m, k) for k in (1, 3, 5) for m in ("hr", "ndcg")]
    for one in card.figures:
        row = value[one.metric, one.k]
        assert (one.value, one.ci_low, one.ci_high) == pytest.approx(
            (row["value"], row["ci_low"], row["ci_high"]), abs=1e-6
        )
    assert card.baseline == "item_item/direct" and card.family == 2 * (len(MODELS) - 1) and card.within == 0.005
    baseline = read_card(world.store.require("toys", SNAPSHOT, "leaderboard").folder / "claims/item_item-direct.json")
    for gap in card.margins:
        theirs = next(one for one in baseline.figures if (one.metric, one.k) == (gap.metric, gap.k))
        mine = next(one for one in card.figures if (one.metric, one.k) == (gap.metric, gap.k))
        assert gap.k == 5 and gap.difference == pytest.approx(mine.value - theirs.value, abs=2e-6)
        assert gap.helped + gap.harmed + gap.same == 12 and gap.verdict.endswith("6 users)")
    assert baseline.margins == () and baseline.claim.startswith("item_item/direct is the counting baseline")
    interactions = world.store.require("toys", SNAPSHOT, "interactions").manifest["files"]
    assert card.digests["interactions/test.parquet"] == interactions["test.parquet"]["sha256"]
    assert (card.counts["test"], card.counts["train"], card.counts["evaluated_users"]) == (12, 12, 6)
    assert card.seeds == {"model": 3, "resampling": 42} and card.evaluation == evaluation.fingerprint
    assert {"grpo_checkpoint", "baseline_item_item", "baseline_popularity"} <= set(card.stages)
    assert "grpo_checkpoint" not in baseline.stages and card.synthetic
    assert {(gate.stage, gate.check) for gate in card.gates} >= {
        ("evaluation", "complete"),
        ("recommendations", "distinct"),
    }
    text = page(card)
    assert card.claim in text and "(synthetic sample data)" in text and "smallest detectable" in text


def test_the_baseline_is_the_first_that_counts():
    names = ("sft/direct", "popularity/direct", "item_item/direct")
    assert counting_baseline((*names, "shortcut/direct")) == "shortcut/direct"
    assert counting_baseline(names[:2]) == "popularity/direct" and counting_baseline(names[:1]) is None
    assert claims(names) == [("sft/direct", names[2]), ("popularity/direct", names[2])]
    assert claims(names[:1]) == []


# -- true and false ------------------------------------------------------------------------------


def test_all_cards_of_a_table_are_true_wherever_they_lie(world, folder, sidr, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    code, out, err = sidr("verify", *map(str, sorted(moved.glob("*.json"))))
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["true"] * len(MODELS)


def test_every_edited_digit_of_a_card_is_refused(world, card, folder):
    """Each digit in turn, in numbers, digests, versions, dates and words alike."""
    text = (folder / "grpo-thinking.json").read_text()
    true = recounted(world.store.lineage(world.store.require("toys", SNAPSHOT, "evaluation")))
    counted = next(one for one in true if one.name == card.name).model_dump()
    assert unequal(card.model_dump(), counted) == []
    passed = []
    digits = [match.start() for match in re.finditer(r"\d", text)]
    assert len(digits) > 500
    for place in digits:
        edited = f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}"
        try:
            said = Card.model_validate_json(edited)
        except ValueError:
            continue
        if not unequal(said.model_dump(), counted):
            passed.append(text[place - 40 : place + 10])
    assert passed == []


@pytest.mark.parametrize("more", ["1", "4"])
def test_a_digit_more_is_refused(card, more):
    longer = float(f"{card.figures[-1].value:.6f}{more}")
    figures = (*card.figures[:-1], card.figures[-1].model_copy(update={"value": longer}))
    said = card.model_copy(update={"figures": figures})
    assert len(unequal(said.model_dump(), card.model_dump())) == 1


def test_an_edited_card_is_false_and_says_where(world, folder, sidr, tmp_path):
    fields = json.loads((folder / "grpo-thinking.json").read_text())
    fields["figures"][3]["value"] += 0.1
    fields["margins"][0]["verdict"] = "above"
    path = tmp_path / "card.json"
    path.write_text(json.dumps(fields))
    code, out, _ = sidr("verify", str(path))
    assert code == 1 and out.startswith("false: card.json: grpo/thinking against item_item/direct")
    assert "figures[3].value: the card says" in out and "margins[0].verdict: the card says above, found" in out


@pytest.mark.parametrize(("stage", "file"), [("recommendations", "recommendations"), ("interactions", "test")])
@pytest.mark.parametrize("resealed", [False, True], ids=["file", "file and manifest"])
def test_an_edited_list_or_row_is_refused(world, folder, sidr, stage, file, resealed):
    """Also where the manifest was made to fit: the card knows the digest."""
    artifact = world.store.require("toys", SNAPSHOT, stage)
    path = artifact.path(f"{file}.parquet")
    frame = tables.read(path)
    column = "item_id" if stage == "recommendations" else "target_item_id"
    edited = frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("A00")).otherwise(pl.col(column)).alias(column)
    )
    assert not edited.equals(frame)
    tables.write_table(edited, path)
    if resealed:
        from sidr_core.pipeline.store import MANIFEST, _describe

        manifest = dict(artifact.manifest)
        manifest["files"] = {**manifest["files"], path.name: _describe(path)}
        (artifact.folder / MANIFEST).write_text(json.dumps({**manifest, "seal": _seal(manifest)}))
    code, out, _ = sidr("verify", str(folder / "grpo-thinking.json"))
    assert code == 1 and out.startswith("false: ")
    told = f"digests.{stage}/{file}.parquet: the card says" if resealed else f"{file}.parquet is damaged"
    assert told in out


def test_a_card_of_another_home_is_told_to_be_one(world, folder, sidr, tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    shutil.copy(folder / "grpo-thinking.json", path)
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "other"))
    code, out, err = sidr("verify", str(path))
    assert (code, out) == (1, "") and err.count("error:") == 1 and "Traceback" not in err
    assert "not in this store" in err and "SIDR_HOME" in err


def test_an_output_that_was_deleted_is_an_error_and_no_falsehood(world, card):
    shutil.rmtree(world.store.require("toys", SNAPSHOT, "grpo_checkpoint").folder)
    with pytest.raises(InputError, match="not in this store"):
        verify(card, world.store, {})


@pytest.mark.parametrize(
    "change",
    [
        {"card": 2},
        {"evaluation": "../../../../etc/passwd"},
        {"evaluation": ["0" * 32]},
        {"stages": {"evaluation": {"fingerprint": "../" * 10, "code_version": "1"}}},
        {"figures": [{"metric": "hr"}] * 5},
        {"claim": "x" * 5000},
        {"counts": {"test": "12"}},
        {"confidence": 1e999},
        {"path": "/etc/passwd"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_hostile_card_is_one_clear_error(world, folder, sidr, tmp_path, change):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(json.loads((folder / "grpo-thinking.json").read_text()) | change))
    code, out, err = sidr("verify", str(path))
    assert (code, out) == (1, "") and err.startswith("error: card.json is not a claim card")
    assert "fix:" in err and "Traceback" not in err and "x" * 300 not in err


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 100_000, b"null", b" " * 1_000_001],
    ids=["empty", "bytes", "deep", "null", "huge"],
)
def test_what_is_no_card_is_one_clear_error(world, sidr, tmp_path, content):
    path = tmp_path / "card.json"
    path.write_bytes(content)
    code, out, err = sidr("verify", str(path))
    assert (code, out) == (1, "") and err.startswith("error: card.json is not a claim card") and "Traceback" not in err


def test_a_card_that_names_outputs_of_its_own_is_not_followed(world, card):
    """A stage's name that leads out of the store opens nothing."""
    said = card.model_copy(update={"stages": {"../../etc": card.stages["evaluation"]}})
    with pytest.raises(InputError, match="not in this store"):
        verify(said, world.store, {})


def test_bad_usage_is_exit_code_2(world, folder, sidr, tmp_path):
    assert sidr("verify")[0] == sidr("verify", str(tmp_path / "none.json"))[0] == sidr("verify", str(folder))[0] == 2


# -- the lists made again ------------------------------------------------------------------------


def test_the_lists_are_made_again_from_the_checkpoint(world, folder, sidr):
    before = {path for path in world.store.root.rglob("*")}
    code, out, _ = sidr(
        "verify", "--rebuild", *(str(folder / f"{n}.json") for n in ("grpo-thinking", "popularity-direct"))
    )
    assert code == 0 and out.count("lists made again") == 2
    assert {path for path in world.store.root.rglob("*")} == before


def test_lists_that_the_checkpoint_does_not_make_are_told(world, sidr):
    """Places swapped before the evaluation, everything published anew: only the checkpoint knows."""
    old = world.store.require("toys", SNAPSHOT, "recommendations")
    lists = tables.read(old.path("recommendations.parquet"))
    of_model = (pl.col("model") == "grpo") & (pl.col("mode") == "direct")
    swapped = lists.with_columns(
        pl.when(of_model & (pl.col("rank") <= 2))
        .then(3 - pl.col("rank"))
        .otherwise(pl.col("rank"))
        .cast(pl.Int32)
        .alias("rank")
    )

    def build(out_dir):
        for name in old.files:
            shutil.copy(old.path(name), out_dir / name)
        tables.write_table(swapped, out_dir / "recommendations.parquet")

    extra = {"lineage": old.manifest["lineage"]}
    artifact, _ = world.store.obtain(
        "recommendations", old.manifest["code_version"], {**old.manifest["key"], "swapped": True}, build, extra=extra
    )
    world.store.set_ref("toys", SNAPSHOT, "recommendations", artifact.fingerprint)
    world.run("evaluation")
    path = str(world.run("leaderboard").artifact.path("claims/grpo-direct.json"))
    assert sidr("verify", path)[0] == 0
    code, out, _ = sidr("verify", "--rebuild", path)
    assert code == 1 and "grpo/direct: made again, 24 of 60 places differ, in 12 of 12 lists" in out
    assert "item_item/direct: made again" not in out


# -- what a verdict promises ---------------------------------------------------------------------


def _lists(seed: int, lists: int, users: int, shift: float = 0.0) -> Scored:
    """HR and NDCG of a baseline and of lists that hit as often as it (`shift` more often), three rows per user."""
    generator = np.random.default_rng(seed)
    rows, chance = 3 * users, np.repeat(generator.beta(1, 4, users), 3)
    values = {}
    for n in range(lists + 1):
        hits = generator.random(rows) < chance + (shift if n else 0)
        gain = 1 / np.log2(generator.integers(1, 11, rows) + 1)
        values["item_item/direct" if n == 0 else f"list{n}/direct"] = np.stack([hits, hits * gain], axis=1).astype(
            float
        )
    who = np.repeat(np.arange(users), 3)
    drawn = draw_means(np.hstack(list(values.values())), who, draws=1000, seed=seed)
    means = dict(zip(values, np.split(drawn, len(values), axis=1), strict=True))
    columns = (("item", "hr", 10), ("item", "ndcg", 10))
    return Scored({name: pl.DataFrame() for name in values}, columns, values, means, who)


def _verdicts(scored: Scored, margin: float = 0.005) -> pl.DataFrame:
    settings = Evaluation(ks=(10,), bootstrap=1000, margin=margin)
    models = pl.DataFrame([{"model": n.split("/")[0], "mode": "direct", "seen_until": "2020"} for n in scored.values])
    context = {"dataset": "d", "snapshot": "s", "split": "test"}
    return paired_table(scored, models, settings, context, claims(tuple(scored.values)))


def _claimed(verdicts: pl.DataFrame) -> int:
    """Lists that are called better or worse in any metric."""
    return verdicts.filter(pl.col("verdict").str.contains("higher|lower"))["model_a"].n_unique()


#: In 99 of 100 cases of an event with a chance of 5 %, it comes at most so often in 100 and in 200 tries.
AT_MOST_OF_100, AT_MOST_OF_200 = 11, 18


def test_of_a_hundred_null_lists_at_most_five_are_claimed():
    """Ten tables of ten lists; one in twenty tables may claim anything at all."""
    claimed = [_claimed(_verdicts(_lists(seed, 10, 150))) for seed in range(10)]
    assert sum(claimed) <= 5 and sum(count > 0 for count in claimed) <= 2


def test_a_null_list_alone_in_its_table_is_claimed_in_at_most_one_of_twenty():
    """The hardest case: nothing but its own two metrics is corrected for."""
    assert sum(_claimed(_verdicts(_lists(seed, 1, 150))) for seed in range(200)) <= AT_MOST_OF_200


def test_a_difference_that_is_there_is_claimed():
    found = [_verdicts(_lists(seed, 1, 400, shift=0.1))["verdict"][0] for seed in range(20)]
    assert found == ["higher"] * 20


def test_lists_are_called_equal_where_they_are_and_not_where_they_differ_by_the_margin():
    """HR, whose true difference is the shift: 0, and the least that may not be called `within`."""
    equal, apart = (
        sum("within" in _verdicts(_lists(seed, 1, 300, shift), 0.06)["verdict"][0] for seed in range(100))
        for shift in (0.0, 0.06)
    )
    assert equal > 50 and apart <= AT_MOST_OF_100
