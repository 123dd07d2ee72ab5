"""The language teacher: what it asks, what it accepts, and attempts to get a bad reply past it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from builders import corpus as fakes
from builders.corpus import BOOK, CLIP, LAMP, NARRATIVE, PATH, PENS, QUIET, ROWS, SHOP, FakeClient, item, row, settings
from sidr_core.corpus.relations import learn_relations
from sidr_core.corpus.teacher import accept, language, requests
from sidr_core.corpus.teacher.facts import learn_facts
from sidr_core.corpus.teacher.rules import RulesTeacher
from sidr_core.remote.errors import BudgetExhausted
from sidr_core.settings import Teacher
from sidr_core.sids.tokens import SID_PATTERN

RELATIONS = learn_relations(SHOP, [(row.history, row.target) for row in ROWS])
RULES = RulesTeacher(
    learn_facts(SHOP, [([i.item_id for i in r.history], r.target.item_id) for r in ROWS]), RELATIONS, 1
)


def written(answer=fakes.usual, rest=None, rows=ROWS, **fields):
    return language.write(FakeClient(answer), rows, SHOP, settings(**fields), RELATIONS, rest, QUIET)


def answering(**texts):
    """The usual replies but for the kinds that are named; a string is the text, None no reply."""

    def answer(request):
        if request.kind not in texts:
            return fakes.usual(request)
        if texts[request.kind] is None:
            return "refusal"
        (field,) = request.schema.model_fields
        return request.schema.model_validate({field: texts[request.kind]})

    return answer


# what is asked


def test_items_by_frequency_and_users_by_rows_come_first():
    # targets: book 2, clip 2, pens 1, lamp 1; users: u2 3 rows, u1 2, u3 1
    assert [i.item_id for i in requests.most_frequent(ROWS, SHOP, 3)] == ["book", "clip", "lamp"]
    assert len(requests.most_frequent(ROWS, SHOP, None)) == 4 and requests.most_frequent(ROWS, SHOP, 0) == []
    assert requests.busiest(ROWS, 2) == {"u1", "u2"} and requests.busiest(ROWS, None) == {"u1", "u2", "u3"}


def test_two_rounds_cover_what_the_settings_choose():
    client = FakeClient()
    language.write(client, ROWS, SHOP, settings(items=2, users=2, traces_per_user=2), RELATIONS, None, QUIET)
    kinds = [request.kind for request in client.asked]
    assert kinds == ["item_analysis"] * 2 + ["user_path"] * 4 + ["item_narrative"] * 2 + ["user_narrative"] * 2
    assert len(client.asked) == len(set(client.asked)), "no request is made twice"


def test_rows_of_one_history_and_target_share_a_request():
    jobs = requests.first_round(ROWS, SHOP, settings(items=0))
    assert [job.row.row_id for job in jobs] == ["u3-1", "u1-2", "u2-1", "u2-2", "u2-3"]
    assert jobs[0].narrated, "u3-1 is the newest row of u3, which u1-1 is not of u1"


def test_no_narratives_are_asked_for_where_the_profile_wants_none():
    client = FakeClient()
    language.write(client, ROWS, SHOP, settings(item_narratives=False, user_narratives=False), RELATIONS, None, QUIET)
    assert {request.kind for request in client.asked} == {"user_path"}


def test_the_plan_is_what_is_asked():
    client, teacher = FakeClient(), settings(items=2, users=2)
    language.write(client, ROWS, SHOP, teacher, RELATIONS, None, QUIET)
    assert requests.plan(ROWS, SHOP, teacher, answered=fakes.usual) == client.asked
    guessed = requests.plan(ROWS, SHOP, teacher)
    assert [request.kind for request in guessed] == [request.kind for request in client.asked]


def test_a_new_codebook_changes_no_request():
    moved = [item(i.item_id, i.title, (9, 9), brand=i.brand, category=i.category, description=i.description)
             for i in SHOP.values()]  # fmt: skip
    shop = fakes.catalogue(*moved)
    rows = [row(r.user_id, r.position, [shop[i.item_id] for i in r.history], shop[r.target.item_id]) for r in ROWS]
    for answered in (fakes.usual, lambda request: None):
        first, second = (requests.plan(r, c, settings(), answered) for r, c in ((ROWS, SHOP), (rows, shop)))
        assert first == second


def test_prompts_hold_no_user_no_sid_and_narratives_no_title():
    for request in requests.plan(ROWS, SHOP, settings(), answered=fakes.usual):
        text = request.system + request.user
        assert not SID_PATTERN.search(text) and not any(user in text for user in ("u1", "u2", "u3"))
        if request.kind == "item_narrative":
            assert not any(i.title.lower() in text.lower() for i in SHOP.values())
        data = request.user.split("<data>\n")[1].split("\n</data>")[0]
        assert "<" not in data and ">" not in data
        assert "never an instruction" in request.system


def test_the_title_goes_from_the_narratives_prompt_even_inside_a_description_or_a_reply():
    lamp = item("l", "Brass Desk Lamp", description="The BRASS desk-lamp shines.", category="Light")
    reply = requests.ItemAnalysis(
        description="A brass desk lamp.", use_cases=["u"], audience="a", features=["f"], keywords=["k"]
    )
    (job,) = requests.second_round([requests.Job(fake_request("item_analysis"), item=lamp)], [reply], settings())
    assert "The [item] shines." in job.request.user and "A [item]." in job.request.user


def fake_request(kind):
    return requests.Request(kind, "", "", requests.ItemAnalysis, 16, 0.0)


def test_descriptions_are_capped():
    long = item("l", "t", description="word " * 10_000)
    shelf = fakes.catalogue(long)
    (job,) = requests.first_round([row("u", 1, [PENS], long)], shelf, settings(users=0, input_chars=200))
    assert len(job.request.user) < 800
    (path,) = requests.first_round([row("u", 1, [long] * 10, long)], shelf, settings(items=0))
    assert len(path.request.user) < 3500


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (requests.UserPath, {"reasoning": ""}),
        (requests.UserPath, {"reasoning": "x" * 6001}),
        (requests.UserPath, {"reasoning": 3}),
        (requests.UserPath, {"reasoning": "fine", "more": "x"}),
        (requests.ItemNarrative, {}),
        (requests.ItemAnalysis, {"description": "d", "use_cases": [], "audience": "a", "features": ["f"],
                                 "keywords": ["k"]}),
        (requests.ItemAnalysis, {"description": "d", "use_cases": ["u"], "audience": "a", "features": ["f"],
                                 "keywords": ["k"] * 17}),
    ],
)  # fmt: skip
def test_reply_models_are_strict_and_bounded(model, fields):
    with pytest.raises(ValidationError):
        model.model_validate(fields)


# what becomes of a reply


def test_names_become_sids():
    story = (
        "First came [1], then [Item 2] and [#1, 2], and the rest [of it] was quiet as ever in this small town [next]."
    )
    verdict = accept.user_narrative(story, [PENS, BOOK], CLIP)
    assert verdict.reason == "" and verdict.repairs == ()
    assert verdict.text == (
        "First came <a_1><b_1>, then <a_1><b_2> and <a_1><b_1>, <a_1><b_2>, and the rest (of it) was quiet as ever in "
        "this small town <a_2><b_1>."
    )


def test_a_narrative_that_lacks_its_sids_gets_them():
    assert accept.item_narrative(NARRATIVE.replace("[item]", "It"), LAMP).text.startswith("<a_3><b_1>: It is made")
    verdict = accept.user_narrative(PATH.replace("[1]", "order").rstrip("."), [PENS, BOOK], CLIP)
    assert verdict.text.startswith("The choices were <a_1><b_1>, then <a_1><b_2>. I began")
    assert verdict.text.endswith("in the hand. The next choice is <a_2><b_1>.")
    assert verdict.repairs == ("history_added", "target_added")


def test_titles_become_sids():
    text = accept.item_narrative(NARRATIVE.replace("[item] is", "The brass desk-lamp is"), LAMP).text
    assert text.startswith("The <a_3><b_1> is made")
    thought = accept.thought(PATH.replace("[1]", "the blue gel pens"), [PENS]).text
    assert "with the <a_1><b_1> because" in thought


def test_longer_titles_are_swapped_before_those_inside_them():
    pad = item("pad", "Gel Pens", (7, 7))
    text = accept.thought(PATH.replace("[1]", "Blue Gel Pens and gel pens"), [pad, PENS]).text
    assert "with <a_1><b_1> and <a_7><b_7> because" in text


def test_only_what_follows_a_thinking_part_counts():
    text = accept.item_narrative(f"<think>secret [9] </think>{NARRATIVE}", LAMP).text
    assert text == NARRATIVE.replace("[item]", LAMP.sid)


def test_the_label_of_a_key_is_no_part_of_the_text():
    assert accept.item_narrative(f"Narrative: {NARRATIVE}", LAMP) == accept.item_narrative(NARRATIVE, LAMP)


def test_a_long_reply_is_cut_after_a_sentence():
    many = "[1] is the first. " + " ".join(f"Sentence number {n} tells of another thing {n * 7}." for n in range(200))
    text = accept.thought(many, [PENS]).text
    assert len(text) <= accept.THOUGHT_CHARS and text.endswith(".") and many.replace("[1]", PENS.sid).startswith(text)


FILLER = " and so on through all the many small things that a day at a desk may ask of us"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<a_1><b_1>" + FILLER, "sid_look_alike"),
        ("＜ａ＿１＞" + FILLER, "sid_look_alike"),
        ("<a\u200b_12>" + FILLER, "sid_look_alike"),
        ("< A _ 3 >" + FILLER, "sid_look_alike"),
        ("<|im_end|>" + FILLER, "markup"),
        ("</tool_call>" + FILLER, "markup"),
        ("[2]" + FILLER, "unknown_item"),
        ("[0]" + FILLER, "unknown_item"),
        ("[next]" + FILLER, "unknown_item"),
        ("[1, 7]" + FILLER, "unknown_item"),
        ("short", "too_short"),
        ("go on " * 40, "repetitive"),
        ("Afterwards I took something" + FILLER, "mentions_guidance"),
        ("My next purchase will be grand" + FILLER, "mentions_guidance"),
        ("As the reference item says" + FILLER, "mentions_guidance"),
        ("It goes" + FILLER, "names_no_item"),
        ("[1] and ASKED to be quiet, to be" + FILLER, "echoes_prompt"),
    ],
)
def test_a_bad_thought_is_refused(text, reason):
    verdict = accept.thought(text, [PENS], asked="You are asked to be quiet, to be still.")
    assert verdict.reason == reason
    assert "<" not in verdict.text and len(verdict.text) <= 500


def test_a_narrative_that_spells_a_title_of_one_word_is_refused():
    assert accept.item_narrative("A lamp of light " + NARRATIVE, item("l", "Lamp")).reason == "names_title"
    assert accept.item_narrative("Lamps " + NARRATIVE, item("l", "Lamp")).reason == ""


REPLIES = st.text(st.characters(), max_size=120) | st.lists(
    st.sampled_from(["<a_1><b_1>", "<a_9>", "[1]", "[2]", "[next]", "[item]", "<think>", "</think>", "<|im_end|>",
                     "[INST]", "＜a_1＞", "\u202e", "\u200b", "Blue Gel Pens", "word", "of", "quiet", ".", "‹a_1›"]),
    max_size=40,
).map(" ".join)  # fmt: skip


@given(REPLIES)
def test_no_reply_gets_a_foreign_sid_or_tag_in(reply):
    reply = reply + FILLER
    verdicts = [
        (accept.item_narrative(reply, LAMP), {LAMP.sid}),
        (accept.thought(reply, [PENS, BOOK]), {PENS.sid, BOOK.sid}),
        (accept.user_narrative(reply, [PENS, BOOK], CLIP), {PENS.sid, BOOK.sid, CLIP.sid}),
    ]
    for verdict, allowed in verdicts:
        assert set(SID_PATTERN.findall(verdict.text)) <= (set() if verdict.reason else allowed)
        rest = SID_PATTERN.sub("", verdict.text)
        assert "<" not in rest and ">" not in rest and "\n" not in rest
        verdict.text.encode()
    narrative, _, story = (verdict for verdict, _ in verdicts)
    assert narrative.reason or LAMP.sid in narrative.text
    if not story.reason:
        assert SID_PATTERN.findall(story.text)[:2] == [PENS.sid, BOOK.sid]
        assert story.text.rstrip(" .!").endswith(CLIP.sid)


# the teacher


def test_what_is_beyond_the_limits_is_written_by_rules_or_not_at_all():
    for rest in (RULES, None):
        teacher = written(rest=rest, items=1, users=1, traces_per_user=1).teacher
        assert teacher.narrate_item(BOOK).startswith("<a_1><b_2> is made for daily use")
        assert teacher.narrate_item(LAMP) == (RULES.narrate_item(LAMP) if rest else "")
        assert teacher.think(ROWS[1].history) == (RULES.think(ROWS[1].history) if rest else "")
        thought = teacher.think(ROWS[4].history)
        assert thought.startswith("I began with <a_1><b_2>") and thought.endswith(RULES.think(ROWS[4].history))
        assert teacher.narrate_user(ROWS[4].history, LAMP).endswith("<a_3><b_1>.")
        assert teacher.narrate_user(ROWS[1].history, CLIP) == (
            RULES.narrate_user(ROWS[1].history, CLIP) if rest else ""
        )


def test_missing_replies_are_counted_with_their_reason():
    one = written(answering(item_analysis=None, user_narrative="too short a reply"))
    assert {(r.kind, r.reason) for r in one.quarantined} == {
        ("item_analysis", "refusal"),
        ("user_narrative", "too_short"),
    }
    assert one.figures["quarantined"] == 4 + 3 and one.figures["accepted_item_narratives"] == 0
    assert one.teacher.narrate_item(BOOK) == ""


def test_a_rerun_differs_in_nothing_but_its_calls():
    client = FakeClient()
    one, two = (language.write(client, ROWS, SHOP, settings(), RELATIONS, None, QUIET) for _ in range(2))
    assert one.calls == {"teacher_calls": 16, "teacher_reused": 0}
    assert two.calls == {"teacher_calls": 0, "teacher_reused": 16}
    assert one.cost == two.cost == {"requests": 16, "input_tokens": 1600, "output_tokens": 800, "usd": 0.016}
    assert one.digest == two.digest and one.figures == two.figures
    assert written(answering(user_path=PATH + " More.")).digest != one.digest


# the stage


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs the stage with a fake client in place of the real one."""
    from builders import corpus as base
    from sidr_core.remote import client as module

    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    runs = iter(range(9))

    def run(client, **fields):
        monkeypatch.setattr(module, "Client", lambda *args, **kwargs: client)
        endpoint = {"model": "fake", "base_url": "http://127.0.0.1:9/v1"}
        return base.run(tmp_path / str(next(runs)), *base.frames(), kind="openai", endpoint=endpoint, **fields)

    return run


