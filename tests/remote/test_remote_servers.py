"""Teachers as they are: servers that want a request in other words, put their reply elsewhere, or misbehave."""

import gzip
import itertools
import json
import resource
import sqlite3
import time
import zlib
from functools import cache

import pytest

from builders.loopback import Loopback
from builders.remote import ScriptedServer, client, load, note, notes
from builders.stage import QUIET
from sidr_core.pipeline.stage import Progress
from sidr_core.remote import batch
from sidr_core.remote.errors import EndpointError, TeacherUnavailable
from sidr_core.remote.ledger import Label, Ledger, Stored

completion = load("tests/faults/scripted_server.py").completion


def good(number, body):
    return 200, completion(body, "ok")


def refusing(message, when, param=None):
    """A server that refuses bodies for which `when` holds, with a 400 as OpenAI words it."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "unsupported_parameter"}
    return lambda number, body: (400, {"error": error}) if when(body) else good(number, body)


def saying(text, **message):
    """A server whose every reply holds this text."""

    def answer(number, body):
        reply = completion(body, "ok")
        reply["choices"][0]["message"] = {"role": "assistant", "content": text, **message}
        return 200, reply

    return answer


ONLY_NEW_NAME = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
NO_TEMPERATURE = "Unsupported parameter: 'temperature' is not supported with this model."
ONLY_DEFAULT = (
    "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) is supported."
)
NO_SYSTEM = "System role not supported"


def has_system(body):
    return body["messages"][0]["role"] == "system"


@pytest.mark.parametrize(
    ("message", "when", "param", "wants"),
    [
        (ONLY_NEW_NAME, lambda body: "max_tokens" in body, "max_tokens", "`max_completion_tokens` instead"),
        (NO_TEMPERATURE, lambda body: "temperature" in body, "temperature", "no `temperature`"),
        (ONLY_DEFAULT, lambda body: body.get("temperature", 1) != 1, "temperature", "no `temperature`"),
        (NO_SYSTEM, has_system, None, "no system turn"),
    ],
)
def test_a_parameter_that_is_refused_is_sent_in_its_other_form_for_the_rest_of_the_run(
    path, message, when, param, wants
):
    lines = []
    with Loopback(refusing(message, when, param)) as server:
        asking = client(server, path, concurrency=4)
        assert all(reply.value for reply in asking.ask(notes(8), Progress(lines.append)))
        refused = sum(map(when, server.asked))
        assert 1 <= refused <= 4 and len(server.asked) == 8 + refused  # once per call in flight
        assert all(reply.value for reply in asking.ask(notes(12), QUIET)) and sum(map(when, server.asked)) == refused
    assert sum(wants in line for line in lines) == 1
    assert asking.ledger.unconfirmed.tokens == 0
    with ScriptedServer() as plain:  # the ledger knows the requests by what was asked, not by the form that they took
        assert all(reply.reused for reply in client(plain, path).ask(notes(12), QUIET))


def test_two_refusals_are_met_one_after_the_other(path):
    def answer(number, body):
        first = refusing(ONLY_NEW_NAME, lambda body: "max_tokens" in body, "max_tokens")(number, body)
        return first if first[0] == 400 else refusing(NO_TEMPERATURE, lambda body: "temperature" in body)(number, body)

    with Loopback(answer) as server:
        assert client(server, path).ask([note(1)], QUIET)[0].value and len(server.asked) == 3


def test_a_server_that_refuses_every_form_is_told_with_its_words(path):
    with Loopback(lambda number, body: (400, {"error": {"message": ONLY_NEW_NAME}})) as server:
        with pytest.raises(EndpointError, match="Use 'max_completion_tokens' instead") as caught:
            client(server, path, concurrency=1).ask([note(1)], QUIET)
        assert len(server.asked) == 2
    assert "teacher.temperature" in caught.value.fix and "null" in caught.value.fix


def test_a_batch_learns_from_its_first_round(path, monkeypatch):
    monkeypatch.setattr(batch, "POLL_SECONDS", 0.01)
    faults = load("tests/faults/scripted_server.py")
    monkeypatch.setitem(faults._MESSAGES, "400", (400, {"message": ONLY_NEW_NAME, "param": "max_tokens"}))
    with ScriptedServer(line=lambda number, body: "400" if "max_tokens" in body else "ok") as server:
        assert all(reply.value for reply in client(server, path, batch=True).ask(notes(5), QUIET))
        assert len(server.batches) == 2


# -- addresses -----------------------------------------------------------------------------------


def only_under_v1(server, error):
    """A server that serves nothing outside of /v1, and says so in a way of its own."""
    return lambda number, body: good(number, body) if server.asked[-1]["path"].startswith("/v1/") else error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}), "Unexpected endpoint or method"),
        ((404, b"404 page not found"), "404 page not found"),
        ((405, {"detail": "Method Not Allowed"}), "HTTP 405: Method Not Allowed"),
        ((404, {"error": "path not found"}), "path not found"),
        ((200, b"<!doctype html><title>Sign in</title>"), "<!doctype html>"),
    ],
)
def test_a_base_url_without_its_version_is_named(path, error, words):
    with Loopback(good) as server:
        server.answer = only_under_v1(server, error)
        with pytest.raises((EndpointError, TeacherUnavailable), match=words) as caught:
            client(server.root, path, retries=0, give_up_after=1).ask(notes(3), QUIET)
        assert caught.value.fix == f"`teacher.endpoint.base_url` needs its /v1: write {server.root}/v1"
        assert all(reply.value for reply in client(server.base_url, path).ask(notes(3), QUIET))


def test_a_base_url_with_the_call_in_it_is_named(path):
    server = Loopback(lambda number, body: (404, b"not here"))
    with server, pytest.raises(EndpointError) as caught:
        client(f"{server.base_url}/chat/completions", path).ask([note(1)], QUIET)
    assert caught.value.fix == f"`teacher.endpoint.base_url` ends before /chat/completions: write {server.base_url}"


def test_an_unknown_model_under_v1_is_told_by_the_model(path):
    server = Loopback(lambda number, body: (404, {"error": {"message": 'model "m" not found'}}))
    with server, pytest.raises(EndpointError, match=r"teacher\.endpoint\.model"):
        client(server, path).ask([note(1)], QUIET)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_refused_and_the_prompt_stays(path, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Loopback(good, "127.0.0.2") as other:
        location = {"Location": f"{other.base_url}/chat/completions"}
        server = Loopback(lambda number, body: (status, b"", location))
        with server, pytest.raises(EndpointError, match="redirects to another host") as caught:
            client(server, path).ask([note(1)], QUIET)
        assert other.asked == [] and "http://127.0.0.2" in caught.value.found
    assert Ledger(path).total.tokens == 0


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_out_of_http_is_refused(path, location):
    server = Loopback(lambda number, body: (307, b"", {"Location": location}))
    with server, pytest.raises(EndpointError, match="redirects to another host"):
        client(server, path, retries=0).ask([note(1)], QUIET)


def test_a_redirect_on_the_same_host_is_followed_a_few_times(path):
    def answer(number, body):
        where = {"Location": "/v2/chat/completions"}
        return good(number, body) if server.asked[-1]["path"].startswith("/v2") else (307, b"", where)

    with Loopback(answer) as server:
        assert client(server, path).ask([note(1)], QUIET)[0].value
        server.answer = lambda number, body: (307, b"", {"Location": "/v1/chat/completions"})
        with pytest.raises(TeacherUnavailable, match="more than 3 redirects"):
            client(server, path).ask([note(2)], QUIET)


# -- errors inside a reply -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"message": "out of memory", "code": 500}, TeacherUnavailable, "out of memory"),
        ("the model is loading", TeacherUnavailable, "the model is loading"),
        ({"message": "no such key sk-abc", "code": 401}, EndpointError, r"no such key \[key\]"),
        ({"message": "add funds", "status": "402"}, EndpointError, "add credit"),
        (["odd"], TeacherUnavailable, "odd"),
    ],
)
def test_an_error_in_a_reply_of_200_keeps_its_words(path, error, kind, words):
    with Loopback(lambda number, body: (200, {"error": error})) as server, pytest.raises(kind, match=words):
        client(server, path, retries=1, give_up_after=2).ask(notes(4), QUIET)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("<!doctype html><title>Sign in</title>", "a web page answers: correct `teacher.endpoint.base_url`"),
        ('data: {"choices": []}\n\ndata: [DONE]\n\n', "the server streams though no stream was asked for"),
        ('{"choices": [', "run again when the server is well"),
    ],
)
def test_a_reply_that_is_no_json_is_told_by_what_it_is(path, text, advice):
    with Loopback(lambda number, body: (200, text.encode())) as server, pytest.raises(TeacherUnavailable) as error:
        client(server, path, retries=0, give_up_after=2).ask(notes(4), QUIET)
    assert advice in error.value.fix and "no JSON" in error.value.found


# -- bounds --------------------------------------------------------------------------------------


@cache
def gzipped(megabytes):
    """A gzip bomb: some kilobytes that unpack to so many megabytes of JSON without end."""
    packer = zlib.compressobj(9, wbits=31)
    part = b"A" * 2**20
    return b"".join([packer.compress(b'{"id":"'), *(packer.compress(part) for _ in range(megabytes)), packer.flush()])


def endless():
    return itertools.chain([b'{"id":"'], itertools.repeat(b"A" * 2**20))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda: (200, endless()), "longer than 8 MiB"),
        (lambda: (500, endless()), "longer than 8 MiB"),
        (lambda: (200, gzipped(256), {"Content-Encoding": "gzip"}), "longer than 8 MiB"),
        (lambda: (200, b"x", {"Content-Encoding": "br"}), "compressed as 'br'"),
        (lambda: (200, b"[" * 5_000_000), "cut off or no JSON"),
        (lambda: (200, b'{"id": ' + b"9" * 1_000_000 + b"}"), "cut off or no JSON"),
        (lambda: (200, b"{}", {f"X-{n}": "A" * 1000 for n in range(2000)}), "broke off"),
    ],
    ids=["endless", "endless error", "gzip bomb", "brotli", "brackets", "long integer", "headers"],
)
def test_a_reply_without_end_ends_in_bounded_time_and_memory(path, reply, words):
    reply()  # made before the clock runs
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with Loopback(lambda number, body: reply()) as server:
        asking = client(server, path, retries=0, give_up_after=2, concurrency=1)
        with pytest.raises(TeacherUnavailable, match=words):
            asking.ask(notes(4), QUIET)
        assert len(server.asked) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
    assert time.process_time() - started < 20
    with ScriptedServer() as well:
        assert all(reply.value for reply in client(well, path).ask(notes(4), QUIET))


def test_a_compressed_reply_of_sound_size_is_read(path):
    def answer(number, body):
        return 200, gzip.compress(json.dumps(completion(body, "ok")).encode()), {"Content-Encoding": "gzip"}

    with Loopback(answer) as server:
        assert client(server, path).ask([note(1)], QUIET)[0].value


@pytest.mark.parametrize(
    "text", ["{" * 400_000, '{"a":' * 100_000, "</think>" + "x" * 3_000_000, '{"text": ' + "9" * 10**6]
)
def test_a_reply_that_is_far_too_long_is_quarantined_once(path, text):
    started = time.process_time()
    with Loopback(
        lambda number, body: saying(text)(number, body) if "about 1" in str(body) else good(number, body)
    ) as server:
        asking = client(server, path, concurrency=1)
        for _ in range(2):
            assert [reply.reason for reply in asking.ask(notes(3), QUIET)] == ["", "overlong", ""]
        assert len(server.asked) == 3  # no repair of it, and not asked again
    assert time.process_time() - started < 5
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT max(length(text)) FROM replies").fetchone()[0] <= 1000


def test_a_poisoned_reply_of_an_older_ledger_is_passed_over(path):
    """Braces that took hours to parse: quarantined at once, again and again, and nothing else is held up."""
    asking = client("http://127.0.0.1:9/v1", path)
    poisoned = asking.dialogue.next(note(1), lambda key: None)
    for text in ("{" * 400_000, "{" * 4_000_000):
        asking.ledger.record(None, Stored(poisoned.key, "complete", text, 1, 1, 1), Label("m", "127.0.0.1", "note", 1))
    with ScriptedServer() as server:
        started = time.process_time()
        assert [reply.reason for reply in client(server, path).ask(notes(3), QUIET)] == ["", "overlong", ""]
        assert server.calls == 2 and time.process_time() - started < 5


@pytest.mark.parametrize(
    ("answer", "words", "advice"),
    [
        (saying("{" * 400_000), "overlong: {{{", "longer than `teacher.max_output_tokens` allows"),
        (saying("I would rather not."), "no_json: I would rather not.", "another `teacher.reply`"),
        (saying(""), "no_json: an empty reply", "another `teacher.reply`"),
        (
            lambda number, body: (200, completion(body, "length")),
            "truncated: ",
            "raise `teacher.max_output_tokens`",
        ),
    ],
)
def test_a_model_that_never_answers_in_form_is_told_with_its_words(path, answer, words, advice):
    with Loopback(answer) as server, pytest.raises(TeacherUnavailable, match="none of the first 3") as caught:
        client(server, path, give_up_after=3, concurrency=1).ask(notes(9), QUIET)
    assert words in caught.value.found and advice in caught.value.fix


@pytest.mark.parametrize("tokens", [10**30, -(10**9), 1.5, "7", None, True])
def test_a_count_of_tokens_that_cannot_be_is_replaced_by_an_estimate(path, tokens):
    def answer(number, body):
        usage = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": tokens}
        return 200, {**completion(body, "ok"), "usage": usage}

    with Loopback(answer) as server:
        asking = client(server, path)
        (reply,) = asking.ask([note(1)], QUIET)
    assert reply.value and 0 < asking.ledger.total.tokens < 1000


def test_a_drip_without_end_is_bounded_in_time(path):
    def dripping():
        while True:
            time.sleep(0.02)
            yield b" "

    with Loopback(lambda number, body: (200, dripping())) as server:
        started = time.monotonic()
        with pytest.raises(TeacherUnavailable, match=r"no complete reply within 0\.3 s"):
            client(server, path, timeout_seconds=0.3, retries=1, give_up_after=1, concurrency=1).ask(notes(3), QUIET)
        assert time.monotonic() - started < 10
