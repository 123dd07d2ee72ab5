"""The stage `item_embeddings`: one text vector per item of the catalogue.

Incremental: a text that the same encoder has encoded before, for whatever dataset or snapshot, takes its
vector from the cache, bit for bit. The catalogue is read, encoded and written in blocks, so memory does not
grow with it. The encoder, the form of the text and the cache: `encoders.py`, `text.py`, `cache.py`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from sidr_core.errors import InputError
from sidr_core.items import encoders
from sidr_core.items.cache import DIGEST_BYTES, VectorCache
from sidr_core.items.text import item_text, text_digest
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.tables.columns import DESCRIPTION, ITEM_ID, TEXT_DIGEST, TITLE, VECTOR
from sidr_core.tables.contracts import Embeddings
from sidr_core.tables.vectors import VectorTable, vector_series

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Encoder

FILE = "item_embeddings.parquet"
#: Items in memory at a time.
BLOCK = 8192
# Characters of text per token that the encoder may read: far above the 4 to 5 of English.
_CHARS_PER_TOKEN = 16


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Encode what was never encoded, take the rest from the cache, write `item_embeddings.parquet`.

    Raises:
        InputError: the catalogue is empty or not sorted, or the encoder cannot be loaded.
        SidrError: the embeddings endpoint fails; what came before is in the cache.
    """
    path = inputs["interactions"].path("items.parquet")
    total = pq.read_metadata(path).num_rows
    if total == 0:
        raise InputError(
            "item_embeddings: the catalogue is empty",
            expected="at least one item",
            found="items.parquet without rows",
            fix="widen `filters` or the snapshot window",
        )
    settings = encoder_settings(config.encoder)
    limit = _CHARS_PER_TOKEN * config.encoder.max_tokens
    folder = inputs.cache("vectors") / hashlib.sha256(settings.encode()).hexdigest()[:32]
    bad = 0
    with VectorCache(folder, progress.say) as cache, VectorTable(out_dir / FILE, Embeddings) as table:
        source = _Vectors(config.encoder, cache, total, progress)
        for items in _blocks(path):
            texts = [item_text(title, about, limit) for _, title, about in items.iter_rows()]
            digests = [text_digest(text, settings) for text in texts]
            vectors = source.of(texts, digests)
            columns = {ITEM_ID: items[ITEM_ID], TEXT_DIGEST: [digest.hex() for digest in digests]}
            table.write(pl.DataFrame({**columns, VECTOR: vector_series(vectors)}))
            bad += int((~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)).sum())
    return Report(
        metrics={
            "items": total,
            "encoded": source.encoded,
            "reused": total - source.encoded,
            "items_per_second": round(source.encoded / source.seconds, 1) if source.encoded else 0.0,
            "dimension": cache.dimension or 0,
            "model": config.encoder.model if config.encoder.endpoint is None else config.encoder.endpoint.model,
        },
        checks=(Check("finite", bad == 0, f"{bad} of {total} vectors are zero or not finite"),),
    )


def encoder_settings(config: Encoder) -> str:
    """The settings on which a vector depends, as canonical JSON; batch sizes, waits and keys are not among them."""
    if config.endpoint is None:
        settings = config.model_dump(mode="json", exclude={"batch_size", "endpoint"})
    else:
        settings = config.model_dump(
            mode="json",
            include={"model": True, "max_tokens": True, "normalize": True, "endpoint": {"base_url", "model"}},
        )
    return json.dumps(settings, sort_keys=True)


class _Vectors:
    """Gives the vectors of texts, from the cache or by encoding; opens the encoder when it is first needed.

    Attributes:
        encoded: texts encoded so far. seconds: what that took, without opening the encoder.
    """

    def __init__(self, config: Encoder, cache: VectorCache, total: int, progress: Progress) -> None:
        self._config, self._cache, self._total, self._progress = config, cache, total, progress
        self._encoder: encoders.TextEncoder | None = None
        self._done = self.encoded = 0
        self.seconds = 0.0

    def of(self, texts: Sequence[str], digests: Sequence[bytes]) -> np.ndarray:
        """(n, D) float32; equal texts are encoded once."""
        keys = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        known, vectors = self._cache.get(keys)
        self._done += int(known.sum())
        if not known.all():
            first: dict[bytes, int] = {}
            for row in np.flatnonzero(~known).tolist():
                first.setdefault(digests[row], row)
            self._encode([texts[row] for row in first.values()], keys[list(first.values())])
            _, vectors = self._cache.get(keys)
            self._done += len(texts) - int(known.sum()) - len(first)
        self._tick()
        return vectors

    def _encode(self, texts: list[str], keys: np.ndarray) -> None:
        """Encode into the cache."""
        if self._encoder is None:
            self._encoder = encoders.open_encoder(self._config)
        started = time.monotonic()

        def keep(rows: Sequence[int], vectors: np.ndarray) -> None:
            self._cache.put(keys[rows], vectors)
            self.encoded, self._done = self.encoded + len(rows), self._done + len(rows)
            self._tick()

        self._encoder.encode(texts, keep)
        self._cache.flush()
        self.seconds += time.monotonic() - started

    def _tick(self) -> None:
        if self._done < self._total:
            self._progress.tick(self._done, self._total, "items", f"{self.encoded:,} encoded")


def _blocks(path: Path) -> Iterator[pl.DataFrame]:
    """Id, title and description of the items, in blocks; strictly ascending ids, so that none comes twice."""
    last = None
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BLOCK, columns=[ITEM_ID, TITLE, DESCRIPTION]):
            frame = pl.DataFrame(pl.from_arrow(batch)).select(ITEM_ID, TITLE, DESCRIPTION)
            ids = frame[ITEM_ID]
            before = ids.shift(1, fill_value=last) if last is not None else ids.shift(1)
            if not (ids > before).fill_null(True).all():
                raise InputError(
                    f"{path.name} is not sorted by {ITEM_ID}",
                    expected="strictly ascending ids",
                    found=f"an id out of order or twice in the block that begins with {ids[0]!r}",
                    fix="materialize interactions again",
                )
            last = ids[-1]
            yield frame
