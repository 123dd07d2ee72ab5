"""One request as a dialogue: what is sent, what a reply means, and the one repair that is asked for.

All of it is a function of the request and of the replies on file, so a rerun takes the same steps without a call.

The ledger key is the sha256 of everything that is sent (model, messages, parameters, JSON schema) and of the server's
host name, without scheme, port and path: two servers may give one name to different models, while one server keeps its
replies when it moves to another port. The prompt's kind and the reply model's name and docstring are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from sidr_core.pipeline.store import canonical_json
from sidr_core.remote.errors import CallFailed
from sidr_core.remote.ledger import Stored

ReplyFormat = Literal["json_schema", "json_object", "prompt"]

#: Bytes of English text per token where nothing is measured yet.
BYTES_PER_TOKEN = 4
#: Tokens of the chat template that a request may cost beyond its own bytes.
TEMPLATE_TOKENS = 64
#: Characters of a reply: a longer one is not read, and one quoted in a repair is cut at so many per token allowed.
MOST_REPLY_CHARS = 2**18
QUOTED_CHARS_PER_TOKEN = 16
#: Tokens that a server may say it counted; a larger number is not believed.
MOST_TOKENS = 10_000_000
#: Opening braces of a reply at which a JSON object is looked for.
MOST_OBJECTS = 1000
#: Before the kind of a second request that asks for a better form of the first one's reply.
REPAIR = "repair of "

#: Status of a reply that is too long to be one: quarantined, and not asked again.
OVERLONG = "overlong"

_ASK = "Answer with one JSON object that fits this JSON Schema, and with nothing else:\n{schema}"
_REPAIR = "That reply cannot be used: {problem}. Answer again, with one JSON object that fits and with nothing else."
_TEXT_PARTS = ("text", "output_text")
_DROPPED = ("title", "default", "minLength", "maxLength")  # not part of the server's subset; pydantic checks them


@dataclass(frozen=True)
class Request:
    """One question. `kind` only labels it, for estimates and figures; all else makes its ledger key."""

    kind: str
    system: str
    user: str
    schema: type[BaseModel]
    max_output_tokens: int
    temperature: float | None


@dataclass(frozen=True)
class Call:
    """A request body that has to be sent. `size`: its bytes, an upper bound of its tokens but for the template."""

    key: str
    kind: str
    body: Mapping[str, Any]
    size: int

    @property
    def most_input_tokens(self) -> int:
        return self.size + TEMPLATE_TOKENS

    @property
    def most_output_tokens(self) -> int:
        return self.body["max_tokens"]


@dataclass(frozen=True)
class Done:
    """The end of a dialogue: a value, or the reason for quarantine, and the replies that led there."""

    value: BaseModel | None
    reason: str
    replies: tuple[Stored, ...]


class Dialogue:
    """Builds calls for one model on one host. `form` says how JSON is asked for."""

    def __init__(self, model: str, host: str, form: ReplyFormat) -> None:
        self._model, self._host, self._form = model, host, form

    def next(self, request: Request, find: Callable[[str], Stored | None]) -> Call | Done:
        """What is to be done about a request, given the replies on file."""
        system = request.system
        if self._form != "json_schema":
            system = f"{system}\n{_ASK.format(schema=json.dumps(sent_schema(request.schema)))}"
        messages = [
            {"role": "system", "content": _encodable(system)},
            {"role": "user", "content": _encodable(request.user)},
        ]
        first = self._call(request, messages, request.kind)
        if (stored := find(first.key)) is None:
            return first
        value, reason, problem = judge(stored, request.schema)
        if not problem:
            return Done(value, reason, (stored,))
        messages = [
            *messages,
            {"role": "assistant", "content": stored.text[: QUOTED_CHARS_PER_TOKEN * request.max_output_tokens]},
            {"role": "user", "content": _REPAIR.format(problem=problem)},
        ]
        repair = self._call(request, messages, REPAIR + request.kind)
        if (second := find(repair.key)) is None:
            return repair
        value, reason, _ = judge(second, request.schema)
        return Done(value, reason, (stored, second))

    def _call(self, request: Request, messages: list[dict[str, str]], kind: str) -> Call:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "max_tokens": request.max_output_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if self._form == "json_schema":
            form = {"name": "reply", "strict": True, "schema": sent_schema(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self._form == "json_object":
            body["response_format"] = {"type": "json_object"}
        text = canonical_json({"host": self._host, "body": body})
        size = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
        return Call(hashlib.sha256(text.encode()).hexdigest(), kind, body, size)


@cache
def sent_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of a reply in the strict subset: every key required, no others, no docstrings of ours."""
    schema = _strict(model.model_json_schema())
    assert isinstance(schema, dict)
    return schema


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(part) for part in node]
    if not isinstance(node, dict):
        return node
    if not isinstance(node.get("properties"), dict):
        return {key: _strict(part) for key, part in node.items() if key not in _DROPPED}
    fields = {name: _strict(part) for name, part in node["properties"].items()}
    kept = {k: _strict(v) for k, v in node.items() if k not in (*_DROPPED, "properties", "required", "description")}
    return {**kept, "properties": fields, "required": list(fields), "additionalProperties": False}


