"""Claim cards: all that a row of the leaderboard claims, and what it rests on, in one file that can be checked.

A card has the numbers of one list with their intervals, its margin over the best counting baseline of the table with
the verdict in words, and where all of it comes from: counts and gates of the data, settings, code, seeds, and the
sha256 of the rows, the codebook and the lists. Everything in it follows from one output of `evaluation` and what that
was made from, so `sidr verify` can make it again (`sidr_core/evaluation/verify.py`). It names outputs by their
fingerprints and holds no path, so it may be moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from sidr_core.evaluation.pages import joined, titled
from sidr_core.evaluation.protocol import counting_baseline, lists_of
from sidr_core.metrics.intervals import HIGHER, LOWER
from sidr_core.metrics.ranking import HR, NDCG
from sidr_core.pipeline.store import canonical_json
from sidr_core.render.grid import markdown_table
from sidr_core.settings.models import MODELS, OPTIMAL, producers, split_name
from sidr_core.tables.columns import ITEM_LEVEL, MODE, MODEL, TEST

VERSION = 1
CLAIMED = (HR, NDCG)
#: Digits behind the point of every number; each of them is checked.
DIGITS = 6
#: What a claim is recounted from: stage -> its file.
EVIDENCE = {
    "interactions": "test.parquet",
    "sid_codebook": "sid_codebook.parquet",
    "recommendations": "recommendations.parquet",
}
_COUNTED = ("interactions", "train", "valid", "test", "items")
_WORDS = {HIGHER: "above", LOWER: "below", "within": "equivalent within"}

Text = Annotated[str, Field(max_length=2000)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """Base: frozen, exact types, no other keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Gate(_Part):
    """A check that an output passed or failed when it was made."""

    stage: Text
    check: Text
    passed: bool
    detail: Text


class Made(_Part):
    """An output behind the claim, and the version of the code that made it."""

    fingerprint: Fingerprint
    code_version: Text


class Figure(_Part):
    """A metric of the list, item level, with its interval."""

    metric: Literal["hr", "ndcg"]
    k: int
    value: float
    ci_low: float
    ci_high: float


class Margin(_Part):
    """What the list has more than the counting baseline, paired by row; names as in the contract `Paired`."""

    metric: Literal["hr", "ndcg"]
    k: int
    difference: float
    ci_low: float
    ci_high: float
    helped: int
    harmed: int
    same: int
    detectable: float
    p_holm: float
    p_within_holm: float
    verdict: Text


class Card(_Part):
    """One claim.

    Args:
        claim: the claim in a sentence.
        evaluation: fingerprint of the output of `evaluation` that it is taken from.
        counts: rows of the tables of `interactions`, and rows and users that were evaluated.
        settings: sha256 of the profile's sections that the outputs behind the claim were made with.
        stages: the outputs behind the claim.
        software: versions of the packages that made the lists.
        digests: `<stage>/<file>` -> sha256, of :data:`EVIDENCE`.
        seeds: of the model, and of the resampling.
        draws: draws of users behind each interval; `confidence` is the share of them inside.
        baseline: the best counting baseline of the table; null for a table without one.
        family: differences that the verdicts are corrected for.
        within: differences below it count as none.
    """

    card: Literal[1]
    claim: Text
    dataset: Text
    snapshot: Text
    split: Text
    model: Text
    mode: Text
    synthetic: bool
    evaluation: Fingerprint
    counts: dict[Text, int]
    gates: tuple[Gate, ...]
    settings: Sha256
    stages: dict[Text, Made]
    software: dict[Text, Text]
    digests: dict[Text, Sha256]
    seeds: dict[Text, int]
    beam_width: int
    checkpoint: Text
    seen_until: Text
    remarks: tuple[Text, ...]
    draws: int
    confidence: float
    figures: tuple[Figure, ...]
    baseline: Text | None
    family: int
    within: float
    margins: tuple[Margin, ...]

    @property
    def name(self) -> str:
        """`<model>/<mode>`."""
        return f"{self.model}/{self.mode}"


