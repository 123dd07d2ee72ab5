"""What every section shares."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Endpoint(Section):
    """An OpenAI-compatible server. The key is read from an environment variable when a call is made and kept nowhere.

    Args:
        base_url: http or https, with the version path (`/v1`).
        api_key_env: name of the variable that holds the key; a local server needs none.
        timeout_seconds: longest wait for one attempt. retries: attempts after the first, jittered.
        concurrency: requests in flight at most.
        give_up_after: failed requests in a row after which the stage stops and keeps what it has.
    """

    base_url: str = "https://api.openai.com/v1"
    model: str
    api_key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_seconds: float = Field(default=60, gt=0, le=600)
    retries: int = Field(default=5, ge=0, le=20)
    concurrency: int = Field(default=16, ge=1, le=512)
    give_up_after: int = Field(default=20, ge=1)

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
