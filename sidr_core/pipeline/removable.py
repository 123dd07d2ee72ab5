"""A thing that the collector of garbage may delete."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["output", "part", "unfinished", "temporary", "cache", "snapshot"]


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be deleted, in the working folder or in the bucket.

    Args:
        path: in a bucket, where its files would be cached.
        bytes: size of all its files.
        why: the reason, in words.
        stage, fingerprint: of the output that it is or belongs to; "" if it belongs to none.
        in_bucket: whether it lies in the bucket.
    """

    kind: Kind
    path: Path
    bytes: int
    why: str
    stage: str = ""
    fingerprint: str = ""
    in_bucket: bool = False
