"""The stage `promotion`: would it be worse to serve the lists of this snapshot than what is live?

Both sides are compared on the test rows of this snapshot's lists, at item level. What is live made lists for the same
rows, or makes them now, with its own codebook, settings and catalogue: what it cannot know is a miss. The gate trains
nothing and chooses nothing; it refuses rows that what is live has seen. Its margins are the profile's.

A rule with an interval holds where the low end of the paired difference lies above -margin (non-inferiority), so too
few rows never pass; all rules have to hold, so none is corrected for the others. Seconds are those of the manifests:
with `evaluated_at` they are the only values of an output that depend on the clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
from pydantic import TypeAdapter

from sidr_core.errors import InputError
from sidr_core.evaluation.protocol import headline, lists_of
from sidr_core.evaluation.reevaluate import known_histories
from sidr_core.metrics.intervals import paired
from sidr_core.metrics.ranking import HR, NDCG, column, per_row
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.recommending import leakage, recommend
from sidr_core.render.grid import markdown_table
from sidr_core.settings import DatasetConfig
from sidr_core.settings.models import split_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DIRECT, ITEM_ID, ITEM_LEVEL, MERGED, RANK, ROW_ID, TARGET, THINKING, USER_ID
from sidr_core.tables.contracts import Promotion

if TYPE_CHECKING:
    from sidr_core.settings import Evaluation
    from sidr_core.settings import Promotion as Margins

#: What the first candidate has to stand up to, the first of them that has lists: what counting alone knows.
COUNTERS = ("shortcut/direct", "item_item/direct")
COVERAGE, COLD, SECONDS = "coverage", "cold_hr", "seconds"
PASSED, WORSE, FEW, NONE = "not worse", "worse", "too few rows to tell", "no such row"


@dataclass(frozen=True, eq=False)
class Side:
    """One side of the comparison.

    Attributes:
        name: `<model>/<mode>`; `snapshot` is that of what is live, else None.
        lists: its recommendations.
        codebook: item_id, sid: its catalogue.
        checkpoint: content digest of what makes its lists.
        seconds: of decoding, per list.
    """

    name: str
    lists: pl.DataFrame
    codebook: pl.DataFrame
    checkpoint: str
    seconds: float
    snapshot: str | None = None


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `promotion`: a row for each rule.

    Raises:
        InputError: the evaluation is of other lists; nothing is live and there is no counter; what is live has seen
            test rows of this snapshot.
    """
    margins: Margins = config.promotion  # type: ignore[assignment]
    _check_evaluated(inputs)
    rows = tables.read(inputs["recommendations"].path("rows.parquet"))
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"), [ITEM_ID, "sid"])
    candidate = _published(inputs["recommendations"], margins.model, codebook)
    if inputs.live is None:
        champion = _published(inputs["recommendations"], _counter(inputs["recommendations"]), codebook)
    else:
        champion = _champion(inputs, rows, progress)
    progress.say(f"{candidate.name} against {_named(champion)} on {rows.height:,} test rows")
    train = tables.read(inputs["interactions"].path("train.parquet"), [TARGET])
    found = rules(candidate, champion, rows, train, margins, config.evaluation)
    shared = {
        "dataset": config.dataset,  # type: ignore[attr-defined]
        "snapshot": config.snapshot.key,  # type: ignore[attr-defined]
        "candidate": candidate.name,
        "champion": champion.name,
        "champion_snapshot": champion.snapshot,
        "seed": config.evaluation.seed,
        "candidate_checkpoint": candidate.checkpoint,
        "champion_checkpoint": champion.checkpoint,
    }
    tables.write(tables.typed([shared | rule for rule in found], Promotion), out_dir / "promotion.parquet", Promotion)
    failed = [rule for rule in found if not rule["passed"]]
    detail = "; ".join(f"{rule['rule']} {rule['verdict']}" for rule in failed) or f"{len(found)} rules hold"
    missing = sum(rows.height - side.lists[ROW_ID].n_unique() for side in (candidate, champion))
    return Report(
        metrics={f"{rule['rule']}_difference": rule["difference"] for rule in found if rule["difference"] is not None}
        | {"passed": not failed, "champion": _named(champion), "test_rows": rows.height},
        checks=(
            Check("same_rows", missing == 0, f"{rows.height:,} rows, {missing:,} lists missing"),
            Check("not_worse", not failed, f"against {_named(champion)}: {detail}"),
        ),
        markdown={"Gate": page(found)},
    )