def cards(
    manifests: Mapping[str, Mapping[str, Any]], evaluation: pl.DataFrame, margins: pl.DataFrame, remarks: pl.DataFrame
) -> list[Card]:
    """One card per list.

    Args:
        manifests: stage -> manifest, of `evaluation` and what it was made from.
        evaluation: the contract `EvaluationTable`; HR and NDCG at item level are used.
        margins: the contract `Paired`: each list less the best counting baseline.
        remarks: the contract `Remarks`.
    """
    measured = (pl.col("level") == ITEM_LEVEL) & pl.col("metric").is_in(CLAIMED) & (pl.col(MODEL) != OPTIMAL)
    ranked = evaluation.filter(measured)
    names = [f"{model}/{mode}" for model, mode in ranked.select(MODEL, MODE).unique(maintain_order=True).iter_rows()]
    baseline, settings = counting_baseline(names), manifests["evaluation"]["key"]["config"]
    files = manifests["interactions"]["files"]
    counts = {name: files[f"{name}.parquet"]["rows"] for name in _COUNTED}
    made = []
    for name in names:
        figures = lists_of(ranked, name).rows(named=True)
        model, mode = split_name(name)
        against = margins.filter((pl.col("model_a") == model) & (pl.col("mode_a") == mode)).rows(named=True)
        gaps = tuple(Margin(**_fields(Margin, {**row, "verdict": _in_words(row["verdict"])})) for row in against)
        behind = _behind(manifests, (name, baseline or name))
        recipe = {stage: manifest["key"]["config"] for stage, manifest in behind.items()}
        first = figures[0]
        made.append(
            Card(
                card=VERSION,
                claim=_sentence(name, baseline, gaps),
                dataset=settings["dataset"],
                snapshot=settings["snapshot"]["key"],
                split=TEST,
                model=model,
                mode=mode,
                synthetic=manifests["evaluation"]["synthetic"],
                evaluation=manifests["evaluation"]["fingerprint"],
                counts=counts | {"evaluated_rows": first["n_rows"], "evaluated_users": first["n_users"]},
                gates=_gates(behind),
                settings=hashlib.sha256(canonical_json(recipe).encode()).hexdigest(),
                stages={stage: Made(**_fields(Made, manifest)) for stage, manifest in behind.items()},
                software=manifests["recommendations"]["versions"],
                digests={
                    f"{stage}/{file}": manifests[stage]["files"][file]["sha256"] for stage, file in EVIDENCE.items()
                },
                seeds={"model": first["seed"], "resampling": settings["evaluation"]["seed"]},
                beam_width=first["beam_width"],
                checkpoint=first["checkpoint"],
                seen_until=first["seen_until"],
                remarks=tuple(lists_of(remarks, name)["remark"]),
                draws=settings["evaluation"]["bootstrap"],
                confidence=settings["evaluation"]["confidence"],
                figures=tuple(Figure(**_fields(Figure, row)) for row in figures),
                baseline=baseline,
                family=margins.height,
                within=settings["evaluation"]["margin"],
                margins=gaps,
            )
        )
    return made


def file_name(card: Card) -> str:
    """Name of a card's file, without suffix."""
    return f"{card.model}-{card.mode}"


