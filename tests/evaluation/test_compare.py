"""`sidr compare`: hand-computed differences, correction for many comparisons, and what it refuses."""

import csv
import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builders import small_world
from builders.small_world import SNAPSHOT
from sidr_core.errors import InputError, ProfileError
from sidr_core.evaluation.compare import Name, Scored, grids, over_seeds, page, read, recipe, table
from sidr_core.metrics.intervals import draw_means, holm, p_of
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Evaluation
from sidr_core.tables import files as tables

SETTINGS = Evaluation(ks=(10,), bootstrap=999, least_users=2)
ITEMS = frozenset({"A", "B"})


def scored(name: str, hr: list[float], ndcg: list[float], **other) -> Scored:
    """Three rows of two users: u1 has the first two."""
    rows = pl.DataFrame(
        {
            "row_id": ["r1", "r2", "r3"],
            "user_id": ["u1", "u1", "u2"],
            "target_item_id": ["A", "B", "A"],
            "item_hr@10": hr,
            "item_ndcg@10": ndcg,
        }
    )
    known = {"items": ITEMS, "seed": 42, "checkpoint": "0123456789abcdef", "beam_width": 20, "synthetic": False}
    known["seen_until"] = "2018-06-01"
    return Scored(Name.parse(name), rows, **{**known, **other})


FIRST = scored("office/sft/direct", [1.0, 0.0, 0.0], [0.5, 0.0, 0.0])
BETTER = scored("other/sft/direct", [1.0, 1.0, 1.0], [1.0, 0.5, 0.0], seed=7)


# -- p-values and their correction ---------------------------------------------------------------


def test_holm_by_hand():
    # Sorted: 0.01 × 4, then 0.02 × 3, then 0.03 × 2 and 0.2 × 1; never below the one before.
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.4, 0.3]) == pytest.approx([0.6, 0.6])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_value_and_bonferroni_and_keeps_the_order(p):
    corrected = holm(p)
    assert all(raw <= value <= min(1.0, len(p) * raw) + 1e-12 for raw, value in zip(p, corrected, strict=True))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(corrected[a] <= corrected[b] for a, b in pairwise(order))


def test_p_counts_the_draws_on_the_rarer_side():
    gap = np.array([[1.0], [1.0], [-1.0], [0.0]])
    users = ["a", "b", "c", "d"]
    means = draw_means(gap, users, draws=999, seed=3)[:, 0]
    rarer = min((means <= 0).sum(), (means >= 0).sum())
    assert 0 < rarer < 500
    assert p_of(means[:, None])[0] == pytest.approx(2 * (rarer + 1) / 1000)


def test_p_at_its_ends():
    # No draw at or below 0: the least p that 999 draws can give. All draws at 0: certain not to differ.
    assert p_of(np.full((999, 1), 0.5))[0] == pytest.approx(2 / 1000)
    assert p_of(np.zeros((999, 1)))[0] == 1.0


# -- the table -----------------------------------------------------------------------------------


def test_values_and_differences_by_hand():
    found = table([FIRST, BETTER], 10, SETTINGS)
    assert found.select("dataset", "metric", "value").rows() == [
        ("office", "hr", pytest.approx(1 / 3)),
        ("office", "ndcg", pytest.approx(0.5 / 3)),
        ("other", "hr", 1.0),
        ("other", "ndcg", pytest.approx(0.5)),
    ]
    assert found["difference"].to_list() == [None, None, pytest.approx(2 / 3), pytest.approx(1 / 3)]
    hr = found.row(2, named=True)
    # Per user the differences are 1 of 2 rows and 1 of 1: drawing u1 alone gives 1/2, u2 alone 1.
    assert (hr["difference_low"], hr["difference_high"]) == (0.5, 1.0)
    assert (hr["helped"], hr["harmed"], hr["same"]) == (2, 0, 1)
    ndcg = found.row(3, named=True)
    # u2 does not differ, so draws of u2 alone give 0, about a quarter of all: far from sure.
    assert (ndcg["difference_low"], ndcg["difference_high"]) == (0.0, 0.5)
    # No draw is at 0 or below in HR, but two users with one sign prove nothing: 2 / 2 ** 2, and one user 2 / 2.
    assert (hr["p"], hr["p_holm"], ndcg["p"]) == (0.5, 1.0, 1.0)
    assert (hr["verdict"], ndcg["verdict"]) == ("not distinguishable", "too few rows to tell")
    assert (hr["seed"], hr["n_rows"], hr["n_users"]) == (7, 3, 2)


