"""The stage `item_embeddings`: one text vector per item of the catalogue.

Incremental: an item whose text and encoder equal those of the previous snapshot takes over its
vector, bit for bit. The encoder and the form of the text: `encoders.py`, `text.py`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core import tables
from sidr_core.columns import DESCRIPTION, ITEM_ID, TEXT_DIGEST, TITLE, VECTOR
from sidr_core.contracts import Embeddings
from sidr_core.errors import InputError
from sidr_core.items.text import item_text, text_digest
from sidr_core.stage import Check, Inputs, Progress, Report, StageInput

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Encoder

FILE = "item_embeddings.parquet"
# Characters of text per token that the encoder may read: far above the 4 to 5 of English.
_CHARS_PER_TOKEN = 16


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Encode new and changed items, take over the others, write `item_embeddings.parquet`.

    Raises:
        InputError: the catalogue is empty, or the encoder cannot be loaded.
    """
    items = tables.read(inputs["interactions"].path("items.parquet"), [ITEM_ID, TITLE, DESCRIPTION]).sort(ITEM_ID)
    if items.is_empty():
        raise InputError(
            "item_embeddings: the catalogue is empty",
            expected="at least one item",
            found="items.parquet without rows",
            do="widen `filters` or the snapshot window",
        )
    settings = encoder_settings(config.encoder)
    limit = _CHARS_PER_TOKEN * config.encoder.max_tokens
    texts = [item_text(title, about, limit) for _, title, about in items.iter_rows()]
    digests = [text_digest(text, settings) for text in texts]
    old = _known_vectors(inputs.previous)
    wanted = [i for i, key in enumerate(zip(items[ITEM_ID], digests, strict=True)) if key not in old]

    started = time.monotonic()
    fresh = _encode([texts[i] for i in wanted], config.encoder, progress)
    seconds = time.monotonic() - started
    place = {i: n for n, i in enumerate(wanted)}
    keys = zip(items[ITEM_ID], digests, strict=True)
    vectors = np.stack([fresh[place[i]] if i in place else old[key] for i, key in enumerate(keys)])
    frame = pl.DataFrame(
        {ITEM_ID: items[ITEM_ID], TEXT_DIGEST: digests, VECTOR: pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32))}
    )
    tables.write(frame, out_dir / FILE, Embeddings)
    rate = len(wanted) / seconds if wanted else 0.0
    bad = int((~np.isfinite(vectors).all(axis=1) | ~np.abs(vectors).any(axis=1)).sum())
    return Report(
        metrics={
            "items": len(texts),
            "encoded": len(wanted),
            "reused": len(texts) - len(wanted),
            "items_per_second": round(rate, 1),
            "dimension": vectors.shape[1],
            "model": config.encoder.model,
        },
        checks=(Check("finite", bad == 0, f"{bad} of {len(texts)} vectors are zero or not finite"),),
    )


def encoder_settings(config: Encoder) -> str:
    """The settings on which a vector depends, as canonical JSON text; the batch size is none of them."""
    return json.dumps(config.model_dump(mode="json", exclude={"batch_size"}), sort_keys=True)


def _encode(texts: list[str], config: Encoder, progress: Progress) -> np.ndarray:
    """(N, D) float32; loads no model where there is nothing to encode."""
    if not texts:
        return np.zeros((0, 0), dtype=np.float32)
    from sidr_core.items.encoders import encode

    return encode(texts, config, progress)


def _known_vectors(previous: StageInput | None) -> dict[tuple[str, str], np.ndarray]:
    """(item_id, text_digest) -> vector (D,) of the previous snapshot."""
    if previous is None:
        return {}
    frame = tables.read(previous.path(FILE))
    vectors = np.array(frame[VECTOR].to_list(), dtype=np.float32)
    return {key: vectors[n] for n, key in enumerate(zip(frame[ITEM_ID], frame[TEXT_DIGEST], strict=True))}