def _fields(part: type[_Part], row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `part` in a row, numbers rounded."""
    values = {name: row[name] for name in part.model_fields}
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in values.items()}


def _in_words(verdict: str) -> str:
    """A verdict of `sidr_core.evaluation.verdicts` as a claim.

    >>> _in_words("higher, within ±0.005 (6 users)"), _in_words("too few rows to tell")
    ('above, equivalent within ±0.005 (6 users)', 'too few rows to tell')
    """
    words, bracket, limits = verdict.partition(" (")
    for word, claimed in _WORDS.items():
        words = words.replace(word, claimed)
    return words + bracket + limits


def _sentence(name: str, baseline: str | None, gaps: Sequence[Margin]) -> str:
    if baseline is None:
        return f"{name}: the table has no counting baseline to compare with"
    if name == baseline:
        return f"{name} is the counting baseline that the other lists are compared with"
    margins = "; ".join(f"{gap.metric.upper()}@{gap.k} {gap.difference:+.4f}, {gap.verdict}" for gap in gaps)
    return f"{name} against {baseline}: {margins}"


def _behind(manifests: Mapping[str, Mapping[str, Any]], names: tuple[str, str]) -> dict[str, Mapping[str, Any]]:
    """The manifests behind the lists of `names`: those of other models are left out."""
    used = {stage for name in names for stage in producers(split_name(name)[0])}
    others = {model.stage for model in MODELS} - used
    behind: dict[str, Mapping[str, Any]] = {}
    waiting = ["evaluation"]
    for stage in waiting:
        if stage in manifests and stage not in behind:
            behind[stage] = manifests[stage]
            skipped = others if stage == "recommendations" else set()
            waiting += [name for name in manifests[stage].get("lineage", {}) if name not in skipped]
    return dict(sorted(behind.items()))


def _gates(behind: Mapping[str, Mapping[str, Any]]) -> tuple[Gate, ...]:
    return tuple(
        Gate(stage=stage, check=check["name"], passed=check["passed"], detail=check["detail"][:2000])
        for stage, manifest in behind.items()
        for check in manifest["checks"]
    )


# -- the page ----------------------------------------------------------------------------------------

_NOTES = """\
The margin is paired: the same rows, this list less {baseline}. The verdict is corrected for all {family} differences of
the table (Holm); the smallest detectable difference is what these users show in 80 of 100 cases. Check all of it with
`sidr verify {file}.json`."""


def page(card: Card) -> str:
    """A card as Markdown."""
    figures = [
        (f"{one.metric.upper()}@{one.k}", f"{one.value:.4f}", f"{one.ci_low:.4f} to {one.ci_high:.4f}")
        for one in card.figures
    ]
    gaps = [
        (
            f"{gap.metric.upper()}@{gap.k}",
            f"{gap.difference:+.4f}",
            f"{gap.ci_low:+.4f} to {gap.ci_high:+.4f}",
            f"{gap.detectable:.4f}",
            f"{gap.helped:,} / {gap.harmed:,} / {gap.same:,}",
            f"{gap.p_holm:.4f}",
            gap.verdict,
        )
        for gap in card.margins
    ]
    header = (
        "metric",
        "margin",
        "interval",
        "smallest detectable",
        "rows better / worse / same",
        "p (Holm)",
        "verdict",
    )
    margin = f"## Margin over {card.baseline}\n\n{markdown_table(header, gaps)}" if gaps else ""
    notes = _NOTES.format(baseline=card.baseline, family=card.family, file=file_name(card)) if gaps else ""
    counts = card.counts
    facts = [
        ("rows evaluated", f"{counts['evaluated_rows']:,} of {counts['test']:,}, {counts['evaluated_users']:,} users"),
        ("data", ", ".join(f"{count:,} {name}" for name, count in counts.items() if name in _COUNTED)),
        ("known", f"up to {card.seen_until}"),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in card.seeds.items())),
        ("beam width", str(card.beam_width)),
        ("checkpoint", card.checkpoint),
        ("intervals", f"{100 * card.confidence:g} %, {card.draws:,} draws of users"),
        ("settings", card.settings),
        *((file, digest) for file, digest in card.digests.items()),
        *((stage, f"{made.fingerprint}, code {made.code_version}") for stage, made in card.stages.items()),
        ("software", ", ".join(f"{name} {version}" for name, version in card.software.items())),
    ]
    failed = [f"- **{gate.stage}, {gate.check}: {gate.detail}**" for gate in card.gates if not gate.passed]
    gates = f"{len(card.gates) - len(failed)} of {len(card.gates)} checks of these outputs passed."
    return joined(
        titled(f"# Claim: {card.name}, {card.dataset} {card.snapshot}", card.synthetic),
        f"{card.claim}.",
        "\n".join(f"- **{remark}**" for remark in card.remarks),
        f"## Metrics, item level\n\n{markdown_table(('metric', 'value', 'interval'), figures)}",
        margin,
        notes,
        f"## What it rests on\n\n{markdown_table(('what', 'is'), facts, 'll')}",
        gates,
        "\n".join(failed),
    )
