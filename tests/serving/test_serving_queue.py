"""Waiting together, being refused in time, another release under way, and the command."""

import json
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
import torch
from fastapi.testclient import TestClient

from builders import serving, small_world
from builders.small_world import SNAPSHOT
from sidr_core.errors import SidrError
from sidr_core.models import checkpoint
from sidr_core.serving import run
from sidr_core.serving.app import application
from sidr_core.serving.batcher import Batcher, Busy, Closed
from sidr_core.serving.gate import LOOPBACK, Limits
from sidr_core.serving.messages import Question
from sidr_core.serving.served import Ask, Found, Served

NOTHING = Found([], None)


class Slow:
    """In place of a release: decodes when it is let, and remembers what was decoded together."""

    def __init__(self):
        self.open, self.began, self.batches, self.seconds = threading.Event(), threading.Event(), [], 0.0

    def find(self, asks):
        self.began.set()
        assert self.open.wait(10)
        time.sleep(self.seconds)
        self.batches.append([ask.k for ask in asks])
        if any(ask.k == 13 for ask in asks):
            raise SidrError("unlucky", expected="luck", found="none", fix="try again")
        return [NOTHING for _ in asks]

    def ask(self, k, mode="direct"):
        return Ask(self, mode, k, 5, ("A01",), frozenset(), None)


@pytest.fixture
def slow():
    return Slow()


def batcher(slow, batch_size=4, most_waiting=6) -> Batcher:
    """A batcher that is busy with a first question."""
    made = Batcher(batch_size, most_waiting, lambda rows, seconds, mode: None)
    made.first = made.submit(slow.ask(0))
    assert slow.began.wait(10)
    return made


def test_what_waits_is_decoded_together_if_it_fits_in_the_order_of_arrival(slow):
    queue = batcher(slow)
    futures = [
        queue.submit(slow.ask(k, mode)) for k, mode in ((1, "direct"), (2, "thinking"), (3, "direct"), (4, "direct"))
    ]
    slow.open.set()
    assert [future.result(10) for future in [queue.first, *futures]] == [NOTHING] * 5
    assert slow.batches == [[0], [1, 3, 4], [2]]
    queue.close()


def test_a_batch_has_its_most_rows_and_a_question_that_gave_up_is_not_decoded(slow):
    queue = batcher(slow, batch_size=2)
    futures = [queue.submit(slow.ask(k)) for k in range(1, 6)]
    assert futures[1].cancel()
    slow.open.set()
    with pytest.raises(CancelledError):
        futures[1].result(10)
    queue.close()  # what was accepted is answered first
    assert slow.batches == [[0], [1, 3], [4, 5]]


def test_those_who_were_answered_together_are_waited_for_a_little_and_nobody_after_a_lone_question(slow, monkeypatch):
    monkeypatch.setattr("sidr_core.serving.batcher._PATIENCE", 10)
    queue = batcher(slow)
    together = [queue.submit(slow.ask(k)) for k in range(1, 5)]
    slow.seconds = 0.1  # so a second is waited at most
    slow.open.set()
    [future.result(10) for future in together]
    began = time.monotonic()
    back = [queue.submit(slow.ask(5))]
    time.sleep(0.05)
    back += [queue.submit(slow.ask(6)), queue.submit(slow.ask(7))]
    [future.result(10) for future in back]
    assert time.monotonic() - began < 0.8  # two of four are half of them
    queue.submit(slow.ask(8)).result(10)  # half of two or three are two, who do not come
    began = time.monotonic()
    queue.submit(slow.ask(9)).result(10)
    assert time.monotonic() - began < 0.8
    assert slow.batches[:2] == [[0], [1, 2, 3, 4]] and slow.batches[2][:2] == [5, 6] and slow.batches[-1] == [9]
    queue.close()


