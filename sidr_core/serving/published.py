"""The outputs of one published snapshot, as the commands read them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sidr_core.errors import SidrError
from sidr_core.evaluation import cases
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import Profile, load_profile
from sidr_core.pipeline.status import newest_published, staleness
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.settings import DatasetConfig
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, SID, TITLE


@dataclass(frozen=True)
class Published:
    """The published outputs of a dataset's snapshot."""

    store: Store
    config: DatasetConfig
    dataset: str
    snapshot: str

    @classmethod
    def of(cls, dataset: str | None, snapshot: str | None, stage: str) -> Published:
        """The given snapshot, or the newest one for which `stage` is published."""
        profile = load_profile()
        store = open_store(profile)
        dataset = dataset or profile.default_dataset
        key = newest_published(profile, store, dataset, stage, snapshot)
        tell_if_stale(profile, store, dataset, key, stage)
        return cls(store, profile.dataset(dataset), dataset, key)

    def at_or_before(self, stage: str) -> Published:
        """The newest snapshot up to this one for which `stage` is published; this one's error where there is none."""
        for key in (self.snapshot, *self.config.snapshots.before(self.snapshot)):
            if self.store.find(self.dataset, key, stage) is not None:
                return replace(self, snapshot=key)
        self.artifact(stage)
        raise AssertionError("unreachable: require raises")

    def artifact(self, stage: str) -> Artifact:
        return self.store.require(self.dataset, self.snapshot, stage)

    def file(self, stage: str, name: str) -> Path:
        return self.artifact(stage).path(name)

    def titles(self) -> cases.ItemTitles:
        """Titles and SIDs of the snapshot's items."""
        items = tables.read(self.file("interactions", "items.parquet"), [ITEM_ID, TITLE])
        codebook = tables.read(self.file("sid_codebook", "sid_codebook.parquet"), [ITEM_ID, SID])
        return cases.ItemTitles(dict(items.iter_rows()), dict(codebook.iter_rows()))

    def heading(self, stage: str, what: str) -> str:
        synthetic = " (synthetic sample data)" if self.artifact(stage).synthetic else ""
        return f"{self.dataset}, snapshot {self.snapshot}{synthetic}: {what}"


def tell_if_stale(profile: Profile, store: Store, dataset: str, snapshot: str, stage: str) -> None:
    """Say on standard error that an output is not what the profile would make now, and why."""
    if why := staleness(profile, store, dataset, snapshot, stage):
        print(
            f"note: {dataset}/{stage} of {snapshot} is not what profile {profile.name} would make now: {why}; "
            "`sidr status` says all",
            file=sys.stderr,
        )


def unknown_name(kind: str, name: str, known: Sequence[str], where: str) -> SidrError:
    """The error for a name that does not exist; it suggests the nearest known ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = [f'"{other}"' if "," in other else other for other in near]  # as `--history` takes it
    return SidrError(
        f"there is no {kind} {name!r} in {where}",
        expected=f"one of {len(known):,}" + (f", such as {', '.join(sorted(known)[:3])}" if known else ""),
        found=repr(name),
        fix=f"did you mean {' or '.join(near)}?" if near else f"use the name of an existing {kind}",
    )
