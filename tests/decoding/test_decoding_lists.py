"""Lists after several thoughts, and lists of a model that thinks only where it is unsure."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import small_world
from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.beam import constrained_beam
from sidr_core.decoding.decoder import PRIOR, Decoder, best_positions
from sidr_core.decoding.lists import RANKING, rankings_of
from sidr_core.models import checkpoint
from sidr_core.recommending.adaptive import adaptive, best_threshold, choose_threshold, margins
from sidr_core.recommending.lists import checkpoint_lists
from sidr_core.recommending.rows import choice_rows, history_sids
from sidr_core.settings import Decoding
from sidr_core.tables.columns import DIRECT, THINKING

HISTORIES = [["<a_0><b_1>"], ["<a_0><b_1>", "<a_2><b_3>"], ["<a_3><b_0>"], ["<a_1><b_1>", "<a_1><b_2>"], ["<a_2><b_0>"]]
ROWS = [f"r{n}" for n in range(len(HISTORIES))]
DECODING = Decoding(beam_width=6, batch_size=4, max_thought_tokens=5, traces=3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> checkpoint.Loaded:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    small_world.checkpoint_of(folder, "grpo", 3)
    return checkpoint.load(folder, device="cpu")


def test_a_list_after_several_thoughts_ranks_by_their_mean(loaded) -> None:
    turns = [next_item(history) for history in HISTORIES]
    wide = DECODING.model_copy(update={"beam_width": len(loaded.index)})
    ranked = Decoder.of(loaded, wide).think_and_rank(turns)
    assert [len(row) for row in ranked.thoughts] == [3] * 5
    assert any(len({thought.ids for thought in row}) > 1 for row in ranked.thoughts)
    for row, turn in enumerate(turns):
        prompt = loaded.renderer.prompt(turn, THINKING)
        contexts = [[*prompt, *thought.ids, *loaded.renderer.close_ids] for thought in ranked.thoughts[row]]
        each = constrained_beam(
            loaded.model, contexts, loaded.index, beam_width=len(loaded.index), batch_size=9, pad_id=0
        )
        by_leaf = np.zeros_like(each.scores)
        np.put_along_axis(by_leaf, each.leaf, each.scores, axis=1)
        mean = np.log(np.exp(by_leaf.astype(float)).mean(axis=0))
        np.testing.assert_allclose(ranked.beams.scores[row], mean[ranked.beams.leaf[row]], atol=1e-4)
        np.testing.assert_allclose(ranked.beams.scores[row], np.sort(mean)[::-1], atol=1e-4)
        first = by_leaf[:, ranked.beams.leaf[row, 0]]
        assert (np.diff(first) <= 1e-5).all(), "the thought that supports the first place most stands first"


def probabilities(loaded, contexts: list[list[int]]) -> np.ndarray:
    """(N, S) log-probability of each SID of the index after each context."""
    each = constrained_beam(loaded.model, contexts, loaded.index, beam_width=len(loaded.index), batch_size=9, pad_id=0)
    by_leaf = np.zeros_like(each.scores)
    np.put_along_axis(by_leaf, each.leaf, each.scores, axis=1)
    return by_leaf.astype(float)


def test_a_merged_list_is_the_weighted_mean_of_the_direct_answer_and_those_after_thoughts(loaded) -> None:
    """And a weight below 0 takes away what a thought suggests by itself, after an empty history."""
    decoder = Decoder.of(loaded, DECODING.model_copy(update={"beam_width": len(loaded.index)}))
    turns, render, close = (
        [next_item(history) for history in HISTORIES],
        loaded.renderer.prompt,
        loaded.renderer.close_ids,
    )
    merged = decoder.think_and_rank(turns, (DIRECT, THINKING), (0.4, 0.6))
    against = decoder.think_and_rank(turns, (THINKING, PRIOR), (1.0, -0.5))
    thoughts = decoder.think(turns)
    for row, turn in enumerate(turns):
        after, prior = (
            probabilities(loaded, [[*render(text, THINKING), *thought.ids, *close] for thought in thoughts[row]])
            for text in (turn, next_item(()))
        )
        direct = probabilities(loaded, [render(turn, DIRECT)])[0]
        expected = np.log(0.4 * np.exp(direct) + 0.6 * np.exp(after).mean(axis=0))
        np.testing.assert_allclose(merged.beams.scores[row], expected[merged.beams.leaf[row]], atol=1e-4)
        np.testing.assert_allclose(merged.beams.scores[row], np.sort(expected)[::-1], atol=1e-4)
        contrast = np.log(np.exp(after).mean(axis=0)) - 0.5 * prior.mean(axis=0)
        np.testing.assert_allclose(against.beams.scores[row], contrast[against.beams.leaf[row]], atol=1e-3)
        assert set(merged.thoughts[row]) == set(thoughts[row])
        support = [after[thoughts[row].index(thought), merged.beams.leaf[row, 0]] for thought in merged.thoughts[row]]
        assert support == sorted(support, reverse=True)


def test_thoughts_can_be_given_with_a_share_each(loaded) -> None:
    """Candidates of one thought, say: one of three counts for nothing, and another user's thought moves the list."""
    decoder = Decoder.of(loaded, DECODING)
    turns = [next_item(history) for history in HISTORIES]
    thoughts = decoder.think(turns)
    shares = np.tile([0.5, 0.0, 0.5], (5, 1))
    halves = decoder.rank_after(turns, thoughts, shares=shares).beams
    two = decoder.rank_after(turns, [[row[0], row[2]] for row in thoughts]).beams
    assert halves.leaf.tolist() == two.leaf.tolist()
    np.testing.assert_allclose(halves.scores, two.scores, atol=1e-5)
    others = decoder.rank_after(turns, [*thoughts[1:], thoughts[0]]).beams
    assert not np.allclose(others.scores, decoder.rank_after(turns, thoughts).beams.scores, atol=1e-4)
    with pytest.raises(ValueError, match="rests on thinking"):
        decoder.rank_after(turns, thoughts, (DIRECT,))


