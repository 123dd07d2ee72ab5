"""What each way of training changes, and that checkpoints stay plain models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from builders.models import CODEBOOK, META, USED, bare
from sidr_core.errors import SidrError
from sidr_core.models import checkpoint
from sidr_core.models.parameters import finish, prepare
from sidr_core.models.prompt import FORMAT_TOKENS
from sidr_core.models.vocabulary import extend_vocabulary, own_token_ids
from sidr_core.settings import Grpo, Lora, Sft, Training

WAYS = ("all", "lora", "new_rows")
SETTINGS = {way: Training(parameters=way, lora=Lora(rank=2, alpha=4)) for way in WAYS}


def extended(rows: int, tied: bool):
    """A model of 256 byte tokens with ours behind them, its tokenizer, and the ids of ours."""
    model, tokenizer = bare(rows, tied)
    ids = extend_vocabulary(model, tokenizer, [*FORMAT_TOKENS, *USED], seed=3)
    return model, tokenizer, ids


def tables_of(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


def step(model, ids: list[int], weight_decay: float = 0.1) -> None:
    """One step of AdamW, with weight decay as a trainer applies it, on rows of old and new tokens."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=weight_decay)
    batch = torch.tensor([[7, 9, *ids, 7, 9]])
    model.train()
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [256, 300])  # as long as the old vocabulary, and padded
def test_every_new_row_moves_and_old_ones_only_where_all_is_trained(way: str, tied: bool, rows: int) -> None:
    model, tokenizer, ids = extended(rows, tied)
    assert own_token_ids(tokenizer) == ids == list(range(256, 256 + len(FORMAT_TOKENS) + len(USED)))
    before, inner = [table.clone() for table in tables_of(model)], model.model.layers[0].mlp.up_proj.weight.clone()
    wrapped = prepare(model, SETTINGS[way], ids)
    step(wrapped, ids)
    plain = finish(wrapped)
    assert type(plain).__name__ == "Qwen3ForCausalLM" and not [n for n, _ in plain.named_parameters() if "lora" in n]
    after = tables_of(plain)
    assert (after[0].data_ptr() == after[1].data_ptr()) == tied
    old = [row for row in range(len(after[0])) if row not in ids]
    for was, now in zip(before, after, strict=True):
        assert (now[ids] != was[ids]).any(dim=1).all()
        assert torch.equal(now[old], was[old]) == (way != "all")
    assert torch.equal(plain.model.layers[0].mlp.up_proj.weight, inner) == (way == "new_rows")


