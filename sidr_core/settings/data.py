"""Snapshots, filters, splits, vectors and Semantic IDs."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sidr_core.errors import ProfileError
from sidr_core.settings.base import Endpoint, Section, Seed

_MONTHS = {"monthly": 1, "quarterly": 3, "yearly": 12}


class Snapshots(Section):
    """Windows of a dataset. A snapshot is all that was known by the end of its window."""

    cadence: Literal["monthly", "quarterly", "yearly"] = "monthly"
    """Length of a window."""
    start: str
    """First window, named by its first month, `YYYY-MM` from 1970 to 2099."""
    end: str
    """Last window, likewise; each window is one partition to build."""

    @field_validator("start", "end")
    @classmethod
    def _month(cls, value: str) -> str:
        if not re.fullmatch(r"(19[7-9]|20\d)\d-(0[1-9]|1[0-2])", value):
            raise ValueError(f"expected YYYY-MM from 1970-01 to 2099-12, found {value!r}")
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
    """One snapshot: everything with `timestamp < cutoff` is known."""

    key: str
    """First month of the window, `YYYY-MM`."""
    cutoff: int
    """Unix seconds, UTC."""


class Filters(Section):
    """Which reviews and items are used (docs/method.md, "Data")."""

    k_core: int = Field(default=5, ge=1)
    """Reviews that every user and every item keeps at least, counted until nothing changes; 1 keeps all."""
    max_title_words: int = Field(default=20, ge=1)
    """Items with a longer title, in words, are refused."""
    since: str | None = Field(default=None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    """Reviews before this month, `YYYY-MM`, are left out; null uses all."""
    min_rating: float | None = None
    """Reviews with fewer stars are left out; null uses all."""
    keep_repeats: bool = True
    """Whether a user's later reviews of the same item stay."""
    keep_duplicates: bool = False
    """Whether lines that equal an earlier one in user, item, rating, time and text stay. For files with coarse times
    and no text, where two such lines may be two purchases; the paper keeps them.
    """
    max_quarantine_share: float = Field(default=0.01, ge=0, le=1)
    """Share of unreadable records above which the stage fails."""
    max_duplicate_share: float = Field(default=0.1, ge=0, le=1)
    """Share of lines left out as exact duplicates above which the check `duplicate_share` warns."""
    max_unknown_item_share: float = Field(default=0.1, ge=0, le=1)
    """Share of reviews whose item is not in the catalogue above which the check `known_items` warns."""
    allow_truncated: bool = False
    """Whether a gzip file that ends too early is used as far as it goes."""
    items_without_text: Literal["auto", "drop", "keep"] = "auto"
    """`drop` refuses items without a usable title, as the paper does; `keep` takes them with whatever text they have,
    or a placeholder; `auto` drops them unless they are most of the catalogue.
    """


class Split(Section):
    """One sample per position of a history, cut into train, valid and test (docs/method.md, "Data")."""

    kind: Literal["time", "leave_one_out"] = "time"
    """`time` cuts by the time of the targets. `leave_one_out` takes of each user the last item as test, the one before
    as valid and the others as train, whatever their times: what is trained on may be later than what is tested.
    """
    max_history: int = Field(default=10, ge=1)
    """Items of the history that a sample holds, the newest ones; prompts grow with it."""
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the samples in train, valid and test where time cuts; they sum to 1."""
    train_only: tuple[str, ...] = ()
    """Domains of a mix whose rows stay in train and valid; empty keeps all. Test rows and catalogue stay whole, so what
    is trained and chosen on some domains is tested on all of them.
    """

    @field_validator("ratios")
    @classmethod
    def _sums_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0 or abs(sum(value) - 1) > 1e-9:
            raise ValueError(f"expected three positive shares that sum to 1, found {value}")
        return value


class Encoder(Section):
    """The sentence encoder that gives each item its vector.

    A model is known by its name: give a changed folder or server another one, or its old vectors are taken from the
    cache.
    """

    model: str = "minilm"
    """`minilm` is the all-MiniLM-L6-v2 that ships in a package; else a Hugging Face id or a folder. With `endpoint` it
    only names the vectors.
    """
    pooling: Literal["default", "masked_mean"] = "default"
    """How token states become one vector: the model's own way, or the mean over all tokens."""
    max_tokens: int = Field(default=256, ge=8)
    """Longer texts are cut to this many tokens; at an endpoint to 16 characters per token."""
    batch_size: int = Field(default=64, ge=1)
    """Texts in a batch on a GPU or in a request; a CPU takes fewer where texts are long."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the encoder; half precision needs half the memory, on a GPU."""
    normalize: bool = True
    """Whether vectors are scaled to length 1."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible `/embeddings` that makes the vectors; null encodes on this machine."""

    @model_validator(mode="after")
    def _server_decides(self) -> Encoder:
        if self.endpoint is not None and (self.pooling, self.dtype) != ("default", "float32"):
            raise ValueError("with `endpoint` the server decides on pooling and dtype: leave both out")
        return self


