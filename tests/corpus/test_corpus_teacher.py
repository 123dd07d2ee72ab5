"""The rule-built teacher: what it says, and what it can never say."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core.corpus.catalogue import Catalogue, Item, all_words
from sidr_core.corpus.relations import learn_relations
from sidr_core.corpus.teacher.accept import spells_title
from sidr_core.corpus.teacher.facts import learn_facts
from sidr_core.corpus.teacher.rules import RulesTeacher
from sidr_core.errors import InputError
from sidr_core.sids.tokens import SID_PATTERN, format_sid


def item(item_id, title, codes=(0, 0), **fields):
    return Item(item_id, format_sid(codes), tuple(codes), title, **fields)


SHELF = Catalogue(
    {
        i.item_id: i
        for i in (
            item("s1", "Starfall One racing", (1, 1), brand="Nova", category="Games > PlayCube"),
            item("s2", "Starfall Two racing", (1, 2), brand="Nova", category="Games > PlayCube"),
            item("s3", "Starfall Three puzzle", (1, 3), brand="Nova", category="Games > Zed"),
            item("k1", "Kart Cup racing", (2, 1), brand="Orb", category="Games > Zed"),
            item("k2", "Kart Derby racing", (2, 2), brand="Orb", category="Games > Zed"),
            item("g1", "Gloom Manor", (3, 1), brand="Moth", category="Games > PlayCube"),
            item("g2", "Gloom Cellar", (3, 2), brand="Moth", category="Games > Ferro"),
            item("l1", "Lamp", (4, 1), description="bright desk lamp of brass"),
        )
    }
)
ROWS = [(["s1"], "s2"), (["s2"], "s3"), (["k1"], "k2"), (["k2"], "k1"), (["g1"], "g2"), (["g2"], "g1")] * 20


def rules(catalogue, rows, **options):
    looked_up = [([catalogue[i] for i in history], catalogue[target]) for history, target in rows]
    return RulesTeacher(learn_facts(catalogue, rows), learn_relations(catalogue, looked_up), **{"seed": 1, **options})


@pytest.fixture(scope="module")
def teacher():
    return rules(SHELF, ROWS)


def test_weight_is_the_shrunk_gain_of_a_word_over_chance():
    facts = learn_facts(SHELF, ROWS)
    # gloom: in the history of 40 rows, the target of 40, both in 40, of 120
    after = (40 + 20 * (40 / 120)) / (40 + 20)
    assert facts.weight["gloom"] == pytest.approx(after * math.log(after / (40 / 120)))
    assert "manor" not in facts.weight, "a word of one item is no aspect"
    assert "games" not in facts.weight, "nor is a word of most items"


def test_words_that_always_come_together_are_one_aspect():
    weight = learn_facts(SHELF, ROWS).weight
    assert {"gloom", "kart", "nova"} <= weight.keys()
    assert not {"moth", "orb", "starfall"} & weight.keys()


def test_a_row_that_repeats_an_item_teaches_nothing_about_words():
    assert learn_facts(SHELF, [*ROWS, (["l1"], "l1"), (["g1", "k1"], "g1")]).weight == learn_facts(SHELF, ROWS).weight


WORDS = st.sampled_from(
    ["starfall", "nova", "gloom", "kart", "racing", "lamp", "<think>", "<|im_end|>", "<a_1>", "\u202e", "recent", "new"]
)
ITEMS = st.builds(
    lambda number, words: item(str(number), " ".join(words), (number % 3, number)),
    st.integers(0, 99),
    st.lists(WORDS, min_size=1, max_size=5),
)


@settings(deadline=None)
@given(st.lists(ITEMS, min_size=2, max_size=12, unique_by=lambda i: i.item_id), st.data())
def test_whatever_the_titles_thoughts_and_narratives_hold_no_foreign_token(items, data):
    shelf = Catalogue({i.item_id: i for i in items})
    rows = data.draw(
        st.lists(
            st.tuples(st.lists(st.sampled_from(list(shelf)), min_size=1, max_size=6), st.sampled_from(list(shelf))),
            min_size=1,
            max_size=20,
        )
    )
    teacher = rules(shelf, rows, seed=0)
    for ids, target in rows:
        history = [shelf[i] for i in ids]
        thought = teacher.think(history)
        assert set(SID_PATTERN.findall(thought)) <= {i.sid for i in items}
        rest = SID_PATTERN.sub(
            "", thought + teacher.narrate_item(shelf[target]) + teacher.narrate_user(history, shelf[target])
        )
        assert "<" not in rest and ">" not in rest


def test_an_item_is_told_of_by_its_sid_alone(teacher):
    for one in SHELF.values():
        text = teacher.narrate_item(one)
        assert one.sid in text and not spells_title(text, one), text
    assert "lamp" not in all_words(teacher.narrate_item(SHELF["l1"]))
    assert "brass" in teacher.narrate_item(SHELF["l1"])
    assert len(teacher.narrate_item(SHELF["s1"]).split(". ")) >= 3


def test_a_user_is_told_of_in_order_and_the_end_is_the_target(teacher):
    text = teacher.narrate_user([SHELF["s1"], SHELF["g1"]], SHELF["s2"])
    assert SID_PATTERN.findall(text)[:2] == ["<a_1><b_1>", "<a_3><b_1>"]
    assert text.endswith("<a_1><b_2>.")
    assert text.count("<a_1><b_2>") == 1


def test_the_same_seed_tells_the_same_and_another_varies():
    texts = [[rules(SHELF, ROWS, seed=seed).narrate_item(i) for i in SHELF.values()] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_unknown_item_is_named():
    with pytest.raises(InputError, match="nope"):
        SHELF["nope"]
    assert "nope" not in SHELF and "s1" in SHELF


def test_open_thoughts_can_be_dropped(teacher):
    assert teacher.think([SHELF["l1"]]) == "Next: open."
    assert rules(SHELF, ROWS, drop_open=True).think([SHELF["l1"]]) == ""
