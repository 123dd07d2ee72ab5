"""Base models, vocabulary extension and checkpoints."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from builders.models import CODEBOOK, META, TEXTS, TINY, USED, bare
from sidr_core.errors import SidrError
from sidr_core.items.encoders import load_encoder
from sidr_core.models import checkpoint
from sidr_core.models.base import build_base, train_tokenizer
from sidr_core.models.prompt import FORMAT_TOKENS, PromptRenderer
from sidr_core.models.sources import described, files
from sidr_core.models.untrusted import untrusted_file
from sidr_core.models.vocabulary import NOISE, WORDS_NOISE, extend_vocabulary, own_token_ids, words_of_codes
from sidr_core.settings import Encoder, PretrainedModel
from sidr_core.sids.tokens import format_sid

TESTS = Path(__file__).parents[1]

# -- tiny --------------------------------------------------------------------------------------


def test_the_tiny_model_is_what_the_profile_says() -> None:
    model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    config = model.config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("qwen3", 32, 2)
    assert (config.attention_dropout, config.tie_word_embeddings, config._attn_implementation) == (0.1, True, "sdpa")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] <= 320 + len(USED)
    assert set(USED) <= set(tokenizer.get_vocab()) and "<b_2>" not in tokenizer.get_vocab()
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_sid_tokens_get_consecutive_ids_by_level_then_number() -> None:
    _, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    ids = tokenizer.convert_tokens_to_ids(USED)
    assert ids == list(range(len(tokenizer) - len(USED), len(tokenizer)))


def test_building_twice_gives_equal_weights_and_leaves_the_global_generator() -> None:
    torch.manual_seed(7)
    first, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.rand(1) == after
    second, again = build_base(TINY, TEXTS, CODEBOOK)
    assert tokenizer.get_vocab() == again.get_vocab()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other, _ = build_base(TINY.model_copy(update={"seed": 43}), TEXTS, CODEBOOK)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_the_tokenizer_spends_no_merge_on_sids_and_round_trips() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    learned = set(tokenizer.get_vocab()) - set(FORMAT_TOKENS)
    assert not [token for token in learned if "_" in token and len(token) > 1]
    text = "Ünïcode – ok?\n\t1234  blanks 🎮"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(" racing games")) == 2


@pytest.mark.parametrize("field", [{"vocab_size": 200}, {"heads": 3}, {"kv_heads": 3}])
def test_an_impossible_tiny_model_is_refused(field: dict) -> None:
    with pytest.raises(SidrError, match="base_model cannot be built"):
        build_base(TINY.model_copy(update=field), TEXTS, CODEBOOK)


def test_new_rows_of_a_tiny_model_are_spread_like_its_others() -> None:
    model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    rows = model.get_input_embeddings().weight.detach()
    sids = rows[tokenizer.convert_tokens_to_ids(USED)]
    assert 0.8 < float(sids.std() / rows[:300].std()) < 1.2  # 224 values


# -- vocabulary --------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [256, 260, 300])  # exact, padded by less than needed, padded by more
def test_every_new_row_is_initialised_and_no_old_one_changes(rows: int, tied: bool) -> None:
    model, tokenizer = bare(rows, tied)
    tables = [model.get_input_embeddings().weight] if tied else [
        model.get_input_embeddings().weight, model.get_output_embeddings().weight
    ]  # fmt: skip
    before = [table.detach().clone() for table in tables]
    ids = extend_vocabulary(model, tokenizer, USED, seed=3)
    assert ids == list(range(256, 263))
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (after[0] is after[1]) == tied
    assert len(after[0]) == len(after[1]) == max(rows, 263) == model.config.vocab_size
    for old, new in zip(before, after, strict=False):
        known = old[:256]
        assert torch.equal(new[:256], known)
        assert torch.equal(new[263:], old[263:])
        z = (new[256:263] - known.mean(0)) / known.std(0) / NOISE
        assert 0.7 < float(z.std()) < 1.3 and float(z.abs().max()) < 5  # 224 draws of a unit normal
        assert len(torch.unique(new[256:263], dim=0)) == 7
    if not tied:
        assert not torch.equal(after[0][256:263], after[1][256:263])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [256, 300])
def test_new_rows_receive_gradient(rows: int, tied: bool) -> None:
    model, tokenizer = bare(rows, tied)
    ids = torch.tensor([extend_vocabulary(model, tokenizer, USED, seed=3)])
    model(input_ids=ids, labels=ids).loss.backward()
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert table.grad is not None
        # The last token is read by nobody, so as an input it learns from a tied head alone.
        assert (table.grad[ids[0][:-1]].abs().sum(dim=1) > 0).all()


def test_known_tokens_keep_id_and_row() -> None:
    model, tokenizer = bare(256, tied=True)
    first = extend_vocabulary(model, tokenizer, USED[:3], seed=3)
    rows = model.get_input_embeddings().weight[first].detach().clone()
    assert extend_vocabulary(model, tokenizer, USED, seed=4) == list(range(259, 263))
    assert tokenizer.convert_tokens_to_ids(USED[:3]) == first
    assert torch.equal(model.get_input_embeddings().weight[first], rows)
    assert extend_vocabulary(model, tokenizer, USED, seed=5) == []


def test_the_bias_of_a_head_is_initialised_too() -> None:
    model, tokenizer = bare(256, tied=False)
    model.lm_head = torch.nn.Linear(32, 256, bias=True)
    with torch.no_grad():
        model.lm_head.bias.fill_(5.0)
    ids = extend_vocabulary(model, tokenizer, USED, seed=3)
    assert torch.equal(model.get_output_embeddings().bias[ids], torch.full((7,), 5.0))


def test_another_architecture_extends_alike() -> None:
    _, tokenizer = bare(256, tied=True)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    ids = extend_vocabulary(model, tokenizer, USED, seed=3)
    assert model(input_ids=torch.tensor([ids])).logits.shape == (1, 7, 263)


# -- rows that start from words ------------------------------------------------------------------


def test_words_of_codes_are_the_titles_of_the_items_that_carry_them() -> None:
    found = words_of_codes(CODEBOOK, {"x": "red pen", "y": "blue ink", "other": "lamp"})
    # Items x, y and z have the codes (0, 1, 2), (0, 10, 3) and (4, 0, 2); z has no title.
    assert found == {
        "<a_0>": ["red pen", "blue ink"], "<b_1>": ["red pen"], "<c_2>": ["red pen"],
        "<b_10>": ["blue ink"], "<c_3>": ["blue ink"],
    }  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [256, 300])
def test_a_row_can_start_as_the_mean_of_its_words(rows: int, tied: bool) -> None:
    model, tokenizer = bare(rows, tied)
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    words = {"<a_0>": ["aa", "b"], "<a_4>": ["b"], "<b_0>": ["b"], "<b_1>": [""]}
    ids = extend_vocabulary(model, tokenizer, USED, seed=3, noise=WORDS_NOISE, words=words)
    assert ids == list(range(256, 263))  # the frozen map does not depend on how rows start
    for table in (model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()):
        spread, middle = table[:256].std(0), table[:256].mean(0)
        near = 5 * WORDS_NOISE * spread
        assert ((table[256] - (2 * table[a] + table[b]) / 3).abs() < near).all()
        assert ((table[257] - table[b]).abs() < near).all()
        assert not torch.equal(table[257], table[258])  # equal words, different rows
        assert ((table[259:263] - middle).abs() < near).all()  # nothing said: the vocabulary's mean


def test_a_base_model_takes_the_words_of_titles() -> None:
    spoken = TINY.model_copy(update={"new_rows": "words"})
    titles = {"x": "racing", "y": "racing", "z": "games"}
    model, tokenizer = build_base(spoken, TEXTS, CODEBOOK, titles)
    plain, again = build_base(TINY, TEXTS, CODEBOOK, titles)
    assert tokenizer.get_vocab() == again.get_vocab()
    rows, before = model.get_input_embeddings().weight.detach(), plain.get_input_embeddings().weight.detach()
    ours = tokenizer.convert_tokens_to_ids(USED)
    assert torch.equal(rows[: min(ours)], before[: min(ours)]) and not torch.equal(rows[ours], before[ours])
    said = tokenizer.encode("racing")
    assert torch.allclose(rows[ours[0]], rows[said].mean(0), atol=5 * WORDS_NOISE * float(before.std()) * 2)


def test_own_tokens_are_sids_and_the_conversation(tmp_path: Path) -> None:
    _, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    assert set(tokenizer.convert_ids_to_tokens(own_token_ids(tokenizer))) == {*USED, *FORMAT_TOKENS}


# -- pretrained --------------------------------------------------------------------------------


def _pretrained(folder: Path, model: Any, tokenizer: Any) -> PretrainedModel:
    """The settings of a model that is saved in a folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return PretrainedModel(kind="pretrained", name=str(folder))


