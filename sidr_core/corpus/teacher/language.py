"""A teacher that is a language model: asks in two rounds, judges each reply, writes from what passed.

What no reply covers (an item or user beyond the profile's limits, a refused reply) is written by the
rules or not at all, as `teacher.rest` says. Deviation from the paper, whose teacher is shown the next item: a thought
is asked for from the history alone, and the facts and candidates that follow from it are put behind the reply by the
rules (`sidr_core.corpus.thoughts`), so that every thought ends in something that can be checked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from sidr_core.corpus import thoughts
from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.quarantine import Quarantined
from sidr_core.corpus.relations import Relations
from sidr_core.corpus.tasks import Row
from sidr_core.corpus.teacher import accept, requests
from sidr_core.corpus.teacher.accept import Verdict
from sidr_core.corpus.teacher.base import Teacher
from sidr_core.corpus.teacher.requests import Job, row_key
from sidr_core.pipeline.stage import Progress
from sidr_core.remote.client import Reply, Request
from sidr_core.settings import Teacher as TeacherSettings

#: Figures that count accepted texts.
ACCEPTED = ("accepted_item_narratives", "accepted_user_narratives", "accepted_thoughts")


class Asks(Protocol):
    """The part of :class:`sidr_core.remote.client.Client` that is used here."""

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]: ...


class LanguageTeacher:
    """Writes what was accepted; all else by `rest`, or "" where there is none.

    Args:
        items: item_id -> narrative. users: :func:`row_key` -> narrative. thoughts: ids of a history -> reply.
        relations: what is put behind a thought.
    """

    def __init__(
        self,
        items: Mapping[str, str],
        users: Mapping[tuple[str, ...], str],
        paths: Mapping[tuple[str, ...], str],
        relations: Relations,
        rest: Teacher | None,
    ) -> None:
        self._items, self._users, self._paths, self._rest = items, users, paths, rest
        self._relations = relations

    def narrate_item(self, item: Item) -> str:
        """The accepted narrative of an item."""
        return self._items.get(item.item_id) or (self._rest.narrate_item(item) if self._rest else "")

    def narrate_user(self, history: Sequence[Item], target: Item) -> str:
        """The accepted narrative of a row."""
        own = self._users.get(row_key(history, target))
        return own or (self._rest.narrate_user(history, target) if self._rest else "")

    def think(self, history: Sequence[Item]) -> str:
        """The accepted reasoning path of a history, with the facts and candidates that follow; not one that states a
        fact which does not hold.
        """
        if path := self._paths.get(tuple(item.item_id for item in history)):
            thought = f"{path} {thoughts.write(self._relations, history)}"
            verdict = thoughts.judge(thought, self._relations, history)
            if verdict.right == verdict.facts:
                return thought
        return self._rest.think(history) if self._rest else ""


@dataclass(frozen=True)
class Written:
    """A teacher, what was quarantined, and figures.

    Args:
        cost: requests, tokens and USD of all replies, whenever they were paid for.
        calls: how many of them this run made and reused; the one thing in which a rerun differs.
        figures: counts of texts and repairs.
        digest: of all replies, in order.
    """

    teacher: LanguageTeacher
    quarantined: tuple[Quarantined, ...]
    cost: Mapping[str, float | int]
    calls: Mapping[str, int]
    figures: Mapping[str, float | int]
    digest: str


def write(
    client: Asks,
    rows: list[Row],
    catalogue: Catalogue,
    settings: TeacherSettings,
    relations: Relations,
    rest: Teacher | None,
    progress: Progress,
) -> Written:
    """Ask about `rows` and the catalogue, and judge the replies.

    Raises:
        BudgetExhausted, TeacherUnavailable, EndpointError: as the client does; what was paid for is in the ledger.
    """
    jobs = requests.first_round(rows, catalogue, settings)
    replies = client.ask([job.request for job in jobs], progress.named("round 1 of 2"))
    following = requests.second_round(jobs, [reply.value for reply in replies], settings)
    replies = [*replies, *client.ask([job.request for job in following], progress.named("round 2 of 2"))]
    judged = _Judged([*jobs, *following], replies)
    teacher = LanguageTeacher(judged.items, judged.users, judged.paths, relations, rest)
    # Items of equal text share a request, which is paid once.
    paid = list({job.request: reply for job, reply in zip([*jobs, *following], replies, strict=True)}.values())
    reused = sum(reply.reused for reply in paid)
    calls = {"teacher_calls": len(paid) - reused, "teacher_reused": reused}
    cost = {
        "requests": len(paid),
        "input_tokens": sum(reply.input_tokens for reply in paid),
        "output_tokens": sum(reply.output_tokens for reply in paid),
        "usd": round(sum(reply.usd for reply in paid), 6),
    }
    digest = hashlib.sha256()  # changes with any reply; replies without a value count by their reason
    for reply in paid:
        text = reply.value.model_dump_json() if reply.value else reply.reason
        digest.update(f"{len(text)}:{text}".encode(errors="replace"))
    return Written(teacher, tuple(judged.quarantined), cost, calls, judged.figures(), digest.hexdigest())


class _Judged:
    """Accepted texts by what they are about, and those in quarantine."""

    def __init__(self, jobs: Sequence[Job], replies: Sequence[Reply]) -> None:
        self.items: dict[str, str] = {}
        self.users: dict[tuple[str, ...], str] = {}
        self.paths: dict[tuple[str, ...], str] = {}
        self.quarantined: list[Quarantined] = []
        self.repairs: Counter[str] = Counter()
        for job, reply in zip(jobs, replies, strict=True):
            if reply.value is None:
                self._quarantine(job, Verdict("", reply.reason or "no_reply"))
                continue
            verdict = _verdict(job, reply.value)
            if verdict is None:
                continue
            self.repairs.update(verdict.repairs)
            if verdict.reason:
                self._quarantine(job, verdict)
            elif job.item:
                self.items[job.item.item_id] = verdict.text
            elif job.row and job.kind == requests.USER_PATH:
                self.paths[tuple(item.item_id for item in job.row.history)] = verdict.text
            elif job.row:
                self.users[row_key(job.row.history, job.row.target)] = verdict.text

    def _quarantine(self, job: Job, verdict: Verdict) -> None:
        item_id, user_id, about = None, None, ""
        if job.item:
            item_id = about = job.item.item_id
        if job.row:
            user_id, about = job.row.user_id, job.row.row_id
        entry = Quarantined(f"{job.kind}:{about}", job.kind, item_id, user_id, verdict.reason, verdict.text)
        self.quarantined.append(entry)

    def figures(self) -> dict[str, float | int]:
        """Counts of accepted, repaired and refused texts."""
        return {
            **dict(zip(ACCEPTED, (len(self.items), len(self.users), len(self.paths)), strict=True)),
            "quarantined": len(self.quarantined),
            **{f"repaired_{name}": count for name, count in sorted(self.repairs.items())},
        }


def _verdict(job: Job, value: BaseModel) -> Verdict | None:
    """The judgement of a reply; None for an analysis, which only leads to a narrative."""
    asked = job.request.user.rpartition("</data>")[2]
    if isinstance(value, requests.ItemNarrative) and job.item:
        return accept.item_narrative(value.narrative, job.item, asked)
    if isinstance(value, requests.UserPath) and job.row:
        return accept.thought(value.reasoning, job.row.history, asked)
    if isinstance(value, requests.UserNarrative) and job.row:
        return accept.user_narrative(value.narrative, job.row.history, job.row.target, asked)
    return None
