"""The gate, and the decisions that follow it: what passes, what does not, and what is written down."""

import json

import polars as pl
import pytest
import yaml

from builders.small_world import SNAPSHOT, World
from sidr_core.errors import InputError, ProfileError
from sidr_core.pipeline import live as alias
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.status import states
from sidr_core.serving import challenge, promotion
from sidr_core.settings import Evaluation, Promotion
from sidr_core.tables import files as tables

SETTINGS = Evaluation(ks=(1, 3), bootstrap=200)
ITEMS = ["A", "B", "C", "D"]
CODEBOOK = pl.DataFrame({"item_id": ITEMS, "sid": [f"<a_{n}>" for n in range(4)]})
TRAIN = pl.DataFrame({"target_item_id": ["A", "B"]})


def rows(targets: str) -> pl.DataFrame:
    """One row per user."""
    names = [f"u{n:03}" for n in range(len(targets))]
    return pl.DataFrame({"row_id": names, "user_id": names, "target_item_id": list(targets)})


def side(lists: list[str], name: str = "grpo/direct", seconds: float = 1.0, snapshot: str | None = SNAPSHOT):
    """A side whose list of each row has these items, best first."""
    model, mode = name.split("/")
    places = [
        {"row_id": f"u{row:03}", "model": model, "mode": mode, "rank": place, "item_id": item, "score": -float(place)}
        for row, items in enumerate(lists)
        for place, item in enumerate(items, start=1)
    ]
    table = pl.DataFrame(places, schema_overrides={"rank": pl.Int32}).join(CODEBOOK, on="item_id")
    return challenge.Side(name, table, CODEBOOK, "digest", seconds, snapshot)


def judged(mine, theirs, targets: str, **margins: float) -> dict[str, dict]:
    found = challenge.rules(mine, theirs, rows(targets), TRAIN, Promotion(**margins), SETTINGS)
    return {rule["rule"]: rule for rule in found}


def test_the_numbers_by_hand():
    """Four users ask for A, A, C, D. Mine finds the first at place 1, the third at 2; theirs the first two at 1."""
    mine = side(["AB", "BC", "BC", "AB"], seconds=3.0)
    theirs = side(["AB", "AB", "AB", "AB"], seconds=2.0)
    found = judged(mine, theirs, "AACD", margin=0.99)
    assert (found["hr"]["candidate_value"], found["hr"]["champion_value"]) == (0.5, 0.5)
    assert found["ndcg"]["difference"] == pytest.approx((1 + 1 / 1.584962500721156 - 2) / 4)
    # A and B have train rows: rows 3 and 4 are cold, and mine finds one of them.
    assert (found["cold_hr"]["n_rows"], found["cold_hr"]["difference"]) == (2, 0.5)
    assert (found["coverage"]["candidate_value"], found["coverage"]["champion_value"]) == (0.75, 0.5)
    assert (found["seconds"]["difference"], found["seconds"]["passed"]) == (1.0, True)  # 1.5 times, as allowed
    assert all(rule["passed"] for rule in found.values())


@pytest.mark.parametrize(
    ("rule", "mine", "margins"),
    [
        ("hr", side(["B"] * 60 + ["A"] * 40), {}),
        ("coverage", side(["A"] * 90 + ["C"] * 10), {"coverage_margin": 0.2}),
        ("cold_hr", side(["A"] * 90 + ["B"] * 10), {"cold_margin": 0.5, "margin": 0.9}),
        ("seconds", side(["A"] * 90 + ["C"] * 10, seconds=1.51), {}),
    ],
)
def test_each_rule_can_fail_alone(rule, mine, margins):
    """Ninety users ask for A and ten for C, which is cold; what is live has it right, and half of the catalogue."""
    theirs = side(["A"] * 88 + ["B", "D"] + ["C"] * 10)
    found = judged(mine, theirs, "A" * 90 + "C" * 10, **{"margin": 0.05, "coverage_margin": 0.6, **margins})
    assert not found[rule]["passed"] and found[rule]["verdict"] in (challenge.WORSE, challenge.FEW)
    others = {name for name, line in found.items() if not line["passed"]} - {rule}
    assert others <= ({"ndcg", "cold_hr"} if rule == "hr" else set())


def test_too_few_rows_do_not_pass_and_more_do():
    same = judged(side(["AB"] * 10), side(["AB"] * 10), "A" * 10)
    assert (same["hr"]["verdict"], same["hr"]["passed"]) == (challenge.FEW, False)
    same = judged(side(["AB"] * 400), side(["AB"] * 400), "A" * 400)
    assert (same["hr"]["verdict"], same["cold_hr"]["verdict"]) == (challenge.PASSED, challenge.NONE)
    worse = judged(side(["B"] * 400), side(["A"] * 400), "A" * 400)
    assert worse["hr"]["verdict"] == challenge.WORSE


