"""`sidr recommend` and `sidr explain`: lists for people, with titles in place of ids."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core import tables
from sidr_core.cli_status import newest_published, open_store
from sidr_core.columns import (
    DIRECT,
    HISTORY,
    ITEM_ID,
    MODE,
    MODEL,
    POSITION,
    RANK,
    REASONING,
    ROW_ID,
    SCORE,
    SID,
    TARGET,
    THINKING,
    TITLE,
    USER_ID,
)
from sidr_core.errors import SidrError
from sidr_core.profile import load_profile
from sidr_core.report.terminal import console, printable
from sidr_core.settings import DatasetConfig

if TYPE_CHECKING:
    from sidr_core.store import Artifact, Store

_TITLE_CHARS = 90


@dataclass(frozen=True)
class _Published:
    """The outputs of one snapshot, and what a reader needs to name its items."""

    store: Store
    config: DatasetConfig
    dataset: str
    snapshot: str

    @classmethod
    def of(cls, dataset: str | None, snapshot: str | None, stage: str) -> _Published:
        """The newest snapshot (or the one named) for which `stage` is published."""
        profile, store = load_profile(), open_store()
        dataset = dataset or profile.default_dataset
        key = newest_published(profile, store, dataset, stage, snapshot)
        return cls(store, profile.dataset(dataset), dataset, key)

    def artifact(self, stage: str) -> Artifact:
        return self.store.require(self.dataset, self.snapshot, stage)

    def file(self, stage: str, name: str) -> Path:
        return self.artifact(stage).path(name)

    def titles(self) -> dict[str, str]:
        """item_id -> title."""
        items = tables.read(self.file("interactions", "items.parquet"), [ITEM_ID, TITLE])
        return dict(items.iter_rows())

    def sids(self) -> dict[str, str]:
        """item_id -> SID."""
        return dict(tables.read(self.file("sid_codebook", "sid_codebook.parquet"), [ITEM_ID, SID]).iter_rows())

    def heading(self, stage: str, what: str) -> str:
        synthetic = " (synthetic sample data)" if self.artifact(stage).synthetic else ""
        return f"{self.dataset}, snapshot {self.snapshot}{synthetic}: {what}"


def recommend(
    dataset: str | None, snapshot: str | None, user: str | None, history: str | None, mode: str, k: int
) -> None:
    """Print the `k` best items after a user's history, or after the items named."""
    if (user is None) == (history is None):
        raise SidrError(
            "whom to recommend to is not clear",
            expected="either --user or --history",
            found="both" if user else "neither",
            do="for example: sidr recommend --history ITEM,ITEM",
        )
    if mode not in (DIRECT, THINKING):
        raise SidrError(
            f"unknown mode {mode!r}", expected=f"{THINKING} or {DIRECT}", found=repr(mode), do="name one of these"
        )
    published = _Published.of(dataset, snapshot, "grpo_checkpoint")
    sids = published.sids()
    named = [item.strip() for item in (history or "").split(",") if item.strip()]
    items = _history_of(published, user) if user is not None else _known(named, sids, published)
    items = items[-published.config.split.max_history :]

    from sidr_core.evaluation.lists import neural
    from sidr_core.models import checkpoint

    loaded = checkpoint.load(published.artifact("grpo_checkpoint").verified_folder())
    decoding = published.config.decoding
    decoding = decoding.model_copy(update={"beam_width": max(k, min(decoding.beam_width, len(loaded.index)))})
    lists = neural(loaded, ["row"], [[sids[item] for item in items]], mode, decoding)
    thought = lists.thoughts.row(0, named=True) if lists.thoughts is not None else None
    who = f"user {user}" if user is not None else "the history given"
    _print_list(
        published.heading("grpo_checkpoint", f"grpo/{mode} for {who}"),
        items,
        None if thought is None else thought[REASONING],
        lists.places.head(k),
        published.titles(),
        sids,
        cut=thought is not None and not thought["closed"],
    )


def explain(dataset: str | None, snapshot: str | None, user: str, row: str | None, model: str, k: int) -> None:
    """Print a published list with its history, its thought, the truth, and where other models put it."""
    published = _Published.of(dataset, snapshot, "recommendations")
    path = published.file("recommendations", "recommendations.parquet")
    lists = pl.scan_parquet(path).filter(pl.col(USER_ID) == user).collect()
    if lists.is_empty():
        users = pl.scan_parquet(path).select(USER_ID).unique().collect()[USER_ID].to_list()
        raise _unknown("user", user, users, f"the recommendations of {published.dataset}/{published.snapshot}")
    test = tables.read(published.file("interactions", "test.parquet"))
    rows = test.filter(pl.col(ROW_ID).is_in(lists[ROW_ID].unique().to_list())).sort(POSITION)
    row = rows[ROW_ID][-1] if row is None else row
    if row not in rows[ROW_ID]:
        raise _unknown("row", str(row), rows[ROW_ID].to_list(), f"the test rows of user {user}")
    name = pl.concat_str(MODEL, MODE, separator="/")
    lists = lists.filter(pl.col(ROW_ID) == row).with_columns(name.alias("name"))
    places = lists.filter(pl.col("name") == model).sort(RANK)
    if places.is_empty():
        raise _unknown("model", model, lists["name"].unique().sort().to_list(), "the recommendations")
    sample = rows.filter(pl.col(ROW_ID) == row).row(0, named=True)
    titles, sids = published.titles(), published.sids()
    _print_list(
        published.heading("recommendations", f"{model} for user {user}, row {row}"),
        sample[HISTORY],
        places[REASONING][0],
        places.head(k),
        titles,
        sids,
        target=sample[TARGET],
    )
    _print_truth(sample[TARGET], lists, titles, sids)


