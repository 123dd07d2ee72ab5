"""The alignment tasks and the reasoning task, as tables of examples (docs/method.md, "Stage 1: alignment").

Deviations from the paper:
- Titles are neutralised and capped (60 characters in a history, 120 alone), unquoted, one a line.
- Translation keeps every right answer: one example per distinct (title, SID) pair, so where items share
  a SID or a title the loss asks for an even mix of the right answers; the base code lets one answer
  overwrite the others. A title or SID with more than four right answers names nothing and is dropped.
- One user narrative per user (the newest train row), not per row: an older row's narrative is its beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from sidr_core.corpus import prompts
from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.stated import StatedFacts
from sidr_core.corpus.teacher.base import Teacher
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import GENERAL_TASK, REASONING_TASK, TASKS
from sidr_core.tables.columns import HISTORY, POSITION, ROW_ID, TARGET, USER_ID
from sidr_core.tables.contracts import Corpus

#: More right answers than this and a title or SID is left out of translation.
MOST_ANSWERS = 4
#: Tasks about an item alone: their examples have no user.
ITEM_TASKS = ("sid_to_title", "title_to_sid", "item_narrative", "sid_to_fact")
CHAT, TEXT, THOUGHT = "chat", "text", "thought"
PRACTICE_TASK = "practice"
ORDER = (*TASKS, REASONING_TASK)


@dataclass(frozen=True)
class Row:
    """One train row with its items looked up; `history` is oldest first."""

    row_id: str
    user_id: str
    position: int
    history: tuple[Item, ...]
    target: Item


@dataclass(frozen=True)
class Example:
    """One training example; the fields are the columns of :class:`Corpus`."""

    example_id: str
    task: str
    kind: str
    prompt: str
    thought: str | None
    completion: str
    user_id: str | None = None
    position: int | None = None
    item_id: str | None = None


def read_rows(train: pl.DataFrame, catalogue: Catalogue) -> list[Row]:
    """Train rows in table order.

    Raises:
        InputError: a row names an item outside the catalogue.
    """
    columns = train.select(ROW_ID, USER_ID, POSITION, HISTORY, TARGET)
    return [
        Row(row_id, user_id, position, tuple(catalogue[item] for item in history), catalogue[target])
        for row_id, user_id, position, history, target in columns.iter_rows()
    ]


def newest(rows: list[Row], per_user: int) -> list[Row]:
    """The `per_user` rows of highest position of each user (0: all), in the order of `rows`."""
    if per_user == 0:
        return rows
    by_user: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_user.setdefault(row.user_id, []).append(index)
    newest_of = (sorted(of_user, key=lambda index: rows[index].position)[-per_user:] for of_user in by_user.values())
    return [rows[index] for index in sorted(index for of_user in newest_of for index in of_user)]


def sids_to_sid(rows: Iterable[Row]) -> Iterator[Example]:
    """History SIDs -> next SID."""
    return (_of_row("sids_to_sid", row, prompts.next_item(_sids(row)), row.target.sid) for row in rows)


def sids_to_title(rows: Iterable[Row]) -> Iterator[Example]:
    """History SIDs -> next title; a target whose title cannot be shown is left out."""
    named = (row for row in rows if row.target.full_title)
    return (_of_row("sids_to_title", row, prompts.next_title(_sids(row)), row.target.full_title) for row in named)


def titles_to_title(rows: Iterable[Row]) -> Iterator[Example]:
    """History titles -> next title; a target whose title cannot be shown is left out."""
    named = (row for row in rows if row.target.full_title)
    return (
        _of_row("titles_to_title", row, prompts.next_title_after(_titles(row)), row.target.full_title) for row in named
    )


def titles_to_sid(rows: Iterable[Row]) -> Iterator[Example]:
    """History titles -> next SID."""
    return (_of_row("titles_to_sid", row, prompts.next_item_after(_titles(row)), row.target.sid) for row in rows)


def translation_pairs(catalogue: Catalogue) -> list[Item]:
    """One item per distinct (title, SID), in catalogue order, without those that name nothing."""
    pairs: dict[tuple[str, str], Item] = {}
    for item in catalogue.values():
        if item.full_title:
            pairs.setdefault((item.full_title, item.sid), item)
    titles = Counter(title for title, _ in pairs)
    sids = Counter(sid for _, sid in pairs)
    return [item for (title, sid), item in pairs.items() if titles[title] <= MOST_ANSWERS and sids[sid] <= MOST_ANSWERS]


def sid_to_title(pairs: Iterable[Item]) -> Iterator[Example]:
    """SID -> title."""
    return (_of_item("sid_to_title", item, CHAT, prompts.title_of(item.sid), item.full_title) for item in pairs)


def title_to_sid(pairs: Iterable[Item]) -> Iterator[Example]:
    """Title -> SID."""
    return (_of_item("title_to_sid", item, CHAT, prompts.item_titled(item.full_title), item.sid) for item in pairs)


def sid_to_fact(pairs: Iterable[Item], facts: StatedFacts) -> Iterator[Example]:
    """SID -> each fact that the item states."""
    for item in pairs:
        for name, value in facts.of[item.item_id].items():
            example_id = f"sid_to_fact:{item.item_id}:{name}"
            prompt = prompts.fact_of(name, item.sid)
            yield Example(example_id, "sid_to_fact", CHAT, prompt, None, value, item_id=item.item_id)


def practice(histories: Iterable[Sequence[Item]], teacher: Teacher) -> Iterator[Example]:
    """SIDs of a history that nobody had -> the thought about it; there is no answer."""
    for number, history in enumerate(histories):
        if thought := teacher.think(history):
            prompt = prompts.next_item([item.sid for item in history])
            yield Example(f"{PRACTICE_TASK}:{number}", PRACTICE_TASK, THOUGHT, prompt, thought, "")


def item_narratives(catalogue: Catalogue, teacher: Teacher) -> Iterator[Example]:
    """One document per item that the teacher writes about."""
    for item in catalogue.values():
        if narrative := teacher.narrate_item(item):
            yield _of_item("item_narrative", item, TEXT, "", narrative)


def user_narratives(rows: Iterable[Row], teacher: Teacher) -> Iterator[Example]:
    """One document per row that the teacher writes about."""
    for row in rows:
        if narrative := teacher.narrate_user(row.history, row.target):
            yield _of_row("user_narrative", row, "", narrative, TEXT)


def reasoning(rows: Iterable[Row], teacher: Teacher) -> Iterator[Example]:
    """History SIDs -> thought -> next SID, under the very prompt of `sids_to_sid`."""
    for row in rows:
        thought = teacher.think(row.history)
        if thought:
            yield _of_row(REASONING_TASK, row, prompts.next_item(_sids(row)), row.target.sid, CHAT, thought)


def frame_of(examples: Iterable[Example]) -> pl.DataFrame:
    """Examples as a table of the corpus contract."""
    columns = tuple(Corpus.to_schema().columns)
    schema = dict.fromkeys(columns, pl.String()) | {POSITION: pl.Int32()}
    rows = [tuple(getattr(example, name) for name in columns) for example in examples]
    return pl.DataFrame(rows, schema=schema, orient="row")


def corpus(
    rows: list[Row],
    catalogue: Catalogue,
    teacher: Teacher,
    traced: list[Row],
    narrated: list[Row] | None,
    narrate_items: bool,
    facts: StatedFacts,
    practised: Iterable[Sequence[Item]],
    general: Iterable[Example],
    progress: Progress,
    unread: Collection[str] = (),
) -> pl.DataFrame:
    """All examples of the tasks that are read, by task in the order of `settings.TASKS` and then by row.

    Args:
        traced: rows that get a reasoning trace. narrated: rows that get a narrative; None for none.
        facts: what the items state. practised: histories to practise thoughts on.
        general: the examples of task `general`. unread: tasks to leave out.
    """
    pairs = translation_pairs(catalogue)
    examples: dict[str, Iterator[Example]] = {
        "sids_to_sid": sids_to_sid(rows),
        "sid_to_title": sid_to_title(pairs),
        "title_to_sid": title_to_sid(pairs),
        "sids_to_title": sids_to_title(rows),
        "titles_to_title": titles_to_title(rows),
        "titles_to_sid": titles_to_sid(rows),
        "item_narrative": item_narratives(catalogue, teacher) if narrate_items else iter(()),
        "user_narrative": user_narratives(narrated or (), teacher),
        "sid_to_fact": sid_to_fact(pairs, facts),
        PRACTICE_TASK: practice(practised, teacher),
        GENERAL_TASK: iter(general),
        REASONING_TASK: reasoning(traced, teacher),
    }
    frames = []
    written = [task for task in ORDER if task not in unread]
    for number, task in enumerate(written, start=1):
        frames.append(frame_of(examples[task]))
        progress.tick(number, len(written), "tasks", f"{frames[-1].height:,} examples of {task}")
    return pl.concat(frames)


def _sids(row: Row) -> list[str]:
    return [item.sid for item in row.history]


def _titles(row: Row) -> list[str]:
    return [item.short_title for item in row.history]


def _of_row(task: str, row: Row, prompt: str, completion: str, kind: str = CHAT, thought: str | None = None) -> Example:
    return Example(
        f"{task}:{row.row_id}", task, kind, prompt, thought, completion, row.user_id, row.position, row.target.item_id
    )


def _of_item(task: str, item: Item, kind: str, prompt: str, completion: str) -> Example:
    return Example(f"{task}:{item.item_id}", task, kind, prompt, None, completion, item_id=item.item_id)
