"""What must never be in the corpus, checked on the finished table and not on the code that made it.

User narratives end with the true next item. That is acceptable on train rows
only (docs/method.md, "Corpus" and "Pitfalls"). Each guard returns the example ids that break its promise, with the
reason; an empty list is a pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import polars as pl

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.prompts import TAG, item_titled, title_of
from sidr_core.corpus.relations import Relations
from sidr_core.corpus.tasks import ITEM_TASKS, PRACTICE_TASK, Example, Row
from sidr_core.corpus.thoughts import judge
from sidr_core.settings import GENERAL_TASK
from sidr_core.sids.tokens import SID_PATTERN
from sidr_core.tables.columns import COMPLETION, EXAMPLE_ID, PROMPT, TASK, THOUGHT

Violation = tuple[str, str]  # example id, reason


def examples_of(corpus: pl.DataFrame) -> Iterator[Example]:
    """The rows of a corpus table."""
    return (Example(**row) for row in corpus.iter_rows(named=True))


def not_from_train(corpus: pl.DataFrame, rows: Iterable[Row], catalogue: Catalogue) -> list[Violation]:
    """Examples that do not come from a train row, or say more than that row.

    An example about a user must carry the user, position and target of one train row; its SIDs and its
    titles must be those of that row's history and target. An example without a user must belong to a task
    about items alone and hold no SID but its own item's. A general or a practice example is of neither.
    """
    known = _by_key(rows)
    violations: list[Violation] = []
    for example in examples_of(corpus):
        row = known.get(_key(example))
        if example.task in (GENERAL_TASK, PRACTICE_TASK):
            about = (example.user_id, example.position, example.item_id)
            named = any(one is not None for one in about)
            reason = f"an example of task {example.task} names a user or an item" if named else ""
        elif example.task in ITEM_TASKS:
            reason = _foreign_to_item(example, catalogue)
        else:
            reason = _foreign_to_row(example, row) if row else "no train row has this user, position and target"
        if reason:
            violations.append((example.example_id, reason))
    return violations


def _foreign_to_item(example: Example, catalogue: Catalogue) -> str:
    if example.user_id is not None or example.position is not None:
        return "an example about an item names a user"
    if example.item_id is None or example.item_id not in catalogue:
        return "the item is not in the catalogue"
    text = "\n".join((example.prompt, example.thought or "", example.completion))
    foreign = set(SID_PATTERN.findall(text)) - {catalogue[example.item_id].sid}
    return f"{min(foreign)} is another item's" if foreign else ""


def _foreign_to_row(example: Example, row: Row) -> str:
    history, target = {item.sid for item in row.history}, row.target.sid
    if foreign := set(SID_PATTERN.findall(example.prompt)) - history:
        return f"the prompt holds {min(foreign)}, which is not in the history"
    if foreign := set(SID_PATTERN.findall(example.completion)) - history - {target}:  # thoughts: see `leaks`
        return f"{min(foreign)} is neither in the history nor the target"
    listed = [line[2:] for line in example.prompt.split("\n") if line.startswith("- ")]
    if set(listed) - {item.short_title for item in row.history}:
        return "the prompt lists a title that is not in the history"
    if example.task in ("sids_to_title", "titles_to_title") and example.completion != row.target.full_title:
        return "the answer is not the target's title"
    return ""


def leaks(corpus: pl.DataFrame, rows: Iterable[Row], relations: Relations) -> list[Violation]:
    """Thoughts that hold more than their history gives, and translations that hold their answer.

    What a thought may hold: items of the history, facts that hold for the history, and candidates to which the
    history leads (`Relations.candidates`), which are found without a look at the target.
    """
    known, items = _by_key(rows), relations.catalogue
    violations: list[Violation] = []
    for example in examples_of(corpus):
        reason = _translation_leak(example)
        if example.task == PRACTICE_TASK:
            carried = [items.carrying(sid) for sid in SID_PATTERN.findall(example.prompt)]
            if all(len(carriers) == 1 for carriers in carried):  # of a shared SID, nothing tells whose facts are meant
                reason = _thought_leak(example.thought or "", [carriers[0] for carriers in carried], relations)
        elif example.thought is not None and example.task != GENERAL_TASK:
            row = known.get(_key(example))
            reason = _thought_leak(example.thought, row.history, relations) if row else "a thought without a train row"
        if reason:
            violations.append((example.example_id, reason))
    return violations


def _by_key(rows: Iterable[Row]) -> dict[tuple[str | None, int | None, str | None], Row]:
    return {(row.user_id, row.position, row.target.item_id): row for row in rows}


def _key(example: Example) -> tuple[str | None, int | None, str | None]:
    return example.user_id, example.position, example.item_id


def _translation_leak(example: Example) -> str:
    """A translation prompt holds its fixed wording and the one thing to translate, nothing else."""
    if example.task == "sid_to_title":
        sids = SID_PATTERN.findall(example.prompt)
        if len(sids) != 1 or example.prompt != title_of(sids[0]):
            return "the prompt holds more than the SID"
    if example.task == "title_to_sid":
        if SID_PATTERN.findall(example.prompt):
            return "the prompt holds a SID"
        if not example.prompt.startswith(item_titled("")):
            return "the prompt has another form"
    return ""


def _thought_leak(thought: str, history: Sequence[Item], relations: Relations) -> str:
    candidates = {candidate.item.sid for candidate in relations.candidates(history)}
    if foreign := set(SID_PATTERN.findall(thought)) - {item.sid for item in history} - candidates:
        return f"the thought names {min(foreign)}, which is neither in the history nor follows from it"
    verdict = judge(thought, relations, history)
    if verdict.right < verdict.facts:
        return f"{verdict.facts - verdict.right} of {verdict.facts} facts of the thought do not hold for the history"
    if verdict.real < verdict.candidates:
        return f"{verdict.candidates - verdict.real} of {verdict.candidates} candidates have another title or SID"
    return ""


def unknown_sids(corpus: pl.DataFrame, sids: Iterable[str]) -> list[Violation]:
    """Examples in which any angle bracket is not part of a whole SID of the codebook.

    That covers SIDs of no item, torn SIDs, think tags and other special tokens from untrusted text. General
    examples may hold angle brackets (`a < b`), but no tag of any kind, SIDs included.
    """
    known = set(sids)
    violations: list[Violation] = []
    for column in (PROMPT, THOUGHT, COMPLETION):
        for example_id, task, text in corpus.select(EXAMPLE_ID, TASK, column).drop_nulls().iter_rows():
            if task == GENERAL_TASK:
                match = TAG.search(text)
                rest = match[0] if match else ""
            else:
                rest = SID_PATTERN.sub(lambda match: "" if match[0] in known else match[0], text)
            if bracket := re.search(r"[<>]", rest):
                violations.append((example_id, f"{column} holds {rest[bracket.start() :][:40]!r}"))
    return violations
