"""The stage `reasoning_report`: what the thoughts behind the lists say, whom they help, and how long they are.

The paper shows chosen examples. Here cases are drawn at random with a fixed seed, and beside them stand those that
thinking helped and harmed most against the direct list of the same checkpoint. How often a thought names the first
item of its list or the target has a control: an item drawn at random from the catalogue. A thought that names an
item need not be what put it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.corpus.catalogue import Catalogue, all_words
from sidr_core.evaluation.cases import Case, ItemTitles, markdown
from sidr_core.evaluation.pages import joined, titled
from sidr_core.evaluation.protocol import lists_of
from sidr_core.metrics.intervals import bootstrap
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress
from sidr_core.recommending import truth
from sidr_core.render import figures
from sidr_core.render.grid import Grid
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Cases

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig, Evaluation

K = 10
#: Cases of each kind that are shown for each model.
SHOWN = {"random": 4, "helped": 3, "harmed": 3}
#: Words that more than this share of the catalogue carries name no item.
COMMON = 0.05
BY_SID, BY_TITLE, BY_ASPECT, NOT = "sid", "title", "aspect", "no"
HELPED, HARMED, SAME = "helped", "harmed", "same"
_SEED = 42
_LIST = [c.MODEL, c.MODE, c.ROW_ID]
_LENGTH = 5


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Write `cases.parquet`, `reasoning_report.md` and `lengths.png`."""
    made = inputs["recommendations"]
    lists = tables.read(
        made.path("recommendations.parquet"), [*_LIST, c.USER_ID, c.RANK, c.ITEM_ID, c.SID, c.SCORE, c.REASONING]
    )
    rows, thoughts = tables.read(made.path("rows.parquet")), tables.read(made.path("thoughts.parquet"))
    items = tables.read(inputs["interactions"].path("items.parquet"))
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    cases = cases_of(lists, rows, thoughts, Naming(Catalogue.read(items, codebook)))
    tables.write(cases, out_dir / "cases.parquet", Cases)
    progress.say(f"{cases.height:,} thoughts read")
    titles = ItemTitles(
        dict(items.select(c.ITEM_ID, c.TITLE).iter_rows()), dict(codebook.select(c.ITEM_ID, c.SID).iter_rows())
    )
    snapshot = f"{config.dataset}, snapshot {config.snapshot.key}"  # type: ignore[attr-defined]
    caption = f"{titled(snapshot, inputs.synthetic)}: {rows.height:,} test rows"
    true = truth.shares(thoughts)
    text = page(cases, lists, titles, config.evaluation, caption, true)
    (out_dir / "reasoning_report.md").write_text(text)
    groups = thought_lengths(cases)
    labels, lengths = [name for name, _ in groups], [tokens.to_list() for _, tokens in groups]
    figures.boxes(labels, lengths, out_dir / "lengths.png", caption, "tokens")
    numbers = {
        f"{model}_{name}": round(share, 4) for model, of_model in true.items() for name, share in of_model.items()
    }
    return Report(_metrics(cases) | numbers, markdown={"reasoning_report": text})


# -- what a thought names ----------------------------------------------------------------------------


class Naming:
    """Tells by what a thought names items: their SID, their whole title, or an aspect.

    An aspect is a content word of title, brand or category that at most :data:`COMMON` of the catalogue carries
    (of a small catalogue: at most three items).
    """

    def __init__(self, catalogue: Catalogue) -> None:
        frequency: dict[str, int] = {}
        for item in catalogue.values():
            for word in item.words:
                frequency[word] = frequency.get(word, 0) + 1
        most = max(3.0, COMMON * len(catalogue))
        self._sids = {name: item.sid for name, item in catalogue.items()}
        self._titles = {name: f" {' '.join(all_words(item.title))} " for name, item in catalogue.items()}
        self._aspects = {
            name: frozenset(word for word in item.words if frequency[word] <= most) for name, item in catalogue.items()
        }
        self._item_titles = ItemTitles({}, self._sids)
        self.items = sorted(self._sids)

    def of(self, thought: str) -> Named:
        """What the thought holds, read once."""
        words = all_words(thought)
        return Named(self, self._item_titles.named(thought), f" {' '.join(words)} ", frozenset(words))

    def by(self, item: str, named: Named) -> str:
        """How the thought names `item`: the strongest of SID, title, aspect; or not."""
        if self._sids[item] in named.sids:
            return BY_SID
        if self._titles[item].strip() and self._titles[item] in named.text:
            return BY_TITLE
        return BY_ASPECT if self._aspects[item] & named.words else NOT