class Refit(Section):
    """When the codebook of an earlier snapshot is given up and fitted anew; every SID may then change."""

    error_ratio: float = Field(default=1.5, gt=1)
    """Mean reconstruction error of the items placed since the fit, over that of items unseen at the fit, above which
    the codebook no longer fits.
    """
    moved_share: float = Field(default=0.5, gt=0, le=1)
    """Of the items placed since the fit whose nearest codes were a free SID at the fit, the share that did not get it,
    above which the codebook is full.
    """
    growth: float = Field(default=4.0, gt=1)
    """Size of the catalogue over that at the fit, above which the codebook is outgrown."""
    least_new: int = Field(default=100, ge=1)
    """With fewer placed items than this, `error_ratio` and `moved_share` prove nothing and are not used."""
    start: Literal["anew", "previous"] = Field(default="anew", exclude_if=lambda start: start == "anew")
    """Where the new fit starts: `anew`, or from the centroids of the `previous` codebook, so that codes go on meaning
    what they meant and checkpoints trained before stay of use; for `residual_kmeans`.
    """


class Quantizer(Section):
    """Semantic IDs: how vectors become codes (docs/codebooks.md)."""

    kind: Literal["residual_kmeans", "balanced_kmeans", "rqvae", "published"] = "residual_kmeans"
    """`residual_kmeans` (faiss, seconds on a CPU), `balanced_kmeans` (clusters of equal size on every level), `rqvae`
    (the paper's, which has to be trained), or `published`: the SIDs that came with the source.
    """
    vectors: Literal["text", "whitened", "fused"] = "text"
    """What is quantized: the `text` vectors, `whitened` ones, or `fused`: text joined with the item's co-occurrence
    vector from train rows.
    """
    whitened_size: int = Field(default=64, ge=0)
    """Principal directions kept by `whitened`, at most; 0 keeps all, of which the weak ones are noise (of 3,459 real
    items coded by 3 × 64, 87 % then collided, 24 % with 64 directions).
    """
    fused_weight: float = Field(default=0.5, gt=0, lt=1)
    """Share of the squared length of a `fused` vector that co-occurrence gets."""
    fused_size: int = Field(default=64, ge=1)
    """Dimensions of the co-occurrence vector."""
    levels: int = Field(default=3, ge=1, le=25)
    """Codes per SID; each is one token more to decode per list."""
    size: int = Field(default=256, ge=2)
    """Codes per level; `size ** levels` SIDs should be many times the items."""
    iterations: int = Field(default=50, ge=1)
    """Iterations of k-means."""
    epochs: int = Field(default=500, ge=1)
    """Passes of the RQ-VAE over the catalogue; time grows with them."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of the RQ-VAE."""
    code_size: int = Field(default=32, ge=1)
    """Width of the RQ-VAE's codes, in numbers."""
    collisions: Literal["reassign", "suffix", "share"] = "reassign"
    """`reassign` gives every item its own SID by optimal assignment at the last level; `suffix` adds a level that
    numbers the items of one SID; `share` lets items share one.
    """
    refit: Refit = Refit()
    """When a warm codebook is fitted anew."""
    seed: Seed = 42
    """Of clustering and training."""

    @model_validator(mode="after")
    def _centroids_to_start_from(self) -> Quantizer:
        if self.refit.start == "previous" and self.kind != "residual_kmeans":
            raise ValueError(f"refit.start: previous needs kind residual_kmeans, found {self.kind}")
        return self
