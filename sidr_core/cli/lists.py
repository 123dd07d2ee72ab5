"""`sidr recommend` and `sidr explain`: lists for people, with titles in place of ids."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from sidr_core.errors import SidrError
from sidr_core.evaluation import cases
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.status import newest_published, open_store
from sidr_core.settings import DatasetConfig
from sidr_core.tables import files as tables
from sidr_core.tables.columns import (
    DIRECT,
    HISTORY,
    ITEM_ID,
    MODE,
    MODEL,
    POSITION,
    RANK,
    REASONING,
    ROW_ID,
    SID,
    TARGET,
    THINKING,
    TITLE,
    USER_ID,
)

if TYPE_CHECKING:
    from sidr_core.pipeline.store import Artifact, Store


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

    def titles(self) -> cases.ItemTitles:
        """Titles and SIDs of the snapshot's items."""
        items = tables.read(self.file("interactions", "items.parquet"), [ITEM_ID, TITLE])
        coded = tables.read(self.file("sid_codebook", "sid_codebook.parquet"), [ITEM_ID, SID])
        return cases.ItemTitles(dict(items.iter_rows()), dict(coded.iter_rows()))

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
            fix="for example: sidr recommend --history ITEM,ITEM",
        )
    if mode not in (DIRECT, THINKING):
        raise SidrError(
            f"unknown mode {mode!r}", expected=f"{THINKING} or {DIRECT}", found=repr(mode), fix="name one of these"
        )
    published = _Published.of(dataset, snapshot, "grpo_checkpoint")
    sids = published.titles().sids
    named = [item.strip() for item in (history or "").split(",") if item.strip()]
    items = _history_of(published, user) if user is not None else _known(named, sids, published)
    items = items[-published.config.split.max_history :]

    from sidr_core.models import checkpoint
    from sidr_core.recommending.lists import neural

    loaded = checkpoint.load(published.artifact("grpo_checkpoint").verified_folder())
    decoding = published.config.decoding
    decoding = decoding.model_copy(update={"beam_width": max(k, min(decoding.beam_width, len(loaded.index)))})
    lists = neural(loaded, ["row"], [[sids[item] for item in items]], mode, decoding)
    thought = lists.thoughts.row(0, named=True) if lists.thoughts is not None else None
    who = f"user {user}" if user is not None else "the history given"
    case = cases.Case(
        published.heading("grpo_checkpoint", f"grpo/{mode} for {who}"),
        items,
        lists.rankings.head(k),
        thought=None if thought is None else thought[REASONING],
        unclosed=thought is not None and not thought["closed"],
    )
    cases.show(case, published.titles())


def explain(dataset: str | None, snapshot: str | None, user: str, row: str | None, model: str, k: int) -> None:
    """Print a published list with its history, its thought, the truth, and where every model put it."""
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
    found = dict(lists.filter(pl.col(ITEM_ID) == sample[TARGET]).select("name", RANK).iter_rows())
    lengths = lists.group_by("name", maintain_order=True).len().iter_rows()
    thoughts = tables.read(published.file("recommendations", "thoughts.parquet"))
    ended = thoughts.filter((pl.col(ROW_ID) == row) & (pl.col(MODEL) == model.partition("/")[0]))
    thought = places[REASONING][0]
    case = cases.Case(
        published.heading("recommendations", f"{model} for user {user}, row {row}"),
        sample[HISTORY],
        places.head(k),
        thought=thought,
        unclosed=thought is not None and not ended["closed"][0],
        target=sample[TARGET],
        ranks={name: str(found.get(name, f"not among {length}")) for name, length in lengths},
    )
    cases.show(case, published.titles())


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
        fix=f"did you mean {' or '.join(near)}?" if near else f"name a {kind} that is there",
    )
