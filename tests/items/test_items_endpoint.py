"""Vectors from an OpenAI-compatible server on the loopback interface: order, retries, replies that are wrong."""

import base64
import struct
from typing import Any

import numpy as np
import pytest

from builders.items import catalogue, counts
from builders.loopback import Loopback
from builders.stage import QUIET, StageInputs, stage_config
from sidr_core.items import embeddings
from sidr_core.items.encoders import open_encoder
from sidr_core.remote import retry
from sidr_core.remote.errors import EndpointError, TeacherUnavailable
from sidr_core.settings import Encoder, Endpoint
from sidr_core.tables import files as tables
from sidr_core.tables.vectors import series_vectors


def vector_of(text: str) -> list[float]:
    return [float(len(text)), float(text.count("a")), 1.0]


def listed(texts: list[str]) -> list[dict[str, Any]]:
    return [{"object": "embedding", "index": n, "embedding": vector_of(text)} for n, text in enumerate(texts)]


def good(number: int, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"object": "list", "model": body["model"], "data": listed(body["input"])}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retry, "BASE", 0.01)
    monkeypatch.setenv("TEST_EMBEDDINGS_KEY", "sk-secret-7")
    with Loopback(good) as running:
        yield running


def config(server: Loopback, normalize: bool = False, batch_size: int = 2, **endpoint: Any) -> Encoder:
    fields = {"base_url": server.base_url, "model": "embedder", "api_key_env": "TEST_EMBEDDINGS_KEY", "retries": 2}
    return Encoder(normalize=normalize, batch_size=batch_size, endpoint=Endpoint(**fields | endpoint))


def encoded(texts: list[str], settings: Encoder) -> np.ndarray:
    found = np.full((len(texts), 3), np.nan, dtype=np.float32)

    def keep(rows, vectors) -> None:
        assert np.isnan(found[rows]).all()  # no row comes twice
        found[rows] = vectors

    open_encoder(settings).encode(texts, keep)
    return found


TEXTS = ["banana", "ant", "a much longer text", "bee", "cat"]


def test_each_text_gets_its_vector_and_requests_are_sized_by_count(server):
    found = encoded(TEXTS, config(server))
    assert found.tolist() == [vector_of(text) for text in TEXTS]
    assert sorted(len(body["input"]) for body in server.asked) == [1, 2, 2]
    assert {(body["path"], body["model"]) for body in server.asked} == {("/v1/embeddings", "embedder")}
    assert server.keys == {"Bearer sk-secret-7"}


def test_vectors_have_length_one_if_so_configured(server):
    found = encoded(TEXTS, config(server, normalize=True))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.allclose(found[1], np.array(vector_of("ant")) / np.linalg.norm(vector_of("ant")), atol=1e-6)


def test_a_reply_in_another_order_is_put_right_by_its_numbers(server):
    server.answer = lambda n, body: (200, {"data": listed(body["input"])[::-1]})
    assert encoded(TEXTS, config(server, batch_size=5)).tolist() == [vector_of(text) for text in TEXTS]


