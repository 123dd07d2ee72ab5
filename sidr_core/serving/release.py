"""What is served: one published `recommendations`, and exactly the outputs that it was made from.

Everything follows from the fingerprint of `recommendations`: its manifest names the checkpoint, the interactions, the
codebook and the counter that its lists rest on, the settings of decoding, and the parts in which weights were chosen.
So a release never mixes outputs of two materializations, whatever is being materialized meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidr_core.errors import NotMaterialized, SidrError
from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.status import newest_published
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.recommending.mixture import RANKERS, SHORTCUT
from sidr_core.recommending.rows import lists_repeat
from sidr_core.serving import promotion
from sidr_core.settings import Decoding
from sidr_core.settings.models import LANGUAGE_MODELS, list_names, split_name
from sidr_core.tables.columns import DIRECT, MERGED, MIXED, THINKING

LISTS = "recommendations"


@dataclass(frozen=True)
class Place:
    """Where a release lies: the snapshot, and the fingerprint of its `recommendations`."""

    dataset: str
    snapshot: str
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Release:
    """A published state of a dataset; its outputs are held, so that they are not deleted while it lives.

    Attributes:
        place: where it lies.
        lists: the output of `recommendations`.
        outputs: stage -> what the lists were made from.
        model: the language model that is served.
        names: mode (direct, thinking, merged, mixed) -> `<model>/<mode>` of its lists.
        choices: `<model>/<mode>` -> what was chosen on valid rows for it.
    """

    place: Place
    lists: Artifact
    outputs: Mapping[str, Artifact]
    model: str
    names: Mapping[str, str]
    choices: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def checkpoint(self) -> Artifact:
        return self.outputs[f"{self.model}_checkpoint"]

    @property
    def repeats(self) -> bool:
        """Whether the lists may hold items of the history (`decoding.seen`)."""
        return lists_repeat(self.outputs, self.decoding)

    @property
    def decoding(self) -> Decoding:
        """The settings with which the lists were made."""
        return _decoding(self.lists)


def to_serve(profile: Profile, store: Store, dataset: str) -> Place:
    """What is live (`sidr promote`); where nothing ever was, the newest lists.

    Raises:
        NotMaterialized: there are none.
        StoreError: they, or the file that says what is live, are damaged.
    """
    chosen = promotion.live(store, dataset)
    if chosen is None:
        return newest(profile, store, dataset)
    return Place(dataset, chosen.snapshot, chosen.outputs[LISTS])


def newest(profile: Profile, store: Store, dataset: str, snapshot: str | None = None) -> Place:
    """The given snapshot's lists, or those of the newest snapshot that has some.

    Raises:
        NotMaterialized: there are none.
        StoreError: the newest ones are damaged.
    """
    key = newest_published(profile, store, dataset, LISTS, snapshot)
    return Place(dataset, key, store.require(dataset, key, LISTS).fingerprint)


def opened(store: Store, place: Place, model: str | None = None) -> Release:
    """Open the outputs behind lists.

    Args:
        model: a language model of the lists; default: the one that is trained last.

    Raises:
        NotMaterialized: an output that the lists were made from is there no more.
        SidrError: the lists are of no language model, or not of `model`.
    """
    lists = _held(store, LISTS, place.fingerprint, place)
    lineage = lists.manifest.get("lineage", {})
    decoding = _decoding(lists)
    names, choices = decoding.models, _choices(store, lists, place)
    trained = [name for name in LANGUAGE_MODELS if any(split_name(one)[0] == name for one in names)]
    if not trained or (model is not None and model not in trained):
        raise SidrError(
            f"{place.dataset} has no lists of {model or 'a language model'} to serve",
            expected=f"one of {', '.join(trained)}" if trained else "a checkpoint's lists in decoding.models",
            found=model or ", ".join(names),
            fix="name a model that has lists" if trained else f"add one of {', '.join(list_names()[:3])}",
        )
    chosen = model or trained[-1]
    wanted = ["interactions", "sid_codebook", f"{chosen}_checkpoint"]
    served = {DIRECT: f"{chosen}/{DIRECT}"} | {
        mode: name
        for mode, name in (
            (THINKING, f"{chosen}/{THINKING}"),
            (MERGED, f"{chosen}/{MERGED}"),
            (MIXED, f"{chosen}_{MIXED}/{DIRECT}"),
        )
        # Once the weights of a mixture were written in words alone, which cannot be served.
        if name in names and (mode != MIXED or isinstance(choices[name]["weights"], Mapping))
    }
    if MIXED in served:
        wanted += [f"baseline_{name}" for name in RANKERS]
    elif decoding.seen == "choose":
        wanted.append(f"baseline_{SHORTCUT}")
    outputs = {stage: _held(store, stage, lineage[stage], place) for stage in wanted}
    return Release(place, lists, outputs, chosen, served, choices)


def _decoding(lists: Artifact) -> Decoding:
    return Decoding(**lists.manifest["key"]["config"]["decoding"])


def _choices(store: Store, lists: Artifact, place: Place) -> dict[str, Mapping[str, Any]]:
    """What was chosen on valid rows, by the name of the list."""
    choices = {}
    for stage, fingerprint in lists.manifest.get("parts", ()):
        part = _held(store, stage, fingerprint, place)
        if "choice.json" in part.files:
            choices[part.manifest["key"]["name"]] = json.loads(part.path("choice.json").read_text())
    return choices


def _held(store: Store, stage: str, fingerprint: str, place: Place) -> Artifact:
    artifact = store.held(stage, fingerprint)
    if artifact is None:
        raise NotMaterialized(
            f"the lists of {place.dataset}, snapshot {place.snapshot}, were made from a {stage} that is not there",
            expected=f"the output {fingerprint} of {stage}",
            found="nothing, or a damaged manifest",
            fix=f"materialize {place.dataset}/{stage} and all below it again, or name another snapshot",
        )
    return artifact
