"""What a base model is made from, without loading it: for fingerprints, model cards and provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidr_core.models.packaged import packaged
from sidr_core.settings import BaseModelConfig, PackagedModel, PretrainedModel

_READ = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def files(base_model: BaseModelConfig) -> dict[str, Path]:
    """The external files of a base model: those of a local folder, or the one of a package; none for a hub id.

    Raises:
        InputError: the package is not installed.
    """
    if isinstance(base_model, PackagedModel):
        return {"model": packaged(base_model.name).source()}
    if isinstance(base_model, PretrainedModel) and base_model.local:
        folder = Path(base_model.name).expanduser()
        return {path.name: path for pattern in _READ for path in sorted(folder.glob(pattern))}
    return {}


def described(base_model: BaseModelConfig) -> dict[str, Any]:
    """A base model as JSON, for a model card: of a local folder only its last name, never where it lies."""
    fields = base_model.model_dump(mode="json")
    if isinstance(base_model, PretrainedModel) and base_model.local:
        fields["name"] = Path(base_model.name).resolve().name
    return fields