def test_a_pretrained_folder_gets_the_conversation_tokens(tmp_path: Path) -> None:
    model, tokenizer = bare(300, tied=False)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20)
    base = _pretrained(tmp_path, model, tokenizer)
    extended, known = build_base(base, [], CODEBOOK)
    renderer = PromptRenderer(known)
    assert renderer.encode("<a_0><b_10><c_3>") == known.convert_tokens_to_ids(["<a_0>", "<b_10>", "<c_3>"])
    assert len(known) == 256 + len(FORMAT_TOKENS) + len(USED)
    assert torch.equal(extended.get_input_embeddings().weight[:256], model.get_input_embeddings().weight[:256])
    assert extended.dtype == torch.float32 and extended.config._attn_implementation == "sdpa"
    assert extended.generation_config.do_sample is False and extended.generation_config.temperature is None
    half = base.model_copy(update={"dtype": "bfloat16"})
    assert build_base(half, [], CODEBOOK)[0].dtype == torch.bfloat16


def test_nothing_of_the_machine_is_in_a_checkpoint_of_a_pretrained_base(tmp_path: Path) -> None:
    extended, known = build_base(_pretrained(tmp_path / "source-folder", *bare(300, tied=True)), [], CODEBOOK)
    checkpoint.save(tmp_path / "out", extended, known, CODEBOOK, META, "card")
    for path in (tmp_path / "out").iterdir():
        assert b"source-folder" not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    "name", ["training_args.bin", "original/consolidated.00.pth", ".git/hooks/update.py", "pytorch_model.bin"]
)
def test_a_sound_folder_with_a_file_that_can_run_code_says_to_take_it_out(tmp_path: Path, name: str) -> None:
    base = _pretrained(tmp_path, *bare(300, tied=True))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SidrError, match=rf"{name}, which can run code(.|\n)*remove this file from the folder"):
        build_base(base, [], CODEBOOK)
    (tmp_path / name).unlink()
    build_base(base, [], CODEBOOK)


