"""The stage `grounding`: does each trained checkpoint know what its SIDs mean?

It is asked with the very turns of the corpus, without a thought, and answers greedily. SID -> title: the whole title,
and F1 over its words (Rajpurkar et al. 2016). Title -> SID: place of the SID in the constrained beam. SID -> each
stated fact: the whole value. Where a SID or a title has several right answers, each of them counts. Items that were a
target in train, that only histories hold, and that training never met are asked and reported apart. Train rows tell
these apart and are no part of a question; no test row is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sidr_core.corpus import prompts
from sidr_core.corpus.catalogue import Catalogue, Item, all_words
from sidr_core.corpus.stated import StatedFacts, read_facts
from sidr_core.corpus.tasks import translation_pairs
from sidr_core.evaluation.pages import joined, titled
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.render import figures
from sidr_core.render.grid import Grid
from sidr_core.render.text import markdown_text
from sidr_core.settings.models import LANGUAGE_MODELS
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DATASET, DIRECT, HISTORY, SNAPSHOT, TARGET
from sidr_core.tables.contracts import Grounding
from sidr_core.tables.samples import picks

if TYPE_CHECKING:
    from sidr_core.decoding.decoder import Decoder
    from sidr_core.settings import DatasetConfig

SID_TO_TITLE, TITLE_TO_SID, SID_TO_FACT = "sid_to_title", "title_to_sid", "sid_to_fact"
TARGETS, HISTORIES, UNSEEN = "target", "history", "unseen"
EXACT, F1, HR_1, HR_10 = "exact", "f1", "hr@1", "hr@10"
_BEAM = 10
_NOTES = """\
Each checkpoint was asked with the turns of the corpus, in direct mode and greedily: about all items of a group, or
{limit:,} drawn by seed {seed}. A title or SID with more than four right answers names nothing and is not asked about
({left_out:,} of {items:,} items). *All* is the mean over the groups, weighted by their items. The check takes the exact
title; of an item whose title another item has too it takes the F1 of the words."""


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `grounding.parquet`, `grounding.md` and `grounding.png`."""
    source, settings = inputs["interactions"], config.evaluation
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    catalogue = Catalogue.read(tables.read(source.path("items.parquet")), codebook)
    pairs = translation_pairs(catalogue)
    groups = items_by_training(pairs, tables.read(source.path("train.parquet"), [HISTORY, TARGET]))
    asked = {name: drawn(items, settings.grounding_items, settings.seed) for name, items in groups.items()}
    quiz = Quiz(catalogue, read_facts(catalogue))
    scores: list[Score] = []
    for stage in (stage for stage in LANGUAGE_MODELS if f"{stage}_checkpoint" in inputs):
        decoder = _decoder(inputs[f"{stage}_checkpoint"].folder(), config)
        for name, items in asked.items():
            scores += quiz.ask(decoder, stage, name, items)
            progress.say(f"{stage}: {len(items):,} items ({name}) asked about")
    snapshot = config.snapshot.key  # type: ignore[attr-defined]
    table = table_of(scores).with_columns(
        pl.lit(config.dataset).alias(DATASET),  # type: ignore[attr-defined]
        pl.lit(snapshot).alias(SNAPSHOT),
    )
    tables.write(table, out_dir / "grounding.parquet", Grounding)
    sizes = {name: len(items) for name, items in groups.items()}
    grounded = {stage: grounded_share(scores, stage, sizes, quiz) for stage in dict.fromkeys(s.stage for s in scores)}
    caption = titled(f"{config.dataset}, snapshot {snapshot}", inputs.synthetic)  # type: ignore[attr-defined]
    notes = _NOTES.format(
        limit=settings.grounding_items, seed=settings.seed, left_out=len(catalogue) - len(pairs), items=len(catalogue)
    )
    grid = grid_of(scores, sizes).markdown() if scores else "No language model of `decoding.models` was trained."
    text = joined("# Grounding", caption, grid, notes)
    (out_dir / "grounding.md").write_text(text)
    draw(scores, sizes, out_dir / "grounding.png", caption)
    return Report(
        metrics={**{f"items_{name}": size for name, size in sizes.items()}, **_metrics(scores, sizes, grounded)},
        checks=(grounded_check(grounded, settings.grounding_floor),),
        markdown={"grounding": text},
    )


def _decoder(folder: Path, config: DatasetConfig) -> Decoder:
    from sidr_core.decoding.decoder import Decoder  # torch takes seconds to import
    from sidr_core.models import checkpoint

    loaded = checkpoint.load(folder)
    width = min(_BEAM, len(loaded.index))
    return Decoder(
        loaded.model, loaded.renderer, loaded.index, width, config.decoding.batch_size, config.decoding.scoring
    )


# -- what is asked -------------------------------------------------------------------------------------


def items_by_training(items: Sequence[Item], train: pl.DataFrame) -> dict[str, list[Item]]:
    """Items that were targets, that only histories hold, and that are in no train row.

    Args:
        train: the contract `Samples`.
    """
    targets = set(train[TARGET])
    histories = set(train[HISTORY].explode())
    groups: dict[str, list[Item]] = {TARGETS: [], HISTORIES: [], UNSEEN: []}
    for item in items:
        known = TARGETS if item.item_id in targets else HISTORIES if item.item_id in histories else UNSEEN
        groups[known].append(item)
    return groups