def test_too_many_requests_is_tried_again(server):
    server.answer = lambda n, body: (429, {"error": {"message": "slow down"}}) if n <= 2 else good(n, body)
    assert encoded(TEXTS, config(server, batch_size=5)).tolist() == [vector_of(text) for text in TEXTS]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:-1], "numbered from 0"),
        (lambda data: [*data, data[0]], "numbered from 0"),
        (lambda data: [{**entry, "index": 0} for entry in data], "numbered from 0"),
        (lambda data: [{**entry, "embedding": entry["embedding"][:n]} for n, entry in enumerate(data, 1)], "lengths"),
        (lambda data: [{**entry, "embedding": []} for entry in data], "lengths [0]"),
        (lambda data: [{**entry, "embedding": [1.0, float("nan"), 2.0]} for entry in data], "NaN"),
        (lambda data: [{**entry, "embedding": [0.0, 0.0, 0.0]} for entry in data], "of zeros"),
        (lambda data: [{**entry, "embedding": [1.0, None, 2.0]} for entry in data], "NaN"),
        (lambda data: [{**entry, "embedding": [1.0, "x", 2.0]} for entry in data], "something else inside"),
        (lambda data: [{**entry, "embedding": None} for entry in data], "no list of them"),
        (lambda data: [{"object": "embedding"} for _ in data], "no list of them"),
        (lambda data: None, "no list of them"),
        (lambda data: [], "0 of them"),
    ],
)
def test_a_wrong_reply_is_a_clear_error_and_not_asked_again(server, change, told):
    server.answer = lambda n, body: (200, {"data": change(listed(body["input"]))})
    with pytest.raises(EndpointError, match="no usable embeddings for embedder") as caught:
        encoded(TEXTS, config(server, batch_size=5))
    assert told in f"{caught.value.expected}; {caught.value.found}"
    assert len(server.asked) == 1


@pytest.mark.parametrize("reply", [b"<html>not here</html>", b'{"data": [', b"[]", b'"text"', b""])
def test_a_reply_that_is_no_answer_at_all_is_a_clear_error(server, reply):
    server.answer = lambda n, body: (200, reply)
    with pytest.raises((EndpointError, TeacherUnavailable)):
        encoded(TEXTS, config(server, batch_size=5, retries=1))


def test_another_dimension_in_a_later_reply_is_refused(server):
    def answer(n, body):
        data = listed(body["input"])
        return 200, {"data": [{**entry, "embedding": entry["embedding"][: 4 - n]} for entry in data]}

    server.answer = answer
    with pytest.raises(EndpointError) as caught:
        encoded(TEXTS, config(server, concurrency=1))
    assert (caught.value.expected, caught.value.found) == ("vectors of 3 numbers", "lengths [2]")


def limited(most: int):
    """A server of embeddings that takes so many texts at a time, as DashScope's does."""

    def answer(n, body):
        message = f"batch size is invalid, it should not be larger than {most}.: input.contents"
        error = {"message": message, "type": "invalid_request_error", "code": "invalid_parameter_error"}
        return good(n, body) if len(body["input"]) <= most else (400, {"error": error})

    return answer


def test_a_batch_limit_is_found_by_halving_and_remembered(server):
    server.answer = limited(10)
    texts = [f"item {'a' * n}" for n in range(100)]
    assert encoded(texts, config(server, batch_size=64, concurrency=1)).tolist() == [vector_of(text) for text in texts]
    sizes = [len(body["input"]) for body in server.asked]
    assert sizes[:4] == [64, 32, 16, 8] and max(sizes[4:]) <= 32 and set(sizes[-5:]) <= {8, 4}
    assert sorted(text for body in server.asked if len(body["input"]) <= 10 for text in body["input"]) == sorted(texts)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_server_that_takes_no_batch_at_all_is_told_by_the_encoders_settings(server, status):
    server.answer = lambda n, body: (status, {"error": {"message": "input should be shorter"}})
    with pytest.raises(EndpointError, match="input should be shorter") as caught:
        encoded(TEXTS, config(server, batch_size=5, concurrency=1))
    assert "encoder.batch_size" in caught.value.fix and "teacher" not in caught.value.fix
    assert [len(body["input"]) for body in server.asked] == [5, 3, 2, 1]


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_advice_for_an_encoder_names_no_setting_of_a_teacher(server, status):
    server.answer = lambda n, body: (status, {"error": {"message": "no"}})
    with pytest.raises(EndpointError) as caught:
        encoded(TEXTS, config(server))
    assert "teacher" not in caught.value.fix and ("encoder." in caught.value.fix or status == 401)


