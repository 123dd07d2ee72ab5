"""The stage `synthetic_corpus`: everything that ties SIDs to language, from train rows only.

With `teacher.kind: rules` the output is a function of the stage's inputs. With `openai` it also depends on
the replies in `$SIDR_HOME/ledger.sqlite`: the fingerprint covers what is asked (rows, items, settings), not
what was answered. One ledger gives one corpus, byte for byte, whether its replies are paid for now or were
reused; another ledger gives another corpus under the same fingerprint, distinguished by the metric
`replies_digest` and by the content digest that the stages below use.

Deviations from the paper: see `tasks`, `general`, `teacher/rules`, `teacher/requests` and `teacher/language`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from sidr_core.corpus import general, guards, practice, quality, tasks
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.data_card import data_card, sizes_by_task
from sidr_core.corpus.estimate import teacher_client
from sidr_core.corpus.figure import draw
from sidr_core.corpus.quarantine import quarantine_table
from sidr_core.corpus.relations import Relations, learn_relations
from sidr_core.corpus.teacher import language
from sidr_core.corpus.teacher.accept import spells_title
from sidr_core.corpus.teacher.base import Teacher
from sidr_core.corpus.teacher.facts import learn_facts
from sidr_core.corpus.teacher.language import Written
from sidr_core.corpus.teacher.rules import RulesTeacher
from sidr_core.errors import InputError
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.settings import GENERAL_TASK
from sidr_core.sids.tokens import SID_PATTERN
from sidr_core.tables import files as tables
from sidr_core.tables.columns import COMPLETION, HISTORY, ITEM_ID, PROMPT, TARGET, TASK
from sidr_core.tables.contracts import Corpus, TeacherQuarantine

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig
    from sidr_core.settings import Teacher as TeacherSettings


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `synthetic_corpus.parquet`, `teacher_quarantine.parquet`, `card.md` and `corpus.png`.

    Raises:
        InputError: no train rows, a row or item that the other tables do not know, or no usable general example.
        BudgetExhausted, TeacherUnavailable, EndpointError: the teacher stopped; nothing is published, its
            replies so far stay in the ledger, and the next run goes on from there.
    """
    train = tables.read(inputs["interactions"].path("train.parquet"))
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    catalogue = Catalogue.read(tables.read(inputs["interactions"].path("items.parquet")), codebook)
    if train.is_empty():
        raise InputError(
            "there are no train rows to write a corpus from",
            expected="at least one row in train.parquet",
            found="none",
            fix="choose a later snapshot or weaker `filters`",
        )
    unread = config.unread_tasks or ()
    settings = config.teacher.without(unread)
    # Before the teacher: a wrong file should cost nothing.
    chat = (
        general.read(settings.general, settings.seed, progress)
        if settings.general and GENERAL_TASK not in unread
        else general.NONE
    )
    rows = tasks.read_rows(train, catalogue)
    facts = learn_facts(catalogue, zip(train[HISTORY].to_list(), train[TARGET].to_list(), strict=True))
    progress.say(f"{len(facts.weight):,} aspects in {len(catalogue):,} items, {len(rows):,} train rows")
    relations = learn_relations(catalogue, [(row.history, row.target) for row in rows])
    progress.say(f"{sum(map(len, relations.shares.values())):,} relations between stated facts")
    rules = RulesTeacher(facts, relations, settings.seed, settings.form, drop_open=settings.open_thoughts == "drop")
    written = _ask(rows, catalogue, settings, relations, rules, progress)
    teacher: Teacher = written.teacher if written else rules
    longest = max(len(row.history) for row in rows)
    corpus = tasks.corpus(
        rows,
        catalogue,
        teacher,
        traced=tasks.newest(rows, settings.traces_per_user),
        narrated=tasks.newest(rows, 1) if settings.user_narratives else [],
        narrate_items=settings.item_narratives,
        facts=relations.facts,
        practised=practice.histories(relations, settings.practice_rows, longest, settings.seed),
        general=chat.examples,
        unread=unread,
        progress=progress,
    )
    tables.write(corpus, out_dir / "synthetic_corpus.parquet", Corpus)
    quarantined = [*(written.quarantined if written else ()), *chat.quarantined]
    tables.write(quarantine_table(quarantined), out_dir / "teacher_quarantine.parquet", TeacherQuarantine)
    lengths, counts, figures = measure(corpus, rows, catalogue, codebook)
    figures.update(chat.counts)
    figures.update(_of_teacher(written, corpus.height) if written else {})
    draw(lengths, counts, out_dir / "corpus.png")
    reasons = Counter(entry.reason.partition(":")[0] for entry in quarantined)
    text = data_card(corpus, figures, _teacher_name(settings), inputs.synthetic, dict(sorted(reasons.items())))
    (out_dir / "card.md").write_text(text, encoding="utf-8")
    checks = (
        _check("train_rows_only", corpus, guards.not_from_train(corpus, rows, catalogue)),
        _check("no_leak", corpus, guards.leaks(corpus, rows, relations)),
        _check("known_sids", corpus, guards.unknown_sids(corpus, codebook["sid"].to_list())),
    )
    metrics: dict[str, float | int | str] = {**figures}
    metrics |= {f"quarantined_{reason}": count for reason, count in sorted(reasons.items())}
    if written:  # the calls of this run are the one thing in which a rerun differs, so no file holds them
        metrics |= {**written.calls, "replies_digest": written.digest}
    return Report(metrics=metrics, checks=checks, markdown={"card": text})


