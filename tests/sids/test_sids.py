"""SID tokens, quality numbers, SIDs that last, and the codebook stage."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.stage import Folder, StageInputs, stage_config
from sidr_core.errors import InputError, ProfileError
from sidr_core.metrics.lists import gini
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Quantizer
from sidr_core.settings.data import Refit
from sidr_core.sids import codebook, quality, warm_start
from sidr_core.sids.projection import unit
from sidr_core.sids.quantize import Codebook, fit
from sidr_core.sids.tokens import SID_PATTERN, SID_TOKEN, format_sid, parse_sid, sid_texts, sid_tokens, used_tokens
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Embeddings, Items, Samples
from sidr_core.tables.vectors import vector_series

QUIET = Progress(lambda line: None)


# -- tokens -------------------------------------------------------------------------------------


def test_sid_text():
    assert sid_tokens([3, 17, 200]) == ["<a_3>", "<b_17>", "<c_200>"]
    assert format_sid([3, 17, 200]) == "<a_3><b_17><c_200>"
    assert parse_sid("<a_3><b_17><c_200>") == [3, 17, 200]


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=26))
def test_parsing_inverts_formatting(codes):
    assert parse_sid(format_sid(codes)) == codes


WRONG = ["", "<b_1>", "<a_1><c_2>", "<b_1><a_2>", "<a_1><a_2>", "<a_01>", "<a_-1>", "<a_1> <b_2>", "<a_1>\n"]


@pytest.mark.parametrize("text", [*WRONG, " <a_1>", "<a_1>x", "<A_1>", "<a_>", "a_1", "<a_١>"])
def test_anything_else_is_no_sid(text):
    with pytest.raises(ValueError):
        parse_sid(text)


@pytest.mark.parametrize("codes", [[], [-1], [0] * 27])
def test_impossible_codes_are_refused(codes):
    with pytest.raises(ValueError):
        format_sid(codes)


def test_patterns_find_sids_in_text():
    text = "ate <a_1><b_2><c_3>, <a_4><b_5>; not <b_6><c_7>"
    assert SID_PATTERN.findall(text) == ["<a_1><b_2><c_3>", "<a_4><b_5>"]
    assert SID_TOKEN.findall("<a_1><b_2> <|im_end|>") == ["<a_1>", "<b_2>"]


def test_used_tokens_go_by_level_then_number():
    frame = pl.DataFrame({"codes": [[10, 0], [2, 11], [2, 3]]})
    assert used_tokens(frame) == ["<a_2>", "<a_10>", "<b_0>", "<b_3>", "<b_11>"]


# -- quality ------------------------------------------------------------------------------------


def blobs(n: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(6, dimension)) * 5
    return (centres[rng.integers(6, size=n)] + rng.normal(size=(n, dimension))).astype(np.float32)


def test_usage_by_hand():
    codes = np.array([[0, 0], [0, 1], [1, 2], [1, 3]])
    found = quality.usage(codes, size=4)
    assert (found["level_a_codes"], found["level_b_codes"]) == (2, 4)
    assert (found["level_a_perplexity"], found["level_b_perplexity"]) == (2.0, 4.0)
    assert (found["level_a_gini"], found["level_b_gini"]) == (0.5, 0.0)
    assert gini(np.array([0, 0, 0, 7])) == 0.75
    uneven = quality.usage(np.array([[0], [0], [0], [1]]), size=2)["level_a_perplexity"]
    assert uneven == round(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), 2)


def test_collisions_and_prefixes_by_hand():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    assert quality.collision_rate(codes) == 0.25
    assert quality.prefix_counts(codes).tolist() == [3, 1]
    assert quality.prefix_counts(codes[:, :1]).tolist() == [4]  # one level: one empty prefix


def test_relative_error_is_one_for_the_mean():
    vectors = blobs(20)
    middle = Codebook(vectors.mean(axis=0)[None, None])  # one level of one code
    errors = quality.squared_errors(middle, vectors, np.zeros((20, 1), dtype=np.int64))
    assert errors.shape == (20,) and quality.relative_error(vectors, errors) == pytest.approx(1)
    assert quality.relative_error(vectors, np.zeros(20)) == 0
    pair = np.array([[0.0, 0.0], [2.0, 0.0]], dtype=np.float32)  # spread 1 + 1; errors 1 + 1 of the origin
    origin = Codebook(np.array([[[0, 0], [1, 0]]], dtype=np.float32))
    assert quality.relative_error(pair, quality.squared_errors(origin, pair, np.array([[0], [1]]))) == 0.5


def test_agreement_by_hand():
    # groups of 3 and 2 items: 4 pairs; of the labels x x y | y y, the pairs xx and yy agree: 2 of 4.
    # Of all 10 pairs, xx 1 and yy 3 agree.
    found = quality.agreement(np.array([0, 0, 0, 7, 7]), pl.Series(["x", "x", "y", "y", "y"]))
    assert found == quality.Agreement(pairs=4, same=0.5, chance=0.4)
    assert found is not None and found.lift == 1.25
    # an item without a label counts nowhere: pairs xx and yy are left, both agree; of all 6 pairs 2 do
    mixed = quality.agreement(np.array([0, 0, 0, 7, 7]), pl.Series(["x", "", "x", "y", "y"]))
    assert mixed == quality.Agreement(pairs=2, same=1.0, chance=1 / 3)


@pytest.mark.parametrize(
    ("groups", "labels"), [([0, 1, 2], ["x", "x", "y"]), ([0, 0], ["x", "y"]), ([0, 0], ["", None]), ([], [])]
)
def test_agreement_says_nothing_without_pairs(groups, labels):
    assert quality.agreement(np.array(groups, dtype=np.int64), pl.Series(labels, dtype=pl.String)) is None


def test_agreement_of_unrelated_labels_is_chance():
    rng = np.random.default_rng(0)
    found = quality.agreement(rng.integers(10, size=5000), pl.Series(rng.choice(["x", "y", "z"], size=5000)))
    assert found is not None and found.lift == pytest.approx(1, abs=0.01)


def test_nearest_items_leave_the_item_itself_out():
    vectors = np.array([[0.0], [0.0], [1.0], [5.0], [5.5]], dtype=np.float32)
    rows = np.array([0, 1, 2, 4])
    assert quality.nearest_items(vectors, rows, 1).tolist() == [[1], [0], [0], [3]]
    assert quality.nearest_items(vectors, rows, 9).shape == (4, 4)
    codes = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [2, 0, 0], [2, 1, 0]])
    # nearest of 0 … 4: 1, 0, 0, 4, 3; of these 0, 1, 3, 4 share the first code, 0 and 1 the second
    assert quality.nearest_shares(codes, vectors) == {"nearest_shares_a": 0.8, "nearest_shares_ab": 0.4}


def test_even_codes_are_no_collapse():
    rng = np.random.default_rng(0)
    assert quality.collapse(rng.integers(64, size=(3000, 3)), 64) == []
    assert quality.collapse(rng.integers(2, size=(8, 3)), 2) == []
    assert quality.collapse(np.arange(40)[:, None], 40) == []


def test_collapses_are_named():
    rng = np.random.default_rng(0)
    even = rng.integers(64, size=(3000, 3))
    one = even.copy()
    one[:, 1] = 5
    assert quality.collapse(one, 64) == [
        "level b has a perplexity of 1.0, below 3.2",
        "100% of the items have code <b_5>, above 50%",
    ]
    most = even.copy()
    most[:1800, 2] = 9  # three fifths and a bit
    assert len(found := quality.collapse(most, 64)) == 1 and "<c_9>, above 50%" in found[0]
    crowded = even.copy()
    crowded[:900, :2] = 3  # no level is dominated, one prefix is
    assert quality.collapse(crowded, 64) == ["one prefix holds 900 of 3000 items"]


def test_few_codes_out_of_many_are_a_collapse():
    codes = np.stack([np.arange(3000) % 10, np.arange(3000) // 10 % 256], axis=1)
    assert quality.collapse(codes, 256) == ["level a has a perplexity of 10.0, below 12.8"]


# -- warm start ---------------------------------------------------------------------------------

LINE = Codebook(np.array([[[0.0], [100.0]], [[0.0], [1.0]]], dtype=np.float32))


def known(rows: list[tuple[str, str, list[int]]], retired: list[tuple[str, str, list[int]]] | None = None):
    """The snapshot before: (item, digest, codes) of its table and of its retired SIDs."""

    def frame(given, last):
        codes = pl.Series([row[2] for row in given], dtype=pl.List(pl.Int32))
        table = {"item_id": [r[0] for r in given], "sid": [format_sid(r[2]) for r in given], "codes": codes}
        table = pl.DataFrame({**table, "text_digest": [r[1] for r in given]})
        table = table.cast({"item_id": pl.String, "sid": pl.String, "text_digest": pl.String})
        return table.with_columns(pl.lit("2020-01").alias("last_snapshot")) if last else table

    return warm_start.Previous("2020-02", frame(rows, False), frame(retired or [], True), {}, None, None)  # type: ignore[arg-type]


def place(old: warm_start.Previous, items: dict[str, tuple[str, float]], policy: str = "reassign") -> Any:
    """Codes and state by item, and how many moved, after items (digest, place on the line) were placed."""
    frame = pl.DataFrame({"item_id": list(items), "text_digest": [digest for digest, _ in items.values()]})
    found = warm_start.compare(frame, old)
    vectors = np.array([[x] for _, x in items.values()], dtype=np.float32)
    placed = warm_start.place(LINE, vectors, found, old, policy)  # type: ignore[arg-type]
    states = dict(zip(items, found["state"], strict=True))
    return placed and (dict(zip(items, placed.codes.tolist(), strict=True)), states, placed.moved)


def test_what_became_of_each_item():
    old = known([("a", "1", [0, 0]), ("b", "1", [0, 1]), ("z", "1", [1, 1])], [("c", "1", [1, 0]), ("b", "0", [0, 2])])
    items = {"a": ("1", 0.0), "b": ("2", 0.0), "c": ("1", 0.0), "d": ("1", 0.0)}
    frame = pl.DataFrame({"item_id": list(items), "text_digest": [digest for digest, _ in items.values()]})
    found = warm_start.compare(frame, old)
    assert found["state"].to_list() == ["unchanged", "changed", "returned", "new"]
    assert found["codes"].to_list() == [[0, 0], [0, 1], [1, 0], None]
    counts = warm_start.churn(found, np.array([[0, 1], [0, 1], [1, 0], [1, 1]]), old)
    assert counts == {
        "unchanged_items": 1,
        "churned_items": 1,
        "new_items": 1,
        "changed_items": 1,
        "returned_items": 1,
        "gone_items": 1,
    }
    reverted = warm_start.compare(pl.DataFrame({"item_id": ["b"], "text_digest": ["0"]}), old)
    assert reverted.rows() == [("b", "0", "returned", [0, 2])]


def test_a_retired_sid_is_given_to_no_other_item():
    # b left <a_0><b_1>, which would be the nearest of the new item c
    old = known([("a", "1", [0, 0]), ("b", "1", [0, 1])])
    codes, _, moved = place(old, {"a": ("1", 0.0), "c": ("1", 1.0)})
    assert codes["a"] == [0, 0] and codes["c"][0] == 1 and moved == 1
    earlier = known([("a", "1", [0, 0])], [("b", "1", [0, 1])])
    assert place(earlier, {"a": ("1", 0.0), "c": ("1", 1.0)}) == (codes, {"a": "unchanged", "c": "new"}, 1)


def test_a_returning_item_gets_its_sid_back_wherever_it_lies():
    old = known([("a", "1", [0, 0])], [("b", "1", [1, 1])])
    codes, states, moved = place(old, {"a": ("1", 0.0), "b": ("1", 1.0), "c": ("1", 101.0)})
    assert codes["b"] == [1, 1] and states["b"] == "returned"
    assert codes["c"] == [1, 0] and moved == 1


def test_a_changed_item_keeps_its_sid_only_while_it_is_the_best_it_can_have():
    old = known([("a", "1", [0, 0]), ("b", "1", [0, 1]), ("c", "1", [1, 0])])
    assert place(old, {"a": ("1", 0.0), "b": ("2", 0.9)})[0]["b"] == [0, 1]  # nearest is its own
    codes, _, moved = place(old, {"a": ("1", 0.0), "b": ("2", 0.2)})  # nearest is that of a
    assert codes["b"] == [0, 1] and moved == 1
    codes, _, moved = place(old, {"a": ("1", 0.0), "b": ("2", 101.0)})  # now elsewhere
    assert codes["b"] == [1, 1] and moved == 0
    assert place(old, {"a": ("1", 0.0), "b": ("1", 1.0), "c": ("2", 101.0)})[0]["c"] == [1, 1]  # a free one is nearer


def test_free_sids_that_do_not_suffice_are_noticed():
    old = known([("a", "1", [0, 0]), ("b", "1", [0, 1])], [("c", "1", [1, 1])])
    assert place(old, {"a": ("1", 0.0), "d": ("1", 0.0)})[0]["d"] == [1, 0]
    assert place(old, {"a": ("1", 0.0), "d": ("1", 0.0), "e": ("1", 0.0)}) is None


def test_sets_may_be_joined_even_when_their_items_left():
    old = known([("a", "1", [0, 0]), ("b", "1", [0, 1])])
    codes, _, moved = place(old, {"a": ("1", 0.0), "c": ("1", 1.0), "d": ("1", 0.0)}, "share")
    assert codes == {"a": [0, 0], "c": [0, 1], "d": [0, 0]} and moved == 0


def test_suffixes_of_retired_items_stay_retired():
    old = known([("a", "1", [0, 0, 0]), ("b", "1", [0, 0, 1])])
    codes, _, moved = place(old, {"a": ("1", 0.0), "c": ("1", 0.0), "d": ("1", 0.1)}, "suffix")
    assert codes["a"] == [0, 0, 0] and moved == 0
    assert sorted([codes["c"], codes["d"]]) == [[0, 0, 2], [0, 0, 3]]


def test_retired_rows_are_those_whose_item_or_text_is_gone():
    old = known([("a", "1", [0, 0]), ("b", "1", [0, 1]), ("c", "1", [1, 0])], [("d", "1", [1, 1]), ("e", "1", [0, 2])])
    now = pl.DataFrame({"item_id": ["a", "b", "d"], "text_digest": ["1", "2", "1"]})
    assert warm_start.retire(old, now).select("item_id", "sid", "last_snapshot").rows() == [
        ("b", "<a_0><b_1>", "2020-02"),
        ("c", "<a_1><b_0>", "2020-02"),
        ("e", "<a_0><b_2>", "2020-01"),
    ]


def test_ageing_by_hand():
    record = warm_start.Fit("2020-01", items=100, error=0.5)
    crowded = warm_start.Fit("2020-01", 100, 0.5, taken=0.5).with_placed(np.ones(4), 3)
    assert crowded.ratios(100)["moved_share"] == 0.5  # of the half that was free at the fit, one half was taken
    assert warm_start.Fit("2020-01", 100, 0.5, taken=1.0).with_placed(np.ones(4), 4).ratios(100)["moved_share"] == 0
    assert record.ratios(100) == {"error_ratio": 1.0, "moved_share": 0.0, "growth": 1.0}
    older = record.with_placed(np.array([0.5, 1.5]), 1).with_placed(np.array([1.0, 1.0]), 0)
    assert older.ratios(104) == {"error_ratio": 2.0, "moved_share": 0.25, "growth": 1.04}
    assert older.aged(104, Refit(error_ratio=2.0, moved_share=0.25, growth=1.04, least_new=1)) is None
    assert "2.00 times the error" in str(older.aged(104, Refit(error_ratio=1.9, least_new=4)))
    assert older.aged(104, Refit(error_ratio=1.9, least_new=5)) is None
    assert "1 of 4 items placed since the fit found their SID taken" in str(
        older.aged(104, Refit(error_ratio=9, moved_share=0.2, least_new=4))
    )
    assert "1.04 times what it was" in str(older.aged(104, Refit(growth=1.03, least_new=1000)))
    exact = warm_start.Fit("2020-01", items=10, error=0.0).with_placed(np.zeros(2), 0)
    assert exact.ratios(12)["error_ratio"] == 1.0


# -- stage --------------------------------------------------------------------------------------


def world(
    folder: Path, vectors: dict[str, np.ndarray], digests: dict[str, str] | None = None, sids=None, train=()
) -> StageInputs:
    """The inputs of the stage: one item per vector; `train` holds (history, target)."""
    folder.mkdir()
    names = sorted(vectors)
    items = pl.DataFrame(
        {
            "item_id": names,
            "title": [f"title of {n}" for n in names],
            "description": "",
            "brand": ["one" if n < "i050" else "two" for n in names],
            "category": "",
            "published_sid": pl.Series([(sids or {}).get(n) for n in names], dtype=pl.String),
            "synthetic": False,
        }
    )
    tables.write(items, folder / "items.parquet", Items)
    table = {
        "item_id": names,
        "text_digest": [(digests or {}).get(n, f"digest {n}") for n in names],
        "vector": vector_series(np.stack([vectors[n] for n in names])),
    }
    tables.write(pl.DataFrame(table), folder / "item_embeddings.parquet", Embeddings)
    if train:
        rows = [(f"u{n}", "u", n + 1, history, target, None) for n, (history, target) in enumerate(train)]
        names = ["row_id", "user_id", "position", "history_item_ids", "target_item_id", "target_timestamp"]
        types = {"position": pl.Int32, "target_timestamp": pl.Int64}
        frame = pl.DataFrame(rows, schema=names, schema_overrides=types, orient="row")
        tables.write(frame, folder / "train.parquet", Samples)
    return StageInputs(interactions=Folder(folder), item_embeddings=Folder(folder))


def make(
    given: StageInputs, out: Path, previous: Path | None = None, snapshot: str = "2020-01", **quantizer: Any
) -> tuple[Any, dict[str, str]]:
    """Run the stage; its report, and SID by item."""
    out.mkdir()
    given.previous = Folder(previous) if previous else None
    config = stage_config(snapshot=snapshot, quantizer=quantizer)
    report = codebook.build(given, config, out, QUIET)  # type: ignore[arg-type]
    table = tables.read(out / codebook.TABLE)
    return report, dict(zip(table["item_id"], table["sid"], strict=True))


@pytest.fixture
def plots():
    """Wanted by the tests that look at the picture; it takes most of a small stage's time."""