def _history_of(published: _Published, user: str) -> list[str]:
    """The user's items, oldest first."""
    path = published.file("interactions", "interactions.parquet")
    found = pl.scan_parquet(path).filter(pl.col(USER_ID) == user).sort(POSITION).collect()
    if found.is_empty():
        users = pl.scan_parquet(path).select(USER_ID).unique().collect()[USER_ID].to_list()
        raise _unknown("user", user, users, f"the interactions of {published.dataset}/{published.snapshot}")
    return found[ITEM_ID].to_list()


def _known(items: list[str], sids: Mapping[str, str], published: _Published) -> list[str]:
    """`items`, all in the catalogue and at least one."""
    for item in items or [""]:
        if item not in sids:
            raise _unknown("item", item, list(sids), f"the catalogue of {published.dataset}/{published.snapshot}")
    return items


def _unknown(kind: str, name: str, known: Sequence[str], where: str) -> SidrError:
    """An error that names what is near."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return SidrError(
        f"there is no {kind} {name!r} in {where}",
        expected=f"one of {len(known):,}" + (f", such as {', '.join(sorted(known)[:3])}" if known else ""),
        found=repr(name),
        do=f"did you mean {' or '.join(near)}?" if near else f"name a {kind} that is there",
    )


# -- printing ----------------------------------------------------------------------------------------


def _print_list(
    heading: str,
    history: Sequence[str],
    thought: str | None,
    places: pl.DataFrame,
    titles: Mapping[str, str],
    sids: Mapping[str, str],
    target: str | None = None,
    cut: bool = False,
) -> None:
    """Heading, history, thought and list; the target's place is marked where it is given."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    screen = console()
    screen.print(Text(printable(heading), style="bold"))
    screen.print(Text("\nHistory, oldest first", style="bold"))
    for item in history:
        screen.print(Text(f"  {_title(item, titles)}  {printable(sids.get(item, '(no SID)'))}"))
    if thought is not None:
        screen.print(Text("\nThought" + (" (cut at the limit of tokens)" if cut else ""), style="bold"))
        for line in resolve(thought, titles, sids).splitlines() or ["(empty)"]:
            screen.print(Text(f"  {printable(line)}"))
    table = Table(box=box.SIMPLE_HEAD)
    for name, side in (("place", "right"), ("title", "left"), ("item", "left"), ("SID", "left"), ("score", "right")):
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in places.sort(RANK).iter_rows(named=True):
        cells = [str(row[RANK]), _title(row[ITEM_ID], titles), printable(row[ITEM_ID]), row[SID], f"{row[SCORE]:.3f}"]
        table.add_row(*(Text(cell) for cell in cells), style="bold green" if row[ITEM_ID] == target else None)
    screen.print(table)


def _print_truth(target: str, lists: pl.DataFrame, titles: Mapping[str, str], sids: Mapping[str, str]) -> None:
    """The item that was bought, and its place in each model's list."""
    from rich.text import Text

    screen = console()
    screen.print(Text("Truth", style="bold"))
    screen.print(Text(f"  {_title(target, titles)}  {printable(target)}  {printable(sids.get(target, '(no SID)'))}"))
    screen.print(Text("\nPlace of the truth", style="bold"))
    found = dict(lists.filter(pl.col(ITEM_ID) == target).select("name", RANK).iter_rows())
    for name, length in lists.group_by("name", maintain_order=True).len().iter_rows():
        screen.print(Text(f"  {name}: {found.get(name, f'not among {length}')}"))


def resolve(thought: str, titles: Mapping[str, str], sids: Mapping[str, str]) -> str:
    """A thought with the title behind each whole SID; one that no item carries is marked.

    >>> resolve("Likes <a_0><b_1>.", {"A": "Chess", "B": "Go"}, {"A": "<a_0><b_1>", "B": "<a_0><b_2>"})
    'Likes <a_0><b_1> (Chess).'
    >>> resolve("So <a_9><b_9>; all of <a_0>.", {"A": "Chess"}, {"A": "<a_0><b_1>"})
    'So <a_9><b_9> (no item); all of <a_0>.'
    """
    from sidr_core.sids.tokens import SID_PATTERN, parse_sid

    items: dict[str, list[str]] = {}
    for item, sid in sids.items():
        items.setdefault(sid, []).append(item)
    levels = max((len(parse_sid(sid)) for sid in items), default=0)

    def named(match: Any) -> str:
        sid = match[0]
        if len(parse_sid(sid)) < levels:
            return sid
        carried = " / ".join(_title(item, titles) for item in items.get(sid, []))
        return f"{sid} ({carried or 'no item'})"

    return SID_PATTERN.sub(named, thought)


def _title(item: str, titles: Mapping[str, str]) -> str:
    title = printable(titles.get(item, "(unknown item)"))
    return title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1].rstrip() + "…"
