"""The same lists in the form of OpenAI's chat completions, so that a chat client can talk to the recommender."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sidr_core.corpus.prompts import next_item
from sidr_core.errors import SidrError
from sidr_core.render.text import markdown_text
from sidr_core.serving.messages import Answer, ChatQuestion, Question
from sidr_core.serving.served import Served
from sidr_core.tables.columns import DIRECT, THINKING

_TITLE_CHARS = 120


def question_of(chat: ChatQuestion, served: Served) -> Question:
    """What a conversation asks for: the last message of its user names a user, or items.

    Raises:
        SidrError: the model is not served, or the message names nothing that is known.
    """
    mode = next((mode for mode, name in served.release.names.items() if name == chat.model), None)
    if mode is None:
        raise SidrError(
            f"there is no model {chat.model[:100]!r} here",
            expected=f"one of {', '.join(served.release.names.values())}",
            found=chat.model[:100],
            fix="take a name of /v1/models",
        )
    user_id, items = served.shelf.named_in(_last_of_user(chat))
    whose = {"user_id": user_id} if user_id is not None else {"history": items}
    return Question.model_validate({**whose, "mode": mode, "k": chat.k, "filters": chat.filters})


def _last_of_user(chat: ChatQuestion) -> str:
    for message in reversed(chat.messages):
        if message.role == "user":
            content = message.content or ""
            if isinstance(content, str):
                return content
            return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    raise SidrError(
        "the conversation holds no message of the user",
        expected='a message with the role "user"',
        found=", ".join(sorted({message.role for message in chat.messages})),
        fix="put item ids, titles or a user id into one",
    )


def models(served: Served) -> dict[str, Any]:
    """The body of `/v1/models`: one model per mode."""
    made = served.release.lists.manifest["created_at"]
    created = int(datetime.fromisoformat(made).timestamp())
    data = [
        {"id": name, "object": "model", "created": created, "owned_by": f"sidr:{served.shelf.where}"}
        for name in served.release.names.values()
    ]
    return {"object": "list", "data": data}


def content_of(answer: Answer) -> str:
    """The list as Markdown; titles cannot act as markup."""
    lines = [
        f"{place}. {markdown_text(item.title, _TITLE_CHARS)} ({markdown_text(item.item_id)})"
        for place, item in enumerate(answer.items, 1)
    ]
    return "\n".join(lines)


def reasoning_of(answer: Answer) -> str | None:
    """The thought with the titles behind its SIDs; None without one."""
    if answer.reading is None:
        return None
    written = []
    for part in answer.reading.parts:
        written.append(part.text)
        if part.titles is not None:
            titles = " / ".join(markdown_text(title, _TITLE_CHARS) for title in part.titles)
            written.append(f" ({titles or 'no item'})")
    return "".join(written)


def completion(chat: ChatQuestion, answer: Answer, served: Served) -> dict[str, Any]:
    """The body of `/v1/chat/completions`; `sidr` holds the whole answer of `/recommend`."""
    message: dict[str, Any] = {"role": "assistant", "content": content_of(answer)}
    reasoning = reasoning_of(answer)
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    return {
        **_head("chat.completion", chat),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _usage(answer, served),
        "sidr": answer.model_dump(mode="json"),
    }


def events(chat: ChatQuestion, answer: Answer, served: Served) -> Iterator[str]:
    """The same as server-sent events: the thought, the list, the end. It was decoded whole: ranks need all of it."""
    head = _head("chat.completion.chunk", chat)

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    reasoning = reasoning_of(answer)
    if reasoning is not None:
        yield chunk({"reasoning_content": reasoning})
    for line in content_of(answer).splitlines(keepends=True):
        yield chunk({"content": line})
    yield chunk({}, "stop")
    if (chat.stream_options or {}).get("include_usage"):
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(answer, served)})}\n\n"
    yield "data: [DONE]\n\n"


def _head(kind: str, chat: ChatQuestion) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": chat.model,
    }


def _usage(answer: Answer, served: Served) -> dict[str, int]:
    """Tokens of the prompt; those of the thought and of the SIDs that are listed."""
    turn = next_item([item.sid for item in answer.history])
    prompt = len(served.loaded.renderer.prompt(turn, DIRECT if answer.reading is None else THINKING))
    written = (answer.reading.tokens if answer.reading else 0) + served.loaded.index.levels * len(answer.items)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
