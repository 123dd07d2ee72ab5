"""The corpus's data card: what is in it, how much, how good, and five examples of each task."""

from __future__ import annotations

import json
from collections.abc import Mapping

import polars as pl

from sidr_core.corpus.tasks import ORDER
from sidr_core.render.grid import markdown_table
from sidr_core.tables.columns import COMPLETION, EXAMPLE_ID, PROMPT, TASK, THOUGHT

_SAMPLES = 5
#: Most characters of a text in a sample.
_SAMPLE_CHARS = 1500
_ABOUT = {
    "sids_to_sid": "history of SIDs → next SID",
    "sid_to_title": "SID → title",
    "title_to_sid": "title → SID",
    "sids_to_title": "history of SIDs → next title",
    "titles_to_title": "history of titles → next title",
    "titles_to_sid": "history of titles → next SID",
    "item_narrative": "text about an item, named by its SID",
    "user_narrative": "text about a user, ending with the next item's SID",
    "sid_to_fact": "SID → a fact that the item states",
    "practice": "history that nobody had → thought, without an answer",
    "general": "a general question → its answer, with its thought if it has one",
    "reasoning": "history of SIDs → thought → next SID",
}


def data_card(
    corpus: pl.DataFrame,
    metrics: Mapping[str, float | int],
    teacher: str,
    synthetic: bool,
    reasons: Mapping[str, int],
) -> str:
    """Markdown of the card.

    Args:
        corpus: a table of :class:`sidr_core.tables.contracts.Corpus`.
        metrics: shown as a table; none may differ between two runs that give the same corpus.
        teacher: who wrote it.
        synthetic: whether the reviews and items below it are generated data.
        reasons: why something stays out -> how often.
    """
    origin = (
        "**Synthetic: the reviews and items that it tells of were generated.**"
        if synthetic
        else "The reviews and items that it tells of are real; the wording is not."
    )
    by_task = {task: sizes for task, *sizes in sizes_by_task(corpus).iter_rows()}
    sizes = []
    for task in ORDER:
        n, words, characters = by_task.get(task, (0, 0, 0))
        mean = characters / n if n else 0
        sizes.append((task, _ABOUT[task], f"{n:,}", f"{words:,}", f"{characters:,}", f"{mean:.0f}"))
    measures = ((name, f"{value:,}") for name, value in metrics.items() if not name.startswith("examples_"))
    lines = [
        "# Synthetic corpus",
        "",
        f"{corpus.height:,} training examples, written by {teacher} from train rows only. {origin}",
        "",
        "User narratives end with the next item of their train row. Thoughts are written from the history alone.",
        "",
        markdown_table(("task", "what", "examples", "words", "characters", "mean characters"), sizes, "llr"),
        "",
        "Sizes are words between blanks and characters: the model's tokenizer is made after the corpus.",
        "",
        markdown_table(("measure", "value"), measures),
    ]
    if reasons:
        counts = ((reason, f"{count:,}") for reason, count in reasons.items())
        lines += ["", "Refused, see `teacher_quarantine`:", "", markdown_table(("reason", "count"), counts)]
    for task in ORDER:
        lines += _samples(corpus.filter(pl.col(TASK) == task), task)
    return "\n".join(lines) + "\n"


def sizes_by_task(corpus: pl.DataFrame) -> pl.DataFrame:
    """Task, number of examples, words and characters of prompt, thought and completion together."""
    text = pl.concat_str([pl.col(name).fill_null("") for name in (PROMPT, THOUGHT, COMPLETION)], separator=" ")
    characters = sum((pl.col(name).fill_null("").str.len_chars() for name in (PROMPT, THOUGHT, COMPLETION)), pl.lit(0))
    return corpus.group_by(TASK, maintain_order=True).agg(
        pl.len().alias("examples"),
        text.str.count_matches(r"\S+").cast(pl.Int64).sum().alias("words"),
        characters.cast(pl.Int64).sum().alias("characters"),
    )


def _samples(examples: pl.DataFrame, task: str) -> list[str]:
    """Evenly spaced examples as JSON lines in a fence: no text of theirs can end it or become markup."""
    if examples.is_empty():
        return []
    step = max(1, examples.height // _SAMPLES)
    chosen = examples.gather_every(step).head(_SAMPLES).select(EXAMPLE_ID, PROMPT, THOUGHT, COMPLETION)
    records = (
        {name: text if len(text) <= _SAMPLE_CHARS else f"{text[:_SAMPLE_CHARS]}…" for name, text in row.items() if text}
        for row in chosen.iter_rows(named=True)
    )
    return ["", f"## {task}", "", "```json", *(json.dumps(record, ensure_ascii=False) for record in records), "```"]