@dataclass(frozen=True)
class Named:
    """A thought's whole SIDs, its words in order between blanks, and its words."""

    naming: Naming
    sids: set[str]
    text: str
    words: frozenset[str]

    def strongest(self, items: Iterable[str]) -> str:
        """How the thought names any of `items`."""
        ways = {self.naming.by(item, self) for item in items}
        return next(way for way in (BY_SID, BY_TITLE, BY_ASPECT, NOT) if way in ways or way == NOT)


# -- the table -----------------------------------------------------------------------------------------


def cases_of(lists: pl.DataFrame, rows: pl.DataFrame, thoughts: pl.DataFrame, naming: Naming) -> pl.DataFrame:
    """One row per thinking model and test row that it thought about, by the contract `Cases`.

    Args:
        lists: the contract `Recommendations`.
        rows: the contract `Samples`, the test rows behind the lists.
        thoughts: the contract `Thoughts`; of several per row the first is read.
        naming: of the same catalogue.
    """
    lengths = lists.group_by(_LIST).agg(pl.len().alias("length"))
    ranked = lengths.join(target_places(lists, rows), on=_LIST, how="left")
    direct = ranked.filter(pl.col(c.MODE) == c.DIRECT).select(
        pl.col(c.MODEL).alias("base"),
        c.ROW_ID,
        pl.col("place").alias("direct_place"),
        pl.col("length").alias("direct_length"),
    )
    first = lists.filter((pl.col(c.RANK) == 1) & (pl.col(c.MODE) == c.THINKING))
    table = (
        first.select(c.MODEL, c.MODE, c.ROW_ID, c.USER_ID, pl.col(c.ITEM_ID).alias("top_item_id"), c.REASONING)
        .join(thoughts.filter(pl.col(c.TRACE) == 0).drop(c.TRACE), on=[c.MODEL, c.ROW_ID], how="inner")
        .join(rows.select(c.ROW_ID, c.HISTORY, c.TARGET), on=c.ROW_ID, how="inner")
        .join(ranked, on=_LIST, how="left")
        .with_columns(pl.col(c.MODEL).str.strip_suffix(f"_{c.ADAPTIVE}").alias("base"))
        .join(direct, on=["base", c.ROW_ID], how="left")
        .sort(c.MODEL, c.ROW_ID)
    )
    # Lists hold as many SIDs, not as many items: a target that both miss must not seem to have moved.
    behind = pl.max_horizontal("length", "direct_length") + 1
    moved = pl.col("direct_place").fill_null(behind) - pl.col("place").fill_null(behind)
    gain = pl.when(pl.col("direct_length").is_not_null()).then(moved)
    change = gain.sign().replace_strict({1: HELPED, 0: SAME, -1: HARMED}, return_dtype=pl.String)
    hit = (pl.col("place") <= K).fill_null(False)
    compared = table.with_columns(gain.cast(pl.Float64).alias("gain"), change.alias("change"), hit.alias("hit"))
    return _choose_examples(compared.with_columns(*_what_thoughts_name(compared, naming)))


