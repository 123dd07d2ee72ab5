"""The corpus's data card: what is in it, how much, how good, and five examples of each task."""

from __future__ import annotations

import json
from collections.abc import Mapping

import polars as pl

from sidr_core.corpus.tasks import ORDER
from sidr_core.tables.columns import COMPLETION, EXAMPLE_ID, PROMPT, TASK, THOUGHT

_SAMPLES = 5
#: Most characters of a text in a sample.
_SHOWN = 1500
_ABOUT = {
    "sids_to_sid": "history of SIDs → next SID",
    "sid_to_title": "SID → title",
    "title_to_sid": "title → SID",
    "sids_to_title": "history of SIDs → next title",
    "titles_to_title": "history of titles → next title",
    "titles_to_sid": "history of titles → next SID",
    "item_narrative": "text about an item, named by its SID",
    "user_narrative": "text about a user, ending with the next item's SID",
    "general": "a general question → its answer, with its thought if it has one",
    "reasoning": "history of SIDs → thought → next SID",
}


def card(
    corpus: pl.DataFrame,
    metrics: Mapping[str, float | int],
    teacher: str,
    synthetic: bool,
    refused: Mapping[str, int],
) -> str:
    """Markdown of the card.

    Args:
        corpus: a table of :class:`sidr_core.tables.contracts.Corpus`.
        metrics: shown as a table; none may differ between two runs that give the same corpus.
        teacher: who wrote it.
        synthetic: whether the reviews and items below it are generated data.
        refused: reason -> count of what stays out.
    """
    origin = (
        "**Synthetic: the reviews and items that it tells of were generated.**"
        if synthetic
        else "The reviews and items that it tells of are real; the wording is not."
    )
    lines = [
        "# Synthetic corpus",
        "",
        f"{corpus.height:,} training examples, written by {teacher} from train rows only. {origin}",
        "",
        "The teacher sees the next item of a train row. User narratives name it at their end; thoughts never do.",
        "",
        *_counts(corpus),
        "",
        "Sizes are words between blanks and characters: the model's tokenizer is made after the corpus.",
        "",
        "| measure | value |",
        "| --- | ---: |",
        *(f"| {name} | {value:,} |" for name, value in metrics.items() if not name.startswith("examples_")),
        *_refused(refused),
    ]
    for task in ORDER:
        lines += _samples(corpus.filter(pl.col(TASK) == task), task)
    return "\n".join(lines) + "\n"


def _counts(corpus: pl.DataFrame) -> list[str]:
    lines = ["| task | what | examples | words | characters | mean characters |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    by_task = {task: sizes for task, *sizes in sizes_by_task(corpus).iter_rows()}
    for task in ORDER:
        n, words, characters = by_task.get(task, (0, 0, 0))
        mean = characters / n if n else 0
        lines.append(f"| {task} | {_ABOUT[task]} | {n:,} | {words:,} | {characters:,} | {mean:.0f} |")
    return lines


def sizes_by_task(corpus: pl.DataFrame) -> pl.DataFrame:
    """Task, number of examples, words and characters of prompt, thought and completion together."""
    whole = pl.concat_str([pl.col(name).fill_null("") for name in (PROMPT, THOUGHT, COMPLETION)], separator=" ")
    characters = sum((pl.col(name).fill_null("").str.len_chars() for name in (PROMPT, THOUGHT, COMPLETION)), pl.lit(0))
    return corpus.group_by(TASK, maintain_order=True).agg(
        pl.len().alias("examples"),
        whole.str.count_matches(r"\S+").cast(pl.Int64).sum().alias("words"),
        characters.cast(pl.Int64).sum().alias("characters"),
    )


def _refused(refused: Mapping[str, int]) -> list[str]:
    if not refused:
        return []
    counts = (f"| {reason} | {count:,} |" for reason, count in refused.items())
    return ["", "Refused, see `teacher_quarantine`:", "", "| reason | count |", "| --- | ---: |", *counts]


def _samples(examples: pl.DataFrame, task: str) -> list[str]:
    """Evenly spaced examples as JSON lines in a fence: no text of theirs can end it or become markup."""
    if examples.is_empty():
        return []
    step = max(1, examples.height // _SAMPLES)
    chosen = examples.gather_every(step).head(_SAMPLES).select(EXAMPLE_ID, PROMPT, THOUGHT, COMPLETION)
    records = (
        {name: text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…" for name, text in row.items() if text}
        for row in chosen.iter_rows(named=True)
    )
    return ["", f"## {task}", "", "```json", *(json.dumps(record, ensure_ascii=False) for record in records), "```"]
