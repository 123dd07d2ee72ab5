"""A rehearsal changes sizes and places alone; and one is played to its end."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders.stage import QUIET
from sidr_core.corpus.teacher import requests
from sidr_core.models.base import build_base
from sidr_core.models.prompt import FORMAT_TOKENS
from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.profile import PROFILES, load_profile, parse_profile
from sidr_core.rehearsal import data, estimate, models
from sidr_core.rehearsal.play import rehearsed
from sidr_core.rehearsal.server import answer, completion, vector
from sidr_core.rehearsal.stand_in import NO_KEY, model_folder, stand_in
from sidr_core.settings.sources import single_sources

FOLDER, SERVER = Path("/nowhere"), "http://127.0.0.1:1/v1"
SHIPPED = [(path.stem, name) for path in sorted(PROFILES.glob("*.yaml")) for name in load_profile(path.stem)]
#: Of each section, what decides how it is done.
KINDS = {
    "quantizer": ("kind", "vectors", "levels", "collisions"),
    "teacher": ("kind", "reply", "rest", "batch", "price", "budget", "form"),
    "sft": ("parameters", "schedule", "optimizer", "packing", "bf16", "gradient_checkpointing", "dropout"),
    "activation": ("parameters", "schedule", "bf16", "gradient_checkpointing", "max_length"),
    "grpo": ("mode", "rollouts", "reward", "parameters", "beta", "bf16", "drop_zero_variance"),
    "decoding": ("beam_width", "scoring", "models"),
    "launch": ("kind", "stages"),
    "split": ("max_history", "ratios", "train_only"),
    "encoder": ("pooling", "dtype", "normalize"),
}


@pytest.mark.parametrize(("profile", "dataset"), SHIPPED)
def test_a_stand_in_is_small_and_of_the_same_kind(profile, dataset):
    real = load_profile(profile).dataset(dataset)
    small = stand_in(load_profile(profile), dataset, FOLDER, SERVER).dataset(dataset)
    for section, fields in KINDS.items():
        for field in fields:
            kind = getattr(getattr(real, section), field)
            # processes of this machine stand in for a cluster
            expected = "accelerate" if (section, kind) == ("launch", "ray") else kind
            assert getattr(getattr(small, section), field) == expected, (section, field)
    assert [one.kind for one in single_sources(small.source)] == [one.kind for one in single_sources(real.source)]
    assert small.grpo.steps <= 2 and small.sft.epochs <= 1 and small.quantizer.size <= 8
    assert small.launch.processes <= 2 and small.evaluation.ks == real.evaluation.ks


@pytest.mark.parametrize(("profile", "dataset"), SHIPPED)
def test_a_stand_in_names_nothing_outside_this_machine(profile, dataset):
    small = stand_in(load_profile(profile), dataset, FOLDER, SERVER)
    text = json.dumps(small.raw)
    assert "https://" not in text and "api.openai.com" not in text and "OPENAI_API_KEY" not in text
    teacher = small.dataset(dataset).teacher
    if teacher.kind == "openai":
        assert teacher.endpoint is not None and teacher.endpoint.base_url == SERVER
        assert teacher.endpoint.api_key_env == NO_KEY


def test_the_same_profile_has_the_same_stand_in():
    profile = load_profile("paper")
    assert stand_in(profile, "games", FOLDER, SERVER).raw == stand_in(profile, "games", FOLDER, SERVER).raw


def layouts() -> dict[str, dict]:
    files = {"reviews": ["r"], "items": ["i"]}
    columns = {"review_columns": {"user_id": "who"}, "item_columns": {"title": "name"}}
    return {
        "amazon_2014": {"kind": "amazon_2014", **files},
        "amazon_2018": {"kind": "amazon_2018", **files},
        "amazon_2023": {"kind": "amazon_2023", **files},
        "ratings_csv": {"kind": "ratings_csv", "ratings": ["r"], "items": ["i"], "order": "item_user"},
        "sequences": {"kind": "sequences", "sequences": ["s"], "items": ["i"]},
        "tables": {"kind": "tables", **files, **columns},
        "minionerec": {"kind": "minionerec", **dict.fromkeys(("train", "valid", "test", "info", "items"), "x")},
    }


@pytest.mark.parametrize("kind", sorted(layouts()))
def test_the_data_of_every_layout_are_read_as_that_layout(kind, tmp_path, monkeypatch):
    from sidr_core.pipeline.graph import stage_named
    from sidr_core.pipeline.run import check_failure, run_stage
    from sidr_core.pipeline.store import Store
    from sidr_core.tables import files as tables

    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    fields = {"source": layouts()[kind], "snapshots": _ONE_MONTH}
    split = {"split": {"kind": "leave_one_out"}} if kind == "sequences" else {}
    profile = parse_profile("p", {"datasets": {"d": fields | split}})
    small = stand_in(profile, "d", tmp_path, SERVER)
    data.write(profile.dataset("d"), tmp_path)
    store = Store(tmp_path / "home" / "store")
    for name in ("raw_reviews", "raw_items", "interactions"):
        artifact = run_stage(small, "d", "2018-10", stage_named(name), store, QUIET).artifact
        assert check_failure("d", "2018-10", stage_named(name), artifact) is None
    assert tables.read(artifact.path("train.parquet")).height > 300
    assert tables.read(artifact.path("items.parquet")).height > 40


_ONE_MONTH = {"start": "2018-10", "end": "2018-10"}


def test_the_architecture_is_the_real_models():
    real = models.real_config("Qwen/Qwen3-32B")
    assert (real.hidden_size, real.num_hidden_layers, real.tie_word_embeddings) == (5120, 64, False)
    small = models.small(real)
    assert small.model_type == "qwen3" and small.num_hidden_layers == 2 and not small.tie_word_embeddings
    assert models.real_config("smollm2-135m").model_type == "llama"
    assert models.real_config("Qwen/Qwen2.5-1.5B-Instruct").model_type == "qwen2"
    with pytest.raises(Exception, match="does not know the architecture"):
        models.real_config("somebody/nameless")


def test_a_model_with_think_tags_keeps_its_own(tmp_path):
    """As Qwen3 has them, with rows to spare behind its tokens: the tags keep ids and rows, SIDs get new rows."""
    real = load_profile("paper").dataset("games")
    models.write(real, tmp_path)
    small = stand_in(load_profile("paper"), "games", tmp_path, SERVER).dataset("games").base_model
    before = AutoModelForCausalLM.from_pretrained(model_folder(tmp_path))
    tags = AutoTokenizer.from_pretrained(model_folder(tmp_path)).convert_tokens_to_ids(list(FORMAT_TOKENS))
    model, tokenizer = build_base(small, [], pl.DataFrame({"item_id": ["A"], "codes": [[0, 1]]}))
    assert tokenizer.convert_tokens_to_ids(list(FORMAT_TOKENS)) == tags
    rows, old = model.get_input_embeddings().weight, before.get_input_embeddings().weight
    assert torch.equal(rows[tags], old[tags]) and len(rows) == len(old), "spare rows are taken first"
    sid = tokenizer.convert_tokens_to_ids("<a_0>")
    assert not torch.equal(rows[sid], old[sid])


def test_the_server_answers_each_kind_in_its_form():
    history = "<data>\n[1] A | b\n[2] C\n[next] D\n</data>\n"
    requests.UserPath.model_validate(answer(history + 'the JSON key "reasoning"'))
    assert answer(history + "ends with [next]")["narrative"].endswith("[next].")
    requests.ItemAnalysis.model_validate(answer("<data>\ntitle: A lamp\n</data>\nthe keys use_cases, features"))
    requests.ItemNarrative.model_validate(answer("<data>\ncategory: x / Lamps\n</data>\nnarrative"))
    body = {"model": "m", "messages": [{"role": "user", "content": history + "reasoning"}]}
    assert completion(body)["usage"]["prompt_tokens"] == len(body["messages"][0]["content"]) // 4


def test_texts_with_the_same_words_have_near_vectors():
    near, far = (
        sum(a * b for a, b in zip(vector(one), vector(other), strict=True))
        for one, other in (("red lamp", "lamp red"), ("red lamp", "green chair"))
    )
    assert near == pytest.approx(1.0, abs=1e-4) and far < 0.6


@pytest.mark.long
def test_a_whole_rehearsal_with_a_paid_teacher(tmp_path, monkeypatch):
    """The tiny profile with the paper's teacher and quantizer: every stage, the ledger, and the estimate."""
    monkeypatch.setenv("SIDR_HOME", str(tmp_path))
    raw = yaml.safe_load((Path(__file__).parents[1] / "profiles" / "tiny.yaml").read_text())["datasets"]["games"]
    paper = load_profile("paper").raw["datasets"]["games"]
    raw |= {"teacher": paper["teacher"], "quantizer": paper["quantizer"]}
    real = parse_profile("p", {"datasets": {"games": raw}})
    with rehearsed(real, "games", QUIET) as played:
        assert [scene.stage for scene in played.scenes] == [stage.name for stage in STAGES]
        (written,) = (scene.artifact for scene in played.scenes if scene.stage == "synthetic_corpus")
        corpus = written.manifest["metrics"]
        assert (
            corpus["teacher_accepted_item_narratives"] > 20
            and corpus["teacher_accepted_thoughts"] > 20
            and corpus["teacher_usd"] > 0
        )
        size = estimate.Size(items=1000, users=2000, rows=10_000, source="told")
        money = estimate.money(played, real.dataset("games"), size)
        assert {one.kind: one.calls for one in money} == {
            "item_analysis": 1000, "item_narrative": 1000, "user_path": 10_000, "user_narrative": 2000,
        }  # fmt: skip
        steps = estimate.trainings(played, real.dataset("games"), size)
        assert [step.stage for step in steps] == ["sft_checkpoint", "activation_checkpoint", "grpo_checkpoint"]
        assert steps[1].steps == -(-10_000 // 32) and all(step.tokens and step.hours > 0 for step in steps)
        home = played.store.root
    assert not home.exists() and not list(tmp_path.iterdir())
