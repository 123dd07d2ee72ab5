"""Cases for people, in a terminal and as Markdown, and the report on what thoughts say."""

import re

import polars as pl
import pytest

from builders import small_world
from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.evaluation import cases, reasoning
from sidr_core.evaluation.cases import Case, ItemTitles
from sidr_core.evaluation.reasoning import Naming, cases_of, target_places
from sidr_core.settings import Evaluation
from sidr_core.sids.tokens import format_sid
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

# -- naming ------------------------------------------------------------------------------------------

#: G and S share a SID; "game" is carried by all, so it names nobody.
ITEMS = {
    "G": Item("G", "<a_0><b_0>", (0, 0), "Go board game", "Nihon"),
    "S": Item("S", "<a_0><b_0>", (0, 0), "Shogi game", "Nihon"),
    "C": Item("C", "<a_0><b_1>", (0, 1), "Chess game"),
    "R": Item("R", "<a_1><b_0>", (1, 0), "Risk game"),
    "M": Item("M", "<a_1><b_1>", (1, 1), "Monopoly game"),
}
NAMING = Naming(Catalogue(ITEMS))


@pytest.mark.parametrize(
    ("thought", "item", "way"),
    [
        ("After <a_0><b_0> more of it", "G", "sid"),
        ("After <a_0><b_0> more of it", "S", "sid"),
        ("After <a_0><b_0> more of it", "C", "no"),
        ("All of <a_0>, any game", "G", "no"),
        ("A go BOARD, game!", "G", "title"),
        ("The board of a go game", "G", "aspect"),
        ("something by nihon", "S", "aspect"),
        ("something by nihon", "R", "no"),
        ("a game", "R", "no"),
        ("risky games", "R", "no"),
        ("", "R", "no"),
    ],
)
def test_a_thought_names_an_item_by_its_sid_its_title_or_an_aspect(thought, item, way):
    assert NAMING.by(item, NAMING.of(thought)) == way


def test_the_strongest_way_of_several_items_counts():
    named = NAMING.of("shogi, and <a_1><b_1>")
    assert named.strongest(["G", "S"]) == "aspect"
    assert named.strongest(["S", "M"]) == "sid"
    assert named.strongest([]) == "no"


# -- the table -----------------------------------------------------------------------------------------


def listed(row: str, mode: str, items: list[str], model: str = "grpo", thought: str | None = None) -> pl.DataFrame:
    """A list; items of one SID lie side by side at one score."""
    sids = [ITEMS[item].sid for item in items]
    scores = [-float(sids.index(sid)) for sid in sids]
    return pl.DataFrame(
        {
            "model": [model] * len(items),
            "mode": mode,
            "row_id": row,
            "user_id": f"u{row}",
            "rank": list(range(1, len(items) + 1)),
            "item_id": items,
            "sid": sids,
            "score": scores,
            "reasoning": pl.Series([thought] * len(items), dtype=pl.String),
        },
        schema_overrides={"rank": pl.Int32},
    )


def samples(targets: dict[str, str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row_id": list(targets),
            "user_id": [f"u{row}" for row in targets],
            "position": [1] * len(targets),
            "history_item_ids": [["M"]] * len(targets),
            "target_item_id": list(targets.values()),
            "target_timestamp": [0] * len(targets),
        },
        schema_overrides={"position": pl.Int32},
    )


def thoughts(lengths: dict[str, int], model: str = "grpo", trace: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row_id": list(lengths),
            "model": model,
            "trace": trace,
            "closed": [length < 9 for length in lengths.values()],
            "n_tokens": list(lengths.values()),
        },
        schema_overrides={"trace": pl.Int32, "n_tokens": pl.Int32},
    )


def test_the_place_of_a_target_with_a_shared_sid_is_the_mean_of_the_places():
    lists = pl.concat([listed("1", "direct", ["C", "G", "S"]), listed("2", "direct", ["C", "R", "G"])])
    found = target_places(lists, samples({"1": "S", "2": "M"}))
    assert found.select("row_id", "place").rows() == [("1", 2.5)]


def hand_made() -> pl.DataFrame:
    """Targets: 1 moves from outside (place 4) to 1, 2 from 1 to 3, 3 stays, 4 moves from 2 to 1."""
    lists = pl.concat(
        [
            listed("1", "direct", ["R", "M", "C"]),
            listed("1", "thinking", ["G", "S", "R"], thought="a <a_0><b_0>, after Monopoly game"),
            listed("2", "direct", ["C", "R", "M"]),
            listed("2", "thinking", ["R", "M", "C"], thought="risk pays"),
            listed("3", "direct", ["R", "C"]),
            listed("3", "thinking", ["R", "C"], thought=""),
            listed("4", "direct", ["R", "C"]),
            listed("4", "thinking", ["C", "R"], thought="chess"),
        ]
    )
    rows = samples({"1": "G", "2": "C", "3": "C", "4": "C"})
    told = pl.concat([thoughts({"1": 5, "2": 9, "3": 0, "4": 1}), thoughts({"1": 50}, trace=1)])
    return cases_of(lists, rows, told, NAMING)


