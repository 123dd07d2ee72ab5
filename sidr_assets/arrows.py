"""Which of its inputs a stage shows as arrows, so that a graph can be read: those that no longer way implies.

`sft_checkpoint` reads `interactions`, but also `synthetic_corpus`, which is made from them: one arrow is enough for the
order of a run. It is not enough for knowing what changed, since other interactions can give the same corpus. So
an output on such a way carries on what is read past it: its data version changes with theirs (:func:`data_version`).
The store knows nothing of this: a stage's inputs are resolved, and its output is reused, by all that it declares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidr_core.pipeline.stage import Stage
from sidr_core.settings import DatasetConfig


@dataclass(frozen=True)
class Arrows:
    """The arrows to one stage of one dataset, and what its output carries on.

    Attributes:
        inputs: stages that it reads of the same snapshot and that lead to none of the others.
        carries: stages above it that a stage below it reads without an arrow.
        place: its place in the order of the data. Steps of a run that have no arrow between them go in this order, so
            that `interactions` comes before `evaluation` also in a run of these two alone.
    """

    inputs: tuple[str, ...]
    carries: tuple[str, ...]
    place: int


def arrows_of(stages: Sequence[Stage], config: DatasetConfig) -> dict[str, Arrows]:
    """The arrows between the stages of a dataset with this config; inputs that it does not need have none.

    Args:
        stages: in the order in which data flows.
    """
    above: dict[str, set[str]] = {}
    direct: dict[str, tuple[str, ...]] = {}
    carries: dict[str, set[str]] = {stage.name: set() for stage in stages}
    for stage in stages:
        read = stage.reads(config)
        # An input above another one is implied.
        inputs = tuple(name for name in read if not any(name in above.get(other, ()) for other in read))
        direct[stage.name] = inputs
        above[stage.name] = set(inputs).union(*(above.get(name, ()) for name in inputs))
        for name in above[stage.name] & carries.keys():
            carries[name] |= (read.keys() - set(inputs)) & above[name]
    order = [stage.name for stage in stages]
    return {
        name: Arrows(direct[name], tuple(other for other in order if other in carries[name]), place)
        for place, name in enumerate(order)
    }


def data_version(digest: str, carried: Mapping[str, str]) -> str:
    """What tells Dagster that an output changed for those below it.

    Args:
        digest: of the output's own files.
        carried: stage -> digest of its current output, for the stages that :class:`Arrows` says.

    Returns:
        `digest` itself where nothing is carried on.
    """
    if not carried:
        return digest
    return hashlib.sha256(json.dumps([digest, carried], sort_keys=True).encode()).hexdigest()
