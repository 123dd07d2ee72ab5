"""The corpus's data card: what is in it, how much, and five examples of each task."""

from __future__ import annotations

import json
from collections.abc import Mapping

import polars as pl

from sidr_core.columns import COMPLETION, EXAMPLE_ID, PROMPT, TASK, THOUGHT
from sidr_core.corpus.tasks import ORDER

_SAMPLES = 5
_ABOUT = {
    "sids_to_sid": "history of SIDs → next SID",
    "sid_to_title": "SID → title",
    "title_to_sid": "title → SID",
    "sids_to_title": "history of SIDs → next title",
    "titles_to_title": "history of titles → next title",
    "titles_to_sid": "history of titles → next SID",
    "item_narrative": "text about an item, named by its SID",
    "user_narrative": "text about a user, ending with the next item's SID",
    "reasoning": "history of SIDs → thought → next SID",
}


def card(corpus: pl.DataFrame, metrics: Mapping[str, float | int], teacher: str, synthetic: bool) -> str:
    """Markdown of the card.

    Args:
        corpus: a table of :class:`sidr_core.contracts.Corpus`.
        metrics: shown as a table.
        synthetic: whether the reviews and items below it are generated data.
    """
    origin = (
        "**Synthetic: the reviews and items that it tells of were generated.**"
        if synthetic
        else "The reviews and items that it tells of are real; the wording is not."
    )
    lines = [
        "# Synthetic corpus",
        "",
        f"{corpus.height:,} training examples, written by the teacher `{teacher}` from train rows only. {origin}",
        "",
        "The teacher sees the next item of a train row. User narratives name it at their end; thoughts never do.",
        "",
        *_counts(corpus),
        "",
        "| measure | value |",
        "| --- | ---: |",
        *(f"| {name} | {value:,} |" for name, value in metrics.items()),
    ]
    for task in ORDER:
        lines += _samples(corpus.filter(pl.col(TASK) == task), task)
    return "\n".join(lines) + "\n"


def _counts(corpus: pl.DataFrame) -> list[str]:
    lines = ["| task | what | examples | mean characters |", "| --- | --- | ---: | ---: |"]
    characters = sum(pl.col(name).fill_null("").str.len_chars() for name in (PROMPT, THOUGHT, COMPLETION))
    sizes = corpus.group_by(TASK).agg(pl.len().alias("n"), characters.mean().alias("mean"))  # type: ignore[union-attr]
    by_task = {task: (n, mean) for task, n, mean in sizes.iter_rows()}
    for task in ORDER:
        n, mean = by_task.get(task, (0, 0.0))
        lines.append(f"| {task} | {_ABOUT[task]} | {n:,} | {mean:.0f} |")
    return lines


def _samples(examples: pl.DataFrame, task: str) -> list[str]:
    """Evenly spaced examples as JSON lines in a fence: no text of theirs can end it or become markup."""
    if examples.is_empty():
        return []
    step = max(1, examples.height // _SAMPLES)
    chosen = examples.gather_every(step).head(_SAMPLES).select(EXAMPLE_ID, PROMPT, THOUGHT, COMPLETION)
    records = ({k: v for k, v in row.items() if v not in (None, "")} for row in chosen.iter_rows(named=True))
    return ["", f"## {task}", "", "```json", *(json.dumps(record, ensure_ascii=False) for record in records), "```"]
