"""For tests of models: a tiny base model, a codebook of three items, and a model without a chat template."""

from __future__ import annotations

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sidr_core.settings import TinyModel

TEXTS = ["History: <a_0><b_1><c_2>\nNext item?", "Because the player <think> likes racing games </think>."] * 30
TINY = TinyModel(
    kind="tiny", hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, vocab_size=320, dropout=0.1
)
CODEBOOK = pl.DataFrame(
    {"item_id": ["z", "x", "y"], "codes": [[4, 0, 2], [0, 1, 2], [0, 10, 3]]},
    schema={"item_id": pl.String, "codes": pl.List(pl.Int32)},
)
USED = ["<a_0>", "<a_4>", "<b_0>", "<b_1>", "<b_10>", "<c_2>", "<c_3>"]
META = {"stage": "sft_checkpoint", "base": "tiny", "seed": 1, "seen_until": "2018-09-01", "synthetic": True}


def bare(rows: int, tied: bool) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A model of `rows` rows and a tokenizer of 256 bytes that knows nothing of conversations."""
    alphabet = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=tied, initializer_range=0.5,
    )  # fmt: skip
    return Qwen3ForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=core)
