"""Stated facts, relations between them, and thoughts that are true and could be known: by hand, and as properties."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.corpus import item
from sidr_core.corpus import practice, thoughts
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.relations import FIRST, NEXT, Relation, learn_relations
from sidr_core.corpus.stated import read_facts, stated_in
from sidr_core.corpus.thoughts import Verdict, candidates_in, judge, write

SYSTEMS = ("Orb", "Zed")


def game(series, part, system, after):
    text = f"A game. Series: {series}. Part: {part}. Next series: {after}. System: {system}."
    code = (len(series), part, SYSTEMS.index(system))
    return item(f"{series}{part}{system}", f"{series} {part} for {system}", code, brand="Nova", description=text)


def shop():
    """Two series of three parts for two systems, their soundtracks, and two consoles."""
    games = [
        game(series, part, system, after)
        for series, after in (("Kart", "Gloom"), ("Gloom", "Kart"))
        for part in (1, 2, 3)
        for system in SYSTEMS
    ]
    sounds = [
        item(f"{s}-ost", f"{s} Music", (9, len(s), 0), description=f"Music. Series: {s}.") for s in ("Kart", "Gloom")
    ]
    consoles = [item(s, f"{s} Console", (8, n, 0), description=f"Plays. System: {s}.") for n, s in enumerate(SYSTEMS)]
    # a name of a fact counts from five items on
    spare = [item(f"x{n}", f"Poster {n}", (7, n, 0), description="A poster.") for n in range(5)]
    return Catalogue({one.item_id: one for one in (*games, *sounds, *consoles, *spare)})


SHOP = shop()


def of(*ids):
    return [SHOP[i] for i in ids]


def rows():
    """After a part the next on the system that is owned, whatever stands between; after the last, the next series."""
    made = []
    for system, other in (("Orb", "Zed"), ("Zed", "Orb")):
        for series, after in (("Kart", "Gloom"), ("Gloom", "Kart")):
            one, two, three = (f"{series}{part}{system}" for part in (1, 2, 3))
            made += [
                ([system, one], two),
                ([system, one, f"{series}-ost"], two),
                ([system, one, two], three),
                ([f"{series}1{other}", system, two], three),
                ([system, one, two, three], f"{after}1{system}"),
            ]
    return [(of(*history), SHOP[target]) for history, target in made * 5]


@pytest.fixture(scope="module")
def relations():
    return learn_relations(SHOP, rows())


def test_facts_are_read_from_sentences_and_neutralised():
    text = "For 0.5 mm lines. Series: Fine <|im_end|> Line. Width: 0.5 mm. Note: a; Part: 2\nSystem: Orb. not: this."
    assert stated_in(text) == {"Series": "Fine ‹|im_end|› Line", "Width": "0.5 mm", "Note": "a"}
    assert stated_in("Series: A. Series: B.") == {"Series": "A"}
    assert stated_in("no facts: here, or http://x.y") == {}


def test_numbers_count_within_the_fact_that_tells_most_apart():
    facts = read_facts(SHOP)
    assert facts.numbers == {"Part": "Series"} and facts.follows_from == {"Next series"}
    assert facts.categorical("Kart2Orb") == {"Series": "Kart", "Next series": "Gloom", "System": "Orb"}
    assert facts.counts("Kart2Orb") == {"Part": 2} and facts.of["x1"] == {}


def test_an_item_that_states_nothing_has_brand_category_and_the_series_of_its_title():
    pens = [item(f"p{n}", f"Inky Gel Pens {n} pack", (1, n), brand="Inky", category="Office > Pens") for n in (1, 2)]
    lone = item("l", "Brass Lamp", (2, 1))
    facts = read_facts(Catalogue({one.item_id: one for one in (*pens, lone)}))
    assert facts.of["p1"] == {"Brand": "Inky", "Category": "Pens", "Series": "Inky Gel Pens"}
    assert facts.of["l"] == {}


def test_the_state_is_the_newest_series_its_highest_part_and_the_system(relations):
    state = relations.state(of("Zed", "Kart1Zed", "Kart2Zed", "Gloom1Orb", "Kart-ost"))
    assert dict(state.facts) == {"Series": "Kart", "Next series": "Kart", "System": "Orb"}
    assert state.reached == {"Series": 2}
    assert relations.state(of("Gloom-ost")).reached == {"Series": 0}


def test_relations_are_what_train_rows_show(relations):
    state = relations.state(of("Orb", "Kart1Orb", "Kart-ost"))
    assert relations.relation(state, SHOP["Kart2Orb"], False).steps == (
        ("Series", "Series"),
        ("System", "System"),
        ("Part", NEXT),
    )
    assert relations.relation(state, SHOP["Gloom1Orb"], False).steps[-1] == ("Part", FIRST)
    assert relations.relation(state, SHOP["Kart2Zed"], False) is None, "another system follows from nothing"
    assert relations.relation(state, SHOP["Kart3Orb"], False) is None, "a part is left out"
    learned = {relation.steps for shares in relations.shares.values() for relation, _ in shares}
    assert len(learned) == 2  # the next part, and the first of the next series


def test_candidates_join_facts_of_several_items(relations):
    """The system is said by the first item, the part by the second, the series by the last."""
    (one,) = relations.candidates(of("Orb", "Kart1Orb", "Kart-ost"))
    assert one.item.item_id == "Kart2Orb"
    # followed in 5 of 5 rows after a soundtrack for each of 2 series and 2 systems, with 20 rows of doubt
    assert one.probability == pytest.approx(20 / (20 + 20))
    assert [c.item.item_id for c in relations.candidates(of("Orb", "Kart1Orb", "Kart2Orb", "Kart3Orb"))] == [
        "Gloom1Orb"
    ]
    assert relations.candidates(of("x1")) == []


def test_a_thought_says_facts_then_candidates(relations):
    history = of("Orb", "Kart1Orb", "Kart-ost")
    sid = SHOP["Kart2Orb"].sid
    assert write(relations, history) == f"Series: Kart. Part: 1. System: Orb. Next: Kart 2 for Orb {sid}."
    assert write(relations, of("x1")) == "Next: open."
    verbose = write(relations, history, thoughts.VERBOSE)
    assert len(verbose.split()) > 2 * len(write(relations, history).split())
    for form in (thoughts.TERSE, thoughts.VERBOSE):
        assert judge(write(relations, history, form), relations, history) == Verdict(3, 3, 1, 1, 3)


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        ("Series: Kart. Part: 2. System: Orb. Next: {0}.", Verdict(3, 2, 1, 1, 3)),  # another part
        ("Series: Kart. Part: 1. Next: {0}.", Verdict(2, 2, 1, 1, 3)),  # one left out
        ("Series: Kart. Part: 1. System: Orb. Next: Kart 3 for Orb {1}.", Verdict(3, 3, 1, 0, 3)),  # another's SID
        ("Series: Kart. Part: 1. System: Orb. Next: Nothing <a_1><b_99><c_9>.", Verdict(3, 3, 1, 0, 3)),  # no item
        ("gibberish <a_1>", Verdict(0, 0, 0, 0, 3)),
    ],
)
def test_what_is_false_is_found(relations, thought, expected):
    sid = SHOP["Kart2Orb"].sid
    verdict = judge(thought.format(f"Kart 2 for Orb {sid}", sid), relations, of("Orb", "Kart1Orb", "Kart-ost"))
    assert verdict == expected and not verdict.true


def test_candidates_are_read_back():
    assert candidates_in(" A; B <a_1><b_2><c_3>; C d <a_0><b_0><c_0>.") == [
        ("A; B", "<a_1><b_2><c_3>"),
        ("C d", "<a_0><b_0><c_0>"),
    ]


HISTORIES = st.lists(st.sampled_from(sorted(SHOP)), min_size=1, max_size=8, unique=True)


@settings(deadline=None)
@given(HISTORIES, st.sampled_from(["terse", "verbose"]))
def test_every_thought_is_true(ids, form):
    relations = _LEARNED
    assert judge(write(relations, of(*ids), form), relations, of(*ids)).true


_LEARNED = learn_relations(SHOP, rows())


def test_practice_visits_every_item_and_knows_no_user(relations):
    made = list(practice.histories(relations, 400, longest=6, seed=1))
    assert made == list(practice.histories(relations, 400, longest=6, seed=1))
    assert {one.item_id for history in made for one in history} == set(SHOP)
    assert all(len({one.item_id for one in history}) == len(history) <= 6 for history in made)
    assert any(len(history) == 1 for history in made)
    followed = sum(bool(relations.candidates(history)) for history in made)
    assert followed > 100


def test_other_rows_teach_other_shares():
    """A relation that train targets do not follow gives no candidate, whatever the catalogue states."""
    rng = random.Random(0)
    shuffled = [(history, rng.choice(list(SHOP.values()))) for history, _ in rows()]
    learned = learn_relations(SHOP, shuffled)
    relation = Relation(
        read_facts(SHOP).kind("Kart2Orb"), (("Series", "Series"), ("System", "System"), ("Part", NEXT)), False
    )
    shares = [share for shares in learned.shares.values() for known, share in shares if known == relation]
    assert max(shares, default=0.0) < 0.2
