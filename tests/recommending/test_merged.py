"""Direct and thinking lists in one: worth by hand, what each weight leaves, the choice on valid rows."""

from __future__ import annotations

import math

import polars as pl
import pytest

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.decoding.lists import RANKING, Lists
from sidr_core.recommending.merged import Weights, candidate_shares, choose_weights, merged, named_candidates

SID_OF = {"A": "<a_0><b_0>", "B": "<a_1><b_0>", "C": "<a_2><b_0>", "D": "<a_3><b_0>"}
CODEBOOK = pl.DataFrame({"item_id": list(SID_OF), "sid": list(SID_OF.values())})
CATALOGUE = Catalogue({item: Item(item, sid, (n, 0), f"Title {item}") for n, (item, sid) in enumerate(SID_OF.items())})


def rankings(**rows: dict[str, float]) -> pl.DataFrame:
    lines = [
        (row, rank, item, SID_OF[item], math.log(chance))
        for row, chances in rows.items()
        for rank, (item, chance) in enumerate(chances.items(), 1)
    ]
    return pl.DataFrame(lines, schema=RANKING, orient="row").with_columns(pl.col("rank").cast(pl.Int32))


def thoughts(**texts: str) -> pl.DataFrame:
    return pl.DataFrame({"row_id": list(texts), "trace": [0] * len(texts), "reasoning": list(texts.values())})


def say(*items: str) -> str:
    return "Next: " + "; ".join(f"Title {item} {SID_OF[item]}" for item in items) + "."


DIRECT = Lists(rankings(r={"A": 0.5, "B": 0.3}))
THINKING = Lists(rankings(r={"B": 0.6, "C": 0.2}), thoughts(r=say("D", "C")))


def weights(thought: float, named: float) -> Weights:
    return Weights(thought, named, 0.0, 0.0, 0.0, 1, {"2/0": 0.7, "2/1": 0.1})


def order(lists: Lists) -> list[tuple[str, float]]:
    return [(item, round(math.exp(score), 6)) for item, score in lists.rankings.select("item_id", "score").iter_rows()]


def test_the_worth_of_an_item_is_computed_by_hand() -> None:
    # A .5*.5 = .25 · B .5*.3 + .5*.5*.6 = .3 · C .25*.2 + .25*.1 = .075 · D .25*.7 = .175
    found = merged(DIRECT, THINKING, CATALOGUE, weights(0.5, 0.5), CODEBOOK, 4)
    assert order(found) == [("B", 0.3), ("A", 0.25), ("D", 0.175), ("C", 0.075)]
    assert found.thoughts is THINKING.thoughts
    assert [item for item, _ in order(merged(DIRECT, THINKING, CATALOGUE, weights(0.5, 0.5), CODEBOOK, 2))] == [
        "B",
        "A",
    ]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (weights(0.0, 0.0), [("A", 0.5), ("B", 0.3), ("C", 0.0), ("D", 0.0)]),
        (weights(1.0, 0.0), [("B", 0.6), ("C", 0.2), ("A", 0.0), ("D", 0.0)]),
        (weights(1.0, 1.0), [("D", 0.7), ("C", 0.1), ("A", 0.0), ("B", 0.0)]),
    ],
)
def test_at_the_ends_one_part_comes_first_and_the_others_follow_at_nothing(chosen, expected) -> None:
    assert order(merged(DIRECT, THINKING, CATALOGUE, chosen, CODEBOOK, 4)) == expected


def test_a_thought_that_names_nothing_leaves_a_whole_list() -> None:
    silent = Lists(THINKING.rankings, thoughts(r="I cannot tell."))
    found = merged(DIRECT, silent, CATALOGUE, weights(1.0, 1.0), CODEBOOK, 2)
    assert [item for item, _ in order(found)] == ["A", "B"]


def test_a_candidate_counts_once_and_only_with_its_own_title() -> None:
    said = f"{say('C', 'C', 'A')[:-1]}; Title B {SID_OF['D']}; Another {SID_OF['B']}."
    found = named_candidates(thoughts(r=said, s="nothing is named"), CATALOGUE)
    assert found.rows() == [("r", 2, 0, "C"), ("r", 2, 1, "A")]


def test_the_share_of_a_position_is_its_hits_with_one_row_of_doubt() -> None:
    candidates = named_candidates(thoughts(r=say("A", "B"), s=say("A", "B"), t=say("C")), CATALOGUE)
    shares = candidate_shares(candidates, {"r": "A", "s": "B", "t": "D"})
    assert shares == {(2, 0): pytest.approx(1.2 / 3), (2, 1): pytest.approx(1.2 / 3), (1, 0): pytest.approx(0.2 / 2)}


def valid(**targets: str) -> pl.DataFrame:
    rows = {"row_id": list(targets), "user_id": list(targets), "target_item_id": list(targets.values())}
    return pl.DataFrame(rows).with_columns(pl.lit([["A"]]).explode().implode().alias("history_item_ids"))


def test_weights_follow_what_is_right_on_valid_rows() -> None:
    knows, thinks = {"A": 0.9, "B": 0.05}, {"B": 0.9, "A": 0.05}
    direct = Lists(rankings(r=knows, s=knows))
    thinking = Lists(rankings(r=thinks, s=thinks), thoughts(r=say("D"), s=say("D")))

    def chosen(**targets: str) -> Weights:
        return choose_weights(direct, thinking, CATALOGUE, valid(**targets), CODEBOOK, 4)

    memory = chosen(r="A", s="A")
    assert (memory.thought, memory.named, memory.ndcg, memory.rows) == (0.0, 0.0, 1.0, 2)
    assert memory.thinking == pytest.approx(1 / math.log2(3))
    assert chosen(r="B", s="B").thought > 0.5
    logic = chosen(r="D", s="D")
    assert logic.named > 0 and logic.ndcg == 1.0 and logic.known_shares() == {(1, 0): pytest.approx(2.2 / 3)}
