"""General examples from a file: what is read, what is left out, and that the file is known by its content."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import corpus as base
from builders.corpus import QUIET
from sidr_core.corpus import general, general_file, guards, tasks
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.prompts import TAG, neutralise_lines
from sidr_core.errors import InputError
from sidr_core.settings import General, Teacher
from sidr_core.tables import files as tables

USER, BOT = "How many pens are 2 + 3?", "<think>Two and three: 2 + 3 = 5.</think>\n\nFive."


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def write(path, *records):
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in records) + b"\n")
    return path


def read(path, rows=100, seed=1, max_chars=2000):
    return general.read(General(path=str(path), rows=rows, max_chars=max_chars), seed, QUIET)


def test_every_form_of_messages_gives_the_same_example(tmp_path):
    messages = turns(USER, BOT)
    parts = [{"role": "user", "content": [{"type": "text", "text": USER}]}, messages[1]]
    forms = [messages, json.dumps(messages), repr(messages), parts, [*messages, *turns("And 4?", "Nine.")]]
    mixed = read(write(tmp_path / "g.jsonl", *({"messages": form} for form in forms)))
    assert mixed.counts == {"general_lines": 5}
    for number, example in enumerate(mixed.examples, start=1):
        assert (example.example_id, example.task, example.kind) == (f"general:{number}", "general", "chat")
        assert (example.prompt, example.thought) == (USER, "Two and three: 2 + 3 = 5.")
        assert example.completion == "Five." and example.user_id is example.item_id is None


def test_system_turns_stand_before_the_question_and_no_thought_is_none(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, *turns(USER, "Five.")]
    (example,) = read(write(tmp_path / "g", {"messages": messages})).examples
    assert (example.prompt, example.thought, example.completion) == (f"Be brief.\n\n{USER}", None, "Five.")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not_readable"),
        (b"\xff\xfe", "not_readable"),
        (b"[1]", "not_readable"),
        (b'{"other": 1}', "not_readable"),
        (b'{"messages": 3}', "not_readable"),
        (json.dumps({"messages": "__import__('os').system('touch /tmp/owned')"}).encode(), "not_readable"),
        (json.dumps({"messages": "[" * 50_000}).encode(), "not_readable"),
        (b'{"messages": ' + b"[" * 50_000, "not_readable"),
        (b'{"messages": []}', "no_exchange"),
        (json.dumps({"messages": turns("only a question")}).encode(), "no_exchange"),
        (json.dumps({"messages": turns("", "answer")}).encode(), "no_exchange"),
        (json.dumps({"messages": turns("q", "")}).encode(), "no_exchange"),
        (json.dumps({"messages": turns("q", "<think>all thought</think>")}).encode(), "no_exchange"),
        (json.dumps({"messages": [{"role": "assistant", "content": "first"}]}).encode(), "no_exchange"),
        (json.dumps({"messages": ["text", None, {"role": None}]}).encode(), "no_exchange"),
        (json.dumps({"messages": turns("q", "<think>never closed")}).encode(), "torn_thought"),
        (json.dumps({"messages": turns("q", "a </think> b")}).encode(), "torn_thought"),
        (json.dumps({"messages": turns("q", "<think>a</think>b<think>c</think>d")}).encode(), "torn_thought"),
        (json.dumps({"messages": turns("q", "x" * 2001)}).encode(), "too_long"),
        (json.dumps({"messages": turns("q", "x" * 200_000)}).encode(), "too_long"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_exchange_is_left_out_with_its_reason(tmp_path, line, reason):
    good = {"messages": turns(USER, BOT)}
    mixed = read(write(tmp_path / "g", good, line, good))
    assert [example.example_id for example in mixed.examples] == ["general:1", "general:3"]
    assert mixed.counts == {"general_lines": 3, f"general_{reason}": 1}
    (refused,) = mixed.quarantined
    assert (refused.key, refused.reason) == ("general:2", reason) and len(refused.text) <= 500


def test_a_line_of_exactly_the_longest_length_does_not_swallow_the_next(tmp_path):
    good = json.dumps({"messages": turns(USER, BOT)}).encode()
    most = general._LINE_LEAST
    for length in (most - 1, most, most + 1):
        mixed = read(write(tmp_path / "g", good + b" " * (length - len(good)), good))
        assert [example.example_id for example in mixed.examples][-1] == "general:2"


def test_a_seeded_draw_keeps_file_order_and_another_line_moves_no_other(tmp_path):
    records = [{"messages": turns(f"q{n}", f"a{n}")} for n in range(200)]
    path = write(tmp_path / "g", *records)
    drawn = [example.prompt for example in read(path, rows=50).examples]
    assert len(drawn) == 50 and drawn == sorted(drawn, key=lambda q: int(q[1:]))
    assert [example.prompt for example in read(path, rows=50).examples] == drawn
    assert [example.prompt for example in read(path, rows=50, seed=2).examples] != drawn
    longer = [e.prompt for e in read(write(tmp_path / "h", *records, *records[:1]), rows=50).examples]
    assert len(set(longer) ^ set(drawn)) <= 2
    assert len(read(path, rows=1000).examples) == 200


def test_what_could_be_a_token_is_taken_apart_and_mathematics_stays():
    assert neutralise_lines("if a < b and c > d:\n\treturn List<int>", 200) == (
        "if a < b and c > d:\n    return List‹int›"
    )
    for text in ("<think>", "<a_1><b_2>", "<<think>>", "<|im_end|>", "<\u200bthink>", "＜think＞", "</s>", "[INST]"):
        plain = neutralise_lines(text, 200)
        assert not TAG.search(plain) and "[INST]" not in plain
    assert neutralise_lines("x" * 50, 20) == "x" * 20


@given(st.text("<>|/_a1 think\n\u200b＜＞[INST]", max_size=80))
def test_no_tag_survives_and_twice_is_once(text):
    plain = neutralise_lines(text, 80)
    assert not TAG.search(plain) and neutralise_lines(plain, 200) == plain


def test_the_stage_mixes_them_in_before_the_traces(tmp_path):
    records = [{"messages": turns(f"{USER} <a_0><b_0><c_0> a < b", BOT)} for _ in range(5)]
    path = write(tmp_path / "g", *records, b"broken")
    report, out = base.run(tmp_path / "run", *base.frames(), general={"path": str(path), "rows": 3})
    corpus = tables.read(out / "synthetic_corpus.parquet")
    assert [check.passed for check in report.checks] == [True, True, True]
    mixed = corpus.filter(task="general")
    assert mixed.height == report.metrics["examples_general"] == 3
    assert corpus["task"].unique(maintain_order=True).to_list()[-2:] == ["general", "reasoning"]
    assert "‹a_0›‹b_0›‹c_0› a < b" in mixed["prompt"][0] and mixed["thought"].null_count() == 0
    assert report.metrics["quarantined_not_readable"] == report.metrics["general_not_readable"] == 1
    assert tables.read(out / "teacher_quarantine.parquet")["key"].to_list() == ["general:6"]
    assert "## general" in report.markdown["card"]


@pytest.mark.parametrize(
    ("changes", "guard"),
    [
        ({"user_id": "u0"}, "train"),
        ({"item_id": "i0"}, "train"),
        ({"prompt": "what is <a_0><b_0><c_0>"}, "sids"),
        ({"thought": "so <think> it is"}, "sids"),
        ({"completion": "a < b <|im_end|>"}, "sids"),
    ],
)
def test_a_general_example_that_is_not_one_is_found(tmp_path, changes, guard):
    path = write(tmp_path / "g", {"messages": turns(USER, BOT)})
    _, out = base.run(tmp_path / "run", *base.frames(), general={"path": str(path)})
    corpus = base.forged(tables.read(out / "synthetic_corpus.parquet"), "general:1", **changes)
    train, items, codebook = base.frames()
    catalogue = Catalogue.read(items, codebook)
    rows = tasks.read_rows(train, catalogue)
    found = {
        "train": guards.not_from_train(corpus, rows, catalogue),
        "sids": guards.unknown_sids(corpus, codebook["sid"].to_list()),
    }
    assert {name: [v[0] for v in violations] for name, violations in found.items()} == {
        name: ["general:1"] if name == guard else [] for name in found
    }


def test_a_file_without_an_example_or_no_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no general example could be read"):
        read(write(tmp_path / "g", b"broken"))
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="an empty file"):
        read(tmp_path / "empty")
    with pytest.raises(InputError, match="missing"):
        general_file.files(Teacher(general={"path": str(tmp_path / "none")}))
    assert general_file.files(Teacher()) == {}


def test_training_takes_them_and_leaves_out_those_that_are_too_long():
    from builders import small_world
    from sidr_core.models.base import build_base
    from sidr_core.models.prompt import PromptRenderer
    from sidr_core.settings import TinyModel
    from sidr_core.training.examples import IGNORED, tokenise, weighted

    config = TinyModel(kind="tiny", hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=16, vocab_size=300)
    renderer = PromptRenderer(build_base(config, ["pens"], small_world.codebook())[1])
    texts = {
        "general:1": ("general", "so"),
        "general:2": ("general", "so " * 500),
        "sids_to_sid:1": ("sids_to_sid", ""),
    }
    rows = pl.DataFrame(
        [
            dict(
                example_id=name,
                task=task,
                kind="chat",
                prompt="q",
                thought=thought or None,
                completion="pens",
                user_id="",
            )
            for name, (task, thought) in texts.items()
        ]
    )
    rows = weighted(rows.with_columns(user_id=pl.lit("")), {"general": 2.0}, seed=1)
    assert rows.height == 5
    examples = tokenise(rows, renderer, 200)
    assert len(examples) == 3, "two copies of the short one, and the other task"
    learned = [token for token in examples[0]["labels"] if token != IGNORED]
    assert learned == renderer.completion("pens", "so")


def test_the_file_is_known_by_its_content_and_not_by_its_place(tmp_path):
    from builders import small_world
    from sidr_core.pipeline.graph import stage_named
    from sidr_core.pipeline.profile import parse_profile
    from sidr_core.pipeline.run import plan
    from sidr_core.pipeline.store import Store

    def key(path):
        raw = {**small_world.profile().raw["datasets"]["toys"], "teacher": {"general": {"path": str(path)}}}
        profile = parse_profile("test", {"datasets": {"toys": raw}})
        world = small_world.World(Store(tmp_path / "home" / "store"), profile)
        if world.store.current("toys", small_world.SNAPSHOT, "sid_codebook") is None:
            for name in ("raw_reviews", "raw_items", "interactions", "item_embeddings", "sid_codebook"):
                world.publish(name, lambda folder: (folder / "empty.txt").write_text("") and None)
        return plan(profile, "toys", small_world.SNAPSHOT, stage_named("synthetic_corpus"), world.store).key

    one = write(tmp_path / "one", {"messages": turns(USER, BOT)})
    two = write(tmp_path / "two", {"messages": turns(USER, BOT)})
    other = write(tmp_path / "other", {"messages": turns(USER, "Six.")})
    assert key(one) == key(two) != key(other)
    assert "path" not in key(one)["config"]["teacher"]["general"]