def wide(name: str, hr: np.ndarray) -> Scored:
    """One row for each user."""
    users = [f"u{n:03d}" for n in range(len(hr))]
    rows = pl.DataFrame(
        {"row_id": users, "user_id": users, "target_item_id": "A", "item_hr@10": hr, "item_ndcg@10": hr}
    )
    return replace(FIRST, name=Name.parse(name), rows=rows)


def verdicts(a: np.ndarray, b: np.ndarray, settings: Evaluation = SETTINGS) -> set[str]:
    return set(table([wide("b/sft/direct", b), wide("a/sft/direct", a)], 10, settings)["verdict"].drop_nulls())


def test_every_verdict_is_said_where_it_holds():
    none, few = np.zeros(40), np.zeros(40)
    few[:3] = 1
    assert verdicts(none + 1, none) == {"higher"} and verdicts(none, none + 1) == {"lower"}
    assert verdicts(few, none) == {"too few rows to tell"}
    assert verdicts(few, none, SETTINGS.model_copy(update={"least_users": 50})) == {"too few rows to tell (40 users)"}
    many = np.zeros(3000)
    assert verdicts(many, many) == {"within ±0.005"}
    many[:9] = 1  # 0.003 higher, which is sure, and surely less than 0.02
    assert verdicts(many, many * 0, SETTINGS.model_copy(update={"margin": 0.02})) == {"higher, within ±0.02"}


def test_of_100_pairs_that_do_not_differ_at_most_5_are_said_to():
    """Hits at random of two equally good lists: some users tell them apart, in no direction."""
    generator, claims = np.random.default_rng(7), 0
    for _ in range(100):
        users = int(generator.integers(40, 400))
        a, b = (generator.random((2, users)) < generator.choice([0.02, 0.1, 0.4])).astype(float)
        claims += any(word.startswith(("higher", "lower")) for word in verdicts(a, b))
    assert claims <= 5


def test_more_comparisons_make_a_verdict_harder():
    rng = np.random.default_rng(0)
    gain = (rng.random(40) < 0.2).astype(float) - (rng.random(40) < 0.02)
    base = wide("a/sft/direct", np.zeros(40))
    others = [wide(f"b{n}/sft/direct", gain) for n in range(30)]
    alone = table([base, others[0]], 10, SETTINGS)
    many = table([base, *others], 10, SETTINGS)
    assert 0 < alone["p"][2] < 0.025 and alone["verdict"][2] == "higher"
    assert many["p"][2] == alone["p"][2] and many["p_holm"][2] == pytest.approx(60 * alone["p"][2])
    assert set(many["verdict"].drop_nulls()) == {"too few rows to tell"}


def test_other_rows_users_targets_or_items_are_refused():
    for column, value in (("row_id", "r9"), ("user_id", "u9"), ("target_item_id", "B")):
        rows = FIRST.rows.with_columns(pl.Series(column, [*FIRST.rows[column][:2], value]))
        with pytest.raises(InputError, match="same rows") as refused:
            table([FIRST, replace(BETTER, rows=rows)], 10, SETTINGS)
        assert "2 are the same" in refused.value.found
    with pytest.raises(InputError, match="same rows"):
        table([FIRST, replace(BETTER, rows=BETTER.rows[:2])], 10, SETTINGS)
    with pytest.raises(InputError, match="same catalogue"):
        table([FIRST, replace(BETTER, items=frozenset({"A", "C"}))], 10, SETTINGS)


