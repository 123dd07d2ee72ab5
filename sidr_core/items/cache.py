"""Vectors that were computed once, stored by the digest of (encoder settings, text).

The cache knows no dataset and no snapshot: a renamed dataset, a variant, or a second dataset with the same
texts encodes nothing. It may be deleted at any time. Memory: 16 bytes per stored vector.

Form: a folder of immutable segments, each a `.npy` of records (digest, vector), named by the sha256 of its
bytes and written atomically. So a crash loses what was not yet written and damages nothing, processes need
no lock to read, and a segment whose bytes changed is recognised and set aside. (SQLite would be shorter, and
would notice a changed byte of a vector only if each row carried a digest of its own that every lookup checks.)
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from filelock import FileLock

from sidr_core.errors import InputError
from sidr_core.pipeline.store import sha256_file

#: Receives (positions of texts, their vectors) as an encoder finishes them.
Keep = Callable[[Sequence[int], np.ndarray], None]

DIGEST_BYTES = 32
#: A segment is written when it would hold so many vectors, or when its oldest waited so many seconds.
SEGMENT_ROWS = 8192
SEGMENT_SECONDS = 30.0


class VectorCache:
    """The vectors of one encoder, in `folder`. As a context manager it writes what is pending at the end,
    also when the block fails: what came before a failure is kept.

    Args:
        folder: made if absent; one per encoder.
        say: called with a message about a damaged segment.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        folder.mkdir(parents=True, exist_ok=True)
        self.dimension: int | None = None
        self._segments: list[Path] = []
        # The first 8 bytes of all digests, sorted, and where each vector lies: segment << 32 | row.
        self._keys, self._addresses = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._pending_since = 0.0
        for path in sorted(folder.glob("*.npy")):
            if (records := self._load(path)) is not None:
                self._index(path, records)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def __len__(self) -> int:
        """Number of vectors that are written."""
        return len(self._keys)

    def get(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up (n, 32) uint8 digests.

        Returns:
            (n,) bool, whether a vector is stored, and (n, D) float32, zero where none is. D is 0 while the
            cache is empty.
        """
        hits = np.zeros(len(digests), dtype=bool)
        vectors = np.zeros((len(digests), self.dimension or 0), dtype=np.float32)
        keys = _keys(digests)
        at, end = np.searchsorted(self._keys, keys), np.searchsorted(self._keys, keys, side="right")
        # Several digests may share a key, if hardly ever: each is tried.
        while len(candidates := np.flatnonzero(~hits & (at < end))):
            addresses = self._addresses[at[candidates]]
            for segment in np.unique(addresses >> 32):
                here = addresses >> 32 == segment
                rows, targets = addresses[here] & 0xFFFFFFFF, candidates[here]
                records = np.load(self._segments[segment], mmap_mode="r", allow_pickle=False)
                same = (records["digest"][rows] == digests[targets]).all(axis=1)
                vectors[targets[same]] = records["vector"][rows[same]]
                hits[targets[same]] = True
            at[candidates] += 1
        return hits, vectors

    def put(self, digests: np.ndarray, vectors: np.ndarray) -> None:
        """Store (n, D) float32 vectors under (n, 32) uint8 digests.

        Raises:
            InputError: D is not that of the vectors stored so far.
        """
        width = vectors.shape[1]
        if self.dimension is not None and width != self.dimension:
            raise InputError(
                "the encoder gives vectors of another length than before",
                expected=f"{self.dimension} numbers, like those in {self._folder}",
                found=f"{width} numbers",
                fix="give the changed encoder another name in `encoder.model`, or delete that folder",
            )
        self.dimension = width
        records = np.empty(len(vectors), dtype=_dtype(width))
        records["digest"], records["vector"] = digests, vectors
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.append(records)
        waited = time.monotonic() - self._pending_since
        if sum(map(len, self._pending)) >= SEGMENT_ROWS or waited >= SEGMENT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one segment; from then on :meth:`get` returns it."""
        if not self._pending:
            return
        records = np.concatenate(self._pending)
        tmp = self._folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with FileLock(self._folder / ".lock"):
            for leftover in self._folder.glob(".tmp-*"):  # we hold the lock: its writer is dead
                leftover.unlink(missing_ok=True)
            try:
                with tmp.open("wb") as handle:
                    np.save(handle, records, allow_pickle=False)
                    handle.flush()
                    os.fsync(handle.fileno())
                path = self._folder / f"{sha256_file(tmp)}.npy"
                os.replace(tmp, path)
            finally:
                tmp.unlink(missing_ok=True)
        self._pending = []
        self._index(path, records)

    def _index(self, path: Path, records: np.ndarray) -> None:
        keys = _keys(np.ascontiguousarray(records["digest"]))
        order = np.argsort(keys, kind="stable")
        addresses = (np.int64(len(self._segments)) << np.int64(32)) | order.astype(np.int64)
        at = np.searchsorted(self._keys, keys[order], side="right")
        self._keys = np.insert(self._keys, at, keys[order])
        self._addresses = np.insert(self._addresses, at, addresses)
        self._segments.append(path)

    def _load(self, path: Path) -> np.ndarray | None:
        """The records of a segment, memory-mapped, if its bytes are as they were written; else it is set aside."""
        if sha256_file(path) == path.stem:
            try:
                records = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError):  # a name that fits its bytes does not make them ours
                records = None
            if isinstance(records, np.ndarray) and "vector" in (records.dtype.names or ()):
                (width,) = records.dtype["vector"].shape or (0,)
                if width and records.dtype == _dtype(width) and self.dimension in (None, width):
                    self.dimension = width
                    return records
        self._say(f"vector cache: {path.name} is damaged and is not used")
        os.replace(path, path.with_suffix(".damaged"))
        return None


def _dtype(width: int) -> np.dtype:
    return np.dtype([("digest", "u1", DIGEST_BYTES), ("vector", "<f4", width)])


def _keys(digests: np.ndarray) -> np.ndarray:
    """(n,) uint64: the first 8 bytes of (n, 32) digests."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).reshape(-1)
