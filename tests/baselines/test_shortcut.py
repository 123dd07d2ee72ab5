"""The shortcut: pairs, texts and their mixture by hand; the choice on valid rows; lists equal to what was measured."""

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from sidr_core.baselines import shortcut
from sidr_core.baselines.sequences import Catalogue, Histories
from sidr_core.baselines.shortcut import Pairs, Shortcut, Weights
from sidr_core.baselines.tfidf import matrices_in, neighbours, tensors_of, tfidf
from sidr_core.errors import InputError, StoreError
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

CATALOGUE = Catalogue(pl.Series(list("abcd")))


def rows_of(*rows: tuple[str, str]) -> pl.DataFrame:
    """One row per (history, target), items being single letters."""
    return pl.DataFrame(
        {
            "row_id": [f"r{n}" for n in range(len(rows))],
            "user_id": [f"u{n}" for n in range(len(rows))],
            "history_item_ids": [list(history) for history, _ in rows],
            "target_item_id": [target for _, target in rows],
        }
    )


def matrix(**entries: float) -> sparse.csr_array:
    """(4, 4) with `ab=1.0` for row a, column b."""
    dense = np.zeros((4, 4), dtype=np.float32)
    for pair, value in entries.items():
        dense["abcd".index(pair[0]), "abcd".index(pair[1])] = value
    return sparse.csr_array(dense)


def items(**titles: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": list(titles), "title": list(titles.values()), "brand": "", "category": ""},
    )


TRAIN = rows_of(("ab", "c"), ("ab", "c"), ("b", "d"), ("zb", "c"), ("a", "z"))


def test_pairs_are_counted_by_their_gap_and_items_outside_the_catalogue_ignored():
    pairs = Pairs.of(TRAIN, CATALOGUE, 2)
    assert (pairs.at_gap[0].toarray() == matrix(bc=3, bd=1).toarray()).all()
    assert (pairs.at_gap[1].toarray() == matrix(ac=2).toarray()).all()
    assert pairs.targets.tolist() == [0, 0, 3, 1] and len(Pairs.of(TRAIN, CATALOGUE, 1).at_gap) == 1


def test_counts_are_decayed_by_gap_and_divided_by_the_power_of_popularity():
    pairs = Pairs(Pairs.of(TRAIN, CATALOGUE, 2).at_gap, np.array([0, 3, 3, 1]))  # targets of a, b, c, d
    # b: (1 + 3) ** -0.5 = 0.5; a: 2 pairs at gap 2, 0.5 each, undivided
    weights = Weights(decay=0.5, norm=0.5, text_decay=1.0, share=1.0)
    assert pairs.weighted(weights).toarray() == pytest.approx(matrix(bc=1.5, bd=0.5, ac=1.0).toarray())


def test_pairs_in_the_other_order_count_as_much_as_back_says():
    weights = Weights(decay=0.5, norm=0.5, text_decay=1.0, share=1.0, back=0.5)
    pairs = Pairs(Pairs.of(TRAIN, CATALOGUE, 2).at_gap, np.array([0, 3, 3, 1]))  # targets of a, b, c, d
    # W without the norm: bc 3, bd 1, ac 1; turned round and halved: cb 1.5, db 0.5, ca 0.5; then c halved, d by sqrt 2
    expected = matrix(bc=1.5, bd=0.5, ac=1.0, cb=0.75, ca=0.25, db=0.5 / np.sqrt(2))
    assert pairs.weighted(weights).toarray() == pytest.approx(expected.toarray())


def test_valid_rows_choose_whether_order_counts():
    """Train has a before b alone, and valid asks for a after b."""
    pairs = Pairs([matrix(ab=1.0, bc=0.5)], np.zeros(4, dtype=int))
    assert shortcut.choose(pairs, matrix(), rows_of(("b", "a")), CATALOGUE)[0].weights.back == 0.7  # a above c
    assert shortcut.choose(pairs, matrix(), rows_of(("a", "b")), CATALOGUE)[0].weights.back == 0.0