@pytest.fixture(autouse=True)
def _no_plots(request, monkeypatch):
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(quality, "plot", lambda codes, size, path: None)


def named(vectors: np.ndarray) -> dict[str, np.ndarray]:
    return {f"i{n:03d}": v for n, v in enumerate(vectors)}


def passed(report) -> dict[str, bool]:
    return {check.name: check.passed for check in report.checks}


def test_cold_build_is_unique_reported_and_repeatable(tmp_path, plots):
    given = world(tmp_path / "w", named(np.repeat(blobs(60), 2, axis=0)))  # every vector twice
    report, sids = make(given, tmp_path / "1", size=8)
    make(given, tmp_path / "2", size=8)
    assert len(set(sids.values())) == 120
    assert passed(report) == {"no_collisions": True, "no_collapse": True, "sids_last": True}
    assert report.metrics["started"] == "cold" and report.metrics["fit_items"] == 120
    assert report.metrics["collision_rate"] == 0 < report.metrics["collision_rate_before"]
    assert report.metrics["brand_lift_a"] and "category_lift_a" not in report.metrics
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    files = ["codebook.safetensors", "codes.png", "quality.json", "retired.parquet", "sid_codebook.parquet"]
    assert names == files
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    table = tables.read(tmp_path / "1" / codebook.TABLE)
    assert [format_sid(c) for c in table["codes"].to_list()] == table["sid"].to_list()
    assert tables.read(tmp_path / "1" / "retired.parquet").is_empty()
    about = json.loads((tmp_path / "1" / "quality.json").read_text())
    assert about["metrics"]["items"] == 120 and about["snapshot"] == about["fit"]["snapshot"] == "2020-01"