def test_the_page_says_what_the_numbers_say():
    found = table([FIRST, BETTER], 10, SETTINGS)
    text = page(found, "2018-10", SETTINGS, synthetic=False)
    assert "3 test rows of 2 users, beam width 20" in text
    assert (
        "| office/sft/direct | 0.3333 [0.0000, 0.5000] | 0.1667 [0.0000, 0.2500] | 42 | 2018-06-01 | 0123456789ab |"
        in text
    )
    row = (
        "| other/sft/direct | HR@10 | +0.6667 [+0.5000, +1.0000] | 0.5637 | 2 / 0 / 1 | 1.0000 | not distinguishable |"
    )
    assert row in text and "all 2 differences" in text and "synthetic" not in text
    assert "synthetic sample data" in page(found, "2018-10", SETTINGS, synthetic=True)
    assert [len(grid.rows) for grid in grids(found)] == [2, 2]
    assert "cannot tell" not in page(found, "2018-10", Evaluation(bootstrap=100), synthetic=False)
    few = page(found, "2018-10", Evaluation(bootstrap=100, confidence=0.99), synthetic=False)
    assert '**100 draws cannot tell any of so many from 0: 400 are needed.** "Within' in few


def test_models_of_different_horizons_are_not_compared_without_saying_it():
    found = table([FIRST, replace(BETTER, seen_until="2017-01-01")], 10, SETTINGS)
    words = ["not distinguishable (different horizons)", "too few rows to tell (different horizons)"]
    assert found["verdict"].drop_nulls().to_list() == words
    assert "seen until" in page(found, "2018-10", SETTINGS, False) and "2017-01-01" in found["seen_until"]


def test_runs_that_differ_in_their_seed_alone_are_put_together():
    profile = parse_profile(
        "seeds",
        {
            "datasets": {
                "office": {
                    "source": {"kind": "sample", "category": "office"},
                    "snapshots": {"start": "2018-09", "end": "2018-10"},
                    "sft": {"epochs": 2},
                },
                "other": {"extends": "office", "sft": {"seed": 7}},
                "longer": {"extends": "office", "sft": {"seed": 7, "epochs": 9}},
            }
        },
    )
    recipes = {name: recipe(profile.dataset(name)) for name in profile}
    assert recipes["office"] == recipes["other"] != recipes["longer"]
    third = replace(BETTER, name=Name.parse("longer/sft/direct"))
    found = table([FIRST, BETTER, third], 10, SETTINGS)
    grid = over_seeds([FIRST, BETTER, third], recipes, 10, SETTINGS)
    # HR@10 is 1/3 and 1, NDCG@10 1/6 and 1/2; `longer` is another recipe. Two values a and b spread by |a - b| / √2,
    # and with two seeds t is 12.7: the interval is as wide as can be.
    assert grid.rows == (
        ("office/sft/direct", "HR@10", "42, 7", "0.6667 [0.0000, 1.0000]", "0.4714", "0.3333 to 1.0000"),
        ("office/sft/direct", "NDCG@10", "42, 7", "0.3333 [0.0000, 1.0000]", "0.2357", "0.1667 to 0.5000"),
    )
    assert "## Over seeds" in page(found, "2018-10", SETTINGS, False, grid)
    none = over_seeds([FIRST, third], recipes, 10, SETTINGS)
    assert "## Over seeds" not in page(table([FIRST, third], 10, SETTINGS), "2018-10", SETTINGS, False, none)