def test_texts_share_words_and_an_item_is_no_neighbour_of_its_own():
    vectors = tfidf(items(a="red pen", b="red pen", c="blue pen", d="lamp"), CATALOGUE)
    near = neighbours(vectors, 4).toarray()
    assert near[0, 1] == pytest.approx(1.0) and near[0, 0] == 0
    assert 0 < near[0, 2] < 1 and near[2, 0] == pytest.approx(near[0, 2])
    assert near[3].sum() == 0 == near[:, 3].sum()  # no word of the lamp is in another text
    few = neighbours(vectors, 1).toarray()
    assert (few > 0).sum(axis=1).tolist() == [1, 1, 1, 0] and few[2, 0] == near[2, 0]  # of equal ones the first


def test_texts_without_a_shared_word_are_neighbours_of_nothing():
    assert neighbours(tfidf(items(a="one", b="two", c="three", d="four"), CATALOGUE), 3).nnz == 0


def test_an_item_without_text_is_named():
    with pytest.raises(InputError, match="1 items have no text"):
        tfidf(items(a="one", b="two", c="three"), CATALOGUE)


def test_scores_by_hand():
    """History "ab": C = 0.5 W(a) + W(b), T = 0.5 S(a) + S(b), each divided by its maximum."""
    weights = Weights(decay=0.5, norm=0.0, text_decay=0.5, share=0.75)
    ranker = Shortcut(matrix(bc=1.0, ad=4.0), matrix(bd=0.5, ac=0.5), CATALOGUE, weights)
    lists = ranker.rank(rows_of(("ab", "c")), 4)
    # C: c = 1, d = 2 -> 0.5, 1; T: c = 0.25, d = 0.5 -> 0.5, 1; so d = 1, c = 0.5; a and b tie at 0
    assert lists["item_id"].to_list() == ["d", "c", "a", "b"]
    assert lists["score"].to_list() == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_an_item_of_the_history_comes_last_where_valid_rows_say_so():
    weights = Weights(decay=1.0, norm=0.0, text_decay=1.0, share=1.0)
    counts, texts = matrix(ab=3.0, ac=1.0, bb=3.0), matrix()
    again = Shortcut(counts, texts, CATALOGUE, weights).rank(rows_of(("ab", "c")), 4)
    assert again["item_id"].to_list() == ["b", "c", "a", "d"]
    dropped = Weights(decay=1.0, norm=0.0, text_decay=1.0, share=1.0, repeats=False)
    once = Shortcut(counts, texts, CATALOGUE, dropped).rank(rows_of(("ab", "c")), 4)
    assert once["item_id"].to_list() == ["c", "d", "a", "b"]


def test_a_history_that_nobody_shares_gives_popularity():
    ranker = Shortcut(matrix(), matrix(), CATALOGUE, Weights(0.5, 0.0, 0.5, 0.5))
    assert ranker.rank(rows_of(("z", "a"), ("d", "a")), 3)["item_id"].to_list() == list("abc") * 2
    assert ranker.rank(TRAIN.head(0), 3).height == 0


def test_a_row_is_scored_alike_in_any_block(monkeypatch):
    weights = Weights(0.5, 0.0, 0.5, 0.5)
    ranker = Shortcut(matrix(bc=1.0, ad=4.0), matrix(bd=0.5, ac=0.5), CATALOGUE, weights)
    rows = rows_of(*[("abcd"[n % 4 :] + "ab", "c") for n in range(10)])
    whole = ranker.rank(rows, 4)
    monkeypatch.setattr(shortcut, "_BLOCK", 3)
    assert ranker.rank(rows, 4).equals(whole)


