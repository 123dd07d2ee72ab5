"""The stage `interventions`: what a model's list owes to what its thought says.

The thinking model of the profile is asked again for rows of the test split, after its own thought and after texts that
stand in its place: another user's thought (the placebo: as long and as fluent, and about somebody else), its own words
in another order, nothing, its own with each stated fact given another value of the catalogue, and the true thought,
written from the history alone (the ceiling: what could be gained if all that it says were right). All enter as text
through the one renderer. Differences are paired by row and clustered by user; all of the table are one family. A model
that ignores its thought has 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.corpus import thoughts as true_thoughts
from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.corpus.relations import Relations
from sidr_core.corpus.stated import StatedFacts, stated_in
from sidr_core.corpus.thoughts import parted
from sidr_core.evaluation.pages import joined, titled
from sidr_core.evaluation.protocol import lists_of
from sidr_core.evaluation.verdicts import GAP, gap_rows, span
from sidr_core.metrics import ranking
from sidr_core.metrics.intervals import HIGHER, bootstrap, judge_family, paired
from sidr_core.pipeline.graph import thinking_model
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import truth
from sidr_core.render import figures
from sidr_core.render.grid import Grid
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Interventions
from sidr_core.tables.samples import subset

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Evaluation

OWN, PLACEBO, SHUFFLED, BLANK, CORRUPTED, TRUE = "own", "placebo", "shuffled", "blank", "corrupted", "true"
THOUGHTS = (OWN, PLACEBO, SHUFFLED, BLANK, CORRUPTED, TRUE)
K = 10

#: Lists (`lists.RANKING`) of the rows after one text each.
RankAfter = Callable[[Sequence[str]], pl.DataFrame]

_NOTES = """\
{rows:,} of {all_rows:,} test rows with a thought, drawn by seed {seed}; {model}, beam width {width}. *Changed* are rows
whose text differs from the own thought. A difference is own less other on the same rows; its {percent:g} % interval is
a bootstrap over users, p is corrected for all {family} differences of this page (Holm). The placebo is another user's
thought. The true thought is written from the history alone, by relations learned from train rows: a ceiling for a model
that learned to think in this form, a strange text to another."""


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `interventions.parquet`, `interventions.md` and `interventions.png`."""
    settings, model = config.evaluation, thinking_model(config.decoding.models)
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    every = thought_rows(inputs, model)
    rows = chosen(every, settings.intervention_rows, settings.seed)
    snapshot = config.snapshot.key  # type: ignore[attr-defined]
    lines: list[dict[str, Any]] = []
    if model and rows.height:
        catalogue = Catalogue.read(tables.read(inputs["interactions"].path("items.parquet")), codebook)
        train = tables.read(inputs["interactions"].path("train.parquet"), [c.HISTORY, c.TARGET])
        relations = truth.learned(catalogue, train)
        texts = replacements(rows, catalogue, relations, settings.seed)
        after = _ranker(inputs[f"{model}_checkpoint"].folder(), rows, catalogue, config)
        lines = measure(after, texts, rows, codebook, settings, progress)
    context = {c.DATASET: config.dataset, c.SNAPSHOT: snapshot, c.MODEL: model, "seed": settings.seed}  # type: ignore[attr-defined]
    table = tables.typed([line | context for line in lines], Interventions)
    tables.write(table, out_dir / "interventions.parquet", Interventions)
    caption = titled(f"{config.dataset}, snapshot {snapshot}", inputs.synthetic)  # type: ignore[attr-defined]
    notes = _NOTES.format(
        rows=rows.height, all_rows=every.height, seed=settings.seed, model=model, width=config.decoding.beam_width,
        percent=100 * settings.confidence, family=table["p"].drop_nulls().len(),
    )  # fmt: skip
    body = [grid_of(table).markdown(), notes] if lines else ["No thinking model of `decoding.models` has rows to try."]
    text = joined("# Interventions on thoughts", caption, *body)
    (out_dir / "interventions.md").write_text(text)
    gaps = table.filter((pl.col("metric") == ranking.NDCG) & pl.col("difference").is_not_null())
    values, lows, highs = (gaps[name].to_list() for name in ("difference", "ci_low", "ci_high"))
    labels = [f"own − {name}" for name in gaps["thought"]]
    figures.forest(labels, values, lows, highs, out_dir / "interventions.png", caption, f"NDCG@{K}", reference=0.0)
    numbers = {f"{row['thought']}_{row['metric']}": round(row["value"], 4) for row in lines}
    return Report({"rows": rows.height, **numbers}, (thoughts_matter(table),), {"interventions": text})


