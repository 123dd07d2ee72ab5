"""What every section shares."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: No whole number of a profile is as large; libraries hold 64 bits, JSON and tables less.
_TOO_LARGE = 2**53


#: What numpy and torch both take.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
#: A width, or rows of a table: at least one, and no more than any model has.
Size = Annotated[int, Field(ge=1, le=2**20)]
#: Blocks of a model.
Layers = Annotated[int, Field(ge=1, le=1_000)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused. The text below a field is its description, in
    docs/settings.md and in `profiles/schema.json`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _numbers_that_can_be_held(self) -> Section:
        for name, value in self:
            if isinstance(value, int) and abs(value) >= _TOO_LARGE:
                raise ValueError(f"{name} is {value:.3g}, and no whole number may have more than 15 digits")
        return self


class Endpoint(Section):
    """An OpenAI-compatible server. Its key is read from an environment variable at each call and kept nowhere."""

    base_url: str = "https://api.openai.com/v1"
    """Address with http or https and the version path (`/v1`)."""
    model: str
    """Name of the model, as the server knows it."""
    api_key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key; a local server needs none."""
    timeout_seconds: float = Field(default=60, gt=0, le=600)
    """Longest wait for one attempt, in seconds."""
    retries: int = Field(default=5, ge=0, le=20)
    """Attempts after the first one, with growing, jittered waits between them."""
    concurrency: int = Field(default=16, ge=1, le=512)
    """Requests in flight at the same time; more is faster until the server refuses."""
    give_up_after: int = Field(default=20, ge=1)
    """Failed requests in a row after which the stage stops and keeps what it has."""

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if re.search(r"[\x00-\x20\x7f]", value):  # urlsplit drops them: it would judge another address
            raise ValueError("expected http(s)://host[:port]/v1, found a blank or control character")
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError(
                f"expected http(s)://host[:port]/v1 without user or password, found scheme {parts.scheme!r}"
            )
        return value.rstrip("/")
