"""The `synthetic_corpus` stage: everything that ties SIDs to language, from train rows only.

Deviations from the paper: the teacher is made of rules, so there is no paid call and no general-reasoning
mix-in (METHOD 4.4); tasks and thoughts deviate as `tasks.py` and `teacher/rules.py` say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from sidr_core import tables
from sidr_core.columns import COMPLETION, HISTORY, TARGET, TASK, THOUGHT
from sidr_core.contracts import Corpus
from sidr_core.corpus import guards, tasks
from sidr_core.corpus.card import card
from sidr_core.corpus.catalogue import Catalogue, all_words
from sidr_core.corpus.teacher.base import Teacher
from sidr_core.corpus.teacher.facts import learn_facts
from sidr_core.corpus.teacher.rules import RulesTeacher
from sidr_core.errors import InputError
from sidr_core.settings import REASONING_TASK
from sidr_core.sids.tokens import SID_PATTERN
from sidr_core.stage import Check, Inputs, Progress, Report

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `synthetic_corpus.parquet` and `card.md`.

    Raises:
        InputError: no train rows, or a row or item that the other tables do not know.
    """
    train = tables.read(inputs["interactions"].path("train.parquet"))
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    catalogue = Catalogue.read(tables.read(inputs["interactions"].path("items.parquet")), codebook)
    if train.is_empty():
        raise InputError(
            "there are no train rows to write a corpus from",
            expected="at least one row in train.parquet",
            found="none",
            do="choose a later snapshot or weaker `filters`",
        )
    rows = tasks.read_rows(train, catalogue)
    settings = config.teacher
    facts = learn_facts(catalogue, zip(train[HISTORY].to_list(), train[TARGET].to_list(), strict=True))
    progress.say(f"{len(facts.weight):,} aspects in {len(catalogue):,} items, {len(rows):,} train rows")
    teacher: Teacher = RulesTeacher(facts, settings.seed)
    corpus = tasks.corpus(
        rows,
        catalogue,
        teacher,
        traced=tasks.newest(rows, settings.traces_per_user),
        narrated=tasks.newest(rows, 1) if settings.user_narratives else [],
        narrate_items=settings.item_narratives,
        progress=progress,
    )
    tables.write(corpus, out_dir / "synthetic_corpus.parquet", Corpus)
    metrics = measure(corpus, rows, catalogue, teacher.frame_words)
    text = card(corpus, metrics, settings.kind, inputs.synthetic)
    (out_dir / "card.md").write_text(text, encoding="utf-8")
    checks = (
        _check("train_rows_only", corpus, guards.not_from_train(corpus, rows, catalogue)),
        _check("no_leak", corpus, guards.leaks(corpus, rows, teacher.frame_words)),
        _check("known_sids", corpus, guards.unknown_sids(corpus, codebook["sid"].to_list())),
    )
    return Report(metrics=metrics, checks=checks, markdown={"card": text})


def _check(name: str, corpus: pl.DataFrame, found: Sequence[guards.Violation]) -> Check:
    detail = f"{corpus.height:,} examples, {len(found):,} violations"
    if found:
        detail += f"; first: {found[0][0]}: {found[0][1]}"
    return Check(name, not found, detail)


def measure(
    corpus: pl.DataFrame, rows: Sequence[tasks.Row], catalogue: Catalogue, frame_words: frozenset[str]
) -> dict[str, float | int]:
    """Counts and quality figures of a corpus.

    `thoughts_restating` is the share of thoughts that draw nothing from the history beyond its newest
    item; `thoughts_open` of those whose target shares no aspect with the history. `hindsight_share` is
    the mean share of the target's own words that its thought tells (METHOD 4.5) and must be 0.
    """
    counts: Mapping[str, int] = Counter(corpus[TASK].to_list())
    metrics: dict[str, float | int] = {f"examples_{task}": counts.get(task, 0) for task in tasks.ORDER}
    metrics["titles_ambiguous"] = _ambiguous(corpus)
    metrics["sid_coverage"] = round(_sid_coverage(corpus, catalogue), 4)
    narratives = corpus.filter(pl.col(TASK) == "item_narrative")
    metrics["item_narratives_naming_title"] = sum(
        guards.names_title(text, catalogue[item_id])
        for item_id, text in narratives.select("item_id", COMPLETION).iter_rows()
    )
    traced = corpus.filter(pl.col(TASK) == REASONING_TASK)
    known = {f"{REASONING_TASK}:{row.row_id}": row for row in rows}
    pairs = [(known[key], text) for key, text in traced.select("example_id", THOUGHT).iter_rows()]
    return metrics | _thought_metrics(pairs, frame_words)


def _thought_metrics(pairs: Sequence[tuple[tasks.Row, str]], frame_words: frozenset[str]) -> dict[str, float]:
    if not pairs:
        return {}
    lengths = sorted(len(text.split()) for _, text in pairs)
    bigrams = Counter(pair for _, text in pairs for pair in zip(text.split(), text.split()[1:], strict=False))
    restating = sum(_restates(row, text, frame_words) for row, text in pairs)
    hindsight = sum(guards.hindsight_share(text, row.history, row.target, frame_words) for row, text in pairs)
    shared = sum(bool(set(row.target.words) & set(all_words(text))) for row, text in pairs)
    return {
        "thought_words_mean": round(sum(lengths) / len(lengths), 2),
        "thought_words_p95": lengths[int(0.95 * (len(lengths) - 1))],
        "thought_distinct_bigrams": round(len(bigrams) / max(1, bigrams.total()), 4),
        "thoughts_restating": round(restating / len(pairs), 4),
        "thoughts_open": round(1 - shared / len(pairs), 4),
        "hindsight_share": round(hindsight / len(pairs), 6),
    }


def _restates(row: tasks.Row, thought: str, frame_words: frozenset[str]) -> bool:
    """Whether every SID and word of the thought is the newest item's own."""
    newest = row.history[-1]
    sids = set(SID_PATTERN.findall(thought))
    return sids <= {newest.sid} and set(all_words(thought)) - frame_words <= set(newest.words)


def _sid_coverage(corpus: pl.DataFrame, catalogue: Catalogue) -> float:
    """Share of the catalogue's SIDs that occur somewhere in the corpus."""
    found: set[str] = set()
    for text in (*corpus["prompt"], *corpus[COMPLETION]):
        found.update(SID_PATTERN.findall(text))
    known = {item.sid for item in catalogue.values()}
    return len(found & known) / len(known)


def _ambiguous(corpus: pl.DataFrame) -> int:
    """How many title -> SID prompts have several right answers."""
    asked = corpus.filter(pl.col(TASK) == "title_to_sid")
    return sum(count > 1 for count in Counter(asked["prompt"].to_list()).values())