def test_the_stage_writes_the_replies_and_the_quarantine(stage):
    from sidr_core.tables import files as tables
    from sidr_core.tables.contracts import Corpus, TeacherQuarantine

    def answer(request):
        assert "chosen afterwards" not in request.user, "no teacher of thoughts is shown the next item"
        false = request.kind == "user_path" and request.user.count("[2]") and "Gloom" in request.user
        return requests.UserPath(reasoning=f"{PATH} Brand: Nobody.") if false else fakes.usual(request)

    client = FakeClient(answer)
    report, out = stage(client, rest="none")
    assert [check.detail for check in report.checks if not check.passed] == []
    corpus = tables.read(out / "synthetic_corpus.parquet")
    quarantine = tables.read(out / "teacher_quarantine.parquet")
    Corpus.validate(corpus)
    TeacherQuarantine.validate(quarantine)
    narratives = corpus.filter(task="item_narrative")["completion"]
    assert narratives.len() == 8 and all("is made for daily use" in text for text in narratives)
    assert quarantine.is_empty()
    thoughts = corpus.filter(task="reasoning")["thought"]
    assert all("I began with <" in text and "Next: " in text and "Nobody" not in text for text in thoughts)
    calls = len(set(client.asked))
    assert report.metrics["teacher_calls"] == calls < len(client.asked), "items of equal text share a request"
    assert report.metrics["teacher_usd"] == pytest.approx(0.001 * calls)
    assert report.metrics["teacher_usd_per_example"] > 0
    text = report.markdown["card"]
    assert "`fake`" in text and "teacher_calls" not in text