def test_valid_rows_choose_a_mixture_where_it_is_best():
    """The counter alone has c before the targets b and d, which lead by text; texts alone have a before b."""
    pairs = Pairs([matrix(ac=1.0, ab=0.9, cb=1.0, cd=0.9)], np.zeros(4, dtype=int))
    texts = matrix(ad=1.0, ab=0.9, ca=1.0, cd=0.9)
    valid = rows_of(("a", "b"), ("c", "d"))
    ranker, log = shortcut.choose(pairs, texts, valid, CATALOGUE)
    assert 0 < ranker.weights.share < 1
    best = max(log, key=lambda one: one.ndcg)
    assert (best.weights, best.ndcg, best.hr) == (ranker.weights, 1.0, 1.0)
    assert max(one.ndcg for one in log if one.weights.share in (0, 1)) == pytest.approx(1 / np.log2(3))
    assert ranker.rank(valid, 1)["item_id"].to_list() == ["b", "d"]


def test_valid_rows_choose_whether_items_of_the_history_come_back():
    again = Pairs([matrix(aa=1.0, ab=0.9)], np.zeros(4, dtype=int))
    assert not shortcut.choose(again, matrix(), rows_of(("a", "b")), CATALOGUE)[0].weights.repeats
    assert shortcut.choose(again, matrix(), rows_of(("a", "a")), CATALOGUE)[0].weights.repeats


def test_ranks_are_places_in_the_lists():
    """For random scores: what chooses is what a list shows, ties and left-out histories included."""
    rng = np.random.default_rng(0)
    catalogue = Catalogue(pl.Series([f"i{n:02d}" for n in range(30)]))
    rows = pl.DataFrame(
        {
            "row_id": [f"r{n}" for n in range(40)],
            "history_item_ids": [[f"i{i:02d}" for i in rng.integers(0, 30, 4)] for _ in range(40)],
            "target_item_id": [f"i{i:02d}" for i in rng.integers(0, 30, 40)],
        }
    )
    counts = sparse.csr_array(np.round(rng.random((30, 30)) * (rng.random((30, 30)) < 0.2), 1).astype(np.float32))
    histories = Histories.of(rows, catalogue)
    targets = np.array([catalogue.number[item] for item in rows["target_item_id"]])
    texts = sparse.csr_array((30, 30), dtype=np.float32)
    ranker = Shortcut(counts, texts, catalogue, Weights(0.5, 0.0, 0.5, 1.0))
    ranks = shortcut.target_ranks(ranker.scores(histories), histories, targets)
    for repeats in (True, False):
        weights = Weights(0.5, 0.0, 0.5, 1.0, repeats)
        lists = Shortcut(counts, texts, catalogue, weights).rank(rows, 30)
        hits = lists.join(rows, on="row_id").filter(pl.col("item_id") == pl.col("target_item_id"))
        places = dict(zip(hits["row_id"], hits["rank"] - 1, strict=True))
        for row, history, target, rank in zip(
            rows["row_id"], rows["history_item_ids"], rows["target_item_id"], ranks[repeats], strict=True
        ):
            assert rank == (30 if not repeats and target in history else places[row])


def test_sparse_matrices_come_back_from_a_file_of_tensors(tmp_path):
    from safetensors.torch import save_file

    one, two = matrix(ab=1.5), matrix()
    save_file(tensors_of({"one": one, "two": two}), tmp_path / "model.safetensors")
    again = matrices_in(tmp_path / "model.safetensors", "one", "two")
    assert (again[0].toarray() == one.toarray()).all() and again[1].nnz == 0 and again[1].shape == (4, 4)
    with pytest.raises(StoreError, match="no matrix `three`"):
        matrices_in(tmp_path / "model.safetensors", "three")


def test_the_stage_chooses_on_valid_rows_and_says_whether_it_learnt(world):
    outcome = world.run("baseline_shortcut")
    log = tables.read(outcome.artifact.path("baseline_shortcut.parquet"))
    contracts.ChoiceLog.validate(log)
    assert log.filter("chosen")["ndcg_10"].to_list() == [log["ndcg_10"].max()]
    checks = {check["name"]: check["passed"] for check in outcome.artifact.manifest["checks"]}
    assert checks["learnt"], "every user moves one item on, which popularity cannot know"