def test_a_failure_reaches_its_batch_alone(slow):
    queue = batcher(slow)
    bad = queue.submit(slow.ask(13))
    slow.open.set()
    with pytest.raises(SidrError, match="unlucky"):
        bad.result(10)
    assert queue.submit(slow.ask(1)).result(10) == NOTHING
    queue.close()
    with pytest.raises(Closed):
        queue.submit(slow.ask(1))


def test_a_full_queue_refuses_and_says_when_to_come_again(slow):
    queue = batcher(slow, most_waiting=3)
    futures = [queue.submit(slow.ask(k)) for k in range(3)]
    with pytest.raises(Busy) as refused:
        queue.submit(slow.ask(9))
    assert 1 <= refused.value.retry_after <= 60
    slow.open.set()
    assert all(future.result(10) == NOTHING for future in futures)
    queue.close()


def test_too_many_are_answered_429_too_slow_ones_504_and_the_rest_in_full(listed, monkeypatch):
    server = serving.server_over(listed, most_waiting=2, seconds=1.5)
    hold, began, find = threading.Event(), threading.Event(), Served.find

    def held(self, asks):
        began.set()
        hold.wait(10)
        return find(self, asks)

    monkeypatch.setattr(Served, "find", held)
    question = {"history": ["A01"], "mode": "direct"}
    with TestClient(application(server), base_url="http://127.0.0.1") as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/recommend", json=question)
        assert began.wait(10)
        others = [pool.submit(client.post, "/recommend", json=question) for _ in range(5)]
        answers = [future.result(20) for future in [first, *others]]
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [429] * 3 + [504] * 3
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
        assert all("within 1.5 s" in answer.text for answer in answers if answer.status_code == 504)
        later = pool.submit(client.post, "/recommend", json=question)  # those that gave up have left the queue
        hold.set()
        assert later.result(20).status_code == 200


def test_a_failure_of_the_server_is_told_in_the_same_form_and_counted(listed, monkeypatch):
    server = serving.server_over(listed)
    with TestClient(application(server), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Served, "find", lambda self, asks: 1 / 0)
            failed = client.post("/recommend", json={"history": ["A01"]})
        assert failed.status_code == 500 and failed.json()["error"]["found"] == "ZeroDivisionError"
        assert 'route="/recommend",status="500"} 1.0' in client.get("/metrics").text
        assert client.post("/recommend", json={"history": ["A01"]}).status_code == 200


# -- another release -----------------------------------------------------------------------------


def retrain(world, seed: int) -> None:
    """Publish another GRPO checkpoint and its lists."""

    def change(folder):
        loaded = checkpoint.load(folder, "cpu")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in loaded.model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        for stale in ("README.md",):
            (folder / stale).unlink()
        checkpoint.save(folder, loaded.model, loaded.tokenizer, small_world.codebook(), loaded.meta, f"# card {seed}")

    small_world.spoil(world, "grpo_checkpoint", change)
    world.run("recommendations")


def test_a_new_release_takes_over_between_two_questions_and_back_and_none_is_lost_or_mixed(own):
    server = serving.server_over(own)
    before = own.store.ref("toys", SNAPSHOT, "recommendations")
    retrain(own, 7)
    after = own.store.ref("toys", SNAPSHOT, "recommendations")
    assert before != after
    question = {"history": ["A01", "A04"], "k": 5, "mode": "merged"}
    with TestClient(application(server), base_url="http://127.0.0.1") as client, ThreadPoolExecutor(4) as pool:
        old = client.post("/recommend", json=question).json()
        assert old["release"] == before
        server.follower.check()
        new = client.post("/recommend", json=question).json()
        assert new["release"] == after and new["items"] != old["items"]
        wanted = {before: old, after: new}
        stop, answers = threading.Event(), []

        def ask():
            while not stop.is_set():
                answers.append(client.post("/recommend", json=question))

        asking = [pool.submit(ask) for _ in range(4)]
        for _ in range(6):
            ref = server.served.release.place.fingerprint
            own.store.set_ref("toys", SNAPSHOT, "recommendations", before if ref == after else after)
            server.follower.check()
        time.sleep(0.1)
        stop.set()
        [future.result(20) for future in asking]
    assert server.follower.swaps == 7 and server.follower.failures == 0
    assert {answer.status_code for answer in answers} == {200}
    told = [answer.json() for answer in answers]
    assert {answer["release"] for answer in told} == {before, after}
    for answer in told:
        same = wanted[answer["release"]]
        assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in same["items"]]
        assert answer["thought"] == same["thought"]


