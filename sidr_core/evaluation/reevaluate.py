"""The stage `reevaluation`: the checkpoints of an earlier snapshot again, on rows that are newer than all they knew.

The checkpoints are those of the newest earlier snapshot that has a whole evaluation; the rows are this snapshot's
samples whose target is newer than their training and than every row they were judged on at the time. Beside them
stand the counters as fitted then. Everything of a list is as it was: SIDs, catalogue, decoding; what became known
since (new items) cannot be recommended, and a row that wanted it is a miss. The table is a history: rows that it
held for earlier snapshots are kept as they are. The papers evaluate a model once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.errors import InputError
from sidr_core.evaluation import evaluate
from sidr_core.evaluation.pages import titled
from sidr_core.evaluation.protocol import headline, list_name
from sidr_core.metrics.lists import self_information
from sidr_core.metrics.ranking import HR, NDCG
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import leakage, recommend
from sidr_core.recommending.rows import chosen_rows
from sidr_core.render import figures
from sidr_core.render.grid import Grid, ranged
from sidr_core.settings.models import language_model, models_behind, producers, split_name
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Reevaluation

if TYPE_CHECKING:
    from sidr_core.pipeline.store import Artifact
    from sidr_core.settings import DatasetConfig

#: The split of the rows: of no split that a model was trained, chosen or judged on.
NEWER = "newer"
FILE = "reevaluation.parquet"
#: What drift is looked for in.
_JUDGED = (HR, NDCG)
#: Settings of `decoding` that lists follow from, besides which rows and models there are.
_DECODED_BY = ("scoring", "max_thought_tokens", "traces", "trace_temperature", "choice_rows", "beam_width", "seen")
_AGAIN = "materialize recommendations and evaluation of that snapshot again"
_SAME = [c.MODEL, c.MODE, "metric", "k", "level", "beam_width"]


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write the history with this snapshot's rows behind it, where there are any; a page and a figure of it."""
    before = tables.read(inputs.previous.path(FILE)) if inputs.previous else Reevaluation.empty()
    added, summary = _evaluate_again(inputs, config, progress)
    progress.say(summary)
    history = pl.concat([before, added]) if added is not None else before
    tables.write(history, out_dir / FILE, Reevaluation)
    k = headline(config.evaluation.ks)[-1]
    compared = compare_with_then(history.clear() if added is None else added, k)
    metrics: dict[str, Any] = {"history_rows": before.height, "base_snapshot": inputs.earlier_snapshot or "none"}
    if added is not None:
        metrics |= _metrics(added, compared)
    if history.height:
        _draw(history, k, out_dir / "reevaluation.png", inputs.synthetic)
    checks = (append_only(before, tables.read(out_dir / FILE)), drift(compared, summary))
    return Report(metrics, checks, {"Re-evaluation": _page(compared, summary, inputs.synthetic)})


def _evaluate_again(inputs: Inputs, config: DatasetConfig, progress: Progress) -> tuple[pl.DataFrame | None, str]:
    """The new rows of the history, or None, and what was done or why nothing was."""
    base = inputs.earlier
    if base is None:
        return None, "nothing to evaluate again: no earlier snapshot has a whole evaluation"
    models = tables.read(base["recommendations"].path("models.parquet"))
    names = _names(config, models)
    codebook = tables.read(base["sid_codebook"].path("sid_codebook.parquet"))
    judged_on = tables.read(base["recommendations"].path("rows.parquet"))
    leakage.check_checkpoints(base, names, judged_on, codebook)
    _refuse_others(base, names, models)
    after = int(judged_on[c.TARGET_TIME].max())  # type: ignore[arg-type]
    day = max((day for day in models["seen_until"] if day != "unknown"), default="")
    rows = newer_rows(
        [inputs["interactions"].path(f"{name}.parquet") for name in (c.TRAIN, c.VALID, c.TEST)], after, day
    )
    rows = chosen_rows(rows, config.decoding.max_test_rows) if rows.height else rows
    users = rows[c.USER_ID].n_unique()
    since = f"newer than the test rows of {inputs.earlier_snapshot} (until {tables.iso_date(after)})"
    if users < 2 or not names:
        return None, f"nothing to evaluate again: {rows.height:,} rows of {users:,} users are {since}"
    _refuse_other_settings(base, config)
    readable, unknown = known_histories(rows, codebook)
    also = {"newer_rows": {"interactions": inputs["interactions"].digest, "after": [after, day]}}
    parts = {
        name: recommend.part_of(name, base, config, readable, codebook, progress.named(name), also) for name in names
    }
    table = _table(parts, base, config, rows, codebook, models)
    unreachable = rows.join(codebook, left_on=c.TARGET, right_on=c.ITEM_ID, how="anti").height
    known = (pl.lit(inputs.earlier_snapshot).alias("base_snapshot"), pl.lit(unreachable, pl.Int64).alias("unreachable"))
    summary = (
        f"{len(names)} models of {inputs.earlier_snapshot} on {rows.height:,} rows of {users:,} users {since}; "
        f"{unreachable:,} targets had no SID then, {unknown:,} histories hold only items without one"
    )
    then = tables.read(base["evaluation"].path("evaluation.parquet"))
    # Each row with the same metric of the earlier evaluation.
    ends = {"value": "base_value", "ci_low": "base_ci_low", "ci_high": "base_ci_high"}
    joined = table.join(then.select(*_SAME, *ends).rename(ends), on=_SAME, how="left", maintain_order="left")
    return joined.with_columns(known).select(list(Reevaluation.to_schema().columns)), summary