def test_vectors_in_another_order_than_the_items(tmp_path):
    vectors = named(blobs(40))
    _, sids = make(world(tmp_path / "w", vectors), tmp_path / "1", size=8)
    path = tmp_path / "w" / "item_embeddings.parquet"
    tables.write(tables.read(path).reverse(), path, Embeddings)
    given = StageInputs(interactions=Folder(tmp_path / "w"), item_embeddings=Folder(tmp_path / "w"))
    assert make(given, tmp_path / "2", size=8)[1] == sids


def test_sid_texts_are_those_of_each_row():
    codes = np.array([[0, 17, 255], [3, 0, 10]])
    assert sid_texts(codes.T).to_list() == [format_sid(row) for row in codes.tolist()]


def test_what_is_expected_is_what_unseen_items_meet():
    """200 points of noise and 100 codes: fitted items lie on their codes, others do not."""
    vectors, others = np.random.default_rng(0).normal(size=(2, 200, 16)).astype(np.float32)
    quantizer = Quantizer(levels=1, size=100, collisions="share")
    book = fit(vectors, quantizer)
    catalogue = codebook._Catalogue(pl.DataFrame({"n": range(200)}), vectors, None, None)
    codes = book.encode(vectors)
    expected, taken = codebook._unseen(catalogue, quantizer, book, None, codes, codes, QUIET)
    fitted, unseen = (quality.squared_errors(book, v, book.encode(v)).mean() for v in (vectors, others))
    assert unseen / fitted > 2 and expected == pytest.approx(unseen, rel=0.15) and taken == 0
    # with 200 codes for 200 points, 9 of 10 SIDs are taken when the last tenth comes
    full = quantizer.model_copy(update={"size": 200, "collisions": "reassign"})
    book = fit(vectors, full)
    codes = book.encode(vectors)
    assert codebook._unseen(catalogue, full, book, None, codes, codes, QUIET)[1] > 0.6


