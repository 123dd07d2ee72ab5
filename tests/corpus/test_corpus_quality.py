"""Quality figures of a corpus, by hand."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import corpus as base
from builders.corpus import BOOK, LAMP, PENS
from sidr_core.corpus import quality
from sidr_core.corpus.data_card import sizes_by_task
from sidr_core.corpus.figure import draw
from sidr_core.corpus.quality import Text
from sidr_core.tables import files as tables


def test_distinct_ngrams_do_not_reach_over_texts():
    texts = ["a b a b", "a b", "c"]  # words a b a b a b c
    assert quality.distinct(texts, 1) == pytest.approx(3 / 7)
    assert quality.distinct(texts, 2) == pytest.approx(2 / 4)  # ab ba ab | ab
    assert quality.distinct(texts, 3) == pytest.approx(2 / 2)  # aba bab
    assert quality.distinct(["a", "b"], 2) == 0 == quality.distinct(["a"], 3)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=6))
def test_distinct_ngrams_equal_the_plain_count(texts):
    for n in (1, 2, 3):
        words = [text.split(" ") for text in texts]
        grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
        expected = len(set(grams)) / len(grams) if grams else 0
        assert quality.distinct(texts, n) == pytest.approx(expected)


def test_new_words_are_neither_the_sources_nor_the_kinds_wording():
    # "smooth" is of the description; "chosen" is in three of four texts, so it is the kind's wording
    texts = [
        Text("Chosen: blue gel, smooth", (PENS,)),  # chosen blue gel smooth -> nothing new
        Text("Chosen: brass tiger", (PENS, LAMP)),  # chosen brass tiger -> tiger
        Text("Chosen tiger lily", (BOOK,)),  # tiger lily
        Text("<a_1><b_1> 123", (PENS,)),  # no content word
    ]
    assert quality.new_word_shares(texts).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0])
    figures = quality.of_kind("x", texts)
    assert figures["x_new_words"] == pytest.approx(0.25) and figures["x_restating"] == 0.5
    assert (figures["x_words_mean"], figures["x_words_p50"], figures["x_words_p95"]) == (3.0, 3, 3)
    assert figures["x_characters_mean"] == pytest.approx((24 + 19 + 17 + 14) / 4)
    assert quality.of_kind("x", []) == {}


def test_thought_figures():
    written = [
        Text("Series: A. Next: Lamp <a_3><b_1>; Pens <a_1><b_1>.", (BOOK, PENS), LAMP),
        Text("Series: A. Next: open.", (BOOK, PENS), LAMP),
    ]
    assert quality.of_thoughts(written) == {
        "thoughts_open": 0.5,
        "thought_candidates": 1.0,
        "thoughts_with_target": 0.5,
    }
    assert quality.of_thoughts([]) == {}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    report, out = base.run(tmp_path_factory.mktemp("quality"), *base.frames())
    return report, out, tables.read(out / "synthetic_corpus.parquet")


def test_code_counts_are_those_of_the_text(built):
    report, _, corpus = built
    codebook = base.frames()[2]
    counts = quality.code_counts(corpus, codebook)
    text = "\n".join(t for name in ("prompt", "thought", "completion") for t in corpus[name] if t)
    for level in "abc":
        assert counts[level].tolist() == sorted(text.count(f"<{level}_{code}>") for code in (0, 1))
        assert report.metrics[f"codes_{level}_min"] == counts[level][0]
        assert report.metrics[f"codes_{level}_median"] == counts[level].mean()
    absent = quality.code_counts(corpus.filter(item_id="i0"), codebook)
    assert absent["a"][0] == 0, "a code that never occurs counts as 0"


def test_sizes_count_prompt_thought_and_completion():
    corpus = pl.DataFrame(
        {"task": ["t", "t"], "prompt": ["a b", ""], "thought": [None, "c"], "completion": ["d", "e f"]}
    )
    assert sizes_by_task(corpus).rows() == [("t", 2, 3 + 3, 4 + 4)]


def test_the_card_tells_the_figures_and_five_rows_of_each_task(built):
    report, _, corpus = built
    text = report.markdown["card"]
    for task, count in corpus.group_by("task").len().iter_rows():
        section = text.split(f"\n## {task}\n")[1].split("\n## ")[0]
        assert section.count('"example_id"') == min(5, count)
    for name in ("thought_distinct_2", "item_narrative_words_p95", "codes_c_gini", "user_narrative_restating"):
        assert f"| {name} | {report.metrics[name]:,} |" in text
    assert "tokenizer is made after the corpus" in text


def test_the_picture_is_a_png_with_the_same_bytes_each_time(built, tmp_path):
    assert built[1].joinpath("corpus.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    counts = {"a": np.array([0, 2, 5])}
    for name in ("one", "two"):
        draw({"thought": [3, 4, 4], "item_narrative": []}, counts, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    draw({"thought": [3, 9, 4], "item_narrative": []}, counts, tmp_path / "three")
    assert (tmp_path / "one").read_bytes() != (tmp_path / "three").read_bytes()
    draw({}, {}, tmp_path / "empty")