def _table(
    parts: Mapping[str, Artifact],
    base: Inputs,
    config: Any,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    models: pl.DataFrame,
) -> pl.DataFrame:
    """The lists of some models scored as `evaluation` does, by the contract `EvaluationTable`."""
    settings, names = config.evaluation, tuple(parts)
    lists, thoughts = recommend.joined_lists(parts, rows, config), recommend.thoughts_of(parts)
    models = models.filter(pl.concat_str(c.MODEL, pl.lit("/"), c.MODE).is_in(names))
    leakage.check_lists(lists, rows, models, names, max(settings.ks))
    scored = evaluate.score(lists, rows, codebook, names, settings)
    train, items = (tables.read(base["interactions"].path(f"{name}.parquet")) for name in (c.TRAIN, "items"))
    bits = self_information(train, items)
    exposure = {name: evaluate.exposure_of(name, lists, thoughts, models, codebook, bits, settings) for name in names}
    context = {c.DATASET: config.dataset, c.SNAPSHOT: config.snapshot.key, c.SPLIT: NEWER}
    return evaluate.evaluation_table(scored, exposure, models, settings, context)


def newer_rows(files: list[Path], after: int, day: str) -> pl.DataFrame:
    """The samples of some files whose target is later than `after` (unix seconds) and than the ISO date `day`."""
    late = pl.col(c.TARGET_TIME) > after
    if day:
        late &= pl.from_epoch(c.TARGET_TIME, "s").dt.date() > pl.lit(day).str.to_date()
    return pl.concat([pl.scan_parquet(file).filter(late).collect() for file in files]).sort(c.ROW_ID)


