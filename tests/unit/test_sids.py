"""SID tokens, quantizer, collisions, quality numbers, and the codebook stage."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core import tables
from sidr_core.contracts import Embeddings, Items
from sidr_core.errors import InputError, ProfileError
from sidr_core.settings import Quantizer
from sidr_core.sids import codebook, quality
from sidr_core.sids.collisions import reassign
from sidr_core.sids.quantize import Codebook, codes_per_level, fit
from sidr_core.sids.tokens import SID_PATTERN, SID_TOKEN, format_sid, parse_sid, sid_tokens, used_tokens
from sidr_core.stage import Progress

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


# -- quantizer ----------------------------------------------------------------------------------


def blobs(n: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, dimension)) * 5
    return (centres[rng.integers(6, size=n)] + rng.normal(size=(n, dimension))).astype(np.float32)


def test_encoding_is_greedy_over_residuals():
    book = Codebook(np.array([[[0, 0], [10, 0]], [[0, 0], [0, 1]]], dtype=np.float32))
    vectors = np.array([[9, 1], [1, 0]], dtype=np.float32)
    assert book.encode(vectors).tolist() == [[1, 1], [0, 0]]
    assert book.decode(book.encode(vectors)).tolist() == [[10, 1], [0, 0]]
    assert book.encode(vectors[:0]).shape == (0, 2)


def test_same_seed_gives_the_same_codes_and_each_level_helps():
    vectors = blobs(300)
    book = fit(vectors, Quantizer(size=8))
    assert np.array_equal(book.centroids, fit(vectors, Quantizer(size=8)).centroids)
    assert not np.array_equal(book.centroids, fit(vectors, Quantizer(size=8, seed=1)).centroids)
    codes = book.encode(vectors)
    errors = [quality.relative_error(vectors, book.decode(codes[:, :levels])) for levels in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.2


def test_codebook_survives_its_file(tmp_path):
    book = fit(blobs(50), Quantizer(size=4))
    book.save(tmp_path / "c.safetensors")
    assert np.array_equal(Codebook.load(tmp_path / "c.safetensors").centroids, book.centroids)


def test_small_catalogues_use_fewer_codes():
    assert codes_per_level(blobs(40), Quantizer(size=256)) == 20
    assert codes_per_level(blobs(600), Quantizer(size=256)) == 256
    assert codes_per_level(blobs(40), Quantizer(size=256, levels=1)) == 40  # one level must tell all apart
    assert codes_per_level(np.ones((30, 4), dtype=np.float32), Quantizer(size=256)) == 4  # 4 ** 3 ≥ 30


def test_fewer_distinct_vectors_than_codes():
    vectors = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    book = fit(vectors, Quantizer(size=16))
    assert np.isfinite(book.centroids).all()
    assert np.allclose(book.decode(book.encode(vectors)), vectors, atol=1e-6)


# -- collisions ---------------------------------------------------------------------------------

LINE = Codebook(np.array([[[0.0], [100.0]], [[0.0], [1.0]]], dtype=np.float32))


def resolve(book: Codebook, vectors: np.ndarray, fixed: list[int] | None = None, codes=None) -> np.ndarray:
    mask = np.isin(np.arange(len(vectors)), fixed or [])
    return reassign(book, vectors, book.encode(vectors) if codes is None else np.array(codes), mask)


def test_two_colliding_items_part_at_least_total_distance():
    # both are nearest to code 0; moving the second (0.4) costs less than moving the first
    vectors = np.array([[0.1], [0.4]], dtype=np.float32)
    assert LINE.encode(vectors).tolist() == [[0, 0], [0, 0]]
    assert resolve(LINE, vectors).tolist() == [[0, 0], [0, 1]]


def test_fixed_items_keep_their_codes():
    vectors = np.array([[0.1], [0.4]], dtype=np.float32)
    assert resolve(LINE, vectors, fixed=[1]).tolist() == [[0, 1], [0, 0]]


def test_surplus_moves_to_the_next_prefix():
    # three items in a prefix of two codes; the farthest from it (0.9) goes to the other prefix
    vectors = np.array([[0.1], [0.9], [0.2]], dtype=np.float32)
    codes = resolve(LINE, vectors).tolist()
    assert codes[0][0] == codes[2][0] == 0 and codes[1][0] == 1
    assert len({tuple(c) for c in codes}) == 3


def test_a_completely_full_code_space_fits():
    book = Codebook(np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32))
    codes = resolve(book, np.zeros((8, 4), dtype=np.float32))
    assert len({tuple(c) for c in codes.tolist()}) == 8
    with pytest.raises(ValueError):
        resolve(book, np.zeros((9, 4), dtype=np.float32))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(2, 5), levels=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_no_two_items_share_a_sid(n, size, levels, seed, data):
    n = min(n, size**levels)
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, size=(n, 2)).astype(np.float32)  # many duplicates
    book = Codebook(rng.normal(size=(levels, size, 2)).astype(np.float32))
    codes = book.encode(vectors)
    first: dict[tuple, int] = {}
    for i, row in enumerate(codes.tolist()):
        first.setdefault(tuple(row), i)
    fixed = data.draw(st.lists(st.sampled_from(sorted(first.values())), unique=True))
    result = resolve(book, vectors, fixed)
    assert len({tuple(c) for c in result.tolist()}) == n
    assert result.min() >= 0 and result.max() < size
    assert np.array_equal(result[fixed], codes[fixed])
    if len(first) == n:
        assert np.array_equal(result, codes)


# -- quality ------------------------------------------------------------------------------------


def test_usage_by_hand():
    codes = np.array([[0, 0], [0, 1], [1, 2], [1, 3]])
    found = quality.usage(codes, size=4)
    assert (found["level_a_codes"], found["level_b_codes"]) == (2, 4)
    assert (found["level_a_perplexity"], found["level_b_perplexity"]) == (2.0, 4.0)
    assert (found["level_a_gini"], found["level_b_gini"]) == (0.5, 0.0)
    assert quality.gini(np.array([0, 0, 0, 7])) == 0.75
    uneven = quality.usage(np.array([[0], [0], [0], [1]]), size=2)["level_a_perplexity"]
    assert uneven == round(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), 2)


def test_collisions_and_prefixes_by_hand():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    assert quality.collision_rate(codes) == 0.25
    assert sorted(quality.prefix_counts(codes)) == [1, 3]


def test_relative_error_is_one_for_the_mean():
    vectors = blobs(20)
    assert quality.relative_error(vectors, np.broadcast_to(vectors.mean(axis=0), vectors.shape)) == pytest.approx(1)
    assert quality.relative_error(vectors, vectors) == 0


def test_purity_lift():
    groups = np.repeat([[0], [1]], 50, axis=0)
    labels = ["x"] * 50 + ["y"] * 50
    assert 1.5 < quality.purity_lift(groups, labels) <= 2  # type: ignore[operator]
    mixed = ["x", "y"] * 50
    assert quality.purity_lift(groups, mixed) == pytest.approx(1, abs=0.15)
    assert quality.purity_lift(groups, ["", "x"] * 50) is None


# -- stage --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Folder:
    root: Path

    def path(self, name: str) -> Path:
        return self.root / name


class Given(dict):
    previous = None


def world(folder: Path, vectors: dict[str, np.ndarray], digests: dict[str, str] | None = None, sids=None) -> Given:
    """The inputs of the stage: one item per vector."""
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
        "vector": pl.Series([vectors[n].tolist() for n in names], dtype=pl.List(pl.Float32)),
    }
    tables.write(pl.DataFrame(table), folder / "item_embeddings.parquet", Embeddings)
    return Given(interactions=Folder(folder), item_embeddings=Folder(folder))


def make(given: Given, out: Path, previous: Path | None = None, **quantizer):
    out.mkdir()
    given.previous = Folder(previous) if previous else None
    config = SimpleNamespace(quantizer=Quantizer(**quantizer))
    report = codebook.build(given, config, out, QUIET)  # type: ignore[arg-type]
    table = tables.read(out / codebook.TABLE)
    return report, dict(zip(table["item_id"], table["sid"], strict=True))


def named(vectors: np.ndarray) -> dict[str, np.ndarray]:
    return {f"i{n:03d}": v for n, v in enumerate(vectors)}


def test_cold_build_is_unique_reported_and_repeatable(tmp_path):
    given = world(tmp_path / "w", named(np.repeat(blobs(60), 2, axis=0)))  # every vector twice
    report, sids = make(given, tmp_path / "1", size=8)
    make(given, tmp_path / "2", size=8)
    assert len(set(sids.values())) == 120
    assert all(check.passed for check in report.checks) and report.metrics["started"] == "cold"
    assert report.metrics["collision_rate"] == 0 < report.metrics["collision_rate_before"]  # type: ignore[operator]
    assert report.metrics["brand_purity_lift"] and "category_purity_lift" not in report.metrics
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert names == ["codebook.safetensors", "codes.png", "quality.json", "sid_codebook.parquet"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    table = tables.read(tmp_path / "1" / codebook.TABLE)
    assert [format_sid(c) for c in table["codes"].to_list()] == table["sid"].to_list()
    assert json.loads((tmp_path / "1" / "quality.json").read_text())["metrics"]["items"] == 120


def test_shared_sids_only_where_the_profile_allows_it(tmp_path):
    given = world(tmp_path / "w", named(np.repeat(blobs(60), 2, axis=0)))
    report, sids = make(given, tmp_path / "1", size=8, collisions="share")
    assert len(set(sids.values())) <= 60
    assert {c.name: c.passed for c in report.checks}["no_collisions"]


def test_warm_start_keeps_unchanged_items_and_places_new_ones(tmp_path):
    vectors = named(blobs(120))
    _, old = make(world(tmp_path / "w1", vectors), tmp_path / "1", size=8)
    new = {n: v for n, v in vectors.items() if n != "i005"} | {"j1": vectors["i007"], "j2": blobs(1, seed=9)[0]}
    changed = {"i009": "another digest"}
    report, sids = make(world(tmp_path / "w2", new, changed), tmp_path / "2", tmp_path / "1", size=8)
    kept = set(new) - {"j1", "j2", "i009"}
    assert {n: sids[n] for n in kept} == {n: old[n] for n in kept}
    assert len(set(sids.values())) == len(new)
    assert sids["j1"] != sids["i007"] and parse_sid(sids["j1"])[0] == parse_sid(old["i007"])[0]
    assert str(report.metrics["started"]).startswith("warm")
    metrics = report.metrics
    assert (metrics["unchanged_items"], metrics["churned_items"], metrics["new_items"]) == (118, 0, 3)
    assert (tmp_path / "1" / codebook.CENTROIDS).read_bytes() == (tmp_path / "2" / codebook.CENTROIDS).read_bytes()


@pytest.mark.parametrize(
    ("digest", "size", "reason"), [("same", 4, "other quantizer settings"), ("other", 8, "no item is as it was")]
)
def test_cold_where_the_old_codebook_does_not_fit(tmp_path, digest, size, reason):
    vectors = named(blobs(60))
    make(world(tmp_path / "w1", vectors), tmp_path / "1", size=8)
    digests = {n: f"new {n}" for n in vectors} if digest == "other" else {}
    report, _ = make(world(tmp_path / "w2", vectors, digests), tmp_path / "2", tmp_path / "1", size=size)
    assert reason in str(report.metrics["started"])


def test_cold_when_the_catalogue_has_outgrown_its_codes(tmp_path):
    vectors = named(blobs(120))
    few = {n: vectors[n] for n in list(vectors)[:20]}  # 10 codes per level
    make(world(tmp_path / "w1", few), tmp_path / "1", size=64)
    report, _ = make(world(tmp_path / "w2", vectors), tmp_path / "2", tmp_path / "1", size=64)
    assert "outgrown 10 codes" in str(report.metrics["started"])
    assert report.metrics["codes_per_level"] == 60 and report.metrics["churned_items"] > 0  # type: ignore[operator]


def test_published_sids_are_taken_as_they_are(tmp_path):
    sids = {"i000": "<a_1><b_2>", "i001": "<a_1><b_2>", "i002": "<a_300><b_0>", "i003": "<a_4><b_4>"}
    report, found = make(world(tmp_path / "w", named(blobs(4)), sids=sids), tmp_path / "1", kind="published")
    assert found == sids
    check = next(c for c in report.checks if c.name == "no_collisions")
    assert check.passed and "1 SIDs are shared" in check.detail
    assert report.metrics["distinct_sids"] == 3 and report.metrics["codes_per_level"] == 301
    assert not (tmp_path / "1" / codebook.CENTROIDS).exists()


@pytest.mark.parametrize("bad", [None, "", "<b_1><a_2>", "<a_1>", "<a_1><b_2> "])
def test_a_bad_published_sid_is_named(tmp_path, bad):
    sids = {"i000": "<a_1><b_2>", "i001": bad}
    with pytest.raises(InputError, match="i001"):
        make(world(tmp_path / "w", named(blobs(2)), sids=sids), tmp_path / "1", kind="published")


def test_too_many_items_say_what_to_raise(tmp_path):
    with pytest.raises(ProfileError, match=r"2 \*\* 3"):
        make(world(tmp_path / "w", named(blobs(9))), tmp_path / "1", size=2)


def test_collapse_is_noticed(tmp_path):
    sids = {f"i{n:03d}": f"<a_0><b_{n}>" for n in range(8)}
    report, _ = make(world(tmp_path / "w", named(blobs(8)), sids=sids), tmp_path / "1", kind="published")
    assert not {c.name: c.passed for c in report.checks}["no_collapse"]


def test_examples_share_their_prefix(tmp_path):
    report, sids = make(world(tmp_path / "w", named(blobs(80))), tmp_path / "1", size=5)
    text = report.markdown["Items that share a prefix"]
    top = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(top) == 5 and "**title of i000**" in top[0] and sids["i000"] in top[0]
    below = [line.split("`")[1] for line in text.split(top[1])[0].splitlines()[1:]]
    assert below and all(parse_sid(sid)[0] == parse_sid(sids["i000"])[0] for sid in below)


def test_published_office_index(real_data):
    """The numbers of METHOD.md 3.4 for the published Office index."""
    import gzip

    path = next((real_data / "minionerec" / "info").glob("Office_Products*.txt.gz"))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        codes = np.array([parse_sid(line.split("\t")[0]) for line in lines])
    used = [len(np.unique(codes[:, level])) for level in range(3)]
    assert (len(codes), used, len(quality.prefix_counts(codes))) == (3459, [88, 256, 256], 2488)
    assert round(quality.collision_rate(codes), 5) == 0.00434
    assert Counter(np.unique(codes, axis=0, return_counts=True)[1].tolist())[2] == 15
