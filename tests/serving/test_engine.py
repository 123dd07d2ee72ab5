"""An engine is asked over HTTP: our own server, and servers that answer in other words, badly, or not at all."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from builders import serving
from builders.loopback import Loopback
from builders.stage import QUIET
from sidr_core.errors import SidrError
from sidr_core.remote import retry
from sidr_core.serving.catalogues import Catalogue
from sidr_core.serving.certificate import certificate
from sidr_core.serving.contiguous import Ranges
from sidr_core.serving.engine import KEY_VARIABLE, Reader, ask, served_model
from sidr_core.settings.base import Endpoint

#: Two levels of three codes from id 100; A and B share a SID, `x(1)` has an odd id, 7 looks like a number.
RANGES = Ranges((100, 103), (3, 3))
CATALOGUE = Catalogue(np.array([[100, 103], [100, 104], [101, 103]]), [["A", "B"], ["x(1)"], ["7"]])
READER = Reader(CATALOGUE, RANGES)
REFERENCE = [
    {"row_id": f"r{n}", "user_id": f"u{n}", "target": "A", "history": [f"<a_{n}><b_0>"], "items": ["A", "B", "7"]}
    for n in range(3)
]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retry, "BASE", 0.001)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("<a_0><b_0> <a_1><b_0>", ["A", "B", "7"]),
        ("<a_0><b_1>\n<a_0><b_1>\n<a_2><b_2>", ["x(1)", "<a_2><b_2>"]),
        ("1. Chess & go (7)\n2. Set \\(2nd\\) (x(1))", ["7", "x(1)"]),
        ("Here is your list:\n- A\n- Lego (99)\n* 7", ["A", "Lego (99)", "7"]),
        ("7", ["7"]),
        ('["B", "7"]', ["B", "7"]),
        ("B, x(1)", ["B", "x(1)"]),
        ("I would rather talk about the 7 weathers.", []),
        ("", []),
    ],
)
def test_items_are_found_in_the_text_of_an_answer(text: str, items: list[str]) -> None:
    assert READER.items(text) == items


def said(*contents: str | None) -> tuple:
    return 200, {"choices": [{"index": n, "message": {"content": text}} for n, text in enumerate(contents)]}


def asked(answer, **fields):
    with Loopback(answer) as server:
        settings = {"model": "m", "retries": 1, "timeout_seconds": 5, "give_up_after": 9, "concurrency": 1, **fields}
        endpoint = Endpoint(base_url=server.base_url, api_key_env=KEY_VARIABLE, **settings)
        return ask(endpoint, REFERENCE, READER, {"k": 3, "n": 2}, QUIET), server


def test_beams_are_one_list_and_the_question_is_the_prompt_of_the_model() -> None:
    found, server = asked(lambda number, body: said("<a_0><b_0>", "<a_1><b_0>"))
    assert found.lists == {f"r{n}": ["A", "B", "7"] for n in range(3)} and found.reasons == {}
    assert certificate(REFERENCE, found.lists, 3, CATALOGUE).equivalent
    body = server.asked[0]
    assert body["messages"] == [{"role": "user", "content": "History: <a_0><b_0>\nNext item?"}]
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and (body["k"], body["n"]) == (3, 2)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (said(""), "it names no item"),
        (said(None), "it names no item"),
        ((200, {"choices": []}), "it names no item"),
        (said("what a day"), "it names no item"),
        ((200, {"answer": 5}), "no chat completion"),
        ((200, b"<html>garbage"), "no JSON"),
        ((500, {"error": {"message": "down"}}), "HTTP 500"),
        ((429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}), "HTTP 429"),
    ],
)
def test_a_row_without_a_list_is_counted_with_its_reason(bad: tuple, reason: str) -> None:
    """Of three rows the second is answered badly, as often as it is asked."""
    second = REFERENCE[1]["history"][0]
    found, _ = asked(lambda number, body: bad if second in body["messages"][0]["content"] else said("A\nB\n7"))
    assert found.lists == {"r0": ["A", "B", "7"], "r1": [], "r2": ["A", "B", "7"]}
    assert reason in found.reasons["r1"]
    made = certificate(REFERENCE, found.lists, 3, CATALOGUE, (), found.reasons)
    assert len(made.empty) == 1 and "NOT equivalent: rows without a list" in str(made) and reason in str(made)
    assert made.gaps["hr"][1] == pytest.approx(-1 / 3)


def test_what_passes_is_asked_again() -> None:
    found, server = asked(lambda number, body: (503, {}, {"Retry-After": "0"}) if number == 1 else said("A\nB\n7"))
    assert all(found.lists.values()) and len(server.asked) == 4


def test_a_slow_engine_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(SidrError, match=r"no complete reply within 0\.05 s"):
        asked(lambda number, body: time.sleep(0.2), timeout_seconds=0.05, retries=0, give_up_after=2)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("status", "found", "fix"),
    [(401, "HTTP 401", KEY_VARIABLE), (404, "HTTP 404", "--endpoint"), (422, "HTTP 422", "--body")],
)
def test_an_engine_that_refuses_is_one_error(status: int, found: str, fix: str) -> None:
    with pytest.raises(SidrError, match=found) as error:
        asked(lambda number, body: (status, {"error": {"message": "no"}}))
    assert fix in error.value.fix and "teacher" not in str(error.value)


def test_an_engine_that_names_items_nowhere_or_is_not_there_is_one_error() -> None:
    with pytest.raises(SidrError, match="can be read as a list"):
        asked(lambda number, body: said("what a day"))
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m", retries=0, give_up_after=1)
    with pytest.raises(SidrError, match="no connection"):
        served_model(endpoint, "m")


def test_what_is_no_item_keeps_its_place_and_is_told() -> None:
    found, _ = asked(lambda number, body: said("<a_2><b_2>\n<a_0><b_0>"))
    made = certificate(REFERENCE, found.lists, 3, CATALOGUE)
    assert made.strangers == ("<a_2><b_2>",) and "NOT equivalent: it answers with what is no item" in str(made)
    assert made.gaps["ndcg"][1] == pytest.approx(1 / np.log2(3) - 1)  # A is second


def test_sidr_export_verify_asks_our_own_server(sidr, listed, tmp_path: Path, monkeypatch, listed_home) -> None:
    """Over a real port: the same lists; a corrupted catalogue row, another model and wrong options are told."""
    serving.write_profile(listed, tmp_path / "profile.yaml")
    monkeypatch.setenv("SIDR_HOME", str(listed_home))
    monkeypatch.setenv("SIDR_PROFILE", str(tmp_path / "profile.yaml"))
    out = tmp_path / "out"
    code, _, err = sidr("export", "--dataset", "toys", "--to", "vllm", str(out))
    assert code == 0, err
    with serving.on_a_port(serving.server_over(listed)) as root:
        code, text, err = sidr("export", "verify", str(out), "--endpoint", f"{root}/v1")
        assert code == 0 and "grpo/direct at" in text and "6 of 6" in text and "equivalent" in text, text + err
        content = json.loads((out / "catalogue.json").read_text())
        content["sequences"][3][1] += 1
        (out / "catalogue.json").write_text(json.dumps(content))
        code, text, _ = sidr("export", "verify", str(out), "--endpoint", f"{root}/v1")
        assert code == 1 and "item A03 has the tokens" in text
        about = json.loads((out / "export.json").read_text())
        (out / "export.json").write_text(json.dumps({**about, "model": "sft"}))
        code, _, err = sidr("export", "verify", str(out), "--endpoint", f"{root}/v1")
        assert code == 1 and "unclear which model" in err and "grpo/direct" in err
    for options, told in (
        (["--endpoint", "ftp://x/v1"], "no address"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--body", "[1]"], "--body cannot be read"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--dtype", "int8"], "unclear whose lists"),
    ):
        code, _, err = sidr("export", "verify", str(out), *options)
        assert code == 1 and told in err