NATIVE_CODE = [
    ("config.json", {"_attn_implementation": "org/name"}),
    ("config.json", {"attn_implementation": {"": "sdpa", "text_config": "org/name@v1:forward"}}),
    ("config.json", {"text_config": {"_attn_implementation_internal": "kernels-community/flash-attn"}}),
    ("config.json", {"_experts_implementation": "org/name"}),
    ("config.json", {"attn_implementation": "flash_attention_2"}),  # without its package, a kernel of the hub
    ("sentence_bert_config.json", {"model_args": {"attn_implementation": "org/name"}}),
    ("sentence_bert_config.json", {"model_args": {"use_kernels": True}}),
]


@pytest.mark.parametrize(("file", "entry"), NATIVE_CODE)
def test_a_configuration_that_asks_for_native_code_of_the_hub_is_refused(
    tmp_path: Path, file: str, entry: dict
) -> None:
    """For base models and encoders alike, since both look at folders by the same function."""
    path = tmp_path / file
    path.write_text(json.dumps({"num_hidden_layers": 2} | entry))
    untrusted = untrusted_file(tmp_path)
    assert untrusted is not None and untrusted.found.startswith(f"{file}, which holds")
    path.write_text(
        json.dumps({"_attn_implementation": "sdpa", "_attn_implementation_autoset": True, "use_kernels": False})
    )
    assert untrusted_file(tmp_path) is None


def test_an_encoder_that_asks_for_native_code_of_the_hub_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_attn_implementation": "org/name"}))
    with pytest.raises(SidrError, match=r"_attn_implementation: org/name(.|\n)*correct or remove this entry"):
        load_encoder(Encoder(model=str(tmp_path)))


