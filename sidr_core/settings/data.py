"""Snapshots, filters, splits, vectors and Semantic IDs."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sidr_core.errors import ProfileError
from sidr_core.settings.base import Endpoint, Section

_MONTHS = {"monthly": 1, "quarterly": 3, "yearly": 12}


class Snapshots(Section):
    """Windows of a dataset. A snapshot is all that was known by the end of its window.

    Args:
        cadence: length of a window.
        start, end: first and last window, each named by its first month, `YYYY-MM`.
    """

    cadence: Literal["monthly", "quarterly", "yearly"] = "monthly"
    start: str
    end: str

    @field_validator("start", "end")
    @classmethod
    def _month(cls, value: str) -> str:
        if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", value):
            raise ValueError(f"expected YYYY-MM, found {value!r}")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Snapshots:
        if self.end < self.start:
            raise ValueError(f"end {self.end} lies before start {self.start}")
        if (_month_number(self.end) - _month_number(self.start)) % _MONTHS[self.cadence]:
            raise ValueError(f"end {self.end} is no {self.cadence} step from start {self.start}")
        return self

    def keys(self) -> list[str]:
        """All snapshot keys, oldest first."""
        step = _MONTHS[self.cadence]
        months = range(_month_number(self.start), _month_number(self.end) + 1, step)
        return [f"{month // 12:04d}-{month % 12 + 1:02d}" for month in months]

    def window(self, key: str) -> Window:
        """The window called `key`."""
        if key not in self.keys():
            raise ProfileError(
                f"there is no snapshot {key!r}",
                expected=f"one of {self.start} … {self.end} ({self.cadence})",
                found=repr(key),
                fix="name one of these, or widen `snapshots` in the profile",
            )
        month = _month_number(key) + _MONTHS[self.cadence]
        cutoff = datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)
        return Window(key=key, cutoff=int(cutoff.timestamp()))

    def before(self, key: str) -> list[str]:
        """All keys before `key`, newest first."""
        keys = self.keys()
        return keys[: keys.index(key)][::-1]

    def ended(self, now: float) -> str | None:
        """Key of the newest window that has ended at a time (unix seconds), None if none has."""
        return next((key for key in reversed(self.keys()) if self.window(key).cutoff <= now), None)


def _month_number(key: str) -> int:
    year, month = key.split("-")
    return int(year) * 12 + int(month) - 1


class Window(Section):
    """One snapshot: everything with `timestamp < cutoff` (unix seconds, UTC) is known."""

    key: str
    cutoff: int


class Filters(Section):
    """METHOD 1.2. `since` (YYYY-MM) drops earlier reviews; `min_rating` drops lower ones.

    Args:
        keep_repeats: whether a user's later reviews of the same item stay.
        keep_duplicates: whether lines that equal an earlier one in user, item, rating, time and text stay (METHOD
            1.2 keeps them). For files with coarse times and no text, where such lines may be two purchases.
        max_quarantine_share: share of unreadable records above which the stage fails.
        allow_truncated: whether a gzip file that ends too early is used as far as it goes.
        items_without_text: `drop` refuses items without a usable title (METHOD 1.2); `keep` takes them
            with whatever text they have, or a placeholder.
    """

    k_core: int = Field(default=5, ge=1)
    max_title_words: int = Field(default=20, ge=1)
    since: str | None = Field(default=None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    min_rating: float | None = None
    keep_repeats: bool = True
    keep_duplicates: bool = False
    max_quarantine_share: float = Field(default=0.01, ge=0, le=1)
    allow_truncated: bool = False
    items_without_text: Literal["drop", "keep"] = "drop"


class Split(Section):
    """METHOD 1.3: one sample per position, cut by target time into train/valid/test.

    Args:
        train_only: members of a mix whose rows stay in train and valid; test rows and catalogue stay whole. Empty
            keeps all. What is trained and chosen on some domains is so tested on all of them.
    """

    max_history: int = Field(default=10, ge=1)
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    train_only: tuple[str, ...] = ()

    @field_validator("ratios")
    @classmethod
    def _sums_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0 or abs(sum(value) - 1) > 1e-9:
            raise ValueError(f"expected three positive shares that sum to 1, found {value}")
        return value


class Encoder(Section):
    """Sentence encoder. `minilm` is the all-MiniLM-L6-v2 that ships in a package; else an HF id or folder.

    With `endpoint`, vectors come from an OpenAI-compatible `/embeddings` and `model` only names them. A model is
    known by its name: give a changed folder or server another one, or its old vectors are taken from the cache.

    Args:
        max_tokens: longer texts are cut; at an endpoint by characters, 16 per token.
        batch_size: texts in a batch on a GPU or in a request; a CPU takes fewer where texts are long.
    """

    model: str = "minilm"
    pooling: Literal["default", "masked_mean"] = "default"
    max_tokens: int = Field(default=256, ge=8)
    batch_size: int = Field(default=64, ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    normalize: bool = True
    endpoint: Endpoint | None = None

    @model_validator(mode="after")
    def _server_decides(self) -> Encoder:
        if self.endpoint is not None and (self.pooling, self.dtype) != ("default", "float32"):
            raise ValueError("with `endpoint` the server decides on pooling and dtype: leave both out")
        return self


class Refit(Section):
    """When a codebook of an earlier snapshot is given up and fitted anew (every SID may then change).

    Args:
        error_ratio: mean reconstruction error of the items placed since the fit, over that of items unseen
            at the fit, above which the codebook no longer fits.
        moved_share: of the items placed since the fit that would have found the SID of their nearest codes
            free at the fit, the share that did not, above which the codebook is full.
        growth: catalogue size over that at the fit, above which it is outgrown.
        least_new: with fewer placed items than this the first two prove nothing.
    """

    error_ratio: float = Field(default=1.5, gt=1)
    moved_share: float = Field(default=0.5, gt=0, le=1)
    growth: float = Field(default=4.0, gt=1)
    least_new: int = Field(default=100, ge=1)


class Quantizer(Section):
    """Semantic IDs. `published` keeps the SIDs that came with the source.

    Args:
        kind: `residual_kmeans` (faiss); `balanced_kmeans`: clusters of equal size on every level;
            `rqvae`: METHOD 3.1.
        vectors: what is quantized: the `text` vectors, `whitened` ones, or `fused`: text joined with the
            item's co-occurrence vector from train rows.
        fused_weight, fused_size: share of the squared length that co-occurrence gets, and its dimensions.
        whitened_size: principal directions kept, at most; 0 keeps all, of which the weak ones are noise (of
            3,459 real items coded by 3 × 64, 87 % then collided, 24 % with 64 directions).
        size: codes per level.
        collisions: `reassign` gives every item its own SID by optimal assignment at the last level;
            `suffix` adds a level that numbers the items of one SID; `share` lets items share one (a set).
        iterations: of k-means. epochs, learning_rate, code_size: of the RQ-VAE.
    """

    kind: Literal["residual_kmeans", "balanced_kmeans", "rqvae", "published"] = "residual_kmeans"
    vectors: Literal["text", "whitened", "fused"] = "text"
    whitened_size: int = Field(default=64, ge=0)
    fused_weight: float = Field(default=0.5, gt=0, lt=1)
    fused_size: int = Field(default=64, ge=1)
    levels: int = Field(default=3, ge=1, le=25)
    size: int = Field(default=256, ge=2)
    iterations: int = Field(default=50, ge=1)
    epochs: int = Field(default=500, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    code_size: int = Field(default=32, ge=1)
    collisions: Literal["reassign", "suffix", "share"] = "reassign"
    refit: Refit = Refit()
    seed: int = 42
