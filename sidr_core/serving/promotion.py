"""What is live of a dataset, and the decisions that change it: promote, and go back.

The stage `promotion` gives the verdict and changes nothing. These functions act on it, and write down every decision,
also one that changes nothing, with the verdict's numbers (`sidr_core/pipeline/live.py`).
"""

from __future__ import annotations

from typing import Any

from sidr_core.errors import InputError
from sidr_core.pipeline import live as alias
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.live import Entry, Live
from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.run import plan
from sidr_core.pipeline.status import differences, newest_published
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.tables import files as tables

STAGE = "promotion"
PROMOTED, FORCED, REJECTED, ROLLED_BACK = "promoted", "forced", "rejected", "rolled back"


class Rejected(InputError):
    """The gate does not let the candidate pass; the decision is in the log."""


def live(store: Store, dataset: str) -> Live | None:
    """What is live of a dataset: a snapshot, a list, and the fingerprints of the outputs behind it; None if nothing is.

    It changes by one atomic replacement of a file, so a server can ask as often as it likes. The outputs stay in the
    store while they are live and while they are what was live before: open them by
    `store.open(stage, live.outputs[stage])`.

    Raises:
        StoreError: the file that says it is damaged.
    """
    return alias.read(store.live_at, dataset).live


def promote(profile: Profile, store: Store, dataset: str, force: str | None = None) -> Entry:
    """Make the newest judged candidate live if the gate lets it pass, or, with `force`, a reason, in any case.

    Returns:
        The decision, as it stands in the log.

    Raises:
        Rejected: the gate does not let it pass; that is in the log too.
        InputError: the dataset has no gate; the verdict is not about what is published and live now; the candidate is
            live already.
        NotMaterialized: there is no verdict yet.
        StoreError: something else became live meanwhile.
    """
    gate = profile.dataset(dataset).promotion
    if gate is None:
        raise InputError(
            f"{dataset} has no gate",
            expected="a section `promotion` in the profile",
            found="none",
            fix="add `promotion: {}` to the dataset and materialize its asset `promotion`",
        )
    snapshot = newest_published(profile, store, dataset, STAGE, None)
    verdict = store.require(dataset, snapshot, STAGE)
    now = live(store, dataset)
    candidate = Live(dataset, snapshot, gate.model, _outputs(store, verdict))
    if candidate == now:
        raise InputError(
            f"{dataset}: the newest candidate is live already",
            expected="a candidate that is not",
            found=str(now),
            fix="build a new one, or go back with `sidr rollback`",
        )
    _check_current(profile, store, dataset, snapshot, verdict)
    passed = next(check["passed"] for check in verdict.manifest["checks"] if check["name"] == "not_worse")
    decision = (PROMOTED if passed else FORCED) if passed or force else REJECTED
    entry = _entry(decision, candidate, now, force) | _numbers(verdict)
    if decision == REJECTED:
        alias.decide(store.live_at, dataset, entry, now)
        raise Rejected(
            f"{dataset}: {candidate} does not go live",
            expected="every rule of the gate to hold",
            found=next(check["detail"] for check in verdict.manifest["checks"] if check["name"] == "not_worse"),
            fix=f'look at the table {dataset}.{STAGE}; to do it all the same: sidr promote --force "<why>"',
        )
    held = [store.open(stage, fp) for stage, fp in candidate.outputs.items()]
    if not all(artifact and artifact.hold() for artifact in held):  # held until the file names them
        raise InputError(
            f"{dataset}: outputs of the candidate are gone",
            expected="all that its lists were made from",
            found=f"{sum(artifact is None for artifact in held)} of {len(held)} missing",
            fix=f"materialize '{dataset}/*' of {snapshot} again",
        )
    return alias.decide(store.live_at, dataset, entry, now, (candidate, now))


def rollback(store: Store, dataset: str, reason: str) -> Entry:
    """Make live again what was live before. Afterwards nothing counts as before it: it is one step back, not more.

    Raises:
        InputError: nothing was live before.
        StoreError: something else became live meanwhile.
    """
    state = alias.read(store.live_at, dataset)
    if state.before is None:
        raise InputError(
            f"{dataset}: there is nothing to go back to",
            expected="something that was live before",
            found=f"live: {state.live or 'nothing'}",
            fix="promote another candidate",
        )
    entry = _entry(ROLLED_BACK, state.before, state.live, reason)
    return alias.decide(store.live_at, dataset, entry, state.live, (state.before, None))


def _outputs(store: Store, verdict: Artifact) -> dict[str, str]:
    """Stage -> fingerprint: the lists that a verdict is about, their evaluation, and all that they were made from."""
    made_from = verdict.manifest["lineage"]
    lists = store.open("recommendations", made_from["recommendations"])
    behind = lists.manifest["lineage"] if lists is not None else {}
    return dict(sorted((behind | {name: made_from[name] for name in ("recommendations", "evaluation")}).items()))


def _check_current(profile: Profile, store: Store, dataset: str, snapshot: str, verdict: Artifact) -> None:
    """Refuse a verdict that was about other outputs, other settings, or another champion."""
    stage = stage_named(STAGE)
    planned = plan(profile, dataset, snapshot, stage, store)
    if changes := differences(verdict.manifest, planned.key, stage.code_version):
        raise InputError(
            f"{dataset}: the verdict of {snapshot} is out of date",
            expected="a verdict on what is published and live now",
            found="; ".join(changes),
            fix=f"materialize {dataset}/{STAGE} of {snapshot} again",
        )


def _entry(decision: str, candidate: Live, now: Live | None, reason: str | None) -> dict[str, Any]:
    sides = {name: vars(side) if side else None for name, side in (("candidate", candidate), ("was_live", now))}
    return {"decision": decision, "reason": reason, **sides}


def _numbers(verdict: Artifact) -> dict[str, Any]:
    """The verdict's rows, and which output they are of."""
    rules = tables.read(verdict.path(f"{STAGE}.parquet"))
    return {"promotion": verdict.fingerprint, "rules": rules.to_dicts()}