def test_a_hub_model_that_asks_for_native_code_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub.constants

    cached = tmp_path / "models--some--model"
    for folder in ("refs", "snapshots/abc"):
        (cached / folder).mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "config.json").write_text(json.dumps({"_attn_implementation": "org/name"}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for load in (
        lambda: build_base(PretrainedModel(kind="pretrained", name="some/model"), [], CODEBOOK),
        lambda: load_encoder(Encoder(model="some/model")),
    ):
        with pytest.raises(SidrError, match=r"_attn_implementation: org/name(.|\n)*a corrected copy"):
            load()


def test_a_missing_folder_and_a_hub_out_of_reach_say_what_to_do(tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "none"), str(tmp_path), "some/model-that-is-not-cached", "not a name"):
        with pytest.raises(SidrError, match=r"cannot be read(.|\n)*set base_model.name to a folder"):
            build_base(PretrainedModel(kind="pretrained", name=name), [], CODEBOOK)


@pytest.mark.slow
def test_a_hub_without_a_network_is_a_clear_error() -> None:
    """In a process of its own: the library reads the hub's address once. Port 9 of this machine answers nothing."""
    script = (
        "import time; time.sleep = lambda seconds: None\n"  # between the library's attempts
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from builders.models import *; from sidr_core.errors import SidrError\n"
        "from sidr_core.models.base import build_base; from sidr_core.settings import PretrainedModel\n"
        "try: build_base(PretrainedModel(kind='pretrained', name='some/model'), [], CODEBOOK)\n"
        "except SidrError as error: print(error)\n"
    )
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(TESTS)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the base model 'some/model' cannot be read" in done.stdout, done.stderr[-2000:]


def test_a_folder_is_known_by_its_content_and_a_hub_id_by_its_name(tmp_path: Path) -> None:
    from sidr_core.pipeline.run import _without_paths

    model, tokenizer = bare(256, tied=True)
    one, two = (_pretrained(tmp_path / name, model, tokenizer) for name in ("one", "two"))
    assert _without_paths(one) == _without_paths(two) and str(tmp_path) not in json.dumps(_without_paths(one))
    assert set(files(one)) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert [path.read_bytes() for path in files(one).values()] == [path.read_bytes() for path in files(two).values()]
    assert described(one)["name"] == "one" and described(one)["dtype"] == "float32"
    hub = PretrainedModel(kind="pretrained", name="some/model", revision="abc")
    assert files(hub) == {} and described(hub)["name"] == _without_paths(hub)["name"] == "some/model"
    assert files(TINY) == {} and described(TINY) == TINY.model_dump(mode="json")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model, tokenizer = bare(256, tied=True)
    tokenizer.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SidrError, match="cannot be read"):
        build_base(PretrainedModel(kind="pretrained", name=str(tmp_path)), [], CODEBOOK)


# -- checkpoints -------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20)  # as a trainer may leave it
    checkpoint.save(tmp_path / "c", model, tokenizer, CODEBOOK, META, "# A model card")
    return tmp_path / "c"


