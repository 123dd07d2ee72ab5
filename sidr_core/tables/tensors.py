"""Reads safetensors files: the one way to tensors that were published or kept. The format can run no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from sidr_core.errors import StoreError


def read_tensors(path: Path, kind: Literal["np", "pt"]) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors by name, and the notes in the file's header.

    Args:
        kind: numpy arrays, or tensors of torch.

    Raises:
        StoreError: the file is absent, damaged, or of another format. A header that promises more than the file
            holds is one of these: no memory is allocated for what is not there.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, kind) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise unreadable(path, str(error)) from None


def unreadable(path: Path, problem: str) -> StoreError:
    """The error for a file of tensors that is not what its reader needs."""
    return StoreError(
        f"the tensors in {path} cannot be read",
        expected="a complete safetensors file, as this project writes them",
        found=problem.strip().splitlines()[0][:200] if problem.strip() else "no content",
        fix="materialize the asset that this file belongs to again; a training starts anew once the file is removed",
    )