def drawn(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """At most so many of the items, in their order; the same seed draws the same."""
    return [items[n] for n in picks(len(items), most, seed)]


@dataclass(frozen=True)
class Score:
    """One answer, or the place of one: `value` is 0 to 1. `stage` was asked about an item of group `items`."""

    stage: str
    direction: str
    items: str
    metric: str
    value: float
    item_id: str


@dataclass(frozen=True)
class Quiz:
    """Asks about items of a catalogue and knows the right answers."""

    catalogue: Catalogue
    facts: StatedFacts

    @cached_property
    def sids_of(self) -> dict[str, set[str]]:
        """Full title -> the SIDs of the items that have it."""
        sids: dict[str, set[str]] = {}
        for item in self.catalogue.values():
            sids.setdefault(item.full_title, set()).add(item.sid)
        return sids

    @cached_property
    def repeated(self) -> set[str]:
        """Items whose full title another item has too."""
        count = Counter(item.full_title for item in self.catalogue.values())
        return {item.item_id for item in self.catalogue.values() if count[item.full_title] > 1}

    def ask(self, decoder: Decoder, stage: str, group: str, items: Sequence[Item]) -> list[Score]:
        """All questions about some items of a group, answered by a checkpoint."""
        if not items:
            return []
        titles = [other.full_title for item in items for other in self.catalogue.carrying(item.sid)]
        answers = written(decoder, [prompts.title_of(item.sid) for item in items], titles)
        scores: list[Score] = []
        for item, answer in zip(items, answers, strict=True):
            exact, f1 = title_scores(answer, [other.full_title for other in self.catalogue.carrying(item.sid)])
            scores.append(Score(stage, SID_TO_TITLE, group, EXACT, exact, item.item_id))
            scores.append(Score(stage, SID_TO_TITLE, group, F1, f1, item.item_id))
        for item, place in zip(items, self._places(decoder, items), strict=True):
            scores.append(Score(stage, TITLE_TO_SID, group, HR_1, float(place < 1), item.item_id))
            scores.append(Score(stage, TITLE_TO_SID, group, HR_10, float(place < _BEAM), item.item_id))
        return scores + self._facts(decoder, stage, group, items)

    def _places(self, decoder: Decoder, items: Sequence[Item]) -> list[int]:
        """Where in its beam each item's title leads to its SID, from 0; behind the beam where it does not."""
        beams = decoder.rank_directly([prompts.item_titled(item.full_title) for item in items])
        places = []
        for item, leaves in zip(items, beams.leaf, strict=True):
            right = {decoder.index.leaf_of[sid] for sid in self.sids_of[item.full_title]}
            places.append(next((place for place, leaf in enumerate(leaves.tolist()) if leaf in right), _BEAM))
        return places

    def _facts(self, decoder: Decoder, stage: str, group: str, items: Sequence[Item]) -> list[Score]:
        questions = [(item, name) for item in items for name in self.facts.of[item.item_id]]
        if not questions:
            return []
        right = [
            {self.facts.of[other.item_id].get(name) for other in self.catalogue.carrying(item.sid)}
            for item, name in questions
        ]
        longest = [value for values in right for value in values if value]
        answers = written(decoder, [prompts.fact_of(name, item.sid) for item, name in questions], longest)
        scores: list[Score] = []
        for (item, name), values, answer in zip(questions, right, answers, strict=True):
            for metric in (EXACT, f"{EXACT}:{name}"):
                scores.append(Score(stage, SID_TO_FACT, group, metric, float(answer in values), item.item_id))
        return scores


def written(decoder: Decoder, turns: Sequence[str], expected: Iterable[str]) -> list[str]:
    """The greedy answer to each turn, in direct mode, of at most the tokens that the longest right answer takes."""
    from sidr_core.decoding.thinking import generate_tokens

    renderer = decoder.renderer
    longest = max(len(renderer.completion(text, None)) for text in set(expected))
    stops = (renderer.eos_id, renderer.pad_id, renderer.think_close_id)
    texts = generate_tokens(
        decoder.model,
        [renderer.prompt(turn, DIRECT) for turn in turns],
        stops=stops,
        pad_id=renderer.pad_id,
        max_tokens=longest,
        batch_size=decoder.batch_size,
    )
    # An answer that goes on at the cap is not the answer, even if it begins like it.
    return [str(renderer.tokenizer.decode(ids[:-1])).strip() if ids[-1:] == [renderer.eos_id] else "" for ids in texts]


def title_scores(answer: str, titles: Sequence[str]) -> tuple[float, float]:
    """Whether an answer is one of the right titles, and its best F1 over words.

    >>> title_scores("Red Glue Stick", ["Blue Glue Stick", "Tape"])[0]
    0.0
    >>> round(title_scores("Red Glue Stick", ["Blue Glue Stick", "Tape"])[1], 3)
    0.667
    """
    return float(answer in titles), max(word_f1(answer, title) for title in titles)


def word_f1(answer: str, title: str) -> float:
    """Harmonic mean of the shares of words that are right and that are there; a word counts as often as it stands."""
    if answer == title:
        return 1.0
    words, right = Counter(all_words(answer)), Counter(all_words(title))
    common = (words & right).total()
    return 2 * common / (words.total() + right.total()) if common else 0.0


# -- what comes of it ----------------------------------------------------------------------------------

_GROUP = ["checkpoint_stage", "direction", "items", "metric"]


def table_of(scores: Sequence[Score]) -> pl.DataFrame:
    """Mean and number of questions per checkpoint, direction, group and metric, in the order of the questions."""
    columns = [*_GROUP, "value"]
    rows = [(score.stage, score.direction, score.items, score.metric, score.value) for score in scores]
    frame = pl.DataFrame(rows, schema={name: pl.String for name in _GROUP} | {"value": pl.Float64}, orient="row")
    means = frame.select(columns).group_by(_GROUP, maintain_order=True).agg(pl.col("value").mean(), pl.len().alias("n"))
    return means.with_columns(pl.col("n").cast(pl.Int64))


def over_groups(scores: Iterable[Score], sizes: Mapping[str, int]) -> float | None:
    """Mean of the groups' means, weighted by the items of each group; None without an answer."""
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.items, []).append(score.value)
    weight = sum(sizes[name] for name in values)
    return sum(sizes[name] * float(np.mean(group)) for name, group in values.items()) / weight if weight else None