def test_a_checkpoint_comes_back_as_it_was(saved: Path) -> None:
    model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    loaded = checkpoint.load(saved, device="cpu")
    assert not loaded.model.training and loaded.meta["stage"] == "sft_checkpoint"
    assert loaded.meta["codebook_digest"] == checkpoint.codebook_digest(CODEBOOK.sort("item_id"))
    assert loaded.index.sids == ("<a_0><b_1><c_2>", "<a_0><b_10><c_3>", "<a_4><b_0><c_2>")
    assert [loaded.index.items_of(leaf) for leaf in range(3)] == [["x"], ["y"], ["z"]]
    assert loaded.renderer.prompt("hi", "direct") == PromptRenderer(tokenizer).prompt("hi", "direct")
    ids = torch.tensor([loaded.renderer.prompt("hi", "thinking")])
    assert torch.equal(loaded.model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    chat = [{"role": "user", "content": "hi"}]
    templated = loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert templated == ids[0].tolist()


def test_the_folder_is_plain_and_samples_nothing(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md"} <= names
    settings = json.loads((saved / "generation_config.json").read_text())
    assert settings["do_sample"] is False
    assert not {"temperature", "top_p", "top_k", "repetition_penalty"} & set(settings)
    assert AutoModelForCausalLM.from_pretrained(saved).num_parameters() > 0
    assert checkpoint.check_loads_plain(saved).passed
    check = checkpoint.check_token_map(saved, CODEBOOK)
    assert check.passed and "3 items, 7 SID tokens" in check.detail


def test_the_bytes_are_the_same_in_another_process(saved: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from builders.models import *; from sidr_core.models import checkpoint\n"
        "from sidr_core.models.base import build_base\n"
        "model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)\n"
        "checkpoint.save(Path(sys.argv[2]), model, tokenizer, CODEBOOK, META, '# A model card')\n"
    )
    folder, env = str(TESTS), {**os.environ, "PYTHONHASHSEED": "99"}
    subprocess.run([sys.executable, "-c", script, folder, str(tmp_path / "d")], check=True, env=env)

    def digests(path: Path) -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}

    assert digests(saved) == digests(tmp_path / "d")


def test_saving_without_the_tokens_of_the_codebook_is_refused(tmp_path: Path) -> None:
    model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    wider = CODEBOOK.with_columns(codes=pl.Series([[9, 0, 2], [0, 1, 2], [0, 10, 3]], dtype=pl.List(pl.Int32)))
    with pytest.raises(SidrError, match="1 missing, the first <a_9>"):
        checkpoint.save(tmp_path, model, tokenizer, wider, META, "card")


def test_meta_must_be_complete(tmp_path: Path) -> None:
    model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    with pytest.raises(AssertionError, match="seen_until"):
        short = {name: value for name, value in META.items() if name != "seen_until"}
        checkpoint.save(tmp_path, model, tokenizer, CODEBOOK, short, "card")


def _swapped(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(token_ids=table["token_ids"].reverse())


def _other_sid(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(sid=pl.lit(format_sid([0, 1, 3])))


@pytest.mark.parametrize("change", [_swapped, _other_sid, lambda table: table.head(0)])
def test_a_wrong_token_map_is_refused(saved: Path, change) -> None:
    change(pl.read_parquet(saved / "sid_index.parquet")).write_parquet(saved / "sid_index.parquet")
    with pytest.raises(SidrError, match="not a sound checkpoint"):
        checkpoint.load(saved, device="cpu")
    assert not checkpoint.check_token_map(saved, CODEBOOK).passed


def test_the_map_of_another_codebook_fails_the_check(saved: Path) -> None:
    check = checkpoint.check_token_map(saved, CODEBOOK.with_columns(codes=CODEBOOK["codes"].reverse()))
    assert not check.passed and "differ" in check.detail


@pytest.mark.parametrize("name", ["model.safetensors", "sid_index.parquet", "meta.json", "config.json"])
def test_an_incomplete_folder_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(SidrError, match=f"no {name}"):
        checkpoint.load(saved, device="cpu")
    assert not checkpoint.check_loads_plain(saved).passed


@pytest.mark.parametrize("name", ["pytorch_model.bin", "extra.pkl", "modeling_custom.py"])
def test_a_folder_with_pickles_or_code_is_refused(saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"x")
    with pytest.raises(SidrError, match=name):
        checkpoint.load(saved, device="cpu")


def test_torn_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SidrError, match="transformers can read"):
        checkpoint.load(saved, device="cpu")
    assert not checkpoint.check_loads_plain(saved).passed


def test_a_checkpoint_that_lacks_a_tensor_is_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SidrError, match=r"no model.layers.1.mlp.up_proj"):
        checkpoint.load(saved, device="cpu")
    with pytest.raises(SidrError, match=r"weights without model.layers.1.mlp.up_proj"):
        build_base(PretrainedModel(kind="pretrained", name=str(saved)), [], CODEBOOK)


def test_weights_that_are_no_numbers_fail_the_check(tmp_path: Path) -> None:
    model, tokenizer = build_base(TINY, TEXTS, CODEBOOK)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    checkpoint.save(tmp_path, model, tokenizer, CODEBOOK, META, "card")
    check = checkpoint.check_loads_plain(tmp_path)
    assert not check.passed and "not finite" in check.detail
