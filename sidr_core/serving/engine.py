"""Lists of an engine that answers over HTTP, in the form of OpenAI's chat completions.

Each reference row is one question, the user turn with the SIDs of its history. Of that, the chat template of the
exported tokenizer makes the prompt that our decoder read, and `sidr serve` takes the SIDs. An answer names items by
SID, or by id: one a line, perhaps numbered, perhaps in brackets behind a title; between commas; or as a JSON list.
Several choices (the beams of an engine) are one list, in their order.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidr_core.corpus.prompts import next_item
from sidr_core.errors import SidrError
from sidr_core.pipeline.stage import Progress
from sidr_core.remote.endpoint import host_of, redact
from sidr_core.remote.errors import CallFailed, EndpointError, TeacherUnavailable
from sidr_core.remote.retry import Session, check_body, parse_json, run_pool
from sidr_core.serving.catalogues import Catalogue
from sidr_core.serving.contiguous import Ranges
from sidr_core.settings.base import Endpoint
from sidr_core.sids.tokens import SID_PATTERN, format_sid

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY_VARIABLE = "SIDR_ENGINE_KEY"
_NUMBERED = re.compile(r"\s*(?:\d+[.):]|[-*•])\s+")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
#: Most characters of what an engine wrote that is no item.
_SHOWN = 80


class Reader:
    """Finds the items that a text names.

    Args:
        catalogue: SIDs and the items behind them. ranges: of their tokens.
    """

    def __init__(self, catalogue: Catalogue, ranges: Ranges) -> None:
        codes = map(ranges.codes_of, catalogue.sequences.tolist())
        pairs = zip(codes, catalogue.items, strict=True)
        self._of_sid = {format_sid(each): items for each, items in pairs if each is not None}
        self.item_ids = frozenset(item for items in catalogue.items for item in items)

    def items(self, text: str) -> list[str]:
        """Item ids in order, each once; a SID or a numbered line that is no item stays as it was written."""
        named: list[str] = []
        for line in text.splitlines():
            if sids := SID_PATTERN.findall(line):
                named += [item for sid in sids for item in self._of_sid.get(sid, [sid])]
            else:
                named += self._ids(html.unescape(_ESCAPED.sub(r"\1", line)))
        return list(dict.fromkeys(named))

    def _ids(self, line: str) -> list[str]:
        number = _NUMBERED.match(line)
        bare = line[number.end() if number else 0 :].strip()
        inner = (bare[at + 1 : -1] for at in range(len(bare) - 1, -1, -1) if bare[at] == "(" and bare[-1] == ")")
        for name in (bare, *inner):
            if name in self.item_ids:
                return [name]
        parts = [part.strip("[]\"' ") for part in bare.split(",")]
        if all(part in self.item_ids for part in parts):
            return parts
        return [bare[:_SHOWN]] if number else []


@dataclass(frozen=True)
class Answered:
    """What an engine answered.

    Attributes:
        model: its name there.
        lists: row_id -> what is named, best first; empty where nothing is.
        reasons: row_id -> why its list is empty.
    """

    model: str
    lists: Mapping[str, Sequence[str]]
    reasons: Mapping[str, str]


def ask(
    endpoint: Endpoint,
    reference: Sequence[Mapping[str, Any]],
    reader: Reader,
    fields: Mapping[str, Any],
    progress: Progress,
) -> Answered:
    """Ask for the list of each reference row.

    Args:
        reference: rows with `row_id` and `history`, SIDs oldest first.
        fields: more fields of each question.

    Raises:
        SidrError: the engine refuses, does not answer, or names an item in no answer.
    """
    lists: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}

    async def question(session: Session, row: Mapping[str, Any]) -> None:
        try:
            lists[row["row_id"]] = reader.items(await session.call(lambda: _text(session, row["history"], fields)))
            if not lists[row["row_id"]]:
                reasons[row["row_id"]] = "it names no item"
        except CallFailed as failure:
            lists[row["row_id"]], reasons[row["row_id"]] = [], failure.reason
            raise
        finally:
            progress.tick(len(lists), len(reference), "rows answered")

    _run(endpoint, reference, question, lambda: len(lists) == len(reference) and any(lists.values()))
    if not any(lists.values()):
        raise SidrError(
            f"no answer of {endpoint.model} at {host_of(endpoint)} can be read as a list",
            expected="SIDs such as <a_3><b_17>, or item ids one a line",
            found=f"{len(lists):,} answers, the first: {next(iter(reasons.values()))}",
            fix="look at one answer by hand; serve the exported folder with its own tokenizer and chat template",
        )
    return Answered(endpoint.model, lists, reasons)


async def _text(session: Session, history: Sequence[str], fields: Mapping[str, Any]) -> str:
    """What one question is answered with, a choice a line."""
    endpoint = session.endpoint
    raw = await session.client.chat.completions.with_raw_response.create(
        model=endpoint.model,
        messages=[{"role": "user", "content": next_item(history)}],
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, **fields},
    )
    body = check_body(parse_json(raw.text, endpoint), endpoint)
    try:
        return "\n".join(choice["message"]["content"] or "" for choice in body["choices"])
    except (KeyError, TypeError):
        shown = redact(raw.text, endpoint, _SHOWN)
        raise CallFailed(f"it is no chat completion: {shown}", free=False, retry=False) from None


def served_model(endpoint: Endpoint, wanted: str) -> str:
    """The model to ask: `wanted` if the engine serves it, or else its only one.

    Raises:
        SidrError: it serves several others, or does not say.
    """
    names: list[str] = []

    async def look(session: Session, _: None) -> None:
        names.extend(await session.call(lambda: _names(session.client)))

    _run(endpoint, [None], look, lambda: False)
    if wanted in names or len(names) == 1:
        return wanted if wanted in names else names[0]
    raise SidrError(
        f"it is unclear which model of {host_of(endpoint)} is to be asked",
        expected=f"a model {wanted}, or one alone",
        found=", ".join(names) or "none",
        fix="name it: --model",
    )


async def _names(client: AsyncOpenAI) -> list[str]:
    raw = await client.models.with_raw_response.list()
    try:
        return [str(model["id"]) for model in raw.http_response.json()["data"]]
    except (KeyError, TypeError, ValueError):
        raise CallFailed("/models holds no list of models", free=True, retry=False, fix="name one: --model") from None


def _run(endpoint: Endpoint, items: Iterable[Any], work: Any, settled: Any) -> None:
    """:func:`run_pool`, with advice for a command; requests that failed are no error once all is `settled`."""
    try:
        run_pool(endpoint, items, work)
    except (EndpointError, TeacherUnavailable) as error:
        if isinstance(error, TeacherUnavailable) and settled():
            return
        status = getattr(error, "status", None)
        advice = {401: f"put the key into {KEY_VARIABLE}", 403: f"put the key into {KEY_VARIABLE}"}.get(
            status or 0,
            "see whether the engine runs; --endpoint is its address up to /v1, --model a name of /v1/models, and "
            "--body may hold only fields that it takes",
        )
        raise SidrError(error.what, expected=error.expected, found=error.found, fix=advice) from None