def known_histories(rows: pl.DataFrame, codebook: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Rows whose histories hold only items of the codebook, and how many have nothing left to be read."""
    known = codebook[c.ITEM_ID].implode()
    readable = rows.with_columns(pl.col(c.HISTORY).list.eval(pl.element().filter(pl.element().is_in(known))))
    return readable, readable.filter(pl.col(c.HISTORY).list.len() == 0).height


def _names(config: DatasetConfig, models: pl.DataFrame) -> tuple[str, ...]:
    """What is evaluated again: the checkpoints' lists and the counters' that the earlier evaluation has."""
    then = {list_name(row) for row in models.iter_rows(named=True)}
    model_of = {name: split_name(name)[0] for name in config.decoding.models if name in then}
    return tuple(
        name for name, model in model_of.items() if language_model(model) or models_behind(model)[0].is_counted
    )


def _refuse_others(base: Inputs, names: tuple[str, ...], models: pl.DataFrame) -> None:
    """Refuse a checkpoint that is not the one whose evaluation it would be compared with."""
    checkpoints = {list_name(row): row["checkpoint"] for row in models.iter_rows(named=True)}
    for name in names:
        stage, *others = producers(split_name(name)[0])
        then = {stage: checkpoints[name]} | {other: base["recommendations"].made_from[other] for other in others}
        for source, digest in then.items():
            if base[source].digest != digest:
                raise InputError(
                    f"the earlier {source} is not the one that was evaluated then",
                    expected=f"digest {digest[:12]}",
                    found=base[source].digest[:12],
                    fix=_AGAIN,
                )


def _refuse_other_settings(base: Inputs, config: DatasetConfig) -> None:
    """Refuse to decode otherwise than the lists were decoded whose figures stand beside."""
    then, now = (
        {f"decoding.{field}": decoding.get(field) for field in _DECODED_BY} | {"item_item": item_item}
        for decoding, item_item in (
            (base["recommendations"].config["decoding"], base["recommendations"].config["item_item"]),
            (config.decoding.model_dump(mode="json"), config.item_item.model_dump(mode="json")),
        )
    )
    if other := [name for name in now if then[name] != now[name]]:
        raise InputError(
            "the earlier snapshot was decoded with other settings than the profile has now",
            expected=", ".join(f"{name} = {then[name]}" for name in other),
            found=", ".join(f"{name} = {now[name]}" for name in other),
            fix=_AGAIN,
        )


# -- checks ------------------------------------------------------------------------------------------


def compare_with_then(rows: pl.DataFrame, k: int) -> pl.DataFrame:
    """HR@k and NDCG@k at item level that can be compared with their evaluation, and whether they moved.

    Returns:
        the rows (contract `Reevaluation`) with `outside`: the value now lies outside the interval of then;
        and `apart`: the intervals of then and now share no point.
    """
    compared = pl.col("metric").is_in(_JUDGED) & (pl.col("k") == k) & (pl.col("level") == c.ITEM_LEVEL)
    value, low, high = (pl.col(name) for name in ("value", "ci_low", "ci_high"))
    then_low, then_high = pl.col("base_ci_low"), pl.col("base_ci_high")
    return rows.filter(compared & pl.col("base_value").is_not_null()).with_columns(
        ((value < then_low) | (value > then_high)).alias("outside"),
        ((high < then_low) | (low > then_high)).alias("apart"),
    )


def drift(compared: pl.DataFrame, summary: str) -> Check:
    """Fails where a metric's interval lies apart from that of its evaluation.

    The value now is measured on other rows and has a noise of its own: without any drift, one of six values on as
    many rows lies outside the 95 % interval of then, and more on fewer rows. Noise alone parts the intervals of one
    in two hundred. So that is the verdict; both are told.
    """
    if compared.is_empty():
        return Check("drift", True, summary)
    apart, outside = compared.filter(pl.col("apart")), compared.filter(pl.col("outside")).height
    moved = "; ".join(f"{_label(row)} {_then(row)} -> {ranged(row)}" for row in apart.iter_rows(named=True))
    detail = (
        f"of {compared.height} figures {apart.height} have an interval apart from that of their evaluation (the "
        f"verdict), {outside} a value outside of it" + (f": {moved}" if moved else "")
    )
    return Check("drift", apart.is_empty(), detail)


def append_only(before: pl.DataFrame, after: pl.DataFrame) -> Check:
    """The first rows of the new history are all of the old one, value for value and type for type."""
    unchanged = before.schema == after.schema and after.head(before.height).equals(before)
    detail = f"{before.height:,} rows before, {after.height - before.height:,} behind them"
    return Check("append_only", unchanged, detail)


# -- what people see ---------------------------------------------------------------------------------


def _metrics(added: pl.DataFrame, compared: pl.DataFrame) -> dict[str, Any]:
    """Plotted over snapshots: headline numbers, how many rows, how many moved."""
    numbers: dict[str, Any] = {
        f"{row[c.MODEL]}_{row[c.MODE]}_{row['metric']}@{row['k']}": round(row["value"], 6)
        for row in compared.iter_rows(named=True)
    }
    rows, unreachable = added["n_rows"][0], added["unreachable"][0]
    counts = {"rows": rows, "users": added["n_users"][0], "unreachable": unreachable}
    share = {"unreachable_share": round(unreachable / rows, 6)}
    return numbers | counts | share | {name: int(compared[name].sum()) for name in ("outside", "apart")}


def _label(row: dict[str, Any]) -> str:
    return f"{list_name(row)} {row['metric'].upper()}@{row['k']}"


def _then(row: dict[str, Any]) -> str:
    return ranged({name: row[f"base_{name}"] for name in ("value", "ci_low", "ci_high")})


def _page(compared: pl.DataFrame, summary: str, synthetic: bool) -> str:
    """Then and now, side by side, as Markdown."""
    sentence = titled(f"{summary[0].upper()}{summary[1:]}.", synthetic)
    if compared.is_empty():
        return sentence
    rows = tuple(
        (_label(row), _then(row), ranged(row), *("yes" if row[name] else "no" for name in ("outside", "apart")))
        for row in compared.iter_rows(named=True)
    )
    grid = Grid("Then and now, item level", ("metric", "then", "now", "outside", "apart: drift"), rows)
    return f"{sentence}\n\n{grid.markdown()}"


def _draw(history: pl.DataFrame, k: int, path: Path, synthetic: bool) -> None:
    """NDCG@k of each model over snapshots."""
    ndcg = history.filter((pl.col("metric") == NDCG) & (pl.col("k") == k) & (pl.col("level") == c.ITEM_LEVEL))
    snapshots = ndcg[c.SNAPSHOT].unique().sort().to_list()
    series = {}
    for (model, mode), points in ndcg.group_by(c.MODEL, c.MODE, maintain_order=True):
        at = [float(snapshots.index(key)) for key in points[c.SNAPSHOT]]
        series[f"{model}/{mode}"] = (at, *(points[name].to_list() for name in ("value", "ci_low", "ci_high")))
    title = titled(f"{history[c.DATASET][0]}, newer rows", synthetic)
    figures.bands(series, path, title, "snapshot", f"NDCG@{k}, item level", ticks=snapshots)