def grounded_share(scores: Sequence[Score], stage: str, sizes: Mapping[str, int], quiz: Quiz) -> float:
    """What the check is about: exact titles; of items whose title repeats, the F1 of its words."""
    judged = [
        score
        for score in scores
        if (score.stage, score.direction) == (stage, SID_TO_TITLE)
        and score.metric == (F1 if score.item_id in quiz.repeated else EXACT)
    ]
    return over_groups(judged, sizes) or 0.0


def grounded_check(grounded: Mapping[str, float], floor: float) -> Check:
    """Every checkpoint names at least `floor` of the titles of the SIDs."""
    detail = ", ".join(f"{stage} {share:.1%}" for stage, share in grounded.items()) or "no checkpoint"
    return Check("grounded", all(share >= floor for share in grounded.values()), f"{detail} (floor {floor:.0%})")


def grid_of(scores: Sequence[Score], sizes: Mapping[str, int]) -> Grid:
    """One row per checkpoint, direction and metric; a column per group, and their weighted mean."""
    rows = []
    for (stage, direction, metric), of_part in _by_question(scores).items():
        cells = []
        for name in sizes:
            values = [score.value for score in of_part if score.items == name]
            cells.append(f"{np.mean(values):.3f} ({len(values):,})" if values else "–")
        label = f"{stage}: {direction.replace('_to_', ' → ').replace('sid', 'SID')}, {markdown_text(metric, 60)}"
        rows.append((label, *cells, f"{over_groups(of_part, sizes):.3f}"))
    return Grid("What the SIDs mean to it", ("question", *sizes, "all"), tuple(rows))


def _by_question(scores: Iterable[Score]) -> dict[tuple[str, str, str], list[Score]]:
    """(stage, direction, metric) -> its scores, in the order of the questions."""
    parts: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        parts.setdefault((score.stage, score.direction, score.metric), []).append(score)
    return parts


_HEADLINE = {(SID_TO_TITLE, EXACT), (SID_TO_TITLE, F1), (TITLE_TO_SID, HR_1), (SID_TO_FACT, EXACT)}


def _headlines(scores: Sequence[Score], sizes: Mapping[str, int]) -> dict[tuple[str, str, str], float]:
    """(stage, direction, metric) -> value over all groups, of the metrics that come first."""
    parts = _by_question(score for score in scores if (score.direction, score.metric) in _HEADLINE)
    return {key: over_groups(of_part, sizes) or 0.0 for key, of_part in parts.items()}


def draw(scores: Sequence[Score], sizes: Mapping[str, int], path: Path, title: str) -> None:
    """The headline figures over the stages of training, as a PNG."""
    values = _headlines(scores, sizes)
    stages = list(dict.fromkeys(stage for stage, _, _ in values))
    series: dict[str, tuple[list[float], ...]] = {}
    for (stage, direction, metric), value in values.items():
        line = series.setdefault(f"{direction}, {metric}", ([], [], [], []))
        for column, number in zip(line, (float(stages.index(stage)), value, value, value), strict=True):
            column.append(number)
    figures.bands(series, path, title, "stage of training", "share right", ticks=stages)


def _metrics(
    scores: Sequence[Score], sizes: Mapping[str, int], grounded: Mapping[str, float]
) -> dict[str, float | int | str]:
    numbers: dict[str, float | int | str] = {
        f"{stage}_{direction}_{metric}": round(value, 4)
        for (stage, direction, metric), value in _headlines(scores, sizes).items()
    }
    return numbers | {f"{stage}_grounded": round(share, 4) for stage, share in grounded.items()}