def test_a_question_is_answered_by_the_release_that_understood_it(own):
    server = serving.server_over(own)
    old = server.served
    question = Question(history=["A01"], mode="direct", k=3)
    ask = old.ask(question)
    retrain(own, 8)
    server.follower.check()
    assert server.served is not old and server.batcher.submit(ask).result(10).places == old.find([ask])[0].places
    server.batcher.close()
    assert server.served.ask(question).served is server.served


def test_a_damaged_release_is_told_once_and_the_old_one_is_served_on(own):
    server = serving.server_over(own)
    before = server.served
    retrain(own, 9)
    weights = own.store.require("toys", SNAPSHOT, "grpo_checkpoint").folder / "model.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    server.follower.check()
    server.follower.check()
    assert server.served is before and (server.follower.swaps, server.follower.failures) == (0, 2)
    (line,) = server.follower.told
    assert "is served on" in line and "model.safetensors is damaged" in line
    server.batcher.close()


# -- the command ---------------------------------------------------------------------------------


def test_serve_refuses_what_would_be_open_to_everyone(own, sidr, tmp_path, monkeypatch):
    serving.write_profile(own, tmp_path / "test.yaml")
    monkeypatch.setenv("SIDR_PROFILE", str(tmp_path / "test.yaml"))
    code, _, err = sidr("serve", "--host", "0.0.0.0")
    assert code == 1 and "would answer everyone" in err and "--token-file" in err
    (tmp_path / "token").write_text("short\n")
    code, _, err = sidr("serve", "--host", "0.0.0.0", "--token-file", str(tmp_path / "token"))
    assert code == 1 and "at least 16" in err and "short\n" not in err
    code, _, err = sidr("serve", "--token-file", str(tmp_path / "none"))
    assert code == 1 and "cannot be read" in err
    code, _, err = sidr("serve", "--model", "sft")
    assert code == 1 and "no lists of sft" in err and "grpo" in err
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "empty"))
    code, _, err = sidr("serve")
    assert code == 1 and "recommendations has no published output" in err


def test_the_token_comes_from_file_or_environment_and_names_are_those_of_the_address(tmp_path, monkeypatch):
    monkeypatch.delenv(run.TOKEN_VARIABLE, raising=False)
    assert run.token_of(None) is None
    monkeypatch.setenv(run.TOKEN_VARIABLE, "from-the-environment")
    assert run.token_of(None) == "from-the-environment"
    (tmp_path / "token").write_text("  from-the-file-1234\n")
    assert run.token_of(tmp_path / "token") == "from-the-file-1234"
    limits = run.limits_of("10.0.0.7", "from-the-file-1234", ["Shop.Example"])
    assert limits == Limits(frozenset([*LOOPBACK, "10.0.0.7", "shop.example"]), "from-the-file-1234")
    assert run.limits_of("0.0.0.0", "from-the-file-1234", []).hosts == set(LOOPBACK)


def test_it_answers_over_a_real_port_and_ends_when_it_is_told(own):
    import urllib.request

    server = serving.server_over(own)
    with serving.on_a_port(server) as address:
        request = urllib.request.Request(
            f"{address}/recommend", json.dumps({"user_id": "user0"}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            assert len(json.load(response)["items"]) == 10
    with pytest.raises(Closed):
        server.batcher.submit(server.served.ask(Question(history=["A01"])))
