"""General reasoning mixed into stage 1, so that the model does not unlearn language (docs/method.md, "Corpus").

The file is JSON lines; `messages` is a list of `{role, content}` or a string that holds one (JSON or
Python syntax, read by a literal parser); a content may be a list of parts with `text`. Deviations from the
paper: of a conversation the first exchange is taken (system and user turns up to the first answer), for
examples have one user turn; a `<think>` block of the answer becomes the example's thought; what is too
long is left out, not cut; anything that could be a special token or a SID is taken apart.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidr_core.corpus.general_file import located
from sidr_core.corpus.prompts import neutralise, neutralise_lines
from sidr_core.corpus.quarantine import Quarantined
from sidr_core.corpus.tasks import CHAT, Example
from sidr_core.errors import InputError
from sidr_core.pipeline.stage import Progress
from sidr_core.reviews.text import literal
from sidr_core.settings import GENERAL_TASK, General

if TYPE_CHECKING:
    pass

#: Longest line that is parsed, as a multiple of `max_chars` (escapes and later turns take room), and at least.
_LINE_FACTOR, _LINE_LEAST = 8, 65_536
#: Most quarantined lines that are kept for inspection; all are counted.
_MOST_QUARANTINED = 1000

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")


@dataclass(frozen=True)
class Mixed:
    """Chosen examples in file order; `counts` says how many lines were read, chosen and left out, and why."""

    examples: tuple[Example, ...]
    quarantined: tuple[Quarantined, ...]
    counts: Mapping[str, int]


NONE = Mixed((), (), {})


class _Unusable(Exception):
    """Carries the reason why a line is left out."""


def read(settings: General, seed: int, progress: Progress) -> Mixed:
    """Draw at most `settings.rows` usable conversations; memory holds no more than these.

    A line's lot depends on the seed and its number alone, so one line more does not reshuffle the others.

    Raises:
        InputError: the file is missing, or no line of it is usable.
    """
    path = located(settings)
    drawn: list[tuple[int, int, Example]] = []  # (-lot, -line, example): a heap whose top has the worst lot
    quarantined: list[Quarantined] = []
    counts: Counter[str] = Counter()
    size = path.stat().st_size
    for number, line, end in _lines(path, settings):
        counts["general_lines"] += 1
        progress.tick(end, size, "bytes of general examples")
        try:
            example = _example(number, line, settings.max_chars)
        except _Unusable as unusable:
            counts[f"general_{unusable}"] += 1
            if len(quarantined) < _MOST_QUARANTINED:
                text = neutralise((line or b"").decode(errors="replace"), 500)
                quarantined.append(Quarantined(f"general:{number}", GENERAL_TASK, None, None, str(unusable), text))
            continue
        digest = hashlib.blake2b(f"{seed}|{number}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), -number, example)
        if len(drawn) < settings.rows:
            heapq.heappush(drawn, entry)
        else:
            heapq.heappushpop(drawn, entry)
    if not drawn:
        raise InputError(
            "no general example could be read",
            expected='JSON lines with `messages`: a user turn and then an assistant turn, such as {"messages": '
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
            found=", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items())) or "an empty file",
            fix="correct teacher.general.path, or raise teacher.general.max_chars",
        )
    chosen = tuple(example for _, _, example in sorted(drawn, key=lambda entry: -entry[1]))
    return Mixed(chosen, tuple(quarantined), dict(sorted(counts.items())))


def _lines(path: Path, settings: General) -> Iterator[tuple[int, bytes | None, int]]:
    """Line numbers from 1, the lines that are not blank (None: too long to look at), and where they end in the file."""
    most = max(_LINE_LEAST, _LINE_FACTOR * settings.max_chars)
    with path.open("rb") as handle:
        number = 0
        while line := handle.readline(most + 1):
            number += 1
            if len(line) > most and not line.endswith(b"\n"):
                while (more := handle.readline(most)) and not more.endswith(b"\n"):
                    pass
                yield number, None, handle.tell()
            elif line.strip():
                yield number, line, handle.tell()


def _example(number: int, line: bytes | None, most: int) -> Example:
    if line is None:
        raise _Unusable("too_long")
    asked, answer = _exchange(_messages(line))
    if len(asked) + len(answer) > most:
        raise _Unusable("too_long")
    match = _THOUGHT.fullmatch(answer)  # an answer without a think block has no thought
    thought, answer = (match[1], match[2]) if match else ("", answer)
    if _THINK_TAG.search(thought) or _THINK_TAG.search(answer):
        raise _Unusable("torn_thought")
    parts = [neutralise_lines(text, most) for text in (asked, thought, answer)]
    if not parts[0] or not parts[2]:
        raise _Unusable("no_exchange")
    return Example(f"{GENERAL_TASK}:{number}", GENERAL_TASK, CHAT, parts[0], parts[1] or None, parts[2])


def _messages(line: bytes) -> list[Any]:
    """The list of turns of a line, without ever executing anything in it."""
    try:
        record = json.loads(line)
        messages = record["messages"]
        if isinstance(messages, str):
            try:
                messages = json.loads(messages)
            except ValueError:
                messages = literal(messages)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Unusable("not_readable") from None
    if not isinstance(messages, list):
        raise _Unusable("not_readable")
    return messages


def _exchange(messages: Iterable[Any]) -> tuple[str, str]:
    """System and user turns up to the first answer, and that answer."""
    asked: list[str] = []
    spoken = False
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        text = _content(message.get("content")) if isinstance(message, dict) else ""
        if role == "assistant":
            if spoken:
                return "\n\n".join(asked), text
            raise _Unusable("no_exchange")
        if role in ("system", "user") and text.strip():
            asked.append(text.strip())
            spoken = spoken or role == "user"
    raise _Unusable("no_exchange")


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