def test_shared_sids_only_where_the_profile_allows_it(tmp_path):
    given = world(tmp_path / "w", named(np.repeat(blobs(60), 2, axis=0)))
    report, sids = make(given, tmp_path / "1", size=8, collisions="share")
    assert len(set(sids.values())) <= 60
    assert passed(report)["no_collisions"]


def test_fused_codes_read_train_rows_and_text_codes_do_not(tmp_path):
    """Two kinds of text, and baskets across them: items 0–29 go together in fives, whatever their text."""
    vectors = blobs(60)
    train = [([f"i{5 * (n // 5) + (n + 1) % 5:03d}"], f"i{n:03d}") for n in range(30) for _ in range(4)]
    given = world(tmp_path / "w", named(vectors), train=train)
    fused: Any = {"size": 8, "vectors": "fused", "fused_size": 6, "fused_weight": 0.9}
    report, sids = make(given, tmp_path / "1", **fused)
    baskets = pl.Series([str(n // 5) for n in range(30)] + [""] * 30)

    def lift(found: dict[str, str]) -> float:
        seen = quality.agreement(np.array([parse_sid(sid)[0] for _, sid in sorted(found.items())]), baskets)
        return seen.lift if seen else 0.0

    text = make(given, tmp_path / "0", size=8)[1]
    assert lift(sids) > 3 > 1.5 > lift(text) and passed(report)["no_collisions"]
    more = world(tmp_path / "w2", named(vectors) | {"j": blobs(1, seed=9)[0]}, train=train[:40])
    report, later = make(more, tmp_path / "2", tmp_path / "1", "2020-02", **fused)
    assert {n: later[n] for n in sids} == sids and report.metrics["new_items"] == 1
    (tmp_path / "w" / "train.parquet").unlink()
    assert make(given, tmp_path / "3", size=8)[0].metrics["started"] == "cold"


def test_suffixes_number_the_items_of_one_sid(tmp_path):
    given = world(tmp_path / "w", named(np.repeat(blobs(60), 2, axis=0)))
    report, sids = make(given, tmp_path / "1", size=8, collisions="suffix")
    assert len(set(sids.values())) == 120 and {len(parse_sid(sid)) for sid in sids.values()} == {4}
    suffixes: dict[tuple, list[int]] = {}
    for sid in sids.values():
        *codes, last = parse_sid(sid)
        suffixes.setdefault(tuple(codes), []).append(last)
    assert all(sorted(found) == list(range(len(found))) for found in suffixes.values())
    assert report.metrics["largest_suffix"] == max(map(len, suffixes.values())) - 1 > 0
    assert "level_c_codes" in report.metrics and "level_d_codes" not in report.metrics


def test_warm_start_keeps_unchanged_items_and_places_new_ones(tmp_path):
    vectors = named(blobs(120))
    _, old = make(world(tmp_path / "w1", vectors), tmp_path / "1", size=8)
    new = {n: v for n, v in vectors.items() if n != "i005"} | {"j1": vectors["i007"], "j2": blobs(1, seed=9)[0]}
    changed = {"i009": "another digest"}
    later = world(tmp_path / "w2", new | {"i009": -vectors["i009"]}, changed)
    report, sids = make(later, tmp_path / "2", tmp_path / "1", "2020-02", size=8)
    kept = set(new) - {"j1", "j2", "i009"}
    assert {n: sids[n] for n in kept} == {n: old[n] for n in kept}
    assert len(set(sids.values())) == len(new)
    assert sids["j1"] != sids["i007"] and parse_sid(sids["j1"])[0] == parse_sid(old["i007"])[0]
    metrics = report.metrics
    assert str(metrics["started"]).startswith("warm: 118 of 121") and metrics["fit_snapshot"] == "2020-01"
    counts = [metrics[f"{name}_items"] for name in ("unchanged", "churned", "new", "changed", "returned", "gone")]
    assert counts == [118, 0, 2, 1, 0, 1] and metrics["placed_since_fit"] == 3
    assert (metrics["refit_growth"], metrics["refit_growth_limit"]) == (round(121 / 120, 4), 4.0)
    assert passed(report)["sids_last"]
    assert (tmp_path / "1" / codebook.CENTROIDS).read_bytes() == (tmp_path / "2" / codebook.CENTROIDS).read_bytes()
    retired = tables.read(tmp_path / "2" / "retired.parquet")
    assert dict(retired.select("item_id", "sid").iter_rows()) == {"i005": old["i005"], "i009": old["i009"]}


@pytest.mark.parametrize(
    ("digest", "size", "reason"), [("same", 4, "other quantizer settings"), ("other", 8, "no item is as it was")]
)
def test_cold_where_the_old_codebook_does_not_fit(tmp_path, digest, size, reason):
    vectors = named(blobs(60))
    make(world(tmp_path / "w1", vectors), tmp_path / "1", size=8)
    digests = {n: f"new {n}" for n in vectors} if digest == "other" else {}
    report, _ = make(world(tmp_path / "w2", vectors, digests), tmp_path / "2", tmp_path / "1", size=size)
    assert reason in str(report.metrics["started"])


def test_other_limits_of_the_refit_cost_no_sids(tmp_path):
    vectors = named(blobs(60))
    make(world(tmp_path / "w1", vectors), tmp_path / "1", size=8)
    given = world(tmp_path / "w2", vectors)
    report, _ = make(given, tmp_path / "2", tmp_path / "1", size=8, refit=Refit(growth=2))
    assert report.metrics["started"] == "warm: 60 of 60 items keep their SIDs"


def test_refit_when_the_catalogue_has_outgrown_its_codes(tmp_path):
    vectors = named(blobs(120))
    few = {n: vectors[n] for n in list(vectors)[:20]}  # 10 codes per level
    make(world(tmp_path / "w1", few), tmp_path / "1", size=64)
    report, _ = make(world(tmp_path / "w2", vectors), tmp_path / "2", tmp_path / "1", "2020-02", size=64)
    assert "refit: the catalogue is 6.00 times" in str(report.metrics["started"])
    assert report.metrics["codes_per_level"] == 60 and report.metrics["churned_items"] > 0
    assert (report.metrics["fit_snapshot"], report.metrics["fit_items"]) == ("2020-02", 120)
    assert report.metrics["placed_since_fit"] == 0 and report.metrics["refit_growth"] == 6
    assert passed(report)["sids_last"]  # a refit may change them, and says so


def test_refit_when_new_items_are_of_another_kind(tmp_path):
    """Two snapshots of strangers: the first ones are too few to prove anything."""
    vectors = named(blobs(120))
    strangers = {f"j{n:03d}": 30 + v for n, v in enumerate(blobs(60, seed=5))}
    some = dict(list(strangers.items())[:20])
    limits: Any = {"size": 8, "refit": Refit(least_new=30)}
    make(world(tmp_path / "w1", vectors), tmp_path / "1", **limits)
    second, _ = make(world(tmp_path / "w2", vectors | some), tmp_path / "2", tmp_path / "1", "2020-02", **limits)
    assert str(second.metrics["started"]).startswith("warm") and second.metrics["refit_error_ratio"] > 1.5
    given = world(tmp_path / "w3", vectors | strangers)
    third, _ = make(given, tmp_path / "3", tmp_path / "2", "2020-03", **limits)
    assert "times the error expected then" in str(third.metrics["started"])
    assert third.metrics["refit_error_ratio"] > third.metrics["refit_error_ratio_limit"] == 1.5
    fourth, _ = make(given, tmp_path / "4", tmp_path / "3", "2020-04", **limits)
    assert fourth.metrics["started"] == "warm: 180 of 180 items keep their SIDs"
    assert fourth.metrics["fit_snapshot"] == "2020-03" and fourth.metrics["refit_error_ratio"] == 1


@pytest.mark.parametrize(("start", "kept"), [("anew", False), ("previous", True)])
def test_a_refit_from_the_old_centroids_keeps_what_codes_mean(tmp_path, start, kept):
    vectors = named(blobs(120))
    strangers = {f"j{n:03d}": 30 + v for n, v in enumerate(blobs(60, seed=5))}
    limits: Any = {"size": 16, "refit": Refit(least_new=30, start=start)}
    _, before = make(world(tmp_path / "w1", vectors), tmp_path / "1", **limits)
    given = world(tmp_path / "w2", vectors | strangers)
    report, after = make(given, tmp_path / "2", tmp_path / "1", "2020-02", **limits)
    assert str(report.metrics["started"]).startswith("refit: items placed since the fit have")
    assert ("from the old centroids" in str(report.metrics["started"])) is kept
    same = sum(after[item].split(">")[0] == before[item].split(">")[0] for item in before) / len(before)
    assert (same > 0.6) is kept
    assert len(set(after.values())) == 180 and passed(report)["no_collisions"]
    again, _ = make(given, tmp_path / "3", tmp_path / "2", "2020-03", **limits)
    assert again.metrics["started"] == "warm: 180 of 180 items keep their SIDs"


def test_a_refit_that_gets_more_codes_starts_anew(tmp_path):
    vectors = named(blobs(120))
    few = {n: vectors[n] for n in list(vectors)[:20]}  # 10 codes per level
    limits: Any = {"size": 64, "refit": Refit(start="previous")}
    make(world(tmp_path / "w1", few), tmp_path / "1", **limits)
    report, _ = make(world(tmp_path / "w2", vectors), tmp_path / "2", tmp_path / "1", "2020-02", **limits)
    assert str(report.metrics["started"]).endswith("anew, as the number of codes changes")
    assert report.metrics["codes_per_level"] == 60


def test_other_quantizers_cannot_start_from_old_centroids():
    with pytest.raises(ValueError, match="needs kind residual_kmeans, found rqvae"):
        Quantizer(kind="rqvae", refit=Refit(start="previous"))


def test_like_items_are_no_reason_to_refit(tmp_path):
    """The books of few items fit these far too well; unseen ones of the same kind must not look odd."""
    noise = np.random.default_rng(0).normal(size=(420, 16)).astype(np.float32)
    limits: Any = {"size": 64, "refit": Refit(least_new=30)}
    make(world(tmp_path / "w1", named(noise[:300])), tmp_path / "1", **limits)
    report, _ = make(world(tmp_path / "w2", named(noise)), tmp_path / "2", tmp_path / "1", "2020-02", **limits)
    assert str(report.metrics["started"]).startswith("warm")
    assert report.metrics["refit_error_ratio"] == pytest.approx(1, abs=0.25)


def test_refit_when_the_old_codes_are_full(tmp_path):
    vectors = named(blobs(60))
    copies = {f"j{n:03d}": v for n, v in enumerate(vectors.values())}  # the SIDs of all are taken
    limits: Any = {"size": 8, "refit": Refit(least_new=30)}
    make(world(tmp_path / "w1", vectors), tmp_path / "1", **limits)
    given = world(tmp_path / "w2", vectors | copies)
    report, _ = make(given, tmp_path / "2", tmp_path / "1", "2020-02", **limits)
    assert "found their SID taken" in str(report.metrics["started"]) and report.metrics["refit_moved_share"] > 0.5
    suffixed = limits | {"collisions": "suffix"}
    make(world(tmp_path / "w3", vectors), tmp_path / "3", **suffixed)
    report, _ = make(given, tmp_path / "4", tmp_path / "3", "2020-02", **suffixed)
    assert str(report.metrics["started"]).startswith("warm") and report.metrics["refit_moved_share"] == 0


def test_refit_when_retired_sids_leave_no_room(tmp_path):
    """Seven of eight SIDs are used; three leave, their SIDs stay theirs, three others come."""
    vectors = named(blobs(10))
    first = {n: vectors[n] for n in list(vectors)[:7]}
    second = {n: vectors[n] for n in list(vectors)[3:10]}
    make(world(tmp_path / "w1", first), tmp_path / "1", size=2)
    report, _ = make(world(tmp_path / "w2", second), tmp_path / "2", tmp_path / "1", "2020-02", size=2)
    assert report.metrics["started"] == "refit: too few of 2 ** 3 SIDs have never been given"
    assert tables.read(tmp_path / "2" / "retired.parquet").is_empty()


POOL = [f"i{n:02d}" for n in range(24)]
CATALOGUES = st.dictionaries(st.sampled_from(POOL), st.integers(0, 2), min_size=3)


@settings(max_examples=30, deadline=None)
@given(
    chain=st.lists(CATALOGUES, min_size=3, max_size=5),
    policy=st.sampled_from(["reassign", "suffix"]),
    limits=st.sampled_from([Refit(), Refit(least_new=1), Refit(growth=100.0)]),
)
def test_a_sid_means_one_item_until_a_refit(tmp_path_factory, chain, policy, limits):
    """Items of a pool come, go, return and change their text at random."""
    pool = np.random.default_rng(0).integers(-3, 4, size=(24, 3, 2)).astype(np.float32)  # many equal vectors
    home = tmp_path_factory.mktemp("chain")
    owner: dict[str, str] = {}
    had: dict[tuple[str, int], str] = {}
    before: dict[str, int] = {}
    for number, catalogue in enumerate(chain):
        vectors = {n: pool[POOL.index(n), version] for n, version in catalogue.items()}
        given = world(home / f"w{number}", vectors, {n: f"{n} {v}" for n, v in catalogue.items()})
        previous = home / str(number - 1) if number else None
        report, sids = make(
            given, home / str(number), previous, f"2020-0{number + 1}", size=8, collisions=policy, refit=limits
        )
        assert len(set(sids.values())) == len(catalogue)
        if not str(report.metrics["started"]).startswith("warm"):
            owner, had = {}, {}
        for item, sid in sids.items():
            assert owner.setdefault(sid, item) == item
            assert had.setdefault((item, catalogue[item]), sid) == sid
        if previous:
            kept = sum(before.get(n) == version for n, version in catalogue.items())
            assert report.metrics["unchanged_items"] == kept
            assert report.metrics["gone_items"] == len(before.keys() - catalogue.keys())
            states = ("unchanged", "changed", "returned", "new")
            assert sum(int(report.metrics[f"{state}_items"]) for state in states) == len(catalogue)
            if str(report.metrics["started"]).startswith("warm"):
                assert report.metrics["churned_items"] == 0
        before = catalogue


def test_published_sids_are_taken_as_they_are(tmp_path):
    sids = {"i000": "<a_1><b_2>", "i001": "<a_1><b_2>", "i002": "<a_300><b_0>", "i003": "<a_4><b_4>"}
    given = world(tmp_path / "w", named(blobs(4)), sids=sids)
    report, found = make(given, tmp_path / "1", kind="published")
    assert found == sids
    check = next(c for c in report.checks if c.name == "no_collisions")
    assert check.passed and "1 SIDs are shared" in check.detail
    assert report.metrics["distinct_sids"] == 3 and report.metrics["codes_per_level"] == 301
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == ["quality.json", "sid_codebook.parquet"]
    moved = {**sids, "i003": "<a_4><b_5>"}
    again = world(tmp_path / "w2", named(blobs(4)), sids=moved)
    report, found = make(again, tmp_path / "2", tmp_path / "1", "2020-02", kind="published")
    assert found == moved and (report.metrics["unchanged_items"], report.metrics["churned_items"]) == (4, 1)
    report, _ = make(again, tmp_path / "3", tmp_path / "2", "2020-03", size=8)
    assert "cold: other quantizer settings" in str(report.metrics["started"])


@pytest.mark.parametrize("bad", [None, "", "<b_1><a_2>", "<a_1>", "<a_1><b_2> "])
def test_a_bad_published_sid_is_named(tmp_path, bad):
    sids = {"i000": "<a_1><b_2>", "i001": bad}
    with pytest.raises(InputError, match="i001"):
        make(world(tmp_path / "w", named(blobs(2)), sids=sids), tmp_path / "1", kind="published")


def test_too_many_items_say_what_to_raise(tmp_path):
    with pytest.raises(ProfileError, match=r"2 \*\* 3"):
        make(world(tmp_path / "w", named(blobs(9))), tmp_path / "1", size=2)


@pytest.mark.parametrize("kind", ["residual_kmeans", "balanced_kmeans"])
def test_equal_vectors_are_a_collapse(tmp_path, kind):
    """Collisions are resolved all the same, and must not hide it."""
    given = world(tmp_path / "w", named(np.ones((60, 8), dtype=np.float32)))
    report, sids = make(given, tmp_path / "1", size=8, kind=kind)
    assert len(set(sids.values())) == 60
    assert passed(report) == {"no_collisions": True, "no_collapse": False, "sids_last": True}


def test_a_dominating_cluster_is_a_collapse(tmp_path):
    """Two thirds of the items have the same text, such as a placeholder."""
    vectors = np.concatenate([blobs(40), np.zeros((80, 8), dtype=np.float32)])
    report, _ = make(world(tmp_path / "w", named(vectors)), tmp_path / "1", size=8)
    check = next(c for c in report.checks if c.name == "no_collapse")
    assert not check.passed and "of the items have code <a_" in check.detail


def families(items: int, seed: int) -> np.ndarray:
    """Unit vectors: three quarters of the items belong to four families of similar texts, the others to none."""
    draw = np.random.default_rng(seed)
    centres, family = draw.normal(size=(4, 32)), draw.choice(5, size=items, p=[0.35, 0.2, 0.1, 0.1, 0.25])
    base = np.where((family < 4)[:, None], centres[np.minimum(family, 3)], draw.normal(size=(items, 32)))
    return unit(base + 0.25 * draw.normal(size=(items, 32))).astype(np.float32)


@pytest.mark.parametrize("items", [2, 3, 4, 8, 16, 40, 147])
def test_a_small_catalogue_of_similar_items_gets_usable_sids_by_default(tmp_path, items):
    for seed in range(3):
        report, sids = make(world(tmp_path / f"w{seed}", named(families(items, seed))), tmp_path / str(seed), size=256)
        assert len(set(sids.values())) == items and all(passed(report).values())


@pytest.mark.parametrize(("items", "size"), [(147, 16), (600, 16)])
def test_clusters_of_equal_size_replace_plain_kmeans_where_it_collapses_in_a_small_catalogue(tmp_path, items, size):
    vectors = families(items, 1 if items == 147 else 0)
    assert quality.collapse(fit(vectors, Quantizer(size=size)).encode(vectors), size)
    report, sids = make(world(tmp_path / "w", named(vectors)), tmp_path / "1", size=size)
    assert len(set(sids.values())) == items and all(passed(report).values())
    assert str(report.metrics["clusters_of_equal_size"]).startswith("with plain k-means ")
    later = named(np.concatenate([vectors, families(3, 9)]))
    report, again = make(world(tmp_path / "w2", later), tmp_path / "2", tmp_path / "1", "2020-02", size=size)
    assert {item: again[item] for item in sids} == sids and passed(report)["sids_last"]


def test_the_check_of_a_collapse_says_what_to_do(tmp_path):
    report, _ = make(world(tmp_path / "w", named(np.ones((60, 8), dtype=np.float32))), tmp_path / "1", size=8)
    check = next(c for c in report.checks if c.name == "no_collapse")
    assert "100% of the items have code <a_0>, above 50%" in check.detail
    (spec,) = (spec for spec in stage_named("sid_codebook").checks if spec.name == "no_collapse")
    assert "items that share one text" in spec.fix and "quantizer.kind: balanced_kmeans" in spec.fix


def test_one_item_is_no_catalogue(tmp_path):
    with pytest.raises(InputError, match="nothing to choose from"):
        make(world(tmp_path / "w", named(blobs(1))), tmp_path / "1")


def test_a_published_collapse_is_noticed(tmp_path):
    sids = {f"i{n:03d}": f"<a_0><b_{n}>" for n in range(8)}
    report, _ = make(world(tmp_path / "w", named(blobs(8)), sids=sids), tmp_path / "1", kind="published")
    assert not passed(report)["no_collapse"]


def test_examples_share_their_prefix(tmp_path):
    report, sids = make(world(tmp_path / "w", named(blobs(80))), tmp_path / "1", size=5)
    text = report.markdown["Items that share a prefix"]
    top = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(top) == 5 and "**title of i000**" in top[0] and sids["i000"] in top[0]
    below = [line.split("`")[1] for line in text.split(top[1])[0].splitlines()[1:]]
    assert below and all(parse_sid(sid)[0] == parse_sid(sids["i000"])[0] for sid in below)


def test_nearest_examples_say_how_many_levels_they_share(tmp_path):
    vectors = named(blobs(80)) | {"i000x": blobs(1)[0]}  # nearest of i000
    report, sids = make(world(tmp_path / "w", vectors), tmp_path / "1", size=5)
    first, second = report.markdown["Nearest items by text"].splitlines()[:2]
    assert "**title of i000**" in first
    shared = [a == b for a, b in zip(parse_sid(sids["i000"]), parse_sid(sids["i000x"]), strict=True)].index(False)
    assert second == f"  - `{sids['i000x']}` title of i000x – shares {shared} of 3 levels"


def test_published_office_index(real_data):
    """The numbers of docs/method.md, "Codebooks", for the published Office index, which is no collapse."""
    import gzip

    path = next((real_data / "minionerec" / "info").glob("Office_Products*.txt.gz"))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        codes = np.array([parse_sid(line.split("\t")[0]) for line in lines])
    used = [len(np.unique(codes[:, level])) for level in range(3)]
    assert (len(codes), used, len(quality.prefix_counts(codes))) == (3459, [88, 256, 256], 2488)
    assert round(quality.collision_rate(codes), 5) == 0.00434
    assert Counter(np.unique(codes, axis=0, return_counts=True)[1].tolist())[2] == 15
    assert quality.collapse(codes, 256) == []