# -- rows and texts ------------------------------------------------------------------------------------


def thought_rows(inputs: Inputs, model: str | None) -> pl.DataFrame:
    """The test rows that a model thought about, with the first thought as `reasoning`, sorted by row_id."""
    made = inputs["recommendations"]
    lists = tables.read(made.path("recommendations.parquet"), [c.MODEL, c.MODE, c.ROW_ID, c.RANK, c.REASONING])
    first = lists_of(lists, f"{model}/{c.THINKING}").filter((pl.col(c.RANK) == 1) & pl.col(c.REASONING).is_not_null())
    rows = tables.read(made.path("rows.parquet"))
    return rows.join(first.select(c.ROW_ID, c.REASONING), on=c.ROW_ID, how="inner").sort(c.ROW_ID)


def chosen(rows: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """At most so many rows, drawn by seed, of which no user has more than half: else a row would be left to itself."""
    drawn = subset(rows, most, seed)
    largest = int(drawn.group_by(c.USER_ID).len()["len"].max() or 0)  # type: ignore[arg-type]
    others = drawn.height - largest
    if largest <= others:
        return drawn
    return drawn.filter(pl.int_range(pl.len()).over(c.USER_ID) < others)


def replacements(rows: pl.DataFrame, catalogue: Catalogue, relations: Relations, seed: int) -> dict[str, list[str]]:
    """What each row is ranked after, by the names of `THOUGHTS`.

    Args:
        rows: row_id, user_id, history_item_ids and `reasoning`, of :func:`chosen`.
    """
    own: list[str] = rows[c.REASONING].to_list()
    histories: list[list[Item]] = [[catalogue[item] for item in history] for history in rows[c.HISTORY].to_list()]
    generator = np.random.default_rng(seed)
    return {
        OWN: own,
        PLACEBO: [own[n] for n in other_users(rows[c.USER_ID].to_list(), seed)],
        SHUFFLED: [" ".join(generator.permutation(text.split()).tolist()) for text in own],
        BLANK: [""] * len(own),
        CORRUPTED: [corrupted(text, relations.facts, generator) for text in own],
        TRUE: [true_thoughts.write(relations, history) for history in histories],
    }


def other_users(users: Sequence[str], seed: int) -> list[int]:
    """For each row another user's row, every row once: a derangement of users, drawn by seed.

    Rows lie in circles by user, users in a drawn order, and each row takes the one as far ahead as the largest user has
    rows. No user may have more than half of the rows.

    >>> other_users(["ann", "ann", "bob", "cid"], seed=0)
    [2, 3, 0, 1]
    """
    names = sorted(set(users))
    place = dict(zip(names, np.random.default_rng(seed).permutation(len(names)).tolist(), strict=True))
    order = sorted(range(len(users)), key=lambda row: (place[users[row]], row))
    ahead = max((users.count(name) for name in names), default=0)
    taken = {row: order[(n + ahead) % len(order)] for n, row in enumerate(order)}
    return [taken[row] for row in range(len(users))]


def corrupted(thought: str, facts: StatedFacts, generator: np.random.Generator) -> str:
    """A thought with each fact that it states given another value that some item of the catalogue states."""
    states, names = parted(thought)
    for name, value in stated_in(states.strip()).items():
        others = sorted({of.get(name, value) for of in facts.of.values()} - {value})
        if others:
            states = states.replace(f"{name}: {value}.", f"{name}: {others[generator.integers(len(others))]}.", 1)
    return states + names


def _ranker(folder: Path, rows: pl.DataFrame, catalogue: Catalogue, config: DatasetConfig) -> RankAfter:
    """Ranks each row after a text, with the checkpoint in `folder`."""
    from sidr_core.corpus.prompts import next_item
    from sidr_core.decoding.decoder import Decoder  # torch takes seconds to import
    from sidr_core.decoding.lists import rankings_of
    from sidr_core.decoding.thinking import Thought
    from sidr_core.models import checkpoint

    loaded = checkpoint.load(folder)
    decoder = Decoder.of(loaded, config.decoding)
    turns = [next_item([catalogue[item].sid for item in history]) for history in rows[c.HISTORY].to_list()]

    def after(texts: Sequence[str]) -> pl.DataFrame:
        thoughts = [[Thought(tuple(loaded.renderer.encode(text)), True)] for text in texts]
        return rankings_of(decoder.rank_after(turns, thoughts).beams, loaded.index, rows[c.ROW_ID].to_list())

    return after


# -- what comes of it ----------------------------------------------------------------------------------


def measure(
    after: RankAfter,
    texts: Mapping[str, Sequence[str]],
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    settings: Evaluation,
    progress: Progress,
) -> list[dict[str, Any]]:
    """HR and NDCG at 10 (item level) after each text, and own less each other, judged as one family.

    Args:
        after: gives the lists of all rows after a text for each.
        texts: :func:`replacements`.
        rows: R rows, the contract `Samples`.
    """
    scored: dict[str, np.ndarray] = {}  # name -> (R, 2)
    metrics = (ranking.HR, ranking.NDCG)
    columns = [ranking.column(c.ITEM_LEVEL, metric, K) for metric in metrics]
    ordered = rows.sort(c.ROW_ID)
    for number, (name, of_rows) in enumerate(texts.items(), start=1):
        lists = after(of_rows).with_columns(pl.lit(name).alias(c.MODEL), pl.lit(c.THINKING).alias(c.MODE))
        scored[name] = ranking.per_row(lists, rows, codebook, (K,)).sort(c.ROW_ID).select(columns).to_numpy()
        progress.tick(number, len(texts), "kinds of thought ranked after")
    users = ordered[c.USER_ID].to_numpy()
    options = {"draws": settings.bootstrap, "confidence": settings.confidence, "seed": settings.seed}
    lines: list[dict[str, Any]] = []
    for name, values in scored.items():
        changed = sum(text != own for text, own in zip(texts[name], texts[OWN], strict=True))
        mean = bootstrap(values, users, **options)
        gaps = gap_rows(paired(scored[OWN], values, users, **options)) if name != OWN else [{}] * len(metrics)
        for n, metric in enumerate(metrics):
            line = {
                "thought": name, "metric": metric, "k": K, "value": float(mean.value[n]),
                "value_low": float(mean.low[n]), "value_high": float(mean.high[n]),
                "changed": changed, "n_rows": rows.height, "n_users": len(set(users)),
            }  # fmt: skip
            lines.append(line | gaps[n])
    judge_family(lines, settings.confidence)
    return lines


def thoughts_matter(table: pl.DataFrame) -> Check:
    """NDCG@10 after the own thought is above that after another user's, by the corrected p."""
    placebo = table.filter((pl.col("thought") == PLACEBO) & (pl.col("metric") == ranking.NDCG))
    if placebo.is_empty():
        return Check("thoughts_matter", True, "no thinking model has rows to try")
    row = placebo.row(0, named=True)
    detail = (
        f"own less another user's thought, NDCG@{K}: {span(row, GAP, '+')}, p {row['p_holm']:.4f}, "
        f"{row['n_rows']:,} rows"
    )
    return Check("thoughts_matter", row["verdict"] == HIGHER, detail)


_LABELS = {
    OWN: "its own",
    PLACEBO: "another user's (placebo)",
    SHUFFLED: "its words shuffled",
    BLANK: "blank",
    CORRUPTED: "its facts corrupted",
    TRUE: "the true one (ceiling)",
}


def grid_of(table: pl.DataFrame) -> Grid:
    """One row per kind of thought: both metrics, and own less it."""
    lines: dict[str, list[str]] = {}
    for row in table.iter_rows(named=True):
        cells = lines.setdefault(row["thought"], [f"{row['changed']:,}"])
        gap = "" if row["difference"] is None else f"{span(row, GAP, '+')}, {row['verdict']}"
        cells += [f"{row['value']:.4f}", gap]
    header = ("thought", "changed", f"HR@{K}", "own less it", f"NDCG@{K}", "own less it")
    return Grid("After which thought", header, tuple((_LABELS[name], *cells) for name, cells in lines.items()))
