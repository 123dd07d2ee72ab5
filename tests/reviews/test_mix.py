"""A mix of sources: ids, counts, what the split cuts, and rows of some members alone."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from builders.minionerec import source as published
from builders.reviews import DAY, JUNE_2018, Bench, amazon, checks, item, review, rows
from sidr_core.errors import InputError, ProfileError, SealedInput, SidrError
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.stage import Inputs, StageInput
from sidr_core.reviews.domains import of_domains
from sidr_core.settings import Grpo

ITEMS = [item(f"I{n}") for n in range(5)]
OPEN = {"filters": {"k_core": 1, "max_quarantine_share": 1.0}, "split": {"ratios": [0.5, 0.25, 0.25]}}


def walk(offset: int = 0) -> list[str]:
    """U1 takes I0 … I4, one a day: samples at positions 1 to 4."""
    return [review("U1", f"I{n}", JUNE_2018 + n * DAY + offset) for n in range(5)]


def mix(folder, toys=None, tools=None, **sections):
    """`tools` moves half a day later than `toys`, with the same users and items unless lines are given."""
    sources = {
        "toys": amazon(folder / "toys", toys or walk(), ITEMS),
        "tools": amazon(folder / "tools", tools or walk(DAY // 2), ITEMS),
    }
    return Bench(folder, {"kind": "mix", "sources": sources}, **{**OPEN, **sections})


def test_ids_and_file_names_carry_the_member(tmp_path):
    bench = mix(tmp_path)
    made = rows(bench.run("raw_reviews"), "raw_reviews")
    assert made.select("user_id", "item_id", "file", "line").rows() == [
        *[("tools:U1", f"tools:I{n}", "tools/reviews.json.gz", n + 1) for n in range(5)],
        *[("toys:U1", f"toys:I{n}", "toys/reviews.json.gz", n + 1) for n in range(5)],
    ]
    items = rows(bench.run("raw_items"), "raw_items")
    assert set(items["item_id"]) == {f"{member}:I{n}" for member in ("toys", "tools") for n in range(5)}
    assert set(items["file"]) == {"toys/meta.json.gz", "tools/meta.json.gz"}
    assert items.filter(pl.col("item_id") == "tools:I3")["title"].to_list() == ["Thing I3"]


def test_equal_lines_of_two_members_are_no_duplicates_and_those_of_one_are(tmp_path):
    bench = mix(tmp_path, toys=[*walk(), walk()[0]], tools=walk())
    made = bench.run("raw_reviews")
    assert len(rows(made, "raw_reviews")) == 10
    assert made.manifest["metrics"]["exact_duplicates"] == 1


def test_refused_lines_and_records_add_up_and_name_their_member(tmp_path):
    bad = review("U1", "I0", rating=9.0)
    bench = mix(tmp_path, toys=[*walk(), bad], tools=[*walk(), bad, "{"])
    made = bench.run("raw_reviews")
    refused = rows(made, "quarantine")
    assert refused.select("file", "line", "reason").rows() == [
        ("tools/reviews.json.gz", 6, "rating_out_of_range"),
        ("tools/reviews.json.gz", 7, "bad_json"),
        ("toys/reviews.json.gz", 6, "rating_out_of_range"),
    ]
    assert (made.manifest["metrics"]["lines"], made.manifest["metrics"]["quarantined"]) == (13, 3)
    strict = mix(tmp_path / "strict", tools=[*walk(), "{"], filters={"k_core": 1, "max_quarantine_share": 0.05})
    with pytest.raises(InputError, match="1 of 11"):
        strict.run("raw_reviews")


def test_cleaning_and_lines_of_items_add_up(tmp_path):
    sources = {
        "a": amazon(tmp_path / "a", walk(), [*ITEMS, item("I5", "Desk &amp; chair")]),
        "b": amazon(tmp_path / "b", walk(), [*ITEMS, item("I5", "Lamp &amp; shade"), "{"]),
    }
    made = Bench(tmp_path, {"kind": "mix", "sources": sources}, **OPEN).run("raw_items")
    metrics = made.manifest["metrics"]
    assert (metrics["lines"], metrics["quarantined"], metrics["cleaned_entities"]) == (13, 1, 2)
    assert rows(made, "quarantine").select("file", "line", "reason").rows() == [("b/meta.json.gz", 7, "bad_json")]


def test_the_union_is_cut_at_one_pair_of_moments(tmp_path):
    made = mix(tmp_path).interactions()
    assert all(checks(made).values())
    found = {name: rows(made, name)["row_id"].to_list() for name in ("train", "valid", "test")}
    assert found == {
        "train": ["toys:U1:1", "tools:U1:1", "toys:U1:2", "tools:U1:2"],
        "valid": ["toys:U1:3", "tools:U1:3"],
        "test": ["toys:U1:4", "tools:U1:4"],
    }
    assert rows(made, "test")["history_item_ids"].to_list()[0] == [f"toys:I{n}" for n in range(4)]


def test_train_only_leaves_test_rows_and_catalogue_as_they_are(tmp_path):
    whole = mix(tmp_path / "whole").interactions()
    part = mix(tmp_path / "part", split={**OPEN["split"], "train_only": ["toys"]}).interactions()
    assert all(checks(part).values())
    assert rows(part, "train")["row_id"].to_list() == ["toys:U1:1", "toys:U1:2"]
    assert rows(part, "valid")["row_id"].to_list() == ["toys:U1:3"]
    for name in ("test", "items", "interactions"):
        assert_frame_equal(rows(part, name), rows(whole, name))


def test_train_only_of_a_member_without_train_rows_is_refused(tmp_path):
    late = [review("U1", f"I{n}", JUNE_2018 + (90 + n) * DAY) for n in range(2)]
    bench = mix(tmp_path, tools=late, split={"ratios": [0.5, 0.25, 0.25], "train_only": ["tools"]})
    with pytest.raises(InputError, match="train split is empty"):
        bench.interactions()


def test_published_splits_mix_and_lose_their_sids(tmp_path):
    sources = {name: published(tmp_path / name) for name in ("a", "b")}
    source = {"kind": "mix", "sources": sources}
    made = Bench(tmp_path / "all", source).interactions()
    assert rows(made, "train")["row_id"].to_list() == [f"{m}:{row}" for m in "ab" for row in ("A2:1", "A1:1", "A2:2")]
    assert rows(made, "train")["history_item_ids"].to_list()[4] == ["b:7", "b:8"]
    assert rows(made, "items")["published_sid"].null_count() == 6
    part = Bench(tmp_path / "part", source, split={"train_only": ["b"]}).interactions()
    assert rows(part, "train")["row_id"].to_list() == ["b:A2:1", "b:A1:1", "b:A2:2"]
    assert rows(part, "valid")["row_id"].to_list() == ["b:A1:2"]
    assert_frame_equal(rows(part, "test"), rows(made, "test"))


def test_the_core_of_a_mix_is_the_union_of_the_members_cores(tmp_path):
    single = {name: {"kind": "sample", "category": name, "items": 60, "users": 120} for name in ("games", "office")}
    joined = Bench(tmp_path, {"kind": "mix", "sources": single}).interactions()
    alone = {name: Bench(tmp_path, source).interactions() for name, source in single.items()}
    expected = {f"{name}:{known}" for name, made in alone.items() for known in rows(made, "items")["item_id"]}
    assert set(rows(joined, "items")["item_id"]) == expected
    sizes = [len(rows(made, "interactions")) for made in alone.values()]
    assert len(rows(joined, "interactions")) == sum(sizes)
    assert joined.synthetic


def test_the_order_of_domains_in_the_profile_is_of_no_account(tmp_path):
    sources = {name: amazon(tmp_path / name, walk(), ITEMS) for name in ("a", "b")}
    one = Bench(tmp_path, {"kind": "mix", "sources": sources}, **OPEN).run("raw_reviews")
    other = Bench(tmp_path, {"kind": "mix", "sources": dict(reversed(sources.items()))}, **OPEN).run("raw_reviews")
    assert one.fingerprint == other.fingerprint


def test_where_a_members_files_lie_is_of_no_account(tmp_path):
    here, there = mix(tmp_path / "here"), mix(tmp_path / "there")
    there.store = here.store
    assert here.run("raw_reviews").fingerprint == there.run("raw_reviews").fingerprint


def test_a_member_without_metadata_has_the_items_of_its_reviews(tmp_path):
    bare = amazon(tmp_path / "b", walk(), ITEMS) | {"items": []}
    sources = {"a": amazon(tmp_path / "a", walk(), ITEMS), "b": bare}
    keep = {**OPEN, "filters": {**OPEN["filters"], "items_without_text": "keep"}}
    found = rows(Bench(tmp_path, {"kind": "mix", "sources": sources}, **keep).run("raw_items"), "raw_items")
    assert set(found.filter(pl.col("item_id").str.starts_with("b:"))["title"]) == {f"Item b:I{n}" for n in range(5)}


SAMPLE = {"kind": "sample", "category": "games"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": {"kind": "mix", "sources": {"a": SAMPLE}}}, "at least 2"),
        ({"source": {"kind": "mix", "sources": {"a": SAMPLE, "b:c": SAMPLE}}}, "member 'b:c'"),
        ({"source": {"kind": "mix", "sources": {"a": SAMPLE, "b": {"kind": "mix", "sources": {}}}}}, "sample"),
        ({"split": {"train_only": ["c"]}}, "split.train_only names 'c'; members of the source: a, b"),
        ({"grpo": {"train_only": ["c"]}}, "grpo.train_only names 'c'"),
        ({"source": SAMPLE, "split": {"train_only": ["a"]}}, "none, it is no mix"),
        ({"quantizer": {"kind": "published"}}, "not one SID space"),
        ({"source": {"kind": "mix", "sources": {"a": {**SAMPLE, "itms": 3}, "b": SAMPLE}}}, "did you mean 'items'"),
    ],
)
def test_wrong_mixes_are_refused(fields, message):
    base = {"source": {"kind": "mix", "sources": {"a": SAMPLE, "b": SAMPLE}}, "snapshots": _ONE}
    with pytest.raises(ProfileError, match=message):
        parse_profile("test", {"datasets": {"d": {**base, **fields}}})


_ONE = {"start": "2018-10", "end": "2018-10"}


def test_a_published_split_does_not_mix_with_reviews(tmp_path):
    sources = {"a": published(tmp_path / "a"), "b": SAMPLE}
    with pytest.raises(ProfileError, match="cannot be mixed"):
        parse_profile("test", {"datasets": {"d": {"source": {"kind": "mix", "sources": sources}, "snapshots": _ONE}}})


def test_grpo_sees_train_and_valid_rows_of_its_members_alone(tmp_path):
    from sidr_core.training.grpo import _rows_of

    bench = mix(tmp_path)
    files = stage_named("grpo_checkpoint").inputs["interactions"]
    inputs = Inputs({"interactions": StageInput(bench.interactions(), files, "grpo_checkpoint")}, bench.store)
    assert _rows_of(inputs, "train", Grpo(train_only=("tools",)))["row_id"].to_list() == ["tools:U1:1", "tools:U1:2"]
    assert _rows_of(inputs, "valid", Grpo(train_only=("tools",)))["row_id"].to_list() == ["tools:U1:3"]
    assert len(_rows_of(inputs, "train", Grpo())) == 4
    with pytest.raises(SidrError, match="GRPO has no train row"):
        _rows_of(inputs, "train", Grpo(train_only=("none",)))
    with pytest.raises(SealedInput):
        _rows_of(inputs, "test", Grpo(train_only=("tools",)))


def test_rows_of_domains_keep_their_order_and_no_prefix_is_another():
    frame = pl.DataFrame({"user_id": ["b:1", "a:1", "ab:1", "a:0"], "n": [0, 1, 2, 3]})
    assert of_domains(frame, ["a"])["n"].to_list() == [1, 3]
    assert of_domains(frame, ["ab", "b"])["n"].to_list() == [0, 2]
    assert of_domains(frame, [])["n"].to_list() == [0, 1, 2, 3]