def test_cases_by_hand():
    found = hand_made().sort("row_id")
    contracts.Cases.validate(found.select(list(contracts.Cases.to_schema().columns)))
    columns = ["row_id", "place", "direct_place", "gain", "change", "hit", "n_tokens", "closed"]
    assert found.select(columns).rows() == [
        ("1", 1.5, None, 2.5, "helped", True, 5, True),
        ("2", 3.0, 1.0, -2.0, "harmed", True, 9, False),
        ("3", 2.0, 2.0, 0.0, "same", True, 0, True),
        ("4", 1.0, 2.0, 1.0, "helped", True, 1, True),
    ]
    assert found.select("names_top", "names_target", "names_history").rows() == [
        ("sid", "sid", "title"),
        ("aspect", "no", "no"),
        ("no", "no", "no"),
        ("aspect", "aspect", "no"),
    ]


def test_what_both_lists_miss_has_not_moved_whatever_their_lengths():
    """Of two SIDs each, the lists hold 3 items and 2, 2 and 3; a hit is counted from behind the longer one."""
    lists = pl.concat(
        [
            listed("1", "direct", ["G", "S", "C"]),
            listed("1", "thinking", ["C", "R"], thought="chess"),
            listed("2", "direct", ["C", "R"]),
            listed("2", "thinking", ["G", "S", "C"], thought="go"),
            listed("3", "direct", ["G", "S", "C"]),
            listed("3", "thinking", ["C", "R"], thought="risk"),
            listed("4", "direct", ["C", "R"]),
            listed("4", "thinking", ["G", "S", "C"], thought="shogi"),
        ]
    )
    rows = samples({"1": "M", "2": "M", "3": "R", "4": "R"})
    found = cases_of(lists, rows, thoughts(dict.fromkeys("1234", 1)), NAMING).sort("row_id")
    assert found.select("place", "direct_place", "gain", "change").rows() == [
        (None, None, 0.0, "same"),
        (None, None, 0.0, "same"),
        (2.0, None, 2.0, "helped"),
        (None, 2.0, -2.0, "harmed"),
    ]


def test_shown_are_some_at_random_and_the_extremes(monkeypatch):
    monkeypatch.setattr(reasoning, "SHOWN", {"random": 1, "helped": 1, "harmed": 1})
    found = hand_made().sort("row_id")
    shown = dict(found.select("row_id", "shown").drop_nulls().iter_rows())
    assert "helped" in shown["1"] and "harmed" in shown["2"]
    assert sum("random" in why for why in shown.values()) == 1
    assert "helped" not in shown.get("4", "") and shown.get("3", "random") == "random"
    assert hand_made().equals(hand_made())


def test_a_model_without_a_direct_list_is_neither_helped_nor_harmed():
    lists = listed("1", "thinking", ["C", "R"], model="activation", thought="chess")
    found = cases_of(lists, samples({"1": "M"}), thoughts({"1": 2}, "activation"), NAMING)
    assert found.select("place", "gain", "change", "hit").rows() == [(None, None, None, False)]


def test_an_adaptive_model_is_read_where_it_thought_and_compared_with_its_direct_lists():
    lists = pl.concat(
        [
            listed("1", "direct", ["R", "C"]),
            listed("2", "direct", ["R", "C"]),
            listed("1", "thinking", ["C", "R"], model="grpo_adaptive", thought="chess"),
            listed("2", "thinking", ["R", "C"], model="grpo_adaptive"),
        ]
    )
    found = cases_of(lists, samples({"1": "C", "2": "C"}), thoughts({"1": 2}, "grpo_adaptive"), NAMING)
    assert found.select("row_id", "base", "change").rows() == [("1", "grpo", "helped")]


def test_lengths_and_shares_are_counted():
    found = hand_made()
    rows = {row[0]: row[1:] for row in reasoning.length_grid(found).rows}
    assert rows["grpo: all"][:2] == ("4", "3.8")  # (5 + 9 + 0 + 1) / 4
    assert rows["grpo: helped"][:2] == ("2", "3.0")
    assert "grpo: miss" not in rows
    named = {row[0]: row[1:] for row in reasoning.named_grid(found).rows}
    assert named["grpo: first item of its list"] == ("25.0%", "0.0%", "50.0%", "75.0%")
    assert named["grpo: an item of the history"] == ("0.0%", "25.0%", "0.0%", "25.0%")


