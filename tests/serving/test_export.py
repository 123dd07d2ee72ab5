"""Export: the same model under moved ids, and a certificate that tells half precision from a broken catalogue."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import models as small
from builders.small_world import SNAPSHOT
from sidr_core.models import checkpoint
from sidr_core.models.base import build_base
from sidr_core.serving.catalogues import Catalogue
from sidr_core.serving.certificate import certificate
from sidr_core.serving.contiguous import make_contiguous
from sidr_core.serving.export import read_lists, round_to_int8
from sidr_core.sids.index import SidIndex


@pytest.fixture(scope="module")
def exported(tmp_path_factory, small_world_home) -> Path:
    """The small world's checkpoint for STATIC."""
    from builders import small_world
    from sidr_core.pipeline.store import Store
    from sidr_core.recommending.rows import history_sids
    from sidr_core.serving.export import export

    store, profile = Store(small_world_home / "store"), small_world.profile()
    rows, out = small_world.samples(3, 1), tmp_path_factory.mktemp("export") / "static"
    source = store.require("toys", SNAPSHOT, "grpo_checkpoint").verified_folder()
    export(
        source, out, "static", rows, history_sids(rows, small_world.codebook()), profile.dataset("toys").decoding,
        {"dataset": "toys"},
    )  # fmt: skip
    return out


@pytest.mark.parametrize("tied", [True, False])
def test_ids_are_contiguous_and_the_model_is_the_same(tied: bool) -> None:
    """Codes a 0 and 4, b 0, 1, 10, c 2 and 3 are in use: the ranges are 5, 11 and 4 ids long."""
    model, tokenizer = build_base(small.TINY, small.TEXTS, small.CODEBOOK)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone() * 2)
    model.eval()  # no dropout
    index = SidIndex.build(small.CODEBOOK, tokenizer.get_vocab().__getitem__)
    prompt = tokenizer.encode("History: <a_0><b_1><c_2>, next?")
    with torch.inference_mode():
        before = model(input_ids=torch.tensor([prompt])).logits[0]
    old = {token: tokenizer.get_vocab()[token] for token in small.USED}
    moved, renewed, ranges = make_contiguous(model, tokenizer, index)
    assert ranges.sizes == (5, 11, 4) and ranges.first[0] == min(old.values())
    vocabulary = renewed.get_vocab()
    assert [vocabulary[token] for token in ranges.tokens] == list(range(ranges.first[0], ranges.first[0] + 20))
    again = renewed.encode("History: <a_0><b_1><c_2>, next?")
    assert renewed.decode(again) == tokenizer.decode(prompt) and again != prompt
    with torch.inference_mode():
        after = moved(input_ids=torch.tensor([again])).logits[0]
    for token in small.USED:
        assert torch.allclose(before[:, old[token]], after[:, vocabulary[token]], atol=1e-5), token
    below = ranges.first[0]
    assert torch.allclose(before[:, :below], after[:, :below], atol=1e-5)
    added = [vocabulary[token] for token in ranges.tokens if token not in small.USED]
    assert (after[:, added] == 0).all()