def _ask(
    rows: list[tasks.Row],
    catalogue: Catalogue,
    settings: TeacherSettings,
    relations: Relations,
    rules: Teacher,
    progress: Progress,
) -> Written | None:
    """What the language model wrote, or None where the rules are the teacher."""
    if settings.kind == "rules":
        return None
    with teacher_client(settings) as client:
        rest = rules if settings.rest == "rules" else None
        return language.write(client, rows, catalogue, settings, relations, rest, progress)


def _teacher_name(settings: TeacherSettings) -> str:
    if settings.kind == "rules" or settings.endpoint is None:
        return "rules"
    rest = ", the rest by rules" if settings.rest == "rules" else ""
    return f"the language model `{settings.endpoint.model}`{rest}"


def _of_teacher(written: Written, examples: int) -> dict[str, float | int]:
    """Figures of a language teacher that are the same whether its replies were paid for now or before."""
    accepted = sum(written.figures[name] for name in language.ACCEPTED)
    cost = {
        **written.cost,
        "usd_per_accepted_text": round(written.cost["usd"] / max(1, accepted), 8),
        "usd_per_example": round(written.cost["usd"] / examples, 8),
    }
    return {f"teacher_{name}": value for name, value in (*cost.items(), *written.figures.items())}


def _check(name: str, corpus: pl.DataFrame, violations: Sequence[guards.Violation]) -> Check:
    detail = f"{corpus.height:,} examples, {len(violations):,} violations"
    if violations:
        detail += f"; first: {violations[0][0]}: {violations[0][1]}"
    return Check(name, not violations, detail)


def measure(
    corpus: pl.DataFrame,
    rows: Sequence[tasks.Row],
    catalogue: Catalogue,
    codebook: pl.DataFrame,
) -> tuple[Mapping[str, Sequence[int]], quality.Counts, dict[str, float | int]]:
    """Words of each text by kind, occurrences of each code by level, and all quality figures (`quality`)."""
    sizes = {task: counts for task, *counts in sizes_by_task(corpus).iter_rows()}
    figures: dict[str, float | int] = {f"examples_{task}": sizes.get(task, (0,))[0] for task in tasks.ORDER}
    figures["words"], figures["characters"] = (sum(counts[n] for counts in sizes.values()) for n in (1, 2))
    title_prompts = Counter(corpus.filter(pl.col(TASK) == "title_to_sid")[PROMPT].to_list())
    figures["titles_ambiguous"] = sum(count > 1 for count in title_prompts.values())  # with several right answers
    texts = quality.texts_of(corpus, rows, catalogue)
    for kind, of_kind in texts.items():
        figures |= quality.of_kind(kind, of_kind)
    figures |= quality.of_thoughts(texts["thought"])
    figures["item_narratives_naming_title"] = sum(
        spells_title(text, catalogue[item_id])
        for item_id, text in corpus.filter(pl.col(TASK) == "item_narrative").select(ITEM_ID, COMPLETION).iter_rows()
    )
    known = {item.sid for item in catalogue.values()}
    used = {sid for text in (*corpus[PROMPT], *corpus[COMPLETION]) for sid in SID_PATTERN.findall(text)}
    figures["sid_coverage"] = round(len(used & known) / len(known), 4)
    counts = quality.code_counts(corpus, codebook)
    figures |= quality.of_codes(counts)
    return {kind: [len(one.text.split()) for one in of_kind] for kind, of_kind in texts.items()}, counts, figures
