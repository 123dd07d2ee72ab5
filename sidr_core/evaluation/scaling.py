"""What thinking more buys: NDCG against the tokens of thought spent per list, from one checkpoint.

The paper scales inference by Best-of-N, where the true item chooses the thought; that needs the answer. Here the list
is ranked by the mean over N sampled thoughts, which a service could do, and the oracle stands beside it, labelled.
Nothing is chosen from this table: it describes a checkpoint, whichever split it is measured on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.corpus.prompts import next_item
from sidr_core.evaluation.pages import too_few
from sidr_core.metrics.intervals import bootstrap, judge, paired
from sidr_core.metrics.ranking import NDCG, column, per_row
from sidr_core.recommending.rows import history_sids
from sidr_core.render import figures as plots
from sidr_core.render.grid import SYNTHETIC_LABEL, Grid
from sidr_core.tables.columns import DIRECT, ITEM_ID, ITEM_LEVEL, MODE, MODEL, ROW_ID, SID, TARGET, THINKING, USER_ID

if TYPE_CHECKING:
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Decoding, Evaluation

TRACES, CAP, TOKENS, ORACLE, CLOSED = "traces", "cap", "tokens", "oracle", "closed"

_NOTES = """\
NDCG@{k} is at item level; the oracle is the best place of the target's SID among the N lists after each thought
alone, an upper bound that needs the answer. Tokens are those of all N thoughts of a list, closing tag not counted;
`direct` does not think. N = 1 is the greedy thought, more are sampled at temperature {temperature:g} and their
distributions averaged. In brackets: {percent} % intervals from a bootstrap over users ({draws:,} draws, seed {seed});
differences are paired by row, verdicts corrected for the {family} of this table (Holm).{few}"""


def measure(
    loaded: Loaded,
    rows: pl.DataFrame,
    codebook: pl.DataFrame,
    decoding: Decoding,
    settings: Iterable[tuple[int, int]],
    k: int,
    progress: Progress,
) -> pl.DataFrame:
    """Score the direct list, and the list after N thoughts of at most so many tokens for each (N, cap) of `settings`.

    Args:
        loaded: the checkpoint.
        rows: the contract `Samples`, R of them.
        codebook: item_id, sid.
        decoding: beam width, batch size, temperature, scoring; its traces and cap are replaced.
        k: cut-off, at most the beam width.
        progress: told which setting is measured.

    Returns:
        One line per setting and row: traces, cap (both 0: direct), row_id, user_id, tokens, closed (share of the
        thoughts), ndcg, oracle.
    """
    from sidr_core.decoding.lists import places_of
    from sidr_core.decoding.traces import best_of_traces, think_and_rank
    from sidr_core.recommending.lists import neural

    rows = rows.sort(ROW_ID)
    row_ids, histories = rows[ROW_ID].to_list(), history_sids(rows, codebook)
    prompts = [loaded.renderer.prompt(next_item(history), THINKING) for history in histories]
    targets = _leaves(loaded, rows, codebook)
    progress.say(f"direct, {rows.height:,} rows")
    direct = neural(loaded, row_ids, histories, DIRECT, decoding, progress.named(DIRECT)).places
    nothing = np.zeros(rows.height)
    gains = _gains(direct, rows, codebook, k)
    found = [_lines(rows, (0, 0), nothing, nothing + 1, gains, gains)]
    for traces, cap in settings:
        said = progress.named(f"{traces} x {cap}")
        here = decoding.model_copy(update={"traces": traces, "max_thought_tokens": cap})
        traced = think_and_rank(loaded, prompts, here, said)
        places = best_of_traces(loaded, prompts, traced, targets, here) if traces > 1 else None
        gains = _gains(places_of(traced.beams, loaded.index, row_ids), rows, codebook, k)
        last = min(k, decoding.beam_width)
        oracle = gains if places is None else np.where(places < last, 1 / np.log2(places + 2), 0.0)
        tokens = np.array([sum(len(thought.ids) for thought in row) for row in traced.thoughts], dtype=np.float64)
        closed = np.array([np.mean([thought.closed for thought in row]) for row in traced.thoughts])
        found.append(_lines(rows, (traces, cap), tokens, closed, gains, oracle))
    return pl.concat(found)


def _leaves(loaded: Loaded, rows: pl.DataFrame, codebook: pl.DataFrame) -> list[int]:
    """Row number of each target's SID in the checkpoint's index."""
    sid_of = dict(codebook.select(ITEM_ID, SID).iter_rows())
    return [loaded.index.leaf_of[sid_of[item]] for item in rows[TARGET]]


def _gains(places: pl.DataFrame, rows: pl.DataFrame, codebook: pl.DataFrame, k: int) -> np.ndarray:
    """(R,) NDCG@k at item level, in the order of row_id."""
    named = places.with_columns(pl.lit("").alias(MODEL), pl.lit("").alias(MODE))
    return per_row(named, rows, codebook, [k]).sort(ROW_ID)[column(ITEM_LEVEL, NDCG, k)].to_numpy()


def _lines(
    rows: pl.DataFrame,
    setting: tuple[int, int],
    tokens: np.ndarray,
    closed: np.ndarray,
    gains: np.ndarray,
    oracle: np.ndarray,
) -> pl.DataFrame:
    traces, cap = setting
    return rows.select(
        pl.lit(traces).alias(TRACES),
        pl.lit(cap).alias(CAP),
        ROW_ID,
        USER_ID,
        pl.Series(TOKENS, tokens),
        pl.Series(CLOSED, closed),
        pl.Series(NDCG, gains),
        pl.Series(ORACLE, oracle),
    )


def table(measured: pl.DataFrame, settings: Evaluation) -> pl.DataFrame:
    """Means with intervals, and differences from `direct`: one line per setting, in the order measured.

    Returns:
        traces, cap, tokens, closed, ndcg, ci_low, ci_high, oracle, difference, difference_low, difference_high,
        p_holm, verdict (these five null for direct).
    """
    options: dict[str, Any] = {
        "draws": settings.bootstrap,
        "confidence": settings.confidence,
        "seed": settings.seed,
    }
    found: list[dict[str, Any]] = []
    direct: np.ndarray | None = None
    for (traces, cap), rows in measured.group_by([TRACES, CAP], maintain_order=True):
        users, own = rows[USER_ID].to_numpy(), rows.select(NDCG).to_numpy()
        interval = bootstrap(own, users, **options)
        means = {name: float(rows[name].to_numpy().mean()) for name in (TOKENS, CLOSED, ORACLE)}
        line = {TRACES: traces, CAP: cap, **means, NDCG: interval.value[0]}
        line |= {"ci_low": interval.low[0], "ci_high": interval.high[0]}
        if direct is None:
            direct = own
        else:
            gap = paired(own, direct, users, **options)
            line |= {"difference": gap.interval.value[0], "p": float(gap.p[0])}
            line |= {"difference_low": gap.interval.low[0], "difference_high": gap.interval.high[0]}
        found.append(line)
    family = [line for line in found if "p" in line]
    words = judge([line["difference"] for line in family], [line.pop("p") for line in family], settings.confidence)
    for line, verdict in zip(family, words, strict=True):
        line |= {"p_holm": verdict.p_holm, "verdict": verdict.word}
    names = (TOKENS, CLOSED, NDCG, "ci_low", "ci_high", ORACLE, "difference", "difference_low", "difference_high")
    types = {TRACES: pl.Int64, CAP: pl.Int64, **dict.fromkeys((*names, "p_holm"), pl.Float64), "verdict": pl.String}
    return pl.DataFrame(found, schema=types)


def grid(found: pl.DataFrame, k: int) -> Grid:
    """The table of :func:`table` for people."""
    rows = []
    for row in found.iter_rows(named=True):
        gap = ("", "", "")
        if row["difference"] is not None:
            span = f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
            gap = (f"{row['difference']:+.4f} {span}", f"{row['p_holm']:.4f}", row["verdict"])
        rows.append(
            (
                f"{row[TRACES]} x {row[CAP]}" if row[TRACES] else DIRECT,
                f"{row[TOKENS]:.1f}",
                f"{row[CLOSED]:.1%}" if row[TRACES] else "",
                f"{row[NDCG]:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]",
                *gap,
                f"{row[ORACLE]:.4f}" if row[TRACES] > 1 else "",
            )
        )
    header = ("thoughts x cap", "tokens per list", "closed", f"NDCG@{k}", "minus direct", "p (Holm)", "it is")
    return Grid("Inference scaling", (*header, "oracle best of N"), tuple(rows))


def page(found: pl.DataFrame, k: int, settings: Evaluation, temperature: float, caption: str, synthetic: bool) -> str:
    """The curve's numbers as Markdown."""
    label = f" ({SYNTHETIC_LABEL})" if synthetic else ""
    family = found["difference"].count()
    notes = _NOTES.format(
        k=k,
        temperature=temperature,
        percent=f"{100 * settings.confidence:g}",
        draws=settings.bootstrap,
        seed=settings.seed,
        family=family,
        few=too_few(settings, family),
    )
    return "\n\n".join([f"# Inference scaling{label}", caption, grid(found, k).markdown(), notes]) + "\n"


def curve(found: pl.DataFrame, k: int, path: Path, title: str) -> None:
    """Draw NDCG with its interval against tokens per list, one line per cap, the direct list beside; write a PNG."""
    thinking = found.filter((pl.col(TRACES) > 0) & (pl.col(TOKENS) > 0)).sort(CAP, TRACES)
    series = {
        f"at most {cap} tokens": tuple(rows[name].to_list() for name in (TOKENS, NDCG, "ci_low", "ci_high"))
        for (cap,), rows in thinking.group_by([CAP], maintain_order=True)
    }
    direct = float(found.filter(pl.col(TRACES) == 0)[NDCG][0])
    plots.bands(series, path, title, "tokens of thought per list", f"NDCG@{k}", (DIRECT, direct))