def judge(stored: Stored, schema: type[BaseModel]) -> tuple[BaseModel | None, str, str]:
    """What a reply in the ledger is worth: (value, reason for quarantine, problem that a repair could solve)."""
    if stored.status in ("refusal", "content_filter", "rejected", OVERLONG):
        return None, stored.status, ""
    if len(stored.text) > MOST_REPLY_CHARS:  # of a ledger that an earlier version wrote
        return None, OVERLONG, ""
    record = first_object(stored.text)
    try:
        if record is not None:
            return schema.model_validate(record), "", ""
        reason, problem = "no_json", "it holds no JSON object"
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100] or "the object"
        reason, problem = "wrong_schema", f"{place}: {first['msg']}"
    if stored.status == "truncated":  # asking again with the same limit would end in the same place
        return None, "truncated", ""
    return None, reason, problem


def first_object(text: str) -> dict[str, Any] | None:
    r"""The first JSON object in a reply: after a thinking part, inside code fences, amid talk, or itself a JSON string.

    The work is bounded: `MOST_OBJECTS` braces are tried, and no more than some ten times the text is read.

    >>> first_object('Sure! ```json\n{"a": 1}\n``` {"b": 2}')
    {'a': 1}
    >>> first_object('"{\\"a\\": 1}"')
    {'a': 1}
    """
    text = text.rpartition("</think>")[2].strip()
    if text.startswith('"'):
        with suppress(ValueError):
            text = str(json.loads(text))
    decoder, start, work = json.JSONDecoder(), text.find("{"), 10 * len(text)
    for _ in range(MOST_OBJECTS):
        if start < 0 or work < 0:
            return None
        try:
            record, _end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            work -= error.pos - start if isinstance(error, json.JSONDecodeError) else len(text) - start
            start = text.find("{", start + 1)
        else:
            return json.loads(_encodable(json.dumps(record, ensure_ascii=False)))
    return None


def read_completion(body: Any, key: str, size: int) -> Stored:
    """The reply in a chat completion, priced at 0 as yet. Where the server counts no tokens, they are estimated
    from `size`, the bytes of the request, and from the text.

    Raises:
        CallFailed: no choices, or no completion at all; it may have been charged.
    """
    if not isinstance(body, dict):
        raise CallFailed("the reply is no JSON object", free=False)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise CallFailed("the reply has no choices", free=False)
    message = choices[0].get("message")
    message = message if isinstance(message, dict) else {}
    refusal, finish = message.get("refusal"), choices[0].get("finish_reason")
    text = _text_of(message)
    status = {"length": "truncated", "content_filter": "content_filter"}.get(str(finish), "complete")
    if isinstance(refusal, str) and refusal:
        text, status = refusal, "refusal"
    written = len(text)
    if written > MOST_REPLY_CHARS:
        text, status = text[:1000], OVERLONG
    text = _encodable(text)
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    spent = usage.get("prompt_tokens"), usage.get("completion_tokens")
    guessed = -(-size // BYTES_PER_TOKEN), -(-max(written, len(text.encode())) // BYTES_PER_TOKEN)
    counts = [
        count if type(count) is int and 0 <= count <= MOST_TOKENS else guess
        for count, guess in zip(spent, guessed, strict=True)
    ]
    return Stored(key, status, text, counts[0], counts[1], 0)


def _text_of(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or the text parts of it. Where that is empty, what stands where a server's
    parser puts a whole reply by mistake: the reasoning, or the arguments of a tool that nobody offered.
    """
    content = message.get("content")
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS)
        content = "".join(str(part.get("text") or "") for part in parts)
    try:
        arguments = message["tool_calls"][0]["function"]["arguments"]
    except (KeyError, IndexError, TypeError):
        arguments = None
    others = (message.get("reasoning_content"), message.get("reasoning"), arguments)
    texts = (text for text in (content, *others) if isinstance(text, str) and text.strip())
    return next(texts, "")


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which can be neither sent nor stored."""
    return text.encode("utf-8", "replace").decode()
