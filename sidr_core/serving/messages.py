"""What goes over the wire: questions, answers, and how they are written in the OpenAPI document."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["direct", "thinking", "merged", "mixed"]
#: Longest texts and lists of a question; what is longer is a mistake.
_ID, _TEXT, _MANY = 200, 10_000, 1_000_000


class Message(BaseModel):
    """Base of every message: unknown fields are refused, the text below a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Filters(Message):
    """What may be listed. The list is the unfiltered ranking without the rest, and as long as asked for."""

    exclude_seen: bool = False
    """Leave out every item of the user, or of the given history."""
    categories: list[str] | None = Field(default=None, max_length=1000)
    """Only items of one of these categories: a whole path, `Games > Consoles`, or the beginning of one, `Games`."""
    in_stock: list[str] | None = Field(default=None, max_length=_MANY)
    """Only these item ids."""
    fresher_than: date | None = None
    """Only items that were met for the first time on this day or later."""


class Question(Message):
    """A question for a list: whose history, how long, in which mode, and what may be in it."""

    user_id: str | None = Field(default=None, min_length=1, max_length=_ID)
    """A user of the snapshot, whose history is looked up; either this or `history`."""
    history: list[str] | None = Field(default=None, max_length=_TEXT)
    """Item ids, oldest first. Of a longer one the newest `split.max_history` items count, as in training."""
    k: int = Field(default=10, ge=1)
    """Items to list."""
    mode: Mode | None = None
    """`direct`, `thinking`, `merged` or `mixed`; default: the last of the first three that is published."""
    filters: Filters = Filters()
    """What may be listed; default: everything."""


class Fact(Message):
    """A fact that an item states about itself."""

    name: str
    value: str


class SharedFact(Fact):
    """A fact of a listed item that items of the history state too."""

    item_ids: list[str]
    """The items of the history that state it."""


class Named(Message):
    """An item by name."""

    item_id: str
    title: str
    sid: str


class Listed(Named):
    """One item of a list, and why it may be there."""

    score: float
    """Direct and thinking: log-probability of its SID, in nats; merged and mixed: the log of its worth."""
    category: str
    seen: bool
    """Whether it is in the history, or the user had it before."""
    named_by_thought: bool
    """Whether the thought names it, with its own title and SID, as a candidate."""
    shared: list[SharedFact]
    """Facts that it shares with items of the history."""


class Part(Message):
    """A piece of a thought: text, or a SID with the items that carry it (none: it is no item)."""

    text: str
    item_ids: list[str] | None = None
    titles: list[str] | None = None


class StatedFact(Fact):
    """A fact that a thought states."""

    holds: bool
    """Whether it follows from the history."""


class Candidate(Message):
    """An item that a thought names with a SID."""

    title: str
    sid: str
    item_ids: list[str]
    """Items with this title and this SID; none: the thought made it up."""


class Reading(Message):
    """What a thought says, and what of it is true."""

    parts: list[Part]
    closed: bool
    """Whether the model closed it itself; else the limit of tokens did."""
    tokens: int
    facts: list[StatedFact]
    candidates: list[Candidate]
    true: bool | None
    """Whether all that it says is right and nothing is left out; null where its form is not judged."""


class Answer(Message):
    """A list. All of it comes from the one release that it names."""

    items: list[Listed]
    thought: str | None
    """The thought's text, with SIDs as the model wrote them; null without one."""
    reading: Reading | None
    """The thought taken apart; null without one."""
    history: list[Named]
    """The items that the list rests on, oldest first."""
    model: str
    """`<model>/<mode>`, as in the tables."""
    mode: Mode
    dataset: str
    snapshot: str
    release: str
    """Fingerprint of the `recommendations` that is served."""
    synthetic: bool
    """Whether it was learnt from generated sample data."""


class Trouble(Message):
    """What went wrong, in the form that OpenAI's clients know, with what to do."""

    message: str
    type: str
    expected: str
    found: str
    fix: str


class Refusal(Message):
    """The body of every answer that is not 2xx."""

    error: Trouble


class ChatMessage(BaseModel):
    """One message of a conversation; text, or parts of which the text ones count."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatQuestion(BaseModel):
    """What OpenAI's clients send. Parameters of sampling are ignored: a list is not sampled."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    """A name of `/v1/models`, such as `grpo/thinking`."""
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    """The last message of the user counts: a user id, or item ids or titles, one a line or between commas."""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int | None = Field(default=None, ge=1, le=1)
    k: int = Field(default=10, ge=1)
    """Items to list; a field of this server."""
    filters: Filters = Filters()
    """As in `/recommend`; a field of this server."""