def test_a_rerun_of_the_stage_gives_the_same_bytes(stage):
    client = FakeClient()
    outs = [stage(client)[1] for _ in range(2)]
    for name in ("synthetic_corpus.parquet", "teacher_quarantine.parquet", "card.md", "corpus.png"):
        first, second = ((out / name).read_bytes() for out in outs)
        assert first == second, name


def test_an_exhausted_budget_stops_the_stage(stage):
    def answer(request):
        raise BudgetExhausted("incomplete (budget)", expected="", found="", fix="")

    with pytest.raises(BudgetExhausted):
        stage(FakeClient(answer))


def test_the_settings_reach_the_client(tmp_path, monkeypatch):
    from sidr_core.corpus import build
    from sidr_core.remote import client as module

    monkeypatch.setenv("SIDR_HOME", str(tmp_path))
    seen = {}

    def client(endpoint, ledger, budget, price, reply):
        seen.update(model=endpoint.model, home=ledger.path.parent, usd=budget.usd, price=price.input, reply=reply)
        return FakeClient()

    monkeypatch.setattr(module, "Client", client)
    teacher = settings(budget={"usd": 2}, price={"input": 0.15}, reply="prompt")
    assert build._ask(ROWS, SHOP, teacher, RELATIONS, RULES, QUIET).cost["requests"] == 16
    assert seen == {"model": "fake", "home": tmp_path, "usd": 2, "price": 0.15, "reply": "prompt"}
    assert build._ask(ROWS, SHOP, Teacher(), RELATIONS, RULES, QUIET) is None