def test_the_folder_is_plain_and_its_catalogue_is_static_s(exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(exported / "model", local_files_only=True)
    sequences = np.load(exported / "sids.npy", allow_pickle=False)
    about = json.loads((exported / "export.json").read_text())
    assert sequences.shape == (15, 2) and sequences.dtype == np.int32  # 16 items, of which two share a SID
    assert sequences.tolist() == sorted(sequences.tolist())
    assert sequences.max() < model.get_input_embeddings().num_embeddings
    items = json.loads((exported / "items.json").read_text())
    assert items[0] == ["A00"] and items[-1] == ["A14", "A15"]
    assert tokenizer.decode(sequences[5]) == "<a_1><b_1>"
    assert sequences[5].tolist() == [about["token_ids"]["first"][level] + 1 for level in range(2)]


def test_the_reference_renders_the_prompts_of_the_folder(exported: Path) -> None:
    loaded = checkpoint.load(exported / "model", device="cpu")
    rows = read_lists(exported / "reference.jsonl")
    assert len(rows) == 6
    for row in rows:
        assert loaded.tokenizer.decode(row["prompt_ids"]) == row["prompt"] and row["history"][-1] in row["prompt"]
        assert len(row["sids"]) == len(row["scores"]) >= 5 and row["scores"] == sorted(row["scores"], reverse=True)


@pytest.mark.parametrize("engine", ["static", "vllm"])
def test_a_catalogue_is_read_as_it_was_written(exported: Path, tmp_path: Path, engine) -> None:
    right = Catalogue.read(exported)
    right.write(tmp_path, engine)
    again = Catalogue.read(tmp_path)
    assert np.array_equal(again.sequences, right.sequences) and again.items == right.items
    assert again.faults(right) == []


def reference(rows: int = 8) -> list[dict]:
    """Row n is of user n, wants item n, and has it at place 1."""
    return [
        {"row_id": f"r{n}", "user_id": f"u{n}", "target": f"i{n}", "items": [f"i{(n + m) % rows}" for m in range(4)]}
        for n in range(rows)
    ]


def test_rounding_to_8_bits_keeps_the_largest_entry_of_each_row_and_is_at_most_half_a_step_off() -> None:
    model, _ = build_base(small.TINY, small.TEXTS, small.CODEBOOK)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    round_to_int8(model)
    layers = [name for name, weight in before.items() if weight.ndim == 2]
    assert len(layers) > 5
    for name, weight in model.named_parameters():
        if name not in layers:
            assert torch.equal(weight, before[name])
            continue
        step = before[name].abs().amax(dim=1, keepdim=True) / 127
        assert ((weight - before[name]).abs() <= 0.5001 * step).all() and not torch.equal(weight, before[name])
        assert torch.allclose(weight.abs().amax(dim=1), before[name].abs().amax(dim=1))
        assert all(len(row.unique()) <= 255 for row in weight)
    once = {name: weight.clone() for name, weight in model.named_parameters()}
    round_to_int8(model)
    assert all(torch.allclose(weight, once[name], atol=1e-7) for name, weight in model.named_parameters())


def test_the_certificate_counts_by_hand() -> None:
    rows = reference()
    lists = {row["row_id"]: row["items"] for row in rows}
    same = certificate(rows, lists, 4)
    assert (same.overlap, same.order, same.identical) == (1.0, 1.0, 8) and same.gaps["hr"][:2] == (1.0, 0.0)
    lists["r0"] = ["i1", "i0", "i2", "zz"]  # 3 of 4 are common; of their 3 pairs one is turned
    other = certificate(rows, lists, 4)
    assert other.overlap == pytest.approx(31 / 32) and other.order == pytest.approx((7 * 6 + 2) / (7 * 6 + 3))
    assert other.identical == 7 and other.lost == ()
    assert other.gaps["ndcg"][1] == pytest.approx((1 / np.log2(3) - 1) / 8)


def test_a_worse_engine_and_a_lost_item_are_not_equivalent() -> None:
    rows = reference(400)
    lists = {row["row_id"]: row["items"] for row in rows}
    assert certificate(rows, lists, 4).equivalent
    worse = lists | {f"r{n}": lists[f"r{n}"][::-1] for n in range(80)}
    assert not certificate(rows, worse, 4).equivalent and "worse" in str(certificate(rows, worse, 4))
    few = lists | {"r0": lists["r0"][::-1], "r1": lists["r1"][::-1]}
    assert certificate(rows, few, 4).equivalent and not certificate(rows[:20], few, 4).equivalent
    lost = {name: [item for item in items if item != "i7"] for name, items in lists.items()}
    made = certificate(rows, lost, 4)
    assert made.lost == ("i7",) and not made.equivalent and "i7" in str(made)


def test_sidr_export_and_verify(sidr, world, tmp_path: Path) -> None:
    """float32 is identical to itself, bfloat16 and int8 get a certificate, a corrupted catalogue row is named."""
    out = tmp_path / "out"
    code, text, err = sidr("export", "--dataset", "toys", "--to", "vllm", str(out))
    assert code == 0, err
    assert "16 items" in text
    code, text, err = sidr("export", "verify", str(out))
    assert "6 of 6" in text and "equivalent" in text and "NOT" not in text, text + err
    for dtype in ("bfloat16", "int8"):
        code, text, _ = sidr("export", "verify", str(out), "--dtype", dtype)
        assert "overlap@5" in text and "catalogue" in text
    code, _, err = sidr("export", str(out))
    assert code == 1 and "new or empty" in err
    catalogue = json.loads((out / "catalogue.json").read_text())
    catalogue["sequences"][3][1] += 1  # the tokens of its neighbour
    (out / "catalogue.json").write_text(json.dumps(catalogue))
    code, text, _ = sidr("export", "verify", str(out))
    assert code == 1 and "NOT equivalent" in text and "item A03 has the tokens" in text


def test_lists_of_another_form_are_told(sidr, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text("[1, 2]\n")
    code, _, err = sidr("export", "verify", str(exported), "--lists", str(path))
    assert code == 1 and "holds no lists" in err
    path.write_text('{"row_id": "x", "items": []}\n')
    code, _, err = sidr("export", "verify", str(exported), "--lists", str(path))
    assert code == 1 and "cannot be compared" in err