def test_the_interval_over_seeds_holds_users_and_seeds():
    """It is missed by the truth as often as it says, where a seed moves every row and users are few."""
    generator, missed, settings = np.random.default_rng(3), 0, Evaluation(ks=(10,), bootstrap=200)
    for _ in range(150):
        moved, tastes = generator.normal(0, 0.05, 3), generator.normal(0.5, 0.2, 60)
        rows = [FIRST.rows.head(1).select("row_id", "target_item_id", "item_ndcg@10")] * 60
        frame = pl.concat(rows).with_columns(user_id=pl.Series([f"u{n}" for n in range(60)]))
        runs = [
            replace(
                FIRST,
                rows=frame.with_columns(pl.Series("item_hr@10", tastes + shift)),
                seed=n,
                name=Name("d", "m", str(n)),
            )
            for n, shift in enumerate(moved)
        ]
        runs = [replace(run, name=FIRST.name) for run in runs]
        cell = over_seeds(runs, {"office": ""}, 10, settings).rows[0][3]
        low, high = (float(end) for end in cell.split("[")[1].rstrip("]").split(", "))
        missed += not low <= 0.5 <= high
    assert missed <= 0.05 * 150 + 2.33 * (0.05 * 0.95 * 150) ** 0.5


def test_several_seeds_are_datasets_that_differ_in_training_alone():
    source = {"source": {"kind": "sample", "category": "games"}, "snapshots": {"start": "2018-09", "end": "2018-10"}}
    source = {**source, "seeds": 3}
    profile = parse_profile("p", {"datasets": {"games": source, "one": {"extends": "games", "seeds": 1}}})
    assert list(profile) == ["games", "one", "games_seed2", "games_seed3"] and profile.default_dataset == "games"
    first, third = profile.dataset("games"), profile.dataset("games_seed3")
    assert (third.sft.seed, third.base_model.seed, third.sasrec.seed) == (44, 44, 44)
    assert recipe(first) == recipe(third)
    for name in ("source", "quantizer", "teacher", "decoding", "evaluation", "encoder", "split", "filters"):
        assert getattr(first, name) == getattr(third, name)
    with pytest.raises(ProfileError, match="two datasets are called 'games_seed2'"):
        parse_profile("p", {"datasets": {"games": source, "games_seed2": {"extends": "games", "seeds": 1}}})


# -- the command on published datasets ------------------------------------------------------------


@pytest.fixture
def twin(world, monkeypatch, tmp_path):
    """The small world with a second dataset, `twins`, whose lists are of the counters only."""
    fields = yaml.safe_load(yaml.safe_dump(small_world.plain(world.profile.raw)))
    fields["datasets"]["twins"] = {"extends": "toys", "decoding": {"models": ["item_item/direct", "popularity/direct"]}}
    path = tmp_path / "twins.yaml"
    path.write_text(yaml.safe_dump(fields))
    monkeypatch.setenv("SIDR_PROFILE", str(path))
    profile = parse_profile("twins", fields)
    for stage in ("interactions", "sid_codebook", "baseline_popularity", "baseline_item_item"):
        world.store.set_ref("twins", SNAPSHOT, stage, world.store.ref("toys", SNAPSHOT, stage))
    quiet = Progress(lambda line: None)
    # No checkpoint of `twins` exists, and none is needed for these models.
    run_stage(profile, "twins", SNAPSHOT, stage_named("recommendations"), world.store, quiet)
    return world


