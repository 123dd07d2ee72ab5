"""Small untrained models of the same architecture, as plain folders: what a rehearsal trains and encodes with.

The architecture is that of the real model's configuration where this machine has it (a folder, or the hub's cache),
else the one that the name tells. The tokenizer is a byte-level BPE with Qwen's way of cutting text, learnt on the spot:
the real one is not rehearsed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sidr_core.corpus.prompts import SYSTEM
from sidr_core.errors import SidrError
from sidr_core.models.base import plain_generation, train_tokenizer
from sidr_core.rehearsal.stand_in import encoder_folder, model_folder
from sidr_core.settings import DatasetConfig, PackagedModel, PretrainedModel

_VOCABULARY = 600
#: Rows of the table beyond the tokenizer's tokens, as Qwen3 has them: new tokens must not land there unseen.
_SPARE_ROWS = 64
#: Shape of every stand-in.
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "max_window_layers": 2,
}
#: Widths (hidden, feed-forward), layers and heads of Qwen3's dense models, by billions of parameters; all have 8 heads
#: of keys and values, 128 numbers per head and 151,936 rows, and up to 4 billion the head is the table.
_QWEN3 = {
    0.6: (1024, 3072, 28, 16),
    1.7: (2048, 6144, 28, 16),
    4: (2560, 9728, 36, 32),
    8: (4096, 12288, 36, 32),
    14: (5120, 17408, 40, 40),
    32: (5120, 25600, 64, 64),
}
_SMOLLM2_135M = (576, 1536, 30, 9, 3, 64, 49_152)


def write(real: DatasetConfig, folder: Path) -> list[str]:
    """Write the folders that the stand-in of a dataset names; returns a line about each, for people."""
    told = []
    base = real.base_model
    if isinstance(base, (PretrainedModel, PackagedModel)):
        config = small(real_config(base.name))
        _write_causal(config, model_folder(folder), getattr(torch, base.dtype), base.seed)
        told.append(f"base model {base.name}: an untrained {config.architectures[0]} with 2 layers, in {base.dtype}")
    encoder = real.encoder
    if encoder.endpoint is None and encoder.model != "minilm":
        config = small(real_config(encoder.model))
        _write_encoder(config, encoder_folder(folder))
        told.append(f"encoder {encoder.model}: an untrained {config.model_type} with 2 layers, in {encoder.dtype}")
    return told


def real_config(name: str) -> Any:
    """The configuration of a model: its own where this machine has it, else what its name tells.

    Nothing is fetched. Of Qwen3's dense models and SmolLM2 the shape is known by name too.

    Raises:
        SidrError: the name tells no architecture.
    """
    from transformers import AutoConfig

    source = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        pass
    family = _family(name)
    if family is None:
        raise SidrError(
            f"a rehearsal does not know the architecture of {name!r}",
            expected="a model whose configuration is on this machine, or whose name tells its family (Qwen3, Llama, …)",
            found="neither",
            fix="fetch its config.json into the hub's cache, or name a folder",
        )
    config = AutoConfig.for_model(family)
    config.architectures = [_causal_names()[family]]
    for field, value in _known_shape(name).items():
        setattr(config, field, value)
    return config


def small(config: Any) -> Any:
    """A configuration of the same architecture with 2 layers of 32 numbers."""
    from transformers import AutoConfig

    reduced = AutoConfig.for_model(config.model_type)
    for field, value in _SMALL.items():
        if hasattr(reduced, field) or field == "head_dim":
            setattr(reduced, field, value)
    if getattr(reduced, "layer_types", None):
        reduced.layer_types = list(reduced.layer_types)[: _SMALL["num_hidden_layers"]]
    reduced.tie_word_embeddings = config.tie_word_embeddings
    reduced.architectures = [_causal_names()[config.model_type]]
    return reduced


def _causal_names() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {kind: names if isinstance(names, str) else names[0] for kind, names in
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}  # fmt: skip


def _family(name: str) -> str | None:
    """The longest name of an architecture that a model's name holds; SmolLM2 is a Llama."""
    plain = re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())
    if plain.startswith("smollm2"):
        return "llama"
    families = [kind for kind in _causal_names() if re.sub(r"[^a-z0-9]", "", kind) in plain]
    return max(families, key=len, default=None)


def _known_shape(name: str) -> dict[str, Any]:
    plain = name.rpartition("/")[2].lower()
    if plain.startswith("smollm2-135m"):
        hidden, inner, layers, heads, kv_heads, head, rows = _SMOLLM2_135M
        tied = True
    else:
        billions = re.match(r"qwen3-(?:embedding-)?([\d.]+)b", plain)
        if billions is None or float(billions[1]) not in _QWEN3:
            return {}
        hidden, inner, layers, heads = _QWEN3[float(billions[1])]
        kv_heads, head, rows, tied = 8, 128, 151_936, float(billions[1]) <= 4
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head, "vocab_size": rows, "tie_word_embeddings": tied,
        "max_window_layers": layers, "layer_types": ["full_attention"] * layers,
    }  # fmt: skip


def _tokenizer() -> Any:
    from sidr_core.reviews.sample.shop import simulate
    from sidr_core.settings import SampleSource

    shop, _ = simulate(SampleSource(kind="sample", category="games", items=100, users=50))
    return train_tokenizer([SYSTEM, *(f"{thing.title}. {thing.description}" for thing in shop.ids)], _VOCABULARY)


def _write_causal(config: Any, folder: Path, dtype: torch.dtype, seed: int) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer()
    config.vocab_size = len(tokenizer) + _SPARE_ROWS
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config = plain_generation(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_encoder(config: Any, folder: Path) -> None:
    """A sentence-transformers folder: the architecture without its head, and pooling of the last token."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoModel

    tokenizer = _tokenizer()
    config.vocab_size = len(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder / "transformer")
    tokenizer.save_pretrained(folder / "transformer")
    parts = [Transformer(str(folder / "transformer")), Pooling(config.hidden_size, "lasttoken")]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder))