def test_against_the_counter_only_hits_are_asked():
    found = judged(side(["AB"] * 5), side(["AB"] * 5, "item_item/direct", snapshot=None), "A" * 5)
    assert list(found) == ["hr", "ndcg"]


# -- the stage and the decisions -----------------------------------------------------------------


@pytest.fixture
def gated(world, tmp_path, monkeypatch):
    """The small world with a gate: `gated(model, …)` gives it for a list, with these margins and decoding."""

    def profile(model: str, decoding: dict | None = None, **margins: float) -> World:
        raw = json.loads(json.dumps(world.profile.raw))
        fields = raw["datasets"]["toys"]
        fields["decoding"] |= decoding or {}
        fields["promotion"] = {"model": model, "margin": 0.9, "slower": 1000, "coverage_margin": 0.9, **margins}
        path = tmp_path / "gated.yaml"
        path.write_text(yaml.safe_dump(raw))
        monkeypatch.setenv("SIDR_PROFILE", str(path))
        return World(world.store, parse_profile("test", raw))

    return profile


def test_only_a_profile_that_asks_has_the_stage(world, gated):
    def names(of):
        return {state.stage for state in states(of.profile, of.store, "toys")}

    assert names(gated("grpo/direct")) - names(world) == {"promotion"}
    with pytest.raises(InputError, match="has no gate"):
        promotion.promote(world.profile, world.store, "toys")
    with pytest.raises(ProfileError, match=r"none of decoding\.models"):
        gated("sasrec/direct")


def test_promoted_rejected_forced_and_back(gated, sidr):
    counter = gated("item_item/direct")
    table = tables.read(counter.run("promotion").artifact.path("promotion.parquet"))
    assert table["champion"].unique().to_list() == ["item_item/direct"] and table["rule"].to_list() == ["hr", "ndcg"]
    assert sidr("live")[1].startswith("live:   nothing")
    code, out, _ = sidr("promote")
    assert code == 0 and "promoted item_item/direct of 2020-02" in out
    first = promotion.live(counter.store, "toys")
    assert first is not None
    published = {stage: fp for stage, fp in first.outputs.items() if fp == counter.store.ref("toys", SNAPSHOT, stage)}
    assert published == dict(first.outputs)
    assert {"recommendations", "evaluation", "sid_codebook", "interactions", "grpo_checkpoint"} <= set(first.outputs)

    assert "live already" in sidr("promote")[2]
    strict = gated("grpo/thinking", margin=0.05)
    assert "out of date" in sidr("promote")[2]
    outcome = strict.run("promotion")
    table = tables.read(outcome.artifact.path("promotion.parquet"))
    assert table["champion_snapshot"].unique().to_list() == [SNAPSHOT]
    assert table["rule"].to_list() == ["hr", "ndcg", "coverage", "cold_hr", "seconds"]
    code, _, err = sidr("promote")
    assert code == 1 and "grpo/thinking of 2020-02" in err and "does not go live" in err and "hr " in err
    assert promotion.live(strict.store, "toys") == first
    code, out, _ = sidr("promote", "--force", "a trial")
    assert code == 0 and "forced grpo/thinking" in out and ": a trial" in out
    state = alias.read(strict.store.root, "toys")
    assert state.live is not None and (state.live.model, state.before) == ("grpo/thinking", first)

    code, out, _ = sidr("rollback", "--reason", "complaints")
    assert code == 0 and "rolled back item_item/direct" in out and promotion.live(strict.store, "toys") == first
    assert "nothing to go back to" in sidr("rollback", "--reason", "more")[2]
    log = [json.loads(line) for line in sidr("live", "--log", "--format", "json")[1].splitlines()]
    assert [entry["decision"] for entry in log] == ["promoted", "rejected", "forced", "rolled back"]
    assert log[1]["rules"][0]["rule"] == "hr" and not log[1]["rules"][0]["passed"]
    assert log[2]["candidate"]["outputs"] == dict(state.live.outputs)
    assert len(sidr("live", "--log")[1].splitlines()) == 4


def test_what_is_live_makes_lists_for_rows_that_it_has_none_for(gated):
    whole = gated("grpo/direct")
    whole.run("promotion")
    promotion.promote(whole.profile, whole.store, "toys", force="the first one")
    part = gated("grpo/direct", decoding={"max_test_rows": 6})
    part.run("recommendations")
    with pytest.raises(InputError, match="not those that were evaluated"):
        part.run("promotion")
    part.run("evaluation")
    outcome = part.run("promotion")
    table = tables.read(outcome.artifact.path("promotion.parquet"))
    assert set(table.filter(pl.col("rule") != "cold_hr")["n_rows"]) == {6}
    # The same checkpoint and settings: the lists that it made now are those that the candidate has.
    assert table.filter(pl.col("rule") != "seconds")["difference"].fill_null(0).abs().max() == 0
    assert [name for name, _ in outcome.artifact.manifest["parts"]] == ["decoded"]
