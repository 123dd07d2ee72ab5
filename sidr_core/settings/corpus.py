"""The tasks of the corpus and who writes it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sidr_core.settings.base import Endpoint, Section

#: The eight alignment tasks (METHOD 5.1, numbers 1-5, 7, 8; number 2 counts as two), the mix-in of general
#: reasoning (number 9), and the trace task of stage 2.
TASKS = (
    "sids_to_sid",
    "sid_to_title",
    "title_to_sid",
    "sids_to_title",
    "titles_to_title",
    "titles_to_sid",
    "item_narrative",
    "user_narrative",
    "general",
)
GENERAL_TASK = "general"
REASONING_TASK = "reasoning"


class Budget(Section):
    """The most a teacher may cost, over the whole ledger of this SIDR_HOME; None is no limit."""

    usd: float | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)


class Price(Section):
    """USD per million tokens; 0 for a local model. `batch_discount` is the factor of the Batch API."""

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)
    batch_discount: float = Field(default=0.5, gt=0, le=1)


class General(Section):
    """General reasoning mixed in (METHOD 4.4): JSON lines with `messages`, a local file.

    Args:
        rows: at most so many, drawn with the teacher's seed. max_chars: longer ones are left out.
    """

    PATHS: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    rows: int = Field(default=60_000, ge=1)
    max_chars: int = Field(default=12_000, ge=100)


class Teacher(Section):
    """Who writes the corpus. `rules` needs no key; `openai` is any OpenAI-compatible endpoint.

    Args:
        item_narratives, user_narratives: whether these kinds are written.
        traces_per_user: most reasoning traces of one user (the newest train rows); 0 = all.
        open_thoughts: whether `rules` keeps a trace whose target shares nothing with the history ("or something
            new"), or drops the row from the traces.
        items, users: how many items (most frequent in train first) and users (most train rows first) the
            language model writes about; None is all. `rest` says who writes about the others.
        reply: how JSON is asked for, by what the server understands.
        max_output_tokens, temperature: of a call. `input_chars` caps a description inside a prompt.
        batch: use the OpenAI Batch API: half the price, hours instead of minutes.
    """

    kind: Literal["rules", "openai"] = "rules"
    item_narratives: bool = True
    user_narratives: bool = True
    traces_per_user: int = Field(default=0, ge=0)
    open_thoughts: Literal["keep", "drop"] = "keep"
    seed: int = 42
    general: General | None = None
    endpoint: Endpoint | None = None
    items: int | None = Field(default=None, ge=0)
    users: int | None = Field(default=None, ge=0)
    rest: Literal["rules", "none"] = "rules"
    reply: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    max_output_tokens: int = Field(default=1024, ge=16)
    temperature: float = Field(default=0.7, ge=0, le=2)
    input_chars: int = Field(default=1500, ge=100)
    budget: Budget = Budget()
    price: Price = Price()
    batch: bool = False

    @model_validator(mode="after")
    def _has_endpoint(self) -> Teacher:
        if self.kind == "openai" and self.endpoint is None:
            raise ValueError("kind: openai needs `endpoint: {model: …}` (and `base_url` for a server of your own)")
        return self
