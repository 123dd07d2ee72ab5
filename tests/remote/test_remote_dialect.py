"""What a server refuses is sent in its other form; what only looks like it is not."""

import pytest

from sidr_core.remote.dialect import Dialect

BODY = {
    "model": "m", "max_tokens": 48, "temperature": 0.5,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
                 {"role": "assistant", "content": "No."}, {"role": "user", "content": "Again."}],
}  # fmt: skip


def test_a_body_is_sent_in_the_words_of_the_server():
    assert Dialect().wire(BODY) == BODY
    sent = Dialect(max_tokens="max_completion_tokens", temperature=False, system=False).wire(BODY)
    assert sent == {
        "model": "m",
        "max_completion_tokens": 48,
        "messages": [{"role": "user", "content": "Be brief.\n\nWhy?"}, *BODY["messages"][2:]],
    }
    assert BODY["max_tokens"] == 48 and len(BODY["messages"]) == 4  # the body of the ledger's key stays as it is


@pytest.mark.parametrize(
    ("refusal", "changed"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         {"max_tokens": "max_completion_tokens", "other_name": False}),
        ('{"error": {"message": "Unsupported parameter", "param": "max_tokens"}}',
         {"max_tokens": "max_completion_tokens", "other_name": False}),
        ("Unsupported parameter: 'temperature' is not supported with this model.", {"temperature": False}),
        ("Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) is supported.",
         {"temperature": False}),
        ('{"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"]}]}', {"temperature": False}),
        ("`temperature` is deprecated for this model.", {"temperature": False}),
        ("System role not supported", {"system": False}),
        ("Developer instruction is not enabled for models/gemma-3-1b-it", {"system": False}),
        ("Conversation roles must alternate user/assistant/user/assistant/...", {"system": False}),
    ],
)  # fmt: skip
def test_a_refusal_is_understood(refusal, changed):
    adapted = Dialect().adapted(refusal)
    assert adapted is not None and adapted[0] == Dialect(**changed)
    assert adapted[0].adapted(refusal) is None  # and never twice


@pytest.mark.parametrize(
    "refusal",
    [
        "", "bad request", "max_tokens is too large: 5000. This model supports at most 4096 completion tokens.",
        "temperature must be between 0 and 1", "Unsupported parameter: 'response_format'",
        '{"error": {"message": "Unsupported value for temperature_schedule", "param": "top_p"}}',
        "Unknown model; see the system status page",
    ],
)  # fmt: skip
def test_another_refusal_is_not_mended(refusal):
    assert Dialect().adapted(refusal) is None


def test_the_newer_name_can_be_taken_back():
    adapted = Dialect("max_completion_tokens").adapted("Unrecognized request argument supplied: max_completion_tokens")
    assert adapted is not None and adapted[0].max_tokens == "max_tokens"