def test_a_merged_list_is_filtered_like_any_other(loaded) -> None:
    decoder = Decoder.of(loaded, DECODING.model_copy(update={"beam_width": len(loaded.index)}))
    turns = [next_item(history) for history in HISTORIES]
    items = np.isin(loaded.index.item_ids.to_numpy(), ["A01", "A14", "A03"])
    whole = decoder.think_and_rank(turns, (DIRECT, THINKING)).beams
    some = decoder.think_and_rank(turns, (DIRECT, THINKING), allowed=loaded.index.leaves_with(items)).beams
    expected = rankings_of(whole, loaded.index, ROWS).filter(pl.col("item_id").is_in(["A01", "A14", "A03"]))
    listed = rankings_of(some, loaded.index, ROWS, items)
    assert listed.select("row_id", "item_id", "sid").equals(expected.select("row_id", "item_id", "sid"))
    assert listed["rank"].to_list() == [1, 2, 3] * 5


def test_several_thoughts_are_several_lines_and_one_list(loaded) -> None:
    lists = checkpoint_lists(loaded, ROWS, HISTORIES, THINKING, DECODING)
    assert lists.thoughts is not None
    assert lists.thoughts.select("row_id", "trace").rows() == [(row, n) for row in ROWS for n in range(3)]
    assert lists.rankings.group_by("row_id").agg(pl.col("sid").n_unique())["sid"].to_list() == [6] * 5
    again = checkpoint_lists(loaded, ROWS, HISTORIES, THINKING, DECODING)
    assert again.rankings.equals(lists.rankings) and again.thoughts.equals(lists.thoughts)
    one = checkpoint_lists(loaded, ROWS, HISTORIES, THINKING, DECODING.model_copy(update={"traces": 1}))
    assert one.thoughts["trace"].to_list() == [0] * 5


def test_the_oracle_takes_the_best_list_of_any_thought(loaded) -> None:
    lists = np.array([[[4, 2, 7], [7, 4, 1]], [[1, 2, 3], [3, 2, 1]]])
    assert best_positions(lists, [4, 9]).tolist() == [0, 3]
    assert best_positions(lists, [2, 2]).tolist() == [1, 1]
    decoder, turns = Decoder.of(loaded, DECODING), [next_item(history) for history in HISTORIES]
    ranked = decoder.think_and_rank(turns)
    positions = decoder.best_of_traces(turns, ranked, ranked.beams.leaf[:, 0].tolist())
    assert positions.shape == (5,) and (positions <= 6).all()
    assert positions.min() == 0