def test_vectors_in_base64_are_read_and_missing_numbers_follow_the_order(server):
    def in_base64(entry):
        return {"embedding": base64.b64encode(struct.pack("<3f", *entry["embedding"])).decode()}

    server.answer = lambda n, body: (200, {"data": [in_base64(entry) for entry in listed(body["input"])]})
    assert encoded(TEXTS, config(server)).tolist() == [vector_of(text) for text in TEXTS]


def test_a_server_that_does_not_know_the_encoding_is_asked_without_it(server):
    message = "Unrecognized request argument supplied: encoding_format"
    server.answer = lambda n, body: (
        (400, {"error": {"message": message}}) if "encoding_format" in body else good(n, body)
    )
    assert encoded(TEXTS, config(server, concurrency=1)).tolist() == [vector_of(text) for text in TEXTS]
    assert [len(body["input"]) for body in server.asked] == [2, 2, 2, 1]  # one refusal, and no halving


def test_an_error_in_a_reply_of_200_is_told_in_its_words(server):
    server.answer = lambda n, body: (200, {"error": "Unexpected endpoint or method. (POST /embeddings)"})
    with pytest.raises(EndpointError, match="Unexpected endpoint or method") as caught:
        encoded(TEXTS, config(server, base_url=server.root))
    assert f"`encoder.endpoint.base_url` needs its /v1: write {server.root}/v1" in caught.value.fix


def test_a_text_that_the_server_refuses_is_told(server):
    error = {"error": {"message": "maximum context length is 8", "code": "context_length_exceeded"}}
    server.answer = lambda n, body: (400, error) if "banana" in body["input"] else good(n, body)
    with pytest.raises(EndpointError, match="refuses the text of an item") as caught:
        encoded(TEXTS, config(server))
    assert "max_tokens" in caught.value.fix


def test_a_wrong_key_is_told_without_the_key(server):
    server.answer = lambda n, body: (401, {"error": {"message": "Incorrect API key: sk-secret-7"}})
    with pytest.raises(EndpointError) as caught:
        encoded(TEXTS, config(server))
    assert "HTTP 401" in str(caught.value) and "secret" not in str(caught.value)


def test_the_stage_keeps_what_came_before_a_failure_and_asks_for_the_rest_only(server, tmp_path):
    items = catalogue(tmp_path / "c", **{f"i{n}": f"item {'a' * n}" for n in range(6)})

    def embed(name: str):
        (tmp_path / name).mkdir()
        inputs = StageInputs(interactions=items)
        inputs.home = tmp_path
        stage = stage_config(encoder=config(server, concurrency=1))
        return embeddings.build(inputs, stage, tmp_path / name, QUIET)  # type: ignore[arg-type]

    server.answer = lambda n, body: good(n, body) if n <= 2 else (500, {"error": {"message": "down"}})
    with pytest.raises(TeacherUnavailable):
        embed("1")
    first = {text for body in server.asked[:2] for text in body["input"]}
    server.asked, server.answer = [], good
    report = embed("2")
    assert (counts(report), report.metrics["model"]) == ((2, 4), "embedder")
    assert len(first) == 4 and not first & {text for body in server.asked for text in body["input"]}
    found = series_vectors(tables.read(tmp_path / "2" / embeddings.FILE)["vector"])
    assert found.tolist() == [vector_of(f"item {'a' * n} about it".replace("  ", " ")) for n in range(6)]


def test_a_server_that_changed_its_dimension_does_not_mix_with_the_cache(server, tmp_path):
    def embed(name: str, **titles: str):
        (tmp_path / name).mkdir()
        inputs = StageInputs(interactions=catalogue(tmp_path / f"c{name}", **titles))
        inputs.home = tmp_path
        stage = stage_config(encoder=config(server))
        return embeddings.build(inputs, stage, tmp_path / name, QUIET)  # type: ignore[arg-type]

    embed("1", a="ant")
    server.answer = lambda n, body: (200, {"data": [{**e, "embedding": [1.0, 2.0]} for e in listed(body["input"])]})
    with pytest.raises(Exception, match="another length than before"):
        embed("2", a="ant", b="bee")
