"""Where outputs are published. One place for all datasets of a profile; part of no fingerprint."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from sidr_core.settings.base import Section

_URL = re.compile(r"(?:s3|gs|az|file)://[^\s@?#]+")


class StoreSection(Section):
    """Where outputs are published, for all datasets of the profile."""

    url: str | None = Field(default=None, repr=False)
    """A bucket that several machines share: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or
    `file:///folder` on a disk that all of them mount; null: the working folder. `SIDR_STORE` takes precedence. Keys
    come from the environment, never from here.
    """

    @field_validator("url")
    @classmethod
    def _without_keys(cls, value: str | None) -> str | None:
        if value is not None and not _URL.fullmatch(value):
            raise ValueError("expected s3://, gs://, az:// or file:// and a path, without user, password or query")
        return value
