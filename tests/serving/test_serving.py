"""Lists over HTTP: the published ones, filters, and every wrong question."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date

import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import serving, small_world
from builders.serving import MODES
from builders.small_world import ITEMS, SNAPSHOT, World
from sidr_core.baselines.ranking import rankings
from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.lists import counted
from sidr_core.recommending import mixture
from sidr_core.serving.app import application
from sidr_core.serving.gate import LOOPBACK, Limits
from sidr_core.serving.messages import Filters, Question
from sidr_core.tables import files as tables


def post(client, **question):
    return client.post("/recommend", json=question)


def items(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def refused(response, status: int, *texts: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "expected", "found", "fix"} and all(error.values())
    for text in texts:
        assert text in json.dumps(error)


def published(listed, mode: str) -> dict[str, pl.DataFrame]:
    """row_id -> the published list."""
    table = tables.read(listed.store.require("toys", SNAPSHOT, "recommendations").path("recommendations.parquet"))
    model, kind = MODES[mode].split("/")
    lists = table.filter((pl.col("model") == model) & (pl.col("mode") == kind)).sort("row_id", "rank")
    return {str(row): places for (row,), places in lists.group_by(["row_id"], maintain_order=True)}


# -- the lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_test_row_gets_the_published_list_whoever_asks_beside_it(listed, client, mode):
    lists = published(listed, mode)
    rows = tables.read(listed.store.require("toys", SNAPSHOT, "recommendations").path("rows.parquet"))
    histories = dict(rows.select("row_id", "history_item_ids").iter_rows())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: post(client, history=histories[row], k=5, mode=mode).json(), histories))
    for row, answer in zip(histories, answers, strict=True):
        wanted = lists[row].head(5)
        assert items(answer) == wanted["item_id"].to_list()
        assert [item["score"] for item in answer["items"]] == pytest.approx(wanted["score"].to_list(), abs=1e-4)
        assert answer["thought"] == wanted["reasoning"][0]
        assert answer["model"] == MODES[mode] and answer["synthetic"]


def test_an_answer_holds_titles_the_thought_and_why(client):
    answer = post(client, history=["A01", "A02"], k=3, mode="thinking").json()
    assert [item["title"] for item in answer["items"]] == [f"Toy {item}" for item in items(answer)]
    assert "".join(part["text"] for part in answer["reading"]["parts"]) == answer["thought"]
    assert answer["reading"]["closed"] is False and answer["reading"]["true"] is None
    assert answer["items"][0]["shared"] == [{"name": "Category", "value": "Toys", "item_ids": ["A01", "A02"]}]
    assert [item["item_id"] for item in answer["history"]] == ["A01", "A02"]
    assert post(client, history=["A01"], mode="direct").json()["reading"] is None


def test_a_user_has_the_history_of_the_snapshot_and_without_a_mode_the_merged_list(client):
    answer = post(client, user_id="user1").json()
    assert [item["item_id"] for item in answer["history"]] == ["A02", "A03", "A04", "A05", "A06", "A07"]
    assert answer["mode"] == "merged" and len(answer["items"]) == 10
    assert {item["item_id"] for item in answer["items"] if item["seen"]} <= {f"A0{n}" for n in range(2, 8)}


def test_a_mixed_list_is_made_of_its_parts_as_recommendations_makes_it(server):
    """With weights that no part is without, also of what may not repeat and of several filters in one batch."""
    served = server.served
    choice = replace(served.mixer.choice, weights={"all rows": (0.4, 0.3, 0.2, 0.1)}, rule="none")
    served = replace(served, mixer=replace(served.mixer, choice=choice))
    histories = [["A01", "A02"], ["A07"]]
    rows = pl.DataFrame({"row_id": ["0", "1"], "history_item_ids": histories})
    book, own = served.shelf.codebook, {}
    for mode in ("direct", "merged"):
        (asks, found) = ([served.ask(Question(history=history, k=5, mode=mode)) for history in histories], [])
        for row, one in enumerate(served.find(asks)):
            found += [(str(row), rank, item, score) for rank, (item, _, score) in enumerate(one.places, 1)]
        table = pl.DataFrame(found, schema=["row_id", "rank", "item_id", "score"], orient="row")
        own[f"grpo/{mode}"] = counted(table, book, 5).rankings
    assert choice.parts == ("shortcut", "sasrec", *own)
    parts = {name: rankings(ranker, rows, book, 15) for name, ranker in served.mixer.rankers.items()} | own
    wanted = mixture.listed(parts, choice, rows, served.mixer.met, book, 5).rankings
    asks = [served.ask(Question(history=history, k=5, mode="mixed")) for history in histories]
    for row, found in enumerate(served.find(asks)):
        expected = wanted.filter(row_id=str(row)).head(5)
        assert [item for item, _, _ in found.places] == expected["item_id"].to_list()
        assert [score for _, _, score in found.places] == pytest.approx(expected["score"].to_list(), abs=1e-4)
    whole = served.ask(Question(history=histories[0], k=16, mode="mixed"))
    ranking = [item for item, _, _ in served.find([whole])[0].places]
    stocks = [{"A03", "A09", "A15"}, {"A01", "A02", "A10", "A11"}]
    asks = [
        served.ask(Question(history=histories[0], k=len(stock), mode="mixed", filters=Filters(in_stock=sorted(stock))))
        for stock in stocks
    ]
    for stock, found in zip(stocks, served.find([replace(ask, width=16) for ask in asks]), strict=True):
        assert [item for item, _, _ in found.places] == [item for item in ranking if item in stock]


def test_recommend_gives_the_published_merged_and_mixed_lists(listed, listed_home, sidr, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDR_HOME", str(listed_home))
    serving.write_profile(listed, tmp_path / "listed.yaml")
    monkeypatch.setenv("SIDR_PROFILE", str(tmp_path / "listed.yaml"))
    row = small_world.samples(4, 2).row(0, named=True)
    for mode in ("merged", "mixed"):
        code, out, err = sidr("recommend", "--history", ",".join(row["history_item_ids"]), "-k", "5", "--mode", mode)
        assert code == 0, err
        wanted = published(listed, mode)[row["row_id"]]["item_id"].head(5).to_list()
        assert [line.split()[3] for line in out.splitlines() if line.strip()[:1].isdigit()] == wanted
        assert MODES[mode] in out and ("Thought" in out) == (mode == "merged")
    code, _, err = sidr("recommend", "--user", "usr0", "--mode", "mixed")
    assert code == 1 and "there is no user 'usr0'" in err


# -- filters -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(sorted(MODES)),
    stocks=st.lists(st.sets(st.sampled_from(ITEMS), min_size=2), min_size=1, max_size=4),
    first=st.integers(0, 9),
)
def test_a_filtered_list_is_the_unfiltered_ranking_restricted_whatever_is_asked_beside_it(server, mode, stocks, first):
    served, history = server.served, [ITEMS[first], ITEMS[first + 3]]
    whole = served.ask(Question(history=history, k=len(ITEMS), mode=mode))
    (everything,) = served.find([whole])
    ranking = [item for item, _, _ in everything.places]
    assert sorted(ranking) == ITEMS
    asks = [
        served.ask(Question(history=history, k=len(stock), mode=mode, filters=Filters(in_stock=sorted(stock))))
        for stock in stocks
    ]
    # So wide a beam is exhaustive; a question without a filter shares the batch.
    wide = [type(ask)(**{**vars(ask), "width": len(ITEMS)}) for ask in asks]
    for stock, found in zip(stocks, served.find([*wide, whole]), strict=False):
        assert [item for item, _, _ in found.places] == [item for item in ranking if item in stock]


def test_each_filter_lets_through_what_it_says(server, client):
    shelf = server.served.shelf
    toys = shelf.allowed(Filters(categories=["Toys"]), [])
    assert toys is not None and toys.all()
    unseen = post(client, history=["A01", "A02"], k=14, mode="direct", filters={"exclude_seen": True}).json()
    assert sorted(items(unseen)) == sorted(set(ITEMS) - {"A01", "A02"})
    twin = post(client, history=["A01"], k=1, mode="merged", filters={"in_stock": ["A15"]}).json()
    assert items(twin) == ["A15"]  # A14 shares its SID
    days = (date(2020, 1, 26), date(2020, 1, 27))  # everything was met on the 26th
    early, late = (shelf.allowed(Filters(fresher_than=day), []) for day in days)
    assert early.all() and not late.any()


def test_where_lists_leave_out_the_history_the_server_does_too_and_is_never_short(own, listed):
    dropping = World(own.store, small_world.profile(models=serving.MODELS, seen="drop"))
    dropping.run("recommendations")
    server = serving.server_over(dropping)
    rows = tables.read(own.store.require("toys", SNAPSHOT, "recommendations").path("rows.parquet"))
    with TestClient(application(server), base_url="http://127.0.0.1:8000") as client:
        for mode in MODES:
            lists = published(dropping, mode)
            for row, history in rows.select("row_id", "history_item_ids").iter_rows():
                answer = post(client, history=history, k=5, mode=mode).json()
                assert items(answer) == lists[row]["item_id"].head(5).to_list()
                assert not {item["sid"] for item in answer["items"]} & {item["sid"] for item in answer["history"]}
        whole = post(client, history=["A01", "A15"], k=13, mode="merged").json()  # A14 shares the SID of A15
        assert sorted(items(whole)) == sorted(set(ITEMS) - {"A01", "A14", "A15"})
        refused(post(client, history=["A01", "A15"], k=14), 422, "k of 1 to 13", "none of the history")


# -- wrong questions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ({}, ["either `user_id` or `history`", "neither"]),
        ({"user_id": "user0", "history": ["A01"]}, ["both"]),
        ({"history": []}, ["the history is empty"]),
        ({"history": ["A01", "A99"]}, ["there is no item 'A99'", "did you mean"]),
        ({"user_id": "usr0"}, ["there is no user 'usr0'", "user0"]),
        ({"history": ["A01"], "k": 17}, ["a list of 17 cannot be filled", "16"]),
        ({"history": ["A01"], "k": 0}, ["k", "greater than or equal to 1"]),
        ({"history": ["A01"], "mode": "none"}, ["mode", "direct"]),
        ({"history": ["A01"], "colour": 1}, ["colour", "Extra inputs"]),
        ({"history": ["A01"], "k": 3, "filters": {"in_stock": ["A02"]}}, ["the filters let through", "k = 3"]),
        ({"history": ["A01"], "k": 1, "filters": {"fresher_than": "2030-01-01"}}, ["no item that the filters"]),
        ({"history": ["A01"], "filters": {"categories": ["Toy"]}}, ["there is no category 'Toy'", "Toys"]),
        ({"history": ["A01"], "filters": {"in_stock": ["B"]}}, ["there is no item 'B'"]),
        ({"history": "A01"}, ["history", "valid list"]),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_a_wrong_question_is_told_what_was_expected_found_and_to_do(client, question, texts):
    refused(client.post("/recommend", json=question), 422, *texts)


def test_what_is_no_question_at_all_is_refused(client):
    json_body = {"Content-Type": "application/json"}
    refused(client.post("/recommend", content="{", headers=json_body), 422, "the body: JSON decode error")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    refused(client.post("/recommend", content='{"user_id": "u"}', headers=form), 422, "Content-Type: application/json")
    refused(client.get("/recommend"), 405)
    refused(client.get("/nothing"), 404, "/recommend")
    refused(client.post("/recommend", content=b"x" * 10_000_000, headers=json_body), 413, "4,194,304")
    endless = (b"x" * 100_000 for _ in range(50))  # no length is declared
    refused(client.post("/recommend", content=endless, headers=json_body), 413, "more than")
    assert post(client, history=["A01"]).status_code == 200  # nothing was lost by any of them


def test_another_host_or_origin_is_refused(client):
    refused(client.get("/health", headers={"Host": "evil.example"}), 400, "evil.example", "--allow-host")
    refused(client.get("/health", headers={"Origin": "http://evil.example"}), 403)
    refused(client.get("/health", headers={"Origin": "http://127.0.0.1:9999"}), 403)
    assert client.get("/health", headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200
    assert client.get("/health", headers={"Host": "localhost:1"}).json()["modes"] == list(MODES)


def test_a_token_is_asked_for_everywhere_but_on_the_page_and_of_a_probe(server):
    guarded = serving.Server(
        server.follower, server.batcher, server.counts, Limits(frozenset(LOOPBACK), "correct-horse-battery")
    )
    client = TestClient(application(guarded), base_url="http://localhost")  # not entered: the batcher is another's
    for route in ("/items", "/users", "/about", "/metrics", "/v1/models", "/openapi.json", "/nothing"):
        refused(client.get(route), 401, "Bearer")
    wrong = client.post("/recommend", json={"history": ["A01"]}, headers={"Authorization": "Bearer correct-horse"})
    refused(wrong, 401, "another token")
    assert "correct-horse" not in wrong.text and wrong.headers["www-authenticate"] == "Bearer"
    assert client.get("/").status_code == client.get("/health").status_code == 200
    right = {"Authorization": "Bearer correct-horse-battery"}
    assert client.post("/recommend", json={"history": ["A01"]}, headers=right).status_code == 200


# -- what else is served -------------------------------------------------------------------------


def test_metrics_count_answers_batches_and_time(client):
    post(client, history=["A01"], mode="direct")
    client.get("/nothing")
    client.get("/health", headers={"Host": "evil.example"})
    text = client.get("/metrics").text
    for line in ('sidr_answers_total{route="/recommend",status="200"}', 'sidr_answers_total{route="none",status="404"}',
                 'sidr_answers_total{route="none",status="400"}', 'sidr_batch_rows_count{mode="direct"}',
                 'sidr_answer_seconds_bucket{le="1.0",mode="direct"}', "sidr_waiting 0.0"):  # fmt: skip
        assert line in text


def test_the_openapi_document_describes_question_and_answer(client):
    told = client.get("/openapi.json").json()
    recommend = told["paths"]["/recommend"]["post"]
    assert recommend["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Question")
    assert set(recommend["responses"]) >= {"200", "413", "422", "429", "504"}
    assert client.get("/docs").status_code == 404  # Swagger's page would load scripts from elsewhere


def test_items_and_users_are_found_by_parts_of_their_names(client):
    assert [item["item_id"] for item in client.get("/items?search=toy a0&most=3").json()] == ["A00", "A01", "A02"]
    assert client.get("/users?search=R5").json() == ["user5"]
    about = client.get("/about").json()
    assert about["names"] == MODES and about["categories"] == ["Toys"] and about["items"] == 16


def test_the_page_has_test_rows_with_what_came_next_and_its_place_in_each_list(listed, client):
    rows = tables.read(listed.store.require("toys", SNAPSHOT, "recommendations").path("rows.parquet"))
    targets = dict(rows.select("row_id", "target_item_id").iter_rows())
    shown = client.get("/about").json()["examples"]
    assert {example["kind"] for example in shown} >= {"hit"}
    for example in shown:
        assert example["target"]["item_id"] == targets[example["row_id"]] and list(example["places"]) == list(MODES)
        for mode, place in example["places"].items():
            ranking = published(listed, mode)[example["row_id"]]["item_id"].to_list()
            assert (
                ranking.index(targets[example["row_id"]]) + 1 if targets[example["row_id"]] in ranking else None
            ) == place
        found = [place is not None and place <= 10 for place in example["places"].values()]
        changed = found[0] != found[1]
        assert example["kind"] == ("changed by thought" if changed else "hit" if any(found) else "miss")


def test_the_page_runs_its_own_script_alone(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "unsafe" not in policy
    for foreign in ("http://", "https://", "innerHTML", "onclick="):
        assert foreign not in response.text


# -- OpenAI's form -------------------------------------------------------------------------------


def chat(client, content, **fields):
    body = {"model": "grpo/thinking", "messages": [{"role": "user", "content": content}], "k": 3, **fields}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    "content",
    ["A01, A02", "A01\nA02", "- toy a01\n- Toy A02", [{"type": "text", "text": "A01; Toy A02"}]],
    ids=["commas", "lines", "titles", "parts"],
)
def test_a_conversation_names_items_by_id_or_title(client, content):
    told = chat(client, content, temperature=0.7, user="someone").json()
    (choice,) = told["choices"]
    same = post(client, history=["A01", "A02"], k=3, mode="thinking").json()
    assert told["sidr"] == same
    assert choice["message"]["content"].splitlines()[0] == f"1. {same['items'][0]['title']} ({items(same)[0]})"
    assert choice["message"]["reasoning_content"] == same["thought"] and choice["finish_reason"] == "stop"
    assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]


def test_a_conversation_holds_the_prompt_of_the_model_itself(client):
    sids = [item["sid"] for item in post(client, history=["A01", "A02"]).json()["history"]]
    told = chat(client, next_item(sids)).json()["sidr"]
    assert told == post(client, history=["A01", "A02"], k=3, mode="thinking").json()
    refused(chat(client, next_item(["<a_9><b_9>"])), 422, "<a_9><b_9>")


def test_a_conversation_names_a_user(client):
    for text in ("user1", "user: user1"):
        assert chat(client, text).json()["sidr"]["history"][0]["item_id"] == "A02"


def test_a_stream_says_the_same_piece_by_piece(client):
    whole = chat(client, "A01").json()["choices"][0]["message"]
    response = chat(client, "A01", stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == whole["reasoning_content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["usage"]["total_tokens"] > 0


def test_a_conversation_that_cannot_be_answered_is_refused(client):
    refused(chat(client, "A01", model="gpt"), 422, "grpo/direct")
    refused(chat(client, "A01, Toy B07"), 422, "Toy B07")
    refused(chat(client, ""), 422, "the history is empty")
    refused(chat(client, "A01," * 10_001), 422, "history")
    refused(client.post("/v1/chat/completions", json={"model": "grpo/direct", "messages": []}), 422, "messages")
    system = [{"role": "system", "content": "A01"}]
    refused(client.post("/v1/chat/completions", json={"model": "grpo/direct", "messages": system}), 422, "user")


def test_the_models_are_the_modes(client):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == list(MODES.values())
