"""Truth of thoughts, row by row and as shares: by hand."""

import polars as pl
import pytest

from sidr_core.recommending import truth
from sidr_core.sids.tokens import format_sid

SYSTEMS = {1: "Orb", 2: "Zed", 3: "Orb", 4: "Zed", 5: "Orb", 6: "Zed"}
ITEMS = pl.DataFrame(
    [
        {
            "item_id": f"g{part}",
            "title": f"Game {part}",
            "brand": "",
            "category": "",
            "description": f"A game. System: {system}. Part: {part}.",
        }
        for part, system in SYSTEMS.items()
    ]
)
BOOK = pl.DataFrame(
    {"item_id": ITEMS["item_id"], "sid": [format_sid((n, 0)) for n in SYSTEMS], "codes": [[n, 0] for n in SYSTEMS]}
)
ROWS = pl.DataFrame({"row_id": ["r1"], "history_item_ids": [["g2", "g1"]]})
TRAIN = pl.DataFrame({"history_item_ids": [["g1"]], "target_item_id": ["g3"]})


def judged(*thoughts: tuple[str, str | None]) -> pl.DataFrame:
    table = [("r1", model, text) for model, text in thoughts]
    schema = {"row_id": pl.String, "model": pl.String, "reasoning": pl.String}
    frame = pl.DataFrame(table, schema=schema, orient="row")
    return truth.judged(frame, ROWS, ITEMS, BOOK, TRAIN)


def test_facts_hold_for_the_history_and_candidates_for_the_catalogue():
    found = judged(
        ("grpo", "System: Orb. Part: 1. Next: open."),  # the newest item says both
        ("grpo", "System: Zed. Part: 1. Next: Game 3 <a_3><b_0>; Game 3 <a_4><b_0>."),  # one SID is another game's
        ("grpo", "System: Orb. Next: open."),  # right, but it leaves out the part
        ("grpo", "System: Orb. I go on and on"),
        ("grpo", None),
    )
    assert found.select(truth.FACTS, truth.FACTS_RIGHT, truth.CANDIDATES, truth.CANDIDATES_REAL, truth.TRUE).rows() == [
        (2, 2, 0, 0, True),
        (2, 1, 2, 1, False),
        (1, 1, 0, 0, False),
        (1, 1, 0, 0, False),
        (0, 0, 0, 0, False),
    ]
    assert truth.shares(found) == {
        "grpo": {"facts_right": pytest.approx(5 / 6), "thoughts_true": pytest.approx(1 / 5), "candidates_real": 0.5}
    }


def test_a_model_that_thinks_in_another_form_is_not_judged():
    found = judged(("grpo", "I like System: Orb."), ("activation", "System: Orb. Part: 1. Next: open."))
    by_model = dict(found.select("model", truth.TRUE).iter_rows())
    assert by_model == {"grpo": None, "activation": True}
    assert found.filter(pl.col("model") == "grpo").select(truth.FACTS, truth.CANDIDATES).row(0) == (None, None)
    assert list(truth.shares(found)) == ["activation"]
    assert truth.shares(judged(("grpo", None))) == {}