def test_one_name_of_a_dataset_with_seeds_takes_them_all(world, sidr, monkeypatch, tmp_path):
    """The counter has no seed: its lists of the second dataset are the same, and are left out."""
    fields = small_world.plain(world.profile.raw)
    fields["datasets"]["toys"]["seeds"] = 2
    path = tmp_path / "seeds.yaml"
    path.write_text(yaml.safe_dump(fields))
    monkeypatch.setenv("SIDR_PROFILE", str(path))
    for stage in ("interactions", "sid_codebook"):
        world.store.set_ref("toys_seed2", SNAPSHOT, stage, world.store.ref("toys", SNAPSHOT, stage))
    old = world.store.require("toys", SNAPSHOT, "recommendations")

    def build(folder):
        for name in old.files:
            (folder / name).write_bytes(old.path(name).read_bytes())
        trained = pl.col("model") != "item_item"
        other = tables.read(old.path("models.parquet")).with_columns(
            pl.when(trained).then(pl.col("seed") + 1).otherwise("seed").alias("seed"),
            pl.when(trained).then(pl.lit("f" * 64)).otherwise("checkpoint").alias("checkpoint"),
        )
        tables.write_table(other, folder / "models.parquet")

    artifact, _ = world.store.obtain("recommendations", "other seed", {"config": {}, "inputs": {}}, build)
    world.store.set_ref("toys_seed2", SNAPSHOT, "recommendations", artifact.fingerprint)
    code, out, _ = sidr("compare", "toys/sft/direct", "toys/item_item/direct", "-k", "5")
    assert code == 0 and "toys_seed2/item_item" not in out
    over = out.split("## Over seeds")[1]
    assert "| toys/sft/direct | HR@5 | 1, 2 |" in over and "item_item" not in over.split("##")[0]


def test_values_are_those_of_the_evaluation(twin, sidr):
    names = ["toys/sft/direct", "twins/item_item/direct", "toys/item_item/direct"]
    code, out, _ = sidr("compare", *names, "--snapshot", SNAPSHOT, "-k", "5", "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    evaluation = tables.read(twin.store.require("toys", SNAPSHOT, "evaluation").path("evaluation.parquet"))
    for row in rows[:2] + rows[4:]:
        published = evaluation.filter(
            (pl.col("model") == row["model"])
            & (pl.col("mode") == row["mode"])
            & (pl.col("metric") == row["metric"])
            & (pl.col("k") == 5)
            & (pl.col("level") == "item")
        )
        assert float(row["value"]) == pytest.approx(published["value"].item())
        assert float(row["ci_low"]) == pytest.approx(published["ci_low"].item())
        assert (row["seed"], row["checkpoint"]) == (str(published["seed"].item()), published["checkpoint"].item())
    assert [row["value"] for row in rows[2:4]] == [row["value"] for row in rows[4:]]
    assert rows[0]["difference"] == "" and float(rows[2]["difference"]) == pytest.approx(
        float(rows[2]["value"]) - float(rows[0]["value"])
    )


def test_markdown_is_the_default_and_synthetic_data_is_named(twin, sidr):
    code, out, _ = sidr("compare", "toys/popularity/direct", "twins/popularity/direct", "-k", "3")
    assert code == 0
    assert out.startswith("# Comparison (synthetic sample data)")
    assert "| twins/popularity/direct | HR@3 | +0.0000 [-0.4593, +0.4593] | 0.7224 | 0 / 0 / 12 | 1.0000 |" in out


def test_mistakes_are_told(twin, sidr):
    for arguments, text in (
        (["toys/sft/direct"], "nothing to compare"),
        (["toys/sft/direct", "toys/sft/direct"], "nothing to compare"),
        (["toys/sft", "toys/sft/direct"], "does not name a model"),
        (["toy/sft/direct", "toys/sft/direct"], "did you mean 'toys'?"),
        (["toys/sft/direct", "twins/sft/direct", "-k", "5"], "twins/popularity/direct"),
        (["toys/sft/direct", "twins/popularity/direct"], "k up to its beam width, 5"),
        (["toys/sft/direct", "twins/popularity/direct", "-s", "2020-01"], "no published output for snapshot 2020-01"),
    ):
        code, out, err = sidr("compare", *arguments)
        assert (code, out) == (1, "") and text in err and "fix:" in err, arguments


def test_read_scores_against_the_dataset_s_own_codebook(world):
    entry = read(world.store, Name.parse("toys/sft/direct"), SNAPSHOT, 5)
    assert entry.rows.height == len(small_world.USERS) * 2
    assert entry.items == frozenset(small_world.ITEMS)
    assert entry.beam_width == 5 and entry.synthetic
