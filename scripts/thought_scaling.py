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
from sidr_core.evaluation.pages import joined, titled
from sidr_core.evaluation.verdicts import GAP_BESIDE_VALUE, gap_rows, judge, notes, span
from sidr_core.metrics.intervals import differences, draw_means, share_summary
from sidr_core.metrics.ranking import NDCG, column, per_row
from sidr_core.recommending.rows import history_sids
from sidr_core.render import figures
from sidr_core.render.grid import Grid, ranged
from sidr_core.tables.columns import DIRECT, ITEM_ID, ITEM_LEVEL, MODE, MODEL, ROW_ID, SID, TARGET, USER_ID

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
differences are paired by row. {verdicts}"""


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
    from sidr_core.decoding.decoder import Decoder
    from sidr_core.decoding.lists import rankings_of
    from sidr_core.recommending.lists import checkpoint_lists

    rows = rows.sort(ROW_ID)
    row_ids, histories = rows[ROW_ID].to_list(), history_sids(rows, codebook)
    turns = [next_item(history) for history in histories]
    sid_of = dict(codebook.select(ITEM_ID, SID).iter_rows())
    targets = [loaded.index.leaf_of[sid_of[item]] for item in rows[TARGET]]

    def ndcg(rankings: pl.DataFrame) -> np.ndarray:
        """(R,) NDCG@k at item level, in the order of row_id."""
        lists = rankings.with_columns(pl.lit("").alias(MODEL), pl.lit("").alias(MODE))
        return per_row(lists, rows, codebook, [k]).sort(ROW_ID)[column(ITEM_LEVEL, NDCG, k)].to_numpy()

    def lines(traces: int, cap: int, *columns: np.ndarray) -> pl.DataFrame:
        named = zip((TOKENS, CLOSED, NDCG, ORACLE), columns, strict=True)
        numbers = [pl.Series(name, values) for name, values in named]
        return rows.select(pl.lit(traces).alias(TRACES), pl.lit(cap).alias(CAP), ROW_ID, USER_ID, *numbers)

    progress.say(f"direct, {rows.height:,} rows")
    gains = ndcg(checkpoint_lists(loaded, row_ids, histories, DIRECT, decoding, progress.named(DIRECT)).rankings)
    measured = [lines(0, 0, np.zeros(rows.height), np.ones(rows.height), gains, gains)]
    for traces, cap in settings:
        options = decoding.model_copy(update={"traces": traces, "max_thought_tokens": cap})
        decoder = Decoder.of(loaded, options)
        ranked = decoder.think_and_rank(turns, progress=progress.named(f"{traces} x {cap}"))
        gains = ndcg(rankings_of(ranked.beams, loaded.index, row_ids))
        oracle = gains
        if traces > 1:
            best = decoder.best_of_traces(turns, ranked, targets)  # (R,), from 0
            oracle = np.where(best < min(k, decoder.beam_width), 1 / np.log2(best + 2), 0.0)
        tokens = np.array([sum(len(thought.ids) for thought in row) for row in ranked.thoughts], dtype=np.float64)
        closed = np.array([np.mean([thought.closed for thought in row]) for row in ranked.thoughts])
        measured.append(lines(traces, cap, tokens, closed, gains, oracle))
    return pl.concat(measured)


def table(measured: pl.DataFrame, settings: Evaluation) -> pl.DataFrame:
    """Means with intervals, and differences from `direct`: one line per setting, in the order measured.

    Returns:
        traces, cap, tokens, closed, ndcg, ci_low, ci_high, oracle, difference, difference_low, difference_high,
        detectable, p_holm, verdict (these null for direct).
    """
    lines: list[dict[str, Any]] = []
    direct: tuple[np.ndarray, np.ndarray] | None = None
    for (traces, cap), rows in measured.group_by([TRACES, CAP], maintain_order=True):
        users, ndcg = rows[USER_ID].to_numpy(), rows.select(NDCG).to_numpy()
        drawn, count = draw_means(ndcg, users, draws=settings.bootstrap, seed=settings.seed), len(np.unique(users))
        interval = share_summary(ndcg, drawn, count, settings.confidence)
        means = {name: float(rows[name].to_numpy().mean()) for name in (TOKENS, CLOSED, ORACLE)}
        line = {TRACES: traces, CAP: cap, **means, NDCG: interval.value[0], "n_users": count}
        line |= {"ci_low": interval.low[0], "ci_high": interval.high[0]}
        if direct is None:
            direct = ndcg, drawn
        else:
            gap = differences(ndcg - direct[0], drawn - direct[1], users, settings.confidence, settings.margin)
            line |= gap_rows(gap, GAP_BESIDE_VALUE)[0]
        lines.append(line)
    judge(lines, settings)
    floats = (TOKENS, CLOSED, NDCG, "ci_low", "ci_high", ORACLE, *GAP_BESIDE_VALUE, "detectable")
    types = {TRACES: pl.Int64, CAP: pl.Int64, **dict.fromkeys((*floats, "p_holm"), pl.Float64), "verdict": pl.String}
    return pl.DataFrame(lines, schema=types)


def grid(scaling: pl.DataFrame, k: int) -> Grid:
    """The table of :func:`table` for people."""
    rows = []
    for row in scaling.iter_rows(named=True):
        gap = ("",) * 4
        if row["difference"] is not None:
            numbers = f"{row['detectable']:.4f}", f"{row['p_holm']:.4f}"
            gap = (span(row, GAP_BESIDE_VALUE, "+"), *numbers, row["verdict"])
        rows.append(
            (
                f"{row[TRACES]} x {row[CAP]}" if row[TRACES] else DIRECT,
                f"{row[TOKENS]:.1f}",
                f"{row[CLOSED]:.1%}" if row[TRACES] else "",
                ranged(row, value=NDCG),
                *gap,
                f"{row[ORACLE]:.4f}" if row[TRACES] > 1 else "",
            )
        )
    header = ("thoughts x cap", "tokens per list", "closed", f"NDCG@{k}", "minus direct", "smallest detectable")
    return Grid("Inference scaling", (*header, "p (Holm)", "it is", "oracle best of N"), tuple(rows))


def page(scaling: pl.DataFrame, k: int, settings: Evaluation, temperature: float, caption: str, synthetic: bool) -> str:
    """The curve's numbers as Markdown."""
    family = scaling["difference"].count()
    return joined(
        titled("# Inference scaling", synthetic),
        caption,
        grid(scaling, k).markdown(),
        notes(_NOTES, settings, family, k=k, temperature=temperature),
    )


def curve(scaling: pl.DataFrame, k: int, path: Path, title: str) -> None:
    """Draw NDCG with its interval against tokens per list, one line per cap, the direct list beside; write a PNG."""
    thinking = scaling.filter((pl.col(TRACES) > 0) & (pl.col(TOKENS) > 0)).sort(CAP, TRACES)
    series = {
        f"at most {cap} tokens": tuple(rows[name].to_list() for name in (TOKENS, NDCG, "ci_low", "ci_high"))
        for (cap,), rows in thinking.group_by([CAP], maintain_order=True)
    }
    direct = float(scaling.filter(pl.col(TRACES) == 0)[NDCG][0])
    figures.bands(series, path, title, "tokens of thought per list", f"NDCG@{k}", (DIRECT, direct))