def test_lengths_of_two_stages_are_paired_by_row():
    lists = [listed(row, "thinking", ["C"], model, "x") for row in "12" for model in ("activation", "grpo")]
    told = pl.concat([thoughts({"1": 6, "2": 8}, "activation"), thoughts({"1": 3, "2": 5})])
    found = cases_of(pl.concat(lists), samples({"1": "C", "2": "C"}), told, NAMING)
    line = reasoning.shorter(found, Evaluation(bootstrap=100))
    assert "activation 7.0, GRPO 4.0 tokens; difference -3.0 [-3.0, -3.0]" in line
    assert reasoning.shorter(found.filter(pl.col("model") == "grpo"), Evaluation()) == ""


# -- one rendering -------------------------------------------------------------------------------------

EVIL = "</td>|<img src=x onerror=alert(1)> **b** `c` [l](http://x) # h\n| --- | \x1b[31m"
TITLES = ItemTitles({"A": "Chess", "B": "Go", "E": EVIL}, {"A": "<a_0><b_1>", "B": "<a_0><b_1>", "E": "<a_1><b_0>"})


def case(**fields):
    ranking = pl.DataFrame(
        {"rank": [1, 2], "item_id": ["E", "A"], "sid": ["<a_1><b_0>", "<a_0><b_1>"], "score": [-1.0, -2]}
    )
    return Case(**{"heading": "d: user u", "history": ["A", "E"], "ranking": ranking, "target": "A", **fields})


def test_a_shared_sid_is_resolved_to_all_its_titles():
    assert TITLES.resolve("so <a_0><b_1>") == "so <a_0><b_1> (Chess / Go)"
    assert TITLES.named("<a_0><b_1> <a_0> <a_7><b_7>") == {"<a_0><b_1>", "<a_7><b_7>"}
    assert ItemTitles({}, {}).named("<a_0>") == set()


def test_markdown_holds_every_part_and_marks_the_target():
    text = cases.markdown(case(thought="then <a_0><b_1>", ranks={"grpo/direct": "2"}), TITLES)
    assert "**Thought**\n\n- then &lt;a\\_0&gt;&lt;b\\_1&gt; (Chess / Go)" in text
    assert "| **2** | **Chess** | **A** |" in text
    assert "**Truth**\n\n- Chess A" in text and "- grpo/direct: 2" in text
    assert "not closed by the model" in cases.markdown(case(thought="", unclosed=True), TITLES)


def test_hostile_text_stays_text_in_markdown():
    text = cases.markdown(case(heading=EVIL, thought=f"{EVIL}\n\n# heading\n```"), TITLES)
    assert "<img" not in text and "\x1b" not in text and not re.search(r"(?<!\\)\]\(", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # A cell cannot end a row: every row has the five cells of the header.
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}
    assert len(rows) == 4
    assert not [line for line in text.splitlines() if line.startswith(("# heading", "```", "</td>"))]


def test_the_terminal_shows_the_same_parts(capsys):
    cases.show(case(thought="then <a_0><b_1>", ranks={"grpo/direct": "2"}), TITLES)
    out = capsys.readouterr().out
    for part in ("History, oldest first", "then <a_0><b_1> (Chess / Go)", "Truth", "grpo/direct: 2", "<img src=x"):
        assert part in out
    assert "\x1b[31m" not in out


# -- the stage -----------------------------------------------------------------------------------------


def test_the_stage_reports_on_published_lists(world):
    made = world.run("reasoning_report").artifact
    found = tables.read(made.path("cases.parquet"))
    assert found.group_by("model").len().sort("model").rows() == [("activation", 12), ("grpo", 12)]
    assert found.filter(pl.col("model") == "activation")["change"].null_count() == 12
    assert found.filter(pl.col("model") == "grpo")["change"].null_count() == 0
    text = made.path("reasoning_report.md").read_text()
    for part in (
        "synthetic sample data",
        "What thoughts name",
        "grpo: most harmed by thinking",
        "Toy A0",
        "Mean length",
    ):
        assert part in text
    assert made.path("lengths.png").read_bytes().startswith(b"\x89PNG")
    assert made.manifest["metrics"]["thoughts"] == 24


def test_the_stage_does_without_a_thinking_model(world):
    plain = small_world.profile(models=["sft/direct", "popularity/direct"])
    world.run("recommendations", plain)
    made = world.run("reasoning_report", plain).artifact
    assert tables.read(made.path("cases.parquet")).is_empty()
    assert "No model of `decoding.models` thinks." in made.path("reasoning_report.md").read_text()


def test_the_codebook_of_the_small_world_shares_a_sid():
    assert format_sid(small_world.CODES["A14"]) == format_sid(small_world.CODES["A15"])
