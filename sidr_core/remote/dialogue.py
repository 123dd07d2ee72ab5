"""One request as a dialogue: what is sent, what a reply means, and the one repair that is asked for.

All of it is a function of the request and of the replies on file, so a rerun takes the same steps without a call.

The ledger key is the sha256 of everything that is sent (model, messages, parameters, JSON schema) and of the server's
host name, without scheme, port and path: two servers may give one name to different models, while one server keeps its
replies when it moves to another port. The prompt's kind and the reply model's name and docstring are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from sidr_core.pipeline.store import canonical_json
from sidr_core.remote.endpoint import OPENAI_HOST
from sidr_core.remote.ledger import Stored
from sidr_core.remote.retry import CallFailed

ReplyFormat = Literal["json_schema", "json_object", "prompt"]

#: Bytes of English text per token where nothing is measured yet.
BYTES_PER_TOKEN = 4
#: Tokens of the chat template that a request may cost beyond its own bytes.
TEMPLATE_TOKENS = 64
#: Before the kind of a second request that asks for a better form of the first one's reply.
REPAIR = "repair of "

_ASK = "Answer with one JSON object that fits this JSON Schema, and with nothing else:\n{schema}"
_REPAIR = "That reply cannot be used: {problem}. Answer again, with one JSON object that fits and with nothing else."
_DROPPED = ("title", "default", "minLength", "maxLength")  # not part of the server's subset; pydantic checks them


@dataclass(frozen=True)
class Request:
    """One question. `kind` only labels it, for estimates and figures; all else makes its ledger key."""

    kind: str
    system: str
    user: str
    schema: type[BaseModel]
    max_output_tokens: int
    temperature: float


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
            {"role": "assistant", "content": stored.text},
            {"role": "user", "content": _REPAIR.format(problem=problem)},
        ]
        repair = self._call(request, messages, REPAIR + request.kind)
        if (second := find(repair.key)) is None:
            return repair
        value, reason, _ = judge(second, request.schema)
        return Done(value, reason, (stored, second))

    def wire(self, call: Call) -> dict[str, Any]:
        """The body in the words of the host: OpenAI's newer models know `max_completion_tokens` only."""
        body = dict(call.body)
        if self._host == OPENAI_HOST:
            body["max_completion_tokens"] = body.pop("max_tokens")
        return body

    def _call(self, request: Request, messages: list[dict[str, str]], kind: str) -> Call:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "max_tokens": request.max_output_tokens,
            "temperature": request.temperature,
        }
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
    if stored.status in ("refusal", "content_filter", "rejected"):
        return None, stored.status, ""
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


_THINKING = re.compile(r"^.*</think>", re.DOTALL)


def first_object(text: str) -> dict[str, Any] | None:
    r"""The first JSON object in a reply: after a thinking part, inside code fences or amid talk.

    >>> first_object('Sure! ```json\n{"a": 1}\n``` {"b": 2}')
    {'a': 1}
    """
    text = _THINKING.sub("", text)
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            record, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
        else:
            return json.loads(_encodable(json.dumps(record, ensure_ascii=False)))
    return None


def read_completion(body: Any, key: str, size: int) -> Stored:
    """The reply in a chat completion, priced at 0 as yet. Where the server counts no tokens, they are estimated
    from `size`, the bytes of the request, and from the text.

    Raises:
        CallFailed: an error in a 200, no choices, or no completion at all; it may have been charged.
    """
    if not isinstance(body, dict):
        raise CallFailed("the reply is no JSON object", free=False)
    if body.get("error"):
        raise CallFailed("HTTP 200 with an error inside", free=False)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise CallFailed("the reply has no choices", free=False)
    message = choices[0].get("message")
    message = message if isinstance(message, dict) else {}
    refusal, content, finish = message.get("refusal"), message.get("content"), choices[0].get("finish_reason")
    text = content if isinstance(content, str) else ""
    status = {"length": "truncated", "content_filter": "content_filter"}.get(str(finish), "complete")
    if isinstance(refusal, str) and refusal:
        text, status = refusal, "refusal"
    text = _encodable(text)
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    spent = usage.get("prompt_tokens"), usage.get("completion_tokens")
    guessed = -(-size // BYTES_PER_TOKEN), -(-len(text.encode()) // BYTES_PER_TOKEN)
    counts = [real if type(real) is int and real >= 0 else guess for real, guess in zip(spent, guessed, strict=True)]
    return Stored(key, status, text, counts[0], counts[1], 0)


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which can be neither sent nor stored."""
    return text.encode("utf-8", "replace").decode()


def parse_body(text: str) -> Any:
    """JSON of a response body. Raises CallFailed where it is cut off or no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CallFailed("the reply is cut off or no JSON", free=False) from None
