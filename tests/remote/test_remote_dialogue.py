"""What is sent, which part of it makes the key, and what a reply is worth."""

import json
import time
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from builders.remote import Note, note
from sidr_core.remote.dialogue import (
    MOST_REPLY_CHARS,
    Call,
    Dialogue,
    Done,
    first_object,
    judge,
    read_completion,
    sent_schema,
)
from sidr_core.remote.ledger import Stored
from sidr_core.remote.retry import CallFailed

ASK = Dialogue("m", "h", "json_schema")
GOOD = '{"text": "x", "score": 1}'


def nothing(key):
    return None


def first(dialogue=ASK, request=None):
    step = dialogue.next(request or note(1), nothing)
    assert isinstance(step, Call)
    return step


def reply(text, status="complete", key="k"):
    return Stored(key, status, text, 1, 1, 1)


def test_the_key_covers_what_is_sent_and_nothing_else():
    base = first().key
    assert first(request=note(1, kind="another")).key == base
    others = [
        first(request=note(1, system="You sing.")), first(request=note(2)), first(request=note(1, temperature=0.6)),
        first(request=note(1, max_output_tokens=49)), first(Dialogue("m2", "h", "json_schema")),
        first(Dialogue("m", "h2", "json_schema")), first(Dialogue("m", "h", "json_object")),
        first(Dialogue("m", "h", "prompt")),
    ]  # fmt: skip
    assert len({base, *(call.key for call in others)}) == len(others) + 1


def test_the_key_does_not_hang_on_names_and_docstrings_of_the_reply_model():
    class Renamed(BaseModel):
        """Another docstring."""

        model_config = Note.model_config
        text: str
        score: int

    class Longer(Renamed):
        more: str

    assert first(request=note(1, schema=Renamed)).key == first().key
    assert first(request=note(1, schema=Longer)).key != first().key


def test_the_key_is_the_same_in_every_version():
    """A changed key would ask and pay for everything anew."""
    assert first().key == "88c646f5b9f4994b50a65df9683cb5e8705114c2fc91bc8314c2cf4a50400a5d"


def test_sent_schema_is_strict_and_nested():
    class Part(BaseModel):
        """Ours."""

        name: Annotated[str, Field(min_length=1, max_length=9, description="for the model")]

    class Whole(BaseModel):
        parts: list[Part]
        title: str = "none"

    assert sent_schema(Whole) == {
        "$defs": {
            "Part": {
                "type": "object",
                "properties": {"name": {"type": "string", "description": "for the model"}},
                "required": ["name"],
                "additionalProperties": False,
            }
        },
        "type": "object",
        "properties": {"parts": {"items": {"$ref": "#/$defs/Part"}, "type": "array"}, "title": {"type": "string"}},
        "required": ["parts", "title"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("form", ["json_schema", "json_object", "prompt"])
def test_how_json_is_asked_for(form):
    body = first(Dialogue("m", "h", form)).body
    told = '"additionalProperties": false' in body["messages"][0]["content"]
    asked = body.get("response_format", {}).get("type")
    assert (told, asked) == {
        "json_schema": (False, "json_schema"), "json_object": (True, "json_object"), "prompt": (True, None)
    }[form]  # fmt: skip


def test_a_temperature_of_null_is_not_sent():
    assert "temperature" not in first(request=note(1, temperature=None)).body
    assert first().body["temperature"] == 0.5


def test_bytes_bound_the_input_tokens():
    call = first(request=note(1, user="é" * 1000))
    assert call.size > 2000 and call.most_input_tokens >= len(json.dumps(call.body, ensure_ascii=False).encode())


def test_halves_of_surrogate_pairs_are_sent_as_question_marks():
    assert first(request=note(1, user="a\ud800b")).body["messages"][1]["content"] == "a?b"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, {"text": "x", "score": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Well {not json} then {"a": {"b": "}"}} and {"c": 2}', {"a": {"b": "}"}}),
        ('<think>{"a": 0}</think>{"a": 1}', {"a": 1}),
        ("[1, 2]", None),
        ('{"a": 1', None),
        ("", None),
        ('{"a":' * 5000, None),
    ],
)
def test_first_object(text, found):
    assert first_object(text) == found


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (reply(GOOD), (Note(text="x", score=1), "", "")),
        (reply(GOOD + "\n\n\n", "truncated"), (Note(text="x", score=1), "", "")),  # blanks up to the limit
        (reply("no"), (None, "no_json", "it holds no JSON object")),
        (reply('{"text": "x"}'), (None, "wrong_schema", "score: Field required")),
        (reply('{"te', "truncated"), (None, "truncated", "")),
        (reply('{"text": "x"}', "truncated"), (None, "truncated", "")),
        (reply("I cannot", "refusal"), (None, "refusal", "")),
        (reply(GOOD, "content_filter"), (None, "content_filter", "")),
        (reply("HTTP 400", "rejected"), (None, "rejected", "")),
        (reply('{"text": "\\ud800", "score": 1}'), (Note(text="?", score=1), "", "")),
    ],
)
def test_judge(stored, expected):
    assert judge(stored, Note) == expected