def target_places(lists: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """model, mode, row_id and the target's `place`, of lists that hold it.

    Items of one SID at one score lie in no order: the place is the mean of theirs.
    """
    group = [*_LIST, c.SID, c.SCORE]
    truth = rows.select(c.ROW_ID, pl.col(c.TARGET).alias(c.ITEM_ID))
    hits = lists.join(truth, on=[c.ROW_ID, c.ITEM_ID], how="semi").select(group)
    return lists.join(hits, on=group, how="semi").group_by(_LIST).agg(pl.col(c.RANK).mean().alias("place"))


def _what_thoughts_name(table: pl.DataFrame, naming: Naming) -> list[pl.Series]:
    """How each thought names the top item, the target, its history, and an item drawn at random."""
    random = np.random.default_rng(_SEED)
    drawn = [naming.items[n] for n in random.integers(len(naming.items), size=table.height)]
    ways: dict[str, list[str]] = {f"names_{thing}": [] for thing in ("top", "target", "history", "random")}
    for row, control in zip(table.iter_rows(named=True), drawn, strict=True):
        named = naming.of(row[c.REASONING] or "")
        for column, items in zip(ways, ([row["top_item_id"]], [row[c.TARGET]], row[c.HISTORY], [control]), strict=True):
            ways[column].append(named.strongest(items))
    return [pl.Series(name, values, dtype=pl.String) for name, values in ways.items()]


def _choose_examples(table: pl.DataFrame) -> pl.DataFrame:
    """Adds `shown`: why a row is an example in the report ("random", "helped", "harmed"), null for most."""
    parts = []
    for _, rows in table.group_by(c.MODEL, maintain_order=True):
        picks = np.random.default_rng(_SEED).permutation(rows.height)[: SHOWN["random"]].tolist()
        by_gain = rows.with_row_index("n").sort(pl.col("gain").abs(), c.ROW_ID, descending=[True, False])
        chosen = {"random": picks}
        for change in (HELPED, HARMED):
            chosen[change] = by_gain.filter(pl.col("change") == change)["n"].head(SHOWN[change]).to_list()
        why = [", ".join(kind for kind, of in chosen.items() if n in of) or None for n in range(rows.height)]
        parts.append(rows.with_columns(pl.Series("shown", why, dtype=pl.String)))
    return pl.concat(parts) if parts else table.with_columns(pl.lit(None, dtype=pl.String).alias("shown"))


# -- the page ------------------------------------------------------------------------------------------

_NOTES = f"""\
A thought names an item by the strongest of: its whole SID, its whole title, an aspect (a word of title, brand or
category that at most {COMMON:.0%} of the catalogue carries). "Random item" is drawn from the catalogue: what a row
has above it is more than chance. Helped and harmed compare the target's place with the direct list of the same
checkpoint; a target that is not in a list counts as one place behind the end of the longer of the two."""


def page(
    cases: pl.DataFrame,
    lists: pl.DataFrame,
    titles: ItemTitles,
    settings: Evaluation,
    caption: str,
    true: Mapping[str, Mapping[str, float]],
) -> str:
    """The report as Markdown; `true` holds `truth.shares` of the thoughts."""
    if cases.is_empty():
        return joined("# Reasoning report", caption, "No model of `decoding.models` thinks.")
    parts = [truth_grid(true).markdown()] if true else []
    parts += [named_grid(cases).markdown(), length_grid(cases).markdown(), shorter(cases, settings), _NOTES]
    for (model,), rows in cases.filter(pl.col("shown").is_not_null()).group_by([c.MODEL], maintain_order=True):
        rankings = lists_of(lists, f"{model}/{c.THINKING}")
        for kind in SHOWN:
            examples = rows.filter(pl.col("shown").str.contains(kind, literal=True))
            if kind != "random":
                examples = examples.sort(pl.col("gain").abs(), c.ROW_ID, descending=[True, False])
            parts.append(f"## {model}: {_TITLES[kind]}" + ("" if examples.height else "\n\nNone."))
            parts += [markdown(case_of(row, rankings), titles) for row in examples.iter_rows(named=True)]
    return joined("# Reasoning report", caption, *parts)


_TITLES = {"random": "drawn at random", HELPED: "most helped by thinking", HARMED: "most harmed by thinking"}


def case_of(row: Mapping[str, Any], rankings: pl.DataFrame) -> Case:
    """A row of the contract `Cases` with the first ranks of its list, of the lists of its model."""
    ranks = {f"{row[c.MODEL]}/{c.THINKING}": _place(row["place"])}
    if row["gain"] is not None:
        ranks[f"{row['base']}/{c.DIRECT}"] = _place(row["direct_place"])
    return Case(
        f"User {row[c.USER_ID]}, row {row[c.ROW_ID]}",
        row[c.HISTORY],
        rankings.filter(pl.col(c.ROW_ID) == row[c.ROW_ID]).sort(c.RANK).head(_LENGTH),
        thought=row[c.REASONING],
        unclosed=not row["closed"],
        target=row[c.TARGET],
        ranks=ranks,
    )


def _place(place: float | None) -> str:
    return "not in the list" if place is None else f"{place:g}"


def named_grid(cases: pl.DataFrame) -> Grid:
    """Share of thoughts that name each thing, by the strongest way, one row per model and thing."""
    rows = []
    labels = {"top": "first item of its list", "target": "target", "history": "an item of the history"}
    for (model,), thoughts in cases.group_by([c.MODEL], maintain_order=True):
        for thing, label in {**labels, "random": "random item"}.items():
            ways = thoughts[f"names_{thing}"]
            shares = [(ways == way).sum() / max(len(ways), 1) for way in (BY_SID, BY_TITLE, BY_ASPECT)]
            rows.append((f"{model}: {label}", *(f"{share:.1%}" for share in shares), f"{sum(shares):.1%}"))
    return Grid("What thoughts name", ("thought of", "by SID", "by title", "by aspect", "at all"), tuple(rows))


def truth_grid(true: Mapping[str, Mapping[str, float]]) -> Grid:
    """Shares of facts, thoughts and candidates that are true, one row per model."""
    names = ("facts_right", "candidates_real", "thoughts_true")
    rows = [
        (model, *(f"{shares[name]:.1%}" if name in shares else "–" for name in names)) for model, shares in true.items()
    ]
    return Grid("How true thoughts are", ("model", "facts right", "candidates real", "wholly true"), tuple(rows))


def thought_lengths(cases: pl.DataFrame) -> list[tuple[str, pl.Series]]:
    """Thought lengths by model and outcome; groups without a thought are left out."""
    named = []
    for (model,), thoughts in cases.group_by([c.MODEL], maintain_order=True):
        outcomes = {
            "all": pl.lit(True),
            f"hit@{K}": pl.col("hit"),
            "miss": ~pl.col("hit"),
            **{change: pl.col("change") == change for change in (HELPED, HARMED, SAME)},
        }
        named += [(f"{model}: {name}", thoughts.filter(rule)["n_tokens"]) for name, rule in outcomes.items()]
    return [(name, lengths) for name, lengths in named if len(lengths)]


def length_grid(cases: pl.DataFrame) -> Grid:
    """Number and length of thoughts by model and outcome."""
    rows = tuple(
        (
            name,
            f"{len(lengths):,}",
            f"{lengths.mean():.1f}",
            *(f"{lengths.quantile(q, 'linear'):.0f}" for q in (0.1, 0.5, 0.9)),
        )
        for name, lengths in thought_lengths(cases)
    )
    return Grid("Tokens of a thought", ("outcome", "thoughts", "mean", "10 %", "median", "90 %"), rows)


def shorter(cases: pl.DataFrame, settings: Evaluation) -> str:
    """Whether RL made thoughts shorter, on the rows that both models thought about; "" without both."""
    grpo, activation = (cases.filter(pl.col(c.MODEL) == model) for model in ("grpo", "activation"))
    both = grpo.join(activation, on=c.ROW_ID, suffix="_before").sort(c.ROW_ID)
    if both[c.USER_ID].n_unique() < 2:
        return ""
    after, before = (both.select(pl.col(name).cast(pl.Float64)).to_numpy() for name in ("n_tokens", "n_tokens_before"))
    options = {"draws": settings.bootstrap, "confidence": settings.confidence, "seed": settings.seed}
    gap = bootstrap(after - before, both[c.USER_ID].to_numpy(), **options)  # type: ignore[arg-type]
    return (
        f"Mean length: activation {before.mean():.1f}, GRPO {after.mean():.1f} tokens; difference {gap.value[0]:+.1f} "
        f"[{gap.low[0]:+.1f}, {gap.high[0]:+.1f}], {100 * settings.confidence:g} % interval over users, paired."
    )


def _metrics(cases: pl.DataFrame) -> dict[str, Any]:
    numbers: dict[str, Any] = {"thoughts": cases.height}
    for (model,), thoughts in cases.group_by([c.MODEL], maintain_order=True):
        numbers[f"{model}_mean_tokens"] = round(float(thoughts["n_tokens"].mean() or 0.0), 3)  # type: ignore[arg-type]
        for thing in ("top", "target", "history", "random"):
            named = (thoughts[f"names_{thing}"] != NOT).sum()
            numbers[f"{model}_names_{thing}"] = round(named / max(thoughts.height, 1), 4)
        for change in (HELPED, HARMED, SAME):
            numbers[f"{model}_{change}"] = int((thoughts["change"] == change).sum())
    return numbers