def test_an_adaptive_model_thinks_where_its_direct_list_is_unsure(loaded) -> None:
    direct, thinking = (checkpoint_lists(loaded, ROWS, HISTORIES, mode, DECODING) for mode in (DIRECT, THINKING))
    never, always = (adaptive(direct, thinking, threshold) for threshold in (-1.0, 1.0))
    assert never.rankings.equals(direct.rankings)
    assert never.thoughts is not None and never.thoughts.is_empty()
    assert always.rankings.equals(thinking.rankings) and always.thoughts.equals(thinking.thoughts)
    lead = dict(margins(direct.rankings).iter_rows())
    between = sorted(lead.values())[1]
    some = adaptive(direct, thinking, between)
    thought = {row for row, margin in lead.items() if margin <= between}
    assert set(some.thoughts["row_id"]) == thought and len(thought) == 2
    kept = some.rankings.filter(~pl.col("row_id").is_in(thought)).sort("row_id", "rank")
    assert kept.equals(direct.rankings.filter(~pl.col("row_id").is_in(thought)).sort("row_id", "rank"))
    assert some.rankings.group_by("row_id").len().height == 5


def test_margins_by_hand() -> None:
    """A SID of two items counts once; a list of one SID leads by all."""
    lines = [
        ("u1", 1, "A", "<a_0>", 0.3),
        ("u1", 2, "B", "<a_0>", 0.3),
        ("u1", 3, "C", "<a_1>", 0.2),
        ("u1", 4, "D", "<a_2>", 0.1),
        ("u2", 1, "A", "<a_0>", 0.02),
        ("u2", 2, "C", "<a_1>", 0.02),
        ("u2", 3, "D", "<a_2>", 0.01),
        ("u3", 1, "C", "<a_1>", 0.5),
    ]
    lists = pl.DataFrame(lines, schema=RANKING, orient="row").with_columns(pl.col("score").log())
    found = margins(lists.reverse())
    assert found["row_id"].to_list() == ["u1", "u2", "u3"]
    np.testing.assert_allclose(found["margin"], [0.1 / 0.6, 0.0, 1.0], atol=1e-12)


grid = st.integers(0, 4).map(lambda n: n / 4)


@given(st.lists(st.tuples(grid, grid, grid), min_size=1, max_size=12))
def test_the_threshold_is_the_best_of_all_and_thinks_least_of_equals(rows) -> None:
    margin, direct, thinking = (np.array(column) for column in zip(*rows, strict=True))
    found = best_threshold(margin, direct, thinking)

    def value(threshold: float) -> float:
        return float(np.where(margin <= threshold, thinking, direct).mean())

    tried = [-1.0, *sorted(set(margin))]
    best = max(value(threshold) for threshold in tried)
    assert found.margin == next(threshold for threshold in tried if value(threshold) > best - 1e-9)
    assert found.ndcg == pytest.approx(best) and found.share == pytest.approx((margin <= found.margin).mean())
    assert (found.direct, found.thinking) == (pytest.approx(direct.mean()), pytest.approx(thinking.mean()))


def test_the_threshold_is_chosen_on_at_most_so_many_valid_rows(loaded) -> None:
    valid, few = small_world.samples(3, 1), DECODING.model_copy(update={"choice_rows": 4})
    rows = choice_rows(valid, few, 3)
    assert rows.height == 4 and rows.equals(choice_rows(valid.reverse(), few, 3))
    histories = history_sids(rows, small_world.codebook())
    lists = [checkpoint_lists(loaded, rows["row_id"].to_list(), histories, mode, few) for mode in (DIRECT, THINKING)]
    found = choose_threshold(*lists, rows, small_world.codebook(), 6)
    assert found.rows == 4 and max(found.direct, found.thinking) <= found.ndcg + 1e-9


def test_a_checkpoint_maps_its_index_and_reads_the_table_where_the_arrays_are_not_of_it(tmp_path: Path) -> None:
    small_world.checkpoint_of(tmp_path, "sft", 1)
    mapped = checkpoint.load(tmp_path, device="cpu").index
    assert not mapped.starts[0].flags.writeable
    table = pl.read_parquet(tmp_path / "sid_index.parquet")
    table.filter(pl.col("item_id") != "A03").write_parquet(tmp_path / "sid_index.parquet")
    built = checkpoint.load(tmp_path, device="cpu").index
    assert built.starts[0].flags.writeable and len(built) == len(mapped) - 1
    assert "A03" in mapped.items_at(np.arange(len(mapped)))["item_id"].to_list()
    assert "A03" not in built.items_at(np.arange(len(built)))["item_id"].to_list()
    (tmp_path / "sid_index.safetensors").unlink()
    assert checkpoint.load(tmp_path, device="cpu").index.sids == built.sids
