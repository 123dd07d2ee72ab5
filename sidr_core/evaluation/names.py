"""What the names of lists mean: `<model>/<mode>`, and which stages make them. Light, since the graph asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidr_core.columns import ADAPTIVE, MIXED
from sidr_core.settings.evaluation import NEURAL

if TYPE_CHECKING:
    from sidr_core.settings import DatasetConfig

#: Baselines whose lists need more than their own table.
_ALSO_NEED = {"item_item": ("baseline_popularity",)}


def split_name(name: str) -> tuple[str, str]:
    """Model and mode of `<model>/<mode>`."""
    model, _, mode = name.partition("/")
    return model, mode


def trained(model: str) -> str | None:
    """The training stage whose checkpoint makes a model's lists; None for a baseline.

    >>> trained("grpo"), trained("grpo_adaptive"), trained("sasrec")
    ('grpo', 'grpo', None)
    """
    name = model.removesuffix(f"_{ADAPTIVE}").removesuffix(f"_{MIXED}")
    return name if name in NEURAL else None


def makers(model: str) -> tuple[str, ...]:
    """The stages whose output makes a model's lists; the first is the model itself.

    >>> makers("grpo_adaptive"), makers("sasrec"), makers("item_item")
    (('grpo_checkpoint',), ('baseline_sasrec',), ('baseline_item_item', 'baseline_popularity'))
    """
    if stage := trained(model):
        return (f"{stage}_checkpoint", *(makers("item_item") if model.endswith(f"_{MIXED}") else ()))
    return (f"baseline_{model}", *_ALSO_NEED.get(model, ()))


def unused_makers(config: DatasetConfig) -> set[str]:
    """Checkpoints and baselines that no model of `decoding.models` needs: they need not be built."""
    from sidr_core.graph import stage_named

    inputs = stage_named("recommendations").inputs
    everything = {name for name in inputs if name.endswith("_checkpoint") or name.startswith("baseline_")}
    return everything - {stage for name in config.decoding.models for stage in makers(split_name(name)[0])}