@pytest.mark.parametrize("way", ["lora", "new_rows"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_prepared_model_computes_what_it_did_and_a_finished_one_what_it_learned(way: str, tied: bool) -> None:
    model, _, ids = extended(300, tied)
    batch = torch.tensor([[5, *ids, 8]])
    before = model.eval()(input_ids=batch).logits
    state = torch.get_rng_state()
    wrapped = prepare(model, SETTINGS[way], ids)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(wrapped.eval()(input_ids=batch).logits, before, atol=1e-6)
    step(wrapped, ids)
    learned = wrapped.eval()(input_ids=batch).logits
    assert not torch.allclose(learned, before, atol=1e-2)
    assert torch.allclose(finish(wrapped).eval()(input_ids=batch).logits, learned, atol=1e-5)


@pytest.mark.parametrize("way", ["lora", "new_rows"])
def test_few_numbers_are_trained_and_equal_seeds_start_alike(way: str) -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        model, _, ids = extended(256, tied=True)
        wrapped = prepare(model, SETTINGS[way].model_copy(update={"seed": seed}), ids)
        return {name: value for name, value in wrapped.named_parameters() if value.requires_grad}

    first, again, other = trained(1), trained(1), trained(2)
    rows = 32 * (len(FORMAT_TOKENS) + len(USED))
    # Rank 2 on the seven linear layers of one block, in and out widths of 32 except the MLP's 48.
    lora = 2 * (4 * (32 + 32) + 3 * (32 + 48))
    assert sum(value.numel() for value in first.values()) == rows + (lora if way == "lora" else 0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) for name in first) == (way == "new_rows")


@pytest.mark.parametrize("tied", [True, False])
def test_trl_tiles_of_the_head_reach_the_new_rows(tied: bool) -> None:
    """TRL scores positions from `lm_head.weight` itself, past the layer's own forward pass."""
    from trl.trainer.utils import add_fused_lm_head

    model, _, ids = extended(300, tied)
    batch = torch.tensor([[7, *ids, 9]])
    wrapped = prepare(model, SETTINGS["lora"], ids)
    plain_loss = wrapped(input_ids=batch, labels=batch).loss
    plain_loss.backward()
    plain = {name: value.grad.clone() for name, value in wrapped.named_parameters() if value.grad is not None}
    wrapped.zero_grad()
    add_fused_lm_head(wrapped.get_base_model())
    fused = wrapped(input_ids=batch, labels=batch, fused_lm_head=True).loss
    assert torch.allclose(fused, plain_loss, atol=1e-5)
    fused.backward()
    for name, value in wrapped.named_parameters():
        if name in plain:
            assert torch.allclose(value.grad, plain[name], atol=1e-5), name


@pytest.mark.parametrize("way", WAYS)
def test_the_best_weights_and_a_resume_point_come_back(way: str, tmp_path: Path) -> None:
    model, _, ids = extended(300, tied=True)
    wrapped = prepare(model, SETTINGS[way], ids)
    step(wrapped, ids)
    wrapped.save_pretrained(tmp_path / "point")
    kept = {name: value.clone() for name, value in wrapped.state_dict().items()}
    distinct = {name: value for name, value in kept.items() if "lm_head" not in name}
    save_file(distinct, tmp_path / "best.safetensors")
    step(wrapped, ids)
    assert not all(torch.equal(value, kept[name]) for name, value in wrapped.state_dict().items())
    wrapped.load_state_dict(load_file(tmp_path / "best.safetensors"), strict=False)
    assert all(torch.equal(value, kept[name]) for name, value in wrapped.state_dict().items())
    if way != "all":
        step(wrapped, ids)
        wrapped.load_adapter(str(tmp_path / "point"), "default", is_trainable=True)  # as the trainer resumes
        assert all(torch.equal(value, kept[name]) for name, value in wrapped.state_dict().items())
        assert sum(path.stat().st_size for path in (tmp_path / "point").glob("*.safetensors")) < 20_000
        assert str(tmp_path) not in (tmp_path / "point" / "adapter_config.json").read_text()


@pytest.mark.parametrize("way", ["lora", "new_rows"])
def test_a_checkpoint_of_it_is_a_plain_folder(way: str, tmp_path: Path) -> None:
    model, tokenizer, ids = extended(300, tied=False)
    wrapped = prepare(model, SETTINGS[way], ids)
    step(wrapped, ids)
    plain = finish(wrapped)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    checkpoint.save(tmp_path, plain, tokenizer, CODEBOOK, META, "card")
    assert not list(tmp_path.glob("adapter*"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = torch.tensor([ids])
    assert torch.allclose(again(input_ids=batch).logits, plain.eval()(input_ids=batch).logits, atol=1e-6)
    assert checkpoint.check_loads_plain(tmp_path).passed and checkpoint.check_token_map(tmp_path, CODEBOOK).passed


def test_weights_in_half_precision_are_trained_in_full() -> None:
    model, _, ids = extended(300, tied=True)
    wrapped = prepare(model.bfloat16(), SETTINGS["new_rows"], ids)
    assert {value.dtype for value in wrapped.parameters() if value.requires_grad} == {torch.float32}
    step(wrapped, ids)
    assert finish(wrapped).dtype == torch.bfloat16


def test_a_head_with_a_bias_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    model.lm_head = torch.nn.Linear(32, 256, bias=True)
    with pytest.raises(SidrError, match="parameters: lora and new_rows do not fit"):
        prepare(model, SETTINGS["lora"], [3])


def test_everything_is_trained_unless_the_profile_says_otherwise() -> None:
    assert Sft().parameters == Grpo().parameters == "all"
    model, _, ids = extended(256, tied=True)
    assert prepare(model, Sft(), ids) is model and finish(model) is model
    assert all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("way", ["lora", "new_rows"])
@pytest.mark.parametrize("tied", [True, False])
def test_valid_rows_are_measured_on_what_is_being_trained(way: str, tied: bool) -> None:
    """The constrained beam reads the head's weight itself; it must see the trained rows, merged or not."""
    from sidr_core.decoding.beam import constrained_beam
    from sidr_core.sids.index import SidIndex

    model, tokenizer, ids = extended(300, tied)
    index = SidIndex.build(CODEBOOK, tokenizer.get_vocab().__getitem__)
    wrapped = prepare(model, SETTINGS[way], ids)
    step(wrapped, ids)
    wrapped.eval()
    prompts = [[5, *ids[-3:]], [9, 8]]
    during = constrained_beam(wrapped, prompts, index, beam_width=3, batch_size=2, pad_id=0)
    after = constrained_beam(finish(wrapped), prompts, index, beam_width=3, batch_size=2, pad_id=0)
    assert (during.leaf == after.leaf).all() and abs(during.scores - after.scores).max() < 1e-4
