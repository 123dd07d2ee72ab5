"""Whether a claim card is true: it is made again from the stored rows and lists, and compared field by field.

The metrics and the paired differences are counted by SQL from the files, apart from the code that evaluated them;
intervals, p-values and verdicts then follow from what was counted, by the rules of the evaluation. Everything else on
the card is read from the manifests anew. A digit that was changed, on the card or in a file, is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError

from sidr_core.errors import InputError, StoreError
from sidr_core.evaluation.claims import CLAIMED, DIGITS, EVIDENCE, VERSION, Card, cards
from sidr_core.evaluation.evaluate import remarks_by_list
from sidr_core.evaluation.protocol import claims, counting_baseline, headline, list_name, lists_of
from sidr_core.evaluation.verdicts import gap_rows, judge, limits
from sidr_core.metrics.intervals import differences, draw_means, share_summary
from sidr_core.metrics.ranking import HR, NDCG
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.recommending.rows import chosen_rows
from sidr_core.settings import Decoding, Evaluation
from sidr_core.tables import files as tables
from sidr_core.tables import sql
from sidr_core.tables.columns import ITEM_LEVEL, MODE, MODEL, ROW_ID, USER_ID

#: Many times a card's size.
_MOST_BYTES = 1_000_000
#: Half of the last digit, and a bit for sums in another order.
_TOLERANCE = 0.5 * 10**-DIGITS + 1e-9


def read_card(path: Path) -> Card:
    """Read a card of this version.

    Raises:
        InputError: the file is too large, is no card, or is one of another version.
    """

    def refused(found: str) -> InputError:
        return InputError(
            f"{path.name} is not a claim card",
            expected=f"a JSON file as the stage `leaderboard` writes it, version {VERSION}",
            found=found,
            fix="use a file from `claims/` of a published leaderboard, unchanged",
        )

    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise refused(f"{size:,} bytes, more than {_MOST_BYTES:,}")
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:100]
        raise refused(f"{where or 'the file'}: {first['msg'][:200]}") from None


def verify(card: Card, store: Store, known: dict[str, list[Card]]) -> list[str]:
    """What is wrong with a card, one sentence each; nothing if it is true.

    Args:
        known: evaluation -> its cards as counted anew; filled in, so that cards of one table are counted once.

    Raises:
        InputError: the store does not have the outputs that the card speaks of.
    """
    if card.evaluation not in known:
        try:
            known[card.evaluation] = recounted(_opened(card, store))
        except StoreError as error:
            return [f"{error.what}: expected {error.expected}, found {error.found}"]
    for stage, made in card.stages.items():
        if store.open(stage, made.fingerprint) is None:
            raise _unknown(store, f"{stage[:100]}/{made.fingerprint}")
    counted = [one for one in known[card.evaluation] if one.name == card.name]
    if not counted:
        return [f"the evaluation has no list {card.name!r}"]
    return unequal(card.model_dump(), counted[0].model_dump())


def _opened(card: Card, store: Store) -> dict[str, Artifact]:
    """The evaluation that the card is taken from, and what it was made from, by stage."""
    evaluation = store.open("evaluation", card.evaluation)
    if evaluation is None:
        raise _unknown(store, f"evaluation/{card.evaluation}")
    outputs = store.lineage(evaluation)
    for stage in EVIDENCE:
        if stage not in outputs:
            raise _unknown(store, f"the {stage} behind evaluation/{card.evaluation}")
    return outputs


def _unknown(store: Store, what: str) -> InputError:
    return InputError(
        "the card speaks of an output that is not in this store",
        expected=f"{what} in {store.root}",
        found="none: it is of another working folder, or nothing refers to it any more and `sidr gc` deleted it",
        fix="set SIDR_HOME to the folder that the card was made in, or materialize the dataset again for a new card",
    )


def unequal(said: Any, found: Any, where: str = "") -> list[str]:
    """Where a card (as plain values) and the one that was made anew differ, one sentence each."""
    if isinstance(said, dict) and isinstance(found, dict):
        keys = [*said, *(key for key in found if key not in said)]
        pairs = [(f"{where}.{key}" if where else str(key), said.get(key), found.get(key)) for key in keys]
        return [line for name, a, b in pairs for line in unequal(a, b, name)]
    if isinstance(said, tuple) and isinstance(found, tuple) and len(said) == len(found):
        return [
            line for n, (a, b) in enumerate(zip(said, found, strict=True)) for line in unequal(a, b, f"{where}[{n}]")
        ]
    if isinstance(said, float) and isinstance(found, float):
        same = abs(said - found) <= _TOLERANCE and round(said, DIGITS) == said
    else:
        same = said == found
    return [] if same else [f"{where[:100]}: the card says {str(said)[:120]}, found {str(found)[:120]}"]


# -- counting again ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """What SQL counts in the files of lists and rows.

    Args:
        columns: (metric, k) of each of the M columns of `values`.
        values: `<model>/<mode>` -> (R, M), rows in the order of their ids.
        means: (`<model>/<mode>`, metric, k) -> the metric.
        gaps: (`<model>/<mode>`, metric) -> `difference` from the best counting baseline, and the rows `helped`,
            `harmed` and `same`.
        users: (R,).
    """

    columns: list[tuple[str, int]]
    values: dict[str, np.ndarray]
    means: dict[tuple[str, str, int], float]
    gaps: dict[tuple[str, str], dict[str, Any]]
    users: np.ndarray


def recounted(outputs: Mapping[str, Artifact]) -> list[Card]:
    """All cards of an evaluation, made again from the files of its lists and rows.

    Args:
        outputs: stage -> output, of the evaluation and what it was made from.

    Raises:
        StoreError: a file is not as it was published, or lists and rows do not belong together.
    """
    for stage, file in EVIDENCE.items():
        outputs[stage].path(file)  # every byte is as published
    config = outputs["evaluation"].manifest["key"]["config"]
    settings, decoding = Evaluation.model_validate(config["evaluation"]), Decoding.model_validate(config["decoding"])
    test = tables.read(outputs["interactions"].path("test.parquet"))
    rows = chosen_rows(test, decoding.max_test_rows)
    remarks = tables.read(outputs["evaluation"].path("remarks.parquet"))
    models = tables.read(outputs["recommendations"].path("models.parquet"))
    counted = _count(outputs, rows, settings, decoding.models)
    n_users = len(np.unique(counted.users))
    produced_by = {
        list_name(row): row | {"n_rows": rows.height, "n_users": n_users} for row in models.iter_rows(named=True)
    }
    everything = np.hstack(list(counted.values.values()))
    drawn = draw_means(everything, counted.users, draws=settings.bootstrap, seed=settings.seed)
    draws = dict(zip(counted.values, np.split(drawn, len(counted.values), axis=1), strict=True))
    lines = []  # every metric of every list with its interval
    for name, values in counted.values.items():
        interval = share_summary(values, draws[name], n_users, settings.confidence)
        for n, (metric, k) in enumerate(counted.columns):
            numbers = {"value": counted.means[name, metric, k], "ci_low": interval.low[n], "ci_high": interval.high[n]}
            lines.append({**produced_by[name], "metric": metric, "k": k, "level": ITEM_LEVEL, **numbers})
    figures = pl.DataFrame(lines, infer_schema_length=None)
    beside = remarks_by_list(remarks, decoding.models, rows.height, test.height)
    margins = _margins(counted, draws, produced_by, settings, beside)
    return cards({stage: output.manifest for stage, output in outputs.items()}, figures, margins, remarks)


def _margins(
    counted: _Counted,
    draws: Mapping[str, np.ndarray],
    produced_by: Mapping[str, Mapping[str, Any]],
    settings: Evaluation,
    beside: Mapping[str, list[str]],
) -> pl.DataFrame:
    """Every list less the best counting baseline, judged: the columns of `Paired` that a card needs."""
    k = headline(settings.ks)[-1]
    columns = [counted.columns.index((metric, k)) for metric in CLAIMED]
    lines: list[dict[str, Any]] = []
    for a, b in claims(tuple(counted.values)):
        gap, gap_draws = ((arrays[a] - arrays[b])[:, columns] for arrays in (counted.values, draws))
        found = gap_rows(differences(gap, gap_draws, counted.users, settings.confidence, settings.margin))
        first, second = produced_by[a], produced_by[b]
        shared = {"model_a": first[MODEL], "mode_a": first[MODE], "n_users": first["n_users"], "k": k}
        shared["remarks"] = limits((a, b), (first["seen_until"], second["seen_until"]), beside)
        for metric, row in zip(CLAIMED, found, strict=True):
            lines.append(shared | {"metric": metric} | row | counted.gaps[a, metric])
    judge(lines, settings)
    return pl.DataFrame(lines, schema_overrides=_NAMES, infer_schema_length=None)


#: So that a table without a margin has the columns that are looked at.
_NAMES = {"model_a": pl.String, "mode_a": pl.String}


def _count(
    outputs: Mapping[str, Artifact], rows: pl.DataFrame, settings: Evaluation, names: tuple[str, ...]
) -> _Counted:
    """Count in the files.

    Args:
        rows: the rows that were to be evaluated, sorted by row_id.
        names: `<model>/<mode>` of all lists.

    Raises:
        StoreError: a list is missing, or is one too many.
    """
    columns = [(metric, k) for k in settings.ks for metric in CLAIMED]
    labels = [_label(*column) for column in columns]
    gains = ", ".join(
        f"avg(case when place <= {k} then {_GAIN[metric]} else 0.0 end) as {_label(metric, k)}" for metric, k in columns
    )
    filled = ", ".join(f"coalesce({label}, 0.0) as {label}" for label in labels)
    files = {
        "lists": str(outputs["recommendations"].path("recommendations.parquet")),
        "test": str(outputs["interactions"].path("test.parquet")),
    }
    with tempfile.TemporaryDirectory(prefix="sidr-verify-") as folder, sql.connect(Path(folder)) as db:
        db.execute(_SCORED.format(gains=gains, filled=filled), files)
        scores = sql.frame(db, "select * from scored order by row_id")
        averages = ", ".join(f"avg({label}) as {label}" for label in labels)
        averaged = sql.frame(db, f"select model, mode, {averages} from scored group by model, mode")
        k, baseline = headline(settings.ks)[-1], {"baseline": counting_baseline(names)}
        paired = {metric: sql.frame(db, _PAIRED.format(label=_label(metric, k)), baseline) for metric in CLAIMED}
    by_name = {name: lists_of(scores, name) for name in names}
    for name, part in by_name.items():
        if not part[ROW_ID].equals(rows[ROW_ID]):
            raise StoreError(
                f"the lists of {name} are not those of the evaluated rows",
                expected=f"one list for each of {rows.height:,} test rows",
                found=f"lists for {part.height:,} rows",
                fix="materialize recommendations and evaluation again",
            )
    return _Counted(
        columns,
        {name: part.select(labels).to_numpy() for name, part in by_name.items()},
        {
            (list_name(row), metric, k): row[_label(metric, k)]
            for row in averaged.iter_rows(named=True)
            for metric, k in columns
        },
        {
            (list_name(row), metric): {key: row[key] for key in ("difference", "helped", "harmed", "same")}
            for metric, part in paired.items()
            for row in part.iter_rows(named=True)
        },
        rows[USER_ID].to_numpy(),
    )


def _label(metric: str, k: int) -> str:
    return f"{metric}_{k}"


#: What a target at `place` is worth.
_GAIN = {HR: "1.0", NDCG: "1.0 / log2(place + 1)"}
#: Items of one SID at one score are in no order: a target among them may be at each of their places.
_SCORED = """
create temp table scored as
with lists as (select * from read_parquet($lists)),
truth as (select row_id, target_item_id from read_parquet($test)),
hits as (
    select lists.model, lists.mode, lists.row_id, lists.sid, lists.score
    from lists join truth on lists.row_id = truth.row_id and lists.item_id = truth.target_item_id
),
places as (
    select lists.model, lists.mode, lists.row_id, lists.rank as place
    from lists semi join hits using (model, mode, row_id, sid, score)
),
gained as (select model, mode, row_id, {gains} from places group by model, mode, row_id),
ranked as (select distinct model, mode, row_id from lists semi join truth using (row_id))
select model, mode, row_id, {filled} from ranked left join gained using (model, mode, row_id)
"""
_PAIRED = """
select a.model, a.mode, avg(a.{label} - b.{label}) as difference,
    count(*) filter (a.{label} - b.{label} > 1e-12) as helped,
    count(*) filter (a.{label} - b.{label} < -1e-12) as harmed,
    count(*) filter (abs(a.{label} - b.{label}) <= 1e-12) as same
from scored a join scored b on a.row_id = b.row_id and b.model || '/' || b.mode = $baseline
group by a.model, a.mode
"""