def test_one_repair_with_its_own_key_and_then_quarantine():
    bad = first()
    filed = {bad.key: reply("not json", key=bad.key)}
    repair = ASK.next(note(1), filed.get)
    assert isinstance(repair, Call) and repair.key != bad.key and repair.kind == "repair of note"
    assert [message["role"] for message in repair.body["messages"]] == ["system", "user", "assistant", "user"]
    assert repair.body["messages"][2]["content"] == "not json"
    assert "it holds no JSON object" in repair.body["messages"][3]["content"]
    mended = ASK.next(note(1), {**filed, repair.key: reply(GOOD)}.get)
    assert isinstance(mended, Done) and mended.value == Note(text="x", score=1) and len(mended.replies) == 2
    given_up = ASK.next(note(1), {**filed, repair.key: reply('{"text": 1}')}.get)
    assert given_up == Done(None, "wrong_schema", (filed[bad.key], reply('{"text": 1}')))


def completion(**fields):
    choice = {"message": {"content": "hi"}, "finish_reason": "stop", **fields}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (completion(), "complete", "hi"),
        (completion(finish_reason="length"), "truncated", "hi"),
        (completion(finish_reason="content_filter", message={"content": None}), "content_filter", ""),
        (completion(message={"content": None, "refusal": "No."}), "refusal", "No."),
        (completion(message={"content": "a\ud800"}), "complete", "a?"),
        (completion(message=None), "complete", ""),
    ],
)
def test_read_completion(body, status, text):
    assert read_completion(body, "k", 100) == Stored("k", status, text, 5, 6, 0)


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": "5", "completion_tokens": -1}, {"prompt_tokens": 10**30, "completion_tokens": True}],
)
def test_uncounted_tokens_are_estimated(usage):
    found = read_completion({**completion(message={"content": "12345678"}), "usage": usage}, "k", 101)
    assert (found.input_tokens, found.output_tokens) == (26, 2)  # ceil(101 / 4), 8 / 4


@pytest.mark.parametrize(
    "body", [[], None, {"error": {"message": "x"}}, {"choices": []}, {"choices": None}, {"choices": [3]}, {}]
)
def test_no_completion_may_have_been_charged(body):
    with pytest.raises(CallFailed) as failed:
        read_completion(body, "k", 1)
    assert failed.value.retry and not failed.value.free


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": GOOD}]},
        {"content": [{"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}]},
        {"content": [{"type": "output_text", "text": GOOD}, {"type": "image", "text": None}, "no part"]},
        {"content": None, "reasoning_content": GOOD}, {"content": " ", "reasoning": GOOD},
        {"content": None, "tool_calls": [{"function": {"name": "reply", "arguments": GOOD}}]},
        {"content": json.dumps(GOOD)}, {"content": f"[{GOOD}]"},
    ],
)  # fmt: skip
def test_the_text_is_found_where_servers_put_it(message):
    stored = read_completion(completion(message=message), "k", 100)
    assert judge(stored, Note) == (Note(text="x", score=1), "", "")


@pytest.mark.parametrize(
    "message", [{"tool_calls": 3}, {"tool_calls": [{}]}, {"content": [{"type": "text"}]}, {"content": {}}]
)
def test_what_holds_no_text_is_an_empty_reply(message):
    assert read_completion(completion(message=message), "k", 100).text == ""


def test_reasoning_beside_a_content_is_not_the_reply():
    message = {"content": "No.", "reasoning_content": GOOD}
    assert read_completion(completion(message=message), "k", 100).text == "No."


def test_a_reply_far_too_long_is_not_read_wherever_it_comes_from():
    text = GOOD + " " * MOST_REPLY_CHARS
    stored = read_completion(completion(message={"content": text}), "k", 100)
    assert (stored.status, len(stored.text)) == ("overlong", 1000)
    assert judge(stored, Note) == judge(reply(text), Note) == (None, "overlong", "")


def test_a_repair_quotes_no_more_than_the_reply_could_hold():
    poisoned = {first().key: reply("x" * 100_000)}
    step = ASK.next(note(1), poisoned.get)
    assert isinstance(step, Call) and step.body["messages"][2]["content"] == "x" * 16 * 48


@pytest.mark.parametrize(
    "text",
    ["{" * 250_000, '{"a":' * 50_000, '{"a":1,' * 35_000, '{"a":' * 900 + "[" + "0," * 100_000, '{"' * 120_000,
     '{"a":' + "9" * 250_000, "<think>" * 30_000, "\n{" * 80_000, '"' + "{" * 250_000],
    ids=lambda text: text[:7],
)  # fmt: skip
def test_no_text_makes_the_parser_work_for_long(text):
    before = time.process_time()
    assert first_object(text) is None
    assert time.process_time() - before < 2