def rules(
    candidate: Side,
    champion: Side,
    rows: pl.DataFrame,
    train: pl.DataFrame,
    margins: Margins,
    settings: Evaluation,
) -> list[dict[str, Any]]:
    """Every rule with its numbers and its verdict; against the counter only HR and NDCG.

    Args:
        rows: the contract `Samples`, the test rows of both sides' lists.
        train: the candidate's train rows: a target without any is cold.
    """
    k = headline(settings.ks)[-1]
    metrics = [column(ITEM_LEVEL, metric, k) for metric in (HR, NDCG)]
    mine, theirs = (_scored(side, rows, k).select(metrics).to_numpy() for side in (candidate, champion))
    rows = rows.sort(ROW_ID)
    users = rows[USER_ID].to_numpy()
    found = [_compared(HR, k, mine[:, 0], theirs[:, 0], users, margins.margin, settings)]
    found.append(_compared(NDCG, k, mine[:, 1], theirs[:, 1], users, margins.margin, settings))
    for rule in found:
        rule |= _word(rule["ci_low"] is not None and rule["ci_low"] > -margins.margin, rule)
    if champion.snapshot is None:
        return found
    cold = ~rows[TARGET].is_in(train[TARGET].unique().implode()).to_numpy()
    on_cold = _compared(COLD, k, mine[cold, 0], theirs[cold, 0], users[cold], margins.cold_margin, settings)
    held = not cold.any() or on_cold["difference"] >= -margins.cold_margin
    on_cold |= {"passed": held, "verdict": NONE if not cold.any() else PASSED if held else WORSE}
    wide = _point(COVERAGE, k, _coverage(candidate, k), _coverage(champion, k), users)
    held = wide["difference"] >= -margins.coverage_margin
    wide |= {"margin": margins.coverage_margin, "passed": held, "verdict": PASSED if held else WORSE}
    slow = _point(SECONDS, 0, candidate.seconds, champion.seconds, users)
    held = candidate.seconds <= champion.seconds * (1 + margins.slower)
    slow |= {"margin": margins.slower, "passed": held, "verdict": PASSED if held else WORSE}
    return [*found, wide, on_cold, slow]


def page(found: list[dict[str, Any]]) -> str:
    """The rules as a Markdown table."""
    cells = []
    for rule in found:
        ends = "" if rule["ci_low"] is None else f" [{rule['ci_low']:+.4f}, {rule['ci_high']:+.4f}]"
        values = [
            f"{rule[name]:.4f}" if rule[name] is not None else "–" for name in ("candidate_value", "champion_value")
        ]
        gap = "–" if rule["difference"] is None else f"{rule['difference']:+.4f}{ends}"
        name = f"{rule['rule']}@{rule['k']}" if rule["k"] else rule["rule"]
        cells.append((name, *values, gap, f"{rule['margin']:g}", f"{rule['n_rows']:,}", rule["verdict"]))
    heads = ("rule", "candidate", "champion", "difference", "margin", "rows", "verdict")
    return markdown_table(heads, cells, "lrrrrrl")


# -- the sides ---------------------------------------------------------------------------------------


def _check_evaluated(inputs: Inputs) -> None:
    """Refuse lists that are newer than their evaluation: what goes live was judged by all checks."""
    read = stage_named("evaluation").inputs["recommendations"]
    now, then = inputs["recommendations"].digest_of(read), inputs["evaluation"].made_from["recommendations"]
    if now != then:
        raise InputError(
            "the lists of this snapshot are not those that were evaluated",
            expected=f"an evaluation of the lists {now[:12]}",
            found=f"one of {then[:12]}",
            fix="materialize evaluation again",
        )


def _published(recommendations: StageInput, name: str, codebook: pl.DataFrame, snapshot: str | None = None) -> Side:
    """A side whose lists are stored."""
    lists = lists_of(tables.read(recommendations.path("recommendations.parquet")), name)
    behind = lists_of(tables.read(recommendations.path("models.parquet")), name)
    if behind.is_empty():
        raise InputError(
            f"there are no lists of {name}",
            expected="one of decoding.models, as the lists were made",
            found=name,
            fix="materialize recommendations again",
        )
    model, mode = split_name(name)
    # A merged list is made of the two others of its checkpoint.
    modes = (DIRECT, THINKING, MERGED) if mode == MERGED else (mode,)
    seconds = sum(recommendations.metrics.get(f"{model}_{one}_seconds", 0.0) for one in modes)
    per_list = seconds / recommendations.metrics["test_rows"]
    return Side(name, lists, codebook, behind["checkpoint"][0], per_list, snapshot)


