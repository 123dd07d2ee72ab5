"""The tasks of the corpus and who writes it."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sidr_core.settings.base import Endpoint, Section, Seed

#: The eight alignment tasks of the paper, two that ground SIDs in stated facts, the mix-in of general reasoning, and
#: the trace task of stage 2 (docs/method.md, "Stage 1: alignment").
TASKS = (
    "sids_to_sid",
    "sid_to_title",
    "title_to_sid",
    "sids_to_title",
    "titles_to_title",
    "titles_to_sid",
    "item_narrative",
    "user_narrative",
    "sid_to_fact",
    "practice",
    "general",
)
GENERAL_TASK = "general"
REASONING_TASK = "reasoning"
#: The task that stage 2 replays.
NEXT_ITEM_TASK = "sids_to_sid"


class Budget(Section):
    """The most a teacher may cost, over the whole ledger of this `SIDR_HOME`."""

    usd: float | None = Field(default=None, ge=0)
    """US dollars; null is no limit."""
    tokens: int | None = Field(default=None, ge=0)
    """Tokens read and written together; null is no limit."""


class Price(Section):
    """What the endpoint charges, for the ledger and for `sidr estimate`; 0 for a local model."""

    input: float = Field(default=0.0, ge=0)
    """USD per million tokens read."""
    output: float = Field(default=0.0, ge=0)
    """USD per million tokens written."""
    batch_discount: float = Field(default=0.5, gt=0, le=1)
    """Factor on both prices in the Batch API."""


class General(Section):
    """General reasoning mixed into stage 1 (docs/method.md, "Corpus"): JSON lines with `messages`."""

    PATHS: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    """A local file."""
    rows: int = Field(default=60_000, ge=1)
    """Examples used at most, drawn with the teacher's seed."""
    max_chars: int = Field(default=12_000, ge=100)
    """Longer examples, in characters, are left out."""


class Teacher(Section):
    """Who writes the narratives and reasoning traces of the corpus (docs/teacher.md)."""

    kind: Literal["rules", "openai"] = "rules"
    """`rules` needs no key and takes seconds; `openai` is any OpenAI-compatible endpoint, and may cost money."""
    item_narratives: bool = True
    """Whether a paragraph about each item is written."""
    user_narratives: bool = True
    """Whether a paragraph about each user's history is written."""
    traces_per_user: int = Field(default=0, ge=0)
    """Reasoning traces of one user at most, of the newest train rows; 0 is all."""
    form: Literal["terse", "verbose"] = "terse"
    """Of the thoughts that `rules` writes: `terse`, or `verbose`: in sentences, about twice as long."""
    open_thoughts: Literal["keep", "drop"] = "keep"
    """Whether `rules` keeps a trace from whose history nothing follows ("Next: open.") or leaves that row out."""
    practice_rows: int = Field(default=2000, ge=0)
    """Thoughts about random histories of all items, without users and without an answer: practice in reading facts off
    SIDs (task `practice`).
    """
    seed: Seed = 42
    """Of every draw, and of the words that `rules` chooses."""
    general: General | None = None
    """Examples of general reasoning to mix in; null mixes in none."""
    endpoint: Endpoint | None = None
    """The server of `kind: openai`."""
    items: int | None = Field(default=None, ge=0)
    """Items that the language model writes about, the most frequent in train first; null is all."""
    users: int | None = Field(default=None, ge=0)
    """Users that it writes about, those with most train rows first; null is all."""
    rest: Literal["rules", "none"] = "rules"
    """Who writes about the items and users that are left: `rules`, or nobody."""
    reply: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    """How JSON is asked for, by what the server understands."""
    max_output_tokens: int = Field(default=1024, ge=16)
    """Longest reply to one call, in tokens; a longer one is cut and refused."""
    temperature: float | None = Field(default=0.7, ge=0, le=2)
    """Of the sampling, at each call; null leaves it to the server, as reasoning models want."""
    input_chars: int = Field(default=1500, ge=100)
    """Characters of an item description that a prompt holds at most."""
    budget: Budget = Budget()
    """The most that calls may cost."""
    price: Price = Price()
    """What calls cost."""
    batch: bool = False
    """Whether the OpenAI Batch API is used: half the price, hours instead of minutes."""

    def without(self, tasks: Collection[str]) -> Teacher:
        """The same teacher, asked for no narrative that is one of these tasks."""
        asked = {"item_narrative": "item_narratives", "user_narrative": "user_narratives"}
        return self.model_copy(update={field: False for task, field in asked.items() if task in tasks})

    @model_validator(mode="after")
    def _has_endpoint(self) -> Teacher:
        if self.kind == "openai" and self.endpoint is None:
            raise ValueError("kind: openai needs `endpoint: {model: …}` (and `base_url` for a server of your own)")
        return self