def _counter(recommendations: StageInput) -> str:
    models = tables.read(recommendations.path("models.parquet"))
    for name in COUNTERS:
        if lists_of(models, name).height:
            return name
    raise InputError(
        "nothing is live, and there is nothing to compare the first candidate with",
        expected=f"{' or '.join(COUNTERS)} among decoding.models",
        found="no lists of a counter",
        fix="add item_item/direct to decoding.models",
    )


def _champion(inputs: Inputs, rows: pl.DataFrame, progress: Progress) -> Side:
    """What is live: its stored lists where they are for these rows, else its lists for them now."""
    alive, base = inputs.alive, inputs.live
    assert alive is not None and base is not None
    stored = base["recommendations"]
    codebook = tables.read(base["sid_codebook"].path("sid_codebook.parquet"))
    side = _published(stored, alive.model, codebook.select(ITEM_ID, "sid"), alive.snapshot)
    if tables.read(stored.path("rows.parquet")).equals(rows):
        return side
    leakage.check_checkpoints(base, [alive.model], rows, codebook)
    readable, _ = known_histories(rows, codebook)
    settings = _as_decoded(stored.config, alive.snapshot)
    also = {"judged_rows": inputs["recommendations"].digest_of(("rows.parquet",))}
    part = recommend.part_of(
        alive.model, base, settings, readable, codebook, progress.named(f"live {alive.model}"), also
    )
    return dataclasses.replace(side, lists=recommend.joined_lists({alive.model: part}, rows, settings))


def _as_decoded(recorded: Mapping[str, Any], snapshot: str) -> Any:
    """The settings that lists were made with, from the record of their output."""
    fields = DatasetConfig.model_fields
    sections = {
        name: TypeAdapter(cast(Any, fields[name].annotation)).validate_python(value)
        for name, value in recorded.items()
        if name in fields
    }
    return SimpleNamespace(**sections, dataset=recorded["dataset"], snapshot=SimpleNamespace(key=snapshot))


def _named(side: Side) -> str:
    return f"{side.name} of {side.snapshot}" if side.snapshot else f"{side.name}, as nothing is live"


# -- the numbers -------------------------------------------------------------------------------------


def _scored(side: Side, rows: pl.DataFrame, k: int) -> pl.DataFrame:
    """Metrics of every row, sorted by row_id; a row without a list is a miss."""
    scores = per_row(side.lists, rows, side.codebook, (k,))
    return rows.select(ROW_ID).join(scores, on=ROW_ID, how="left").fill_null(0.0).sort(ROW_ID)


def _coverage(side: Side, k: int) -> float:
    return side.lists.filter(pl.col(RANK) <= k)[ITEM_ID].n_unique() / side.codebook.height


def _compared(
    rule: str, k: int, mine: np.ndarray, theirs: np.ndarray, users: np.ndarray, margin: float, settings: Evaluation
) -> dict[str, Any]:
    """Means of both sides, their difference, and its interval where there are two users or more."""
    line: dict[str, Any] = {"rule": rule, "k": k, "margin": margin, "ci_low": None, "ci_high": None}
    line |= {"candidate_value": None, "champion_value": None, "difference": None}
    line |= {"n_rows": len(users), "n_users": len(np.unique(users))}
    if len(users):
        values = {"candidate_value": float(mine.mean()), "champion_value": float(theirs.mean())}
        line |= values | {"difference": float((mine - theirs).mean())}
    if line["n_users"] > 1:
        options = {"draws": settings.bootstrap, "confidence": settings.confidence, "seed": settings.seed}
        interval = paired(mine[:, None], theirs[:, None], users, **options).interval
        line |= {"ci_low": float(interval.low[0]), "ci_high": float(interval.high[0])}
    return line


def _point(rule: str, k: int, mine: float, theirs: float, users: np.ndarray) -> dict[str, Any]:
    line = {"rule": rule, "k": k, "candidate_value": mine, "champion_value": theirs, "difference": mine - theirs}
    return line | {"ci_low": None, "ci_high": None, "n_rows": len(users), "n_users": len(np.unique(users))}


def _word(passed: bool, rule: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on a rule with an interval."""
    worse = rule["ci_high"] is not None and rule["ci_high"] < -rule["margin"]
    return {"passed": passed, "verdict": PASSED if passed else WORSE if worse else FEW}
